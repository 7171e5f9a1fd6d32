"""The stages of a fit without tuning, one after the other as long as the caller asks for more.

deterministic mean field -> N(loc, linear response) -> a flow in its coordinates
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from minisvi.auto.stochastic import stochastic
from minisvi.auto.verdict import HIGH_ESS, MAX_SPACING, Verdict
from minisvi.guides.base import Guide
from minisvi.guides.flow import affine_coupling
from minisvi.guides.flow_layers import mlp
from minisvi.guides.gaussian import full_rank, mean_field
from minisvi.guides.low_rank import low_rank
from minisvi.guides.whitened import whitened
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.posterior.diagnostics import Optima
from minisvi.running import checkpoint
from minisvi.running.progress import StageDisplay
from minisvi.second_order.deterministic import Deterministic, Fixed, deterministic
from minisvi.second_order.response import linear_response
from minisvi.tools.interrupts import interrupted

MAX_DENSE = 2000  # latents, for a D x D covariance: docs/did_it_work.md says what it takes
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
    """Name, guide, parameters and deterministic fit of each stage, which is judged, in `verdicts`,
    before the next.
    """
    rows_key, key, last_key = jax.random.split(key, 3)
    det = _from_several_starts(key, rows_key, model, data, settings)
    loc, cov = _gaussian(det)
    yield *_first(det, loc, cov), det
    if _no_other_helps(verdicts[-1]):
        return
    if det.optimism > MAX_OPTIMISM:
        det = _again("mean field on more draws", key, model, data, settings, det, 4 * NUM_DRAWS)
        loc, cov = _gaussian(det)
        name, *first = _first(det, loc, cov)
        yield f"{name}, {len(det.fixed.eps)} draws", *first, det
        if _no_other_helps(verdicts[-1]):
            return
    if verdicts[-1].elbo < det.elbo:
        variances = np.exp(2 * np.asarray(det.params["log_scale"]))
        cov = (
            variances if cov.ndim == 1 else np.diag(variances)
        )  # of one shape, which is compiled once
    name, guide = _last(model, trees.spec(model.latents).shape[0], settings.batch_size)
    settings.display.begin(name)
    params = _init(guide, last_key, loc, cov)
    options = {
        name: getattr(settings, name)
        for name in ("batch_size", "deadline", "checkpoint_dir", "checkpoint_every")
    }
    for state in stochastic(last_key, model, guide, *data, params=params, **options):
        yield f"{name}, {state.step} steps", guide, state.params, det
        verdict = verdicts[-1]
        if _no_other_helps(verdict) and verdict.log_evidence - verdict.elbo < MAX_KL:
            return
        settings.display.begin(name)


def _no_other_helps(verdict: Verdict) -> bool:
    """Whether a better guide would be no use: it is good; or the weights are nearly equal, so that
    what is missing is missing in theta's moments themselves; or the density is rounding.
    """
    nearly_equal = verdict.of_weights == "good" and verdict.ess >= HIGH_ESS
    return verdict.level == "good" or nearly_equal or verdict.spacing > MAX_SPACING


def _from_several_starts(
    key: Array, rows_key: Array, model: Model, data: Any, settings: Settings
) -> Deterministic:
    """The best of several starts. With a `batch_size` they descend on some of the rows, which cost
    less, and the best goes on with all of them: no posterior of some rows is near enough to that of
    all for its weights to be good.
    """
    rows, weight = data, None
    if settings.batch_size is not None:
        rows, weight = _some_rows(rows_key, data, _ROWS_PER_BATCH_ROW * settings.batch_size)
    settings.display.begin("mean field from several starts")
    size = trees.spec(model.latents).shape[0]
    options = {
        "start": settings.start,
        "weight": weight,
        "num_restarts": 8 if size <= MAX_EIGHT_STARTS else 4,
        # Few latents are worth less time than the compilation of a second program takes.
        "restart_draws": NUM_DRAWS if size <= MAX_ONE_PROGRAM else 8,
        "num_draws": NUM_DRAWS,
    }
    det = _remembered("mean field", key, model, rows, settings, options)
    if weight is None or interrupted():
        return det
    return _again("mean field on all rows", key, model, data, settings, det, NUM_DRAWS)


def _again(
    name: str,
    key: Array,
    model: Model,
    data: Any,
    settings: Settings,
    det: Deterministic,
    num_draws: int,
) -> Deterministic:
    """From where `det` ended, on all rows and so many draws; with its optima, which are all
    starts'.
    """
    settings.display.begin(name)
    start = trees.unravel(model.latents, np.asarray(det.params["loc"]))
    options = {
        "start": start,
        "num_restarts": 1,
        "num_draws": num_draws,
        "restart_draws": num_draws,
    }
    return _remembered(name, key, model, data, settings, options)._replace(optima=det.optima)


def _remembered(
    name: str, key: Array, model: Model, rows: Any, settings: Settings, options: dict[str, Any]
) -> Deterministic:
    """The deterministic fit, or what the checkpoints have of it. What the budget cut short is not
    kept.
    """
    options = {"max_draws": options["num_draws"], "deadline": settings.deadline} | options
    if settings.checkpoint_dir is None:
        return deterministic(key, model, *rows, **options)

    def arrays() -> Any:
        det = deterministic(key, model, *rows, **options)
        return det[2:3] + (det.fixed.eps,) + det[4:]

    like = {"loc": 0, "log_scale": 0}, 0, 0, 0, 0, 0, Optima(*6 * [0])  # type: ignore[arg-type]
    params, eps, *rest = checkpoint.remembered(
        settings.checkpoint_dir / name, arrays, like, settings.deadline
    )
    fixed = Fixed(eps, rows, options.get("weight"))
    return Deterministic(model, mean_field(model.latents), params, fixed, *rest)


@partial(jax.jit, static_argnames="guide")
def _init(guide: Any, key: Array, loc: Any, cov: np.ndarray) -> Any:
    return guide.init(key, loc=loc, cov=cov)


def _gaussian(det: Deterministic) -> tuple[Any, np.ndarray]:
    """The mean field's loc, as a tree, and the linear response; or its variances, where that is too
    large or absurd.
    """
    loc, log_scale = np.asarray(det.params["loc"]), np.asarray(det.params["log_scale"])
    with np.errstate(over="ignore"):  # of a fit that runs away
        cov = variances = np.exp(2 * log_scale)
    if loc.size <= MAX_DENSE and not interrupted():
        response = np.asarray(linear_response(det))
        # In a Gaussian no variance is smaller than the mean field's. NaN compares as False.
        cov = response if np.all(np.diagonal(response) > 0.8 * variances) else variances
    return trees.unravel(det.model.latents, loc), cov


def _first(det: Deterministic, loc: Any, cov: np.ndarray) -> tuple[str, Guide, Any]:
    if cov.ndim == 1:
        return "mean field", det.guide, det.params
    guide = full_rank(det.model.latents)
    return (
        "linear response",
        guide,
        _init(guide, jax.random.key(0), loc, cov),
    )  # the key is not used


def _last(model: Model, size: int, batch_size: int | None) -> tuple[str, Guide]:
    if size > MAX_DENSE:
        return "low rank", whitened(low_rank(model.latents, RANK, 1.0), diagonal=True)
    if batch_size is not None:
        return "full rank by minibatches", whitened(full_rank(model.latents, 1.0))
    width = (
        32 if size <= 32 else 64
    )  # the narrower one fits small posteriors as well, in half the time
    return "flow", whitened(
        affine_coupling(mean_field(model.latents, 1.0), network=mlp(width, width))
    )


def _some_rows(key: Array, data: Any, num_rows: int) -> tuple[Any, float | None]:
    total = jax.tree.leaves(data)[0].shape[0]
    if num_rows >= total:
        return data, None
    rows = jax.random.choice(key, total, (num_rows,), replace=False)
    return jax.tree.map(lambda leaf: leaf[rows], data), total / num_rows
