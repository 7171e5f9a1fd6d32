"""Without tuning: a cascade of fits, each judged by its importance weights, until one is good.

deterministic mean field -> N(loc, linear response) -> a flow in its coordinates
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from minisvi import checks, trees
from minisvi.deterministic import Deterministic, deterministic
from minisvi.draws import Draws, plain
from minisvi.export import to_arviz
from minisvi.guides import Guide, affine_coupling, full_rank, low_rank, mean_field, whitened
from minisvi.guides.flow_layers import mlp
from minisvi.model import Model
from minisvi.posterior import Posterior
from minisvi.progress import StageDisplay
from minisvi.response import linear_response
from minisvi.stochastic import stochastic
from minisvi.verdict import Judged, Verdict, judge

MAX_DENSE = 2000  # latents, for a D x D covariance: the README says what it takes
RANK = 10
NUM_DRAWS, MAX_OPTIMISM = 32, 1.0
MAX_KL = 0.01  # nats, of a flow that needs no more steps
MAX_ONE_PROGRAM, MAX_EIGHT_STARTS = 16, 64  # latents
_ROWS_PER_BATCH_ROW = 16  # of the deterministic fit on some of the rows
_ORDER = ("not trusted", "bulk good, tails unverified", "good")


class Stage(NamedTuple):
    """One stage of the cascade: a fitted guide, and what was judged of it. `seconds` are those of both."""

    name: str
    guide: Guide
    params: Any
    judged: Judged
    seconds: float


@dataclass(frozen=True)
class Fit:
    """What `fit` comes to. Its figures are those of the best stage, by level and then by ESS.

    - `draws`: theta with importance weights (`mean`, `sd`, `quantiles`, `resample`, `predictive`).
    - `verdict`: whether to trust them; print it. `log_evidence` and `elbo`, in nats, are among its figures.
    - `guide`, `params`: q itself, without weights; `posterior` has it with the data.
    - `stages`: all that were tried; `deterministic`: the first fit, with its restarts and whether it converged, which
      is the optimiser's business and says nothing of q.
    """

    model: Model
    data: tuple[Any, ...]
    stages: tuple[Stage, ...]
    deterministic: Deterministic

    @property
    def best(self) -> Stage:
        return max(self.stages, key=lambda s: (_ORDER.index(s.judged.verdict.level), s.judged.verdict.ess))

    @property
    def guide(self) -> Guide:
        return self.best.guide

    @property
    def params(self) -> Any:
        return self.best.params

    @property
    def verdict(self) -> Verdict:
        return self.best.judged.verdict

    @property
    def draws(self) -> Draws:
        return self.best.judged.draws

    @property
    def posterior(self) -> Posterior:
        return Posterior(self.model, self.guide, self.params, self.data)

    def to_arviz(self, key: Array, num_samples: int = 2000) -> Any:
        """`minisvi.to_arviz` of draws resampled by their weights, which `sample_stats["log_weight"]` keeps."""
        weighted = Draws((self.draws.theta, self.draws.log_weights), self.draws.log_weights)
        theta, log_weights = weighted.resample(key, num_samples).theta
        return to_arviz(plain(theta), self.model, *self.data, log_weights=log_weights)

    def __str__(self) -> str:
        lines = [f"{s.name:28} {s.seconds:6.1f} s  {s.judged.verdict.level}" for s in self.stages]
        return "\n".join([*lines, str(self.verdict)])


def fit(
    key: Array,
    model: Model,
    *data: Any,
    batch_size: int | None = None,
    start: Any = None,
    num_draws: int = 20_000,
    seconds: float = np.inf,
    progress_bar: bool = True,
) -> Fit:
    """Posterior draws, the log evidence and a verdict, from a model and nothing else.

    Each stage starts from the last one's result and ends in `judge`; the first that is good is the last.

    1. The deterministic mean field, from eight starts, or four for more than 64 latents; its linear response C; and
       q = N(loc, C).
    2. Where its fixed draws promised more than a nat too much: the same on four times as many.
    3. A flow (eight affine couplings) in the coordinates of that Gaussian, or of the mean field if its ELBO is higher,
       by sticking the landing: 2,000 steps; and 6,000 more unless it is good and within 0.01 nats of the evidence, for
       a flow has no tails yet to judge it by where it has just left its Gaussian.

    For more than 2,000 latents C is too large: stage 1 is the mean field, and stage 3 a low-rank Gaussian in its
    coordinates. With a `batch_size` stage 1 sees as many rows as a step of it can afford, and stage 3 a Gaussian of any
    covariance, on minibatches; all stages are judged on all rows.

    **Arguments**

    - `start`: a tree u for the first of the starts.
    - `num_draws`: of q, for the weights; up to four times as many where only their error is in the way.
    - `seconds`: a budget, looked at between stages and inside them between blocks of steps. What is there when it is
      spent is judged, and returned.

    Equal models and shapes are compiled once; equal keys give equal fits, unless the budget ends them.
    """
    judge_key, key = jax.random.split(checks.prng_key(key))
    begin = time.monotonic()
    deadline = begin + seconds
    stages: list[Stage] = []
    with StageDisplay(progress_bar) as display:
        for name, guide, params, det in _cascade(key, model, data, batch_size, start, deadline, stages, display):
            display.begin(f"judging {name}")
            args = judge_key, model, guide, params, *data
            judged = judge(*args, num_draws=num_draws, optima=det.optima, optimism=det.optimism)
            if runaway := _runaway(model, det):
                judged = judged._replace(verdict=replace(judged.verdict, level="not trusted", reason=runaway))
            stages.append(Stage(name, guide, params, judged, time.monotonic() - begin))
            display.end(f"{name}: {judged.verdict.level}, {judged.verdict.reason}")
            begin = time.monotonic()
            if begin > deadline:
                break
    return Fit(model, data, tuple(stages), det)


def _cascade(
    key: Array, model: Model, data: Any, batch_size: int | None, start: Any, deadline: float, stages: list[Stage],
    display: StageDisplay,
) -> Iterator[tuple[str, Guide, Any, Deterministic]]:  # fmt: skip
    """Name, guide, parameters and deterministic fit of each stage, which is judged, in `stages`, before the next."""
    rows_key, key, last_key = jax.random.split(key, 3)
    rows, scale = data, None
    if batch_size is not None:
        rows, scale = _some_rows(rows_key, data, _ROWS_PER_BATCH_ROW * batch_size)
    settings: dict[str, Any] = {"scale": scale, "deadline": deadline, "max_optimism": MAX_OPTIMISM}
    display.begin("mean field from several starts")
    # Few latents are worth less time than the compilation of a second program takes.
    size = trees.spec(model.latents).shape[0]
    restart_draws = NUM_DRAWS if size <= MAX_ONE_PROGRAM else 8
    num_restarts = 8 if size <= MAX_EIGHT_STARTS else 4
    draws = {"num_draws": NUM_DRAWS, "restart_draws": restart_draws, "max_draws": NUM_DRAWS}
    det = deterministic(key, model, *rows, start=start, num_restarts=num_restarts, **draws, **settings)
    loc, cov = _gaussian(det)
    yield *_first(det, loc, cov), det
    if stages[-1].judged.verdict.level == "good":
        return
    if det.optimism > MAX_OPTIMISM:
        display.begin("mean field on more draws")
        draws = {"num_restarts": 1, "num_draws": 4 * NUM_DRAWS, "restart_draws": 4 * NUM_DRAWS}
        more = deterministic(key, model, *rows, start=loc, **draws, **settings)
        det = more._replace(optima=det.optima)
        loc, cov = _gaussian(det)
        name, *fitted = _first(det, loc, cov)
        yield f"{name}, {len(det.fixed.eps)} draws", *fitted, det
        if stages[-1].judged.verdict.level == "good":
            return
    if stages[-1].judged.verdict.elbo < det.elbo:
        cov = np.exp(2 * np.asarray(det.params["log_scale"]))
    name, guide = _last(model, size, batch_size)
    display.begin(name)
    params = _init(guide, last_key, loc, cov)
    for state in stochastic(last_key, model, guide, *data, params=params, batch_size=batch_size, deadline=deadline):
        yield f"{name}, {state.step} steps", guide, state.params, det
        verdict = stages[-1].judged.verdict
        if verdict.level == "good" and verdict.log_evidence - verdict.elbo < MAX_KL:
            return
        display.begin(name)


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


def _runaway(model: Model, det: Deterministic) -> str | None:
    """In words, where Newton has not converged because a scale grows without end."""
    leaves = checks.named_leaves(trees.unravel(model.latents, np.asarray(det.params["log_scale"])))
    widest = {name: float(np.max(leaf)) for name, leaf in leaves.items() if leaf.size}
    name = max(widest, key=widest.__getitem__, default=None)
    if det.converged or name is None or widest[name] < np.log(1e3):
        return None
    sd = f"1e{widest[name] / np.log(10):.0f}"
    return f"the fit runs away along `{name}`, whose sd is {sd} and grows: the posterior looks improper"
