"""The stages of a fit without tuning, one after the other as long as the caller asks for more.

deterministic mean field -> N(loc, linear response) -> a flow in its coordinates
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from minisvi import checkpoint, trees
from minisvi.deterministic import Deterministic, Fixed, Optima, deterministic
from minisvi.guides import Guide, affine_coupling, full_rank, low_rank, mean_field, whitened
from minisvi.guides.flow_layers import mlp
from minisvi.model import Model
from minisvi.progress import StageDisplay
from minisvi.response import linear_response
from minisvi.stochastic import stochastic
from minisvi.verdict import Verdict

MAX_DENSE = 2000  # latents, for a D x D covariance: the README says what it takes
RANK = 10
NUM_DRAWS, MAX_OPTIMISM = 32, 1.0
MAX_KL = 0.01  # nats, of a flow that needs no more steps
MAX_ONE_PROGRAM, MAX_EIGHT_STARTS = 16, 64  # latents
_ROWS_PER_BATCH_ROW = 16  # of the deterministic fit on some of the rows


@dataclass(frozen=True)
class Settings:
    """What a fit is asked for besides its model and data."""

    batch_size: int | None
    start: Any
    deadline: float
    checkpoint_dir: Path | None
    checkpoint_every: float
    display: StageDisplay


def cascade(
    key: Array, model: Model, data: Any, settings: Settings, verdicts: list[Verdict]
) -> Iterator[tuple[str, Guide, Any, Deterministic]]:
    """Name, guide, parameters and deterministic fit of each stage, which is judged, in `verdicts`, before the next."""
    rows_key, key, last_key = jax.random.split(key, 3)
    rows, scale = data, None
    if settings.batch_size is not None:
        rows, scale = _some_rows(rows_key, data, _ROWS_PER_BATCH_ROW * settings.batch_size)
    options: dict[str, Any] = {"scale": scale, "deadline": settings.deadline, "max_optimism": MAX_OPTIMISM}
    settings.display.begin("mean field from several starts")
    # Few latents are worth less time than the compilation of a second program takes.
    size = trees.spec(model.latents).shape[0]
    restart_draws = NUM_DRAWS if size <= MAX_ONE_PROGRAM else 8
    num_restarts = 8 if size <= MAX_EIGHT_STARTS else 4
    options |= {"num_restarts": num_restarts, "restart_draws": restart_draws, "max_draws": NUM_DRAWS}
    fitted = partial(_remembered, settings, model, rows, scale)
    det = fitted("mean field", lambda: deterministic(key, model, *rows, start=settings.start, **options))
    loc, cov = _gaussian(det)
    yield *_first(det, loc, cov), det
    if verdicts[-1].level == "good":
        return
    if det.optimism > MAX_OPTIMISM:
        settings.display.begin("mean field on more draws")
        options |= {"num_restarts": 1, "num_draws": 4 * NUM_DRAWS, "restart_draws": 4 * NUM_DRAWS}
        more = fitted("mean field on more draws", lambda: deterministic(key, model, *rows, start=loc, **options))
        det = more._replace(optima=det.optima)
        loc, cov = _gaussian(det)
        name, *first = _first(det, loc, cov)
        yield f"{name}, {len(det.fixed.eps)} draws", *first, det
        if verdicts[-1].level == "good":
            return
    if verdicts[-1].elbo < det.elbo:
        variances = np.exp(2 * np.asarray(det.params["log_scale"]))
        cov = variances if cov.ndim == 1 else np.diag(variances)  # of one shape, which is compiled once
    name, guide = _last(model, size, settings.batch_size)
    settings.display.begin(name)
    params = _init(guide, last_key, loc, cov)
    options = {
        name: getattr(settings, name) for name in ("batch_size", "deadline", "checkpoint_dir", "checkpoint_every")
    }
    for state in stochastic(last_key, model, guide, *data, params=params, **options):
        yield f"{name}, {state.step} steps", guide, state.params, det
        verdict = verdicts[-1]
        if verdict.level == "good" and verdict.log_evidence - verdict.elbo < MAX_KL:
            return
        settings.display.begin(name)


def _remembered(
    settings: Settings, model: Model, rows: Any, scale: Any, name: str, compute: Callable[[], Deterministic]
) -> Deterministic:
    """compute(), or what the checkpoints have of it. What the budget cut short is not kept."""
    if settings.checkpoint_dir is None:
        return compute()

    def arrays() -> Any:
        det = compute()
        return det[2:3] + (det.fixed.eps,) + det[4:]

    like = {"loc": 0, "log_scale": 0}, 0, 0, 0, 0, 0, Optima(*6 * [0])  # type: ignore[arg-type]
    params, eps, *rest = checkpoint.remembered(settings.checkpoint_dir / name, arrays, like, settings.deadline)
    return Deterministic(model, mean_field(model.latents), params, Fixed(eps, rows, scale), *rest)


@partial(jax.jit, static_argnames="guide")
def _init(guide: Any, key: Array, loc: Any, cov: np.ndarray) -> Any:
    return guide.init(key, loc=loc, cov=cov)


def _gaussian(det: Deterministic) -> tuple[Any, np.ndarray]:
    """The mean field's loc, as a tree, and the linear response; or its variances, where that is too large or absurd."""
    loc, log_scale = np.asarray(det.params["loc"]), np.asarray(det.params["log_scale"])
    with np.errstate(over="ignore"):  # of a fit that runs away
        cov = variances = np.exp(2 * log_scale)
    if loc.size <= MAX_DENSE:
        response = np.asarray(linear_response(det))
        # In a Gaussian no variance is smaller than the mean field's. NaN compares as False.
        cov = response if np.all(np.diagonal(response) > 0.8 * variances) else variances
    return trees.unravel(det.model.latents, loc), cov


def _first(det: Deterministic, loc: Any, cov: np.ndarray) -> tuple[str, Guide, Any]:
    if cov.ndim == 1:
        return "mean field", det.guide, det.params
    guide = full_rank(det.model.latents)
    return "linear response", guide, _init(guide, jax.random.key(0), loc, cov)  # the key is not used


def _last(model: Model, size: int, batch_size: int | None) -> tuple[str, Guide]:
    if size > MAX_DENSE:
        return "low rank", whitened(low_rank(model.latents, RANK, 1.0), diagonal=True)
    if batch_size is not None:
        return "full rank by minibatches", whitened(full_rank(model.latents, 1.0))
    width = 32 if size <= 32 else 64  # the narrower one fits small posteriors as well, in half the time
    return "flow", whitened(affine_coupling(mean_field(model.latents, 1.0), network=mlp(width, width)))


def _some_rows(key: Array, data: Any, num_rows: int) -> tuple[Any, float | None]:
    total = jax.tree.leaves(data)[0].shape[0]
    if num_rows >= total:
        return data, None
    rows = jax.random.choice(key, total, (num_rows,), replace=False)
    return jax.tree.map(lambda leaf: leaf[rows], data), total / num_rows
