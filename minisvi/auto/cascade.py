"""The stages of a fit without tuning, one after the other as long as the caller asks for more.

deterministic mean field -> N(loc, linear response) -> a flow in its coordinates
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.auto.gaussians import Gaussian, Gaussians
from minisvi.auto.labels import with_relabelled
from minisvi.auto.non_centring import non_centred
from minisvi.auto.optima import mixture_of_optima
from minisvi.auto.stochastic import stochastic
from minisvi.auto.verdict import HIGH_ESS, MAX_MISSED, MAX_SPACING, Verdict
from minisvi.guides.base import Guide
from minisvi.guides.flow import affine_coupling
from minisvi.guides.flow_layers import mlp
from minisvi.guides.gaussian import full_rank, mean_field
from minisvi.guides.low_rank import low_rank
from minisvi.guides.whitened import Whitened, whitened
from minisvi.model import trees
from minisvi.model.at_rows import ravel_rows
from minisvi.model.model import Model
from minisvi.posterior.diagnostics import Optima
from minisvi.running import checkpoint
from minisvi.running.progress import StageDisplay
from minisvi.second_order.deterministic import Deterministic, Fixed, deterministic
from minisvi.second_order.response import linear_response
from minisvi.tools.interrupts import interrupted
from minisvi.tools.keys import generator, rbg_key
from minisvi.tools.names import named_leaves
from minisvi.tools.types import Data, Draw, Latents, Params

MAX_DENSE = 2000  # latents, for a D x D covariance: docs/did_it_work.md says what it takes
RANK = 10
NUM_DRAWS, MAX_OPTIMISM = 32, 1.0
B2 = 0.95  # of Adam
MAX_KL = 0.01  # nats, of a flow that needs no more steps
MAX_EIGHT_STARTS = 64  # latents
_ROWS_PER_BATCH_ROW = 16  # of the deterministic fit on some of the rows


@dataclass(frozen=True)
class Settings:
    """What a fit is asked for besides its model and data."""

    batch_size: int | None
    start: Draw | None
    deadline: float
    checkpoint_dir: Path | None
    checkpoint_every: float
    display: StageDisplay

    def over(self) -> bool:
        return interrupted() or time.monotonic() >= self.deadline


class Candidate(NamedTuple):
    """What a stage comes to, to be judged: a fitted guide, and the deterministic fit behind it; and
    the latents whose labels are `exchangeable`, as far as that was looked for.
    """

    name: str
    guide: Guide
    params: Params
    deterministic: Deterministic
    exchangeable: tuple[str, ...] = ()


class _Gaussian(NamedTuple):
    """A mean, as a tree u, and a covariance (D, D), or variances (D,)."""

    loc: Draw
    cov: np.ndarray


def cascade(
    key: Array, model: Model, data: Data, settings: Settings, verdicts: list[Verdict]
) -> Iterator[Candidate]:
    """The candidates, each of which the caller judges, and adds to the `verdicts`, before it asks
    for the next.
    """
    det = _from_several_starts(key, model, data, settings)
    det, exchangeable = (det, ()) if settings.over() else with_relabelled(key, det)
    gaussian = _gaussian(det)
    yield _first(det, gaussian)
    if _no_other_helps(verdicts[-1]) or runaway(det):
        return
    if det.optimism > MAX_OPTIMISM:
        det = _again("mean field on more draws", key, model, data, settings, det, 4 * NUM_DRAWS)
        gaussian = _gaussian(det)
        candidate = _first(det, gaussian)
        yield candidate._replace(name=f"{candidate.name}, {len(det.fixed.eps)} draws")
        if _no_other_helps(verdicts[-1]):
            return
    if _misses_an_optimum(verdicts[-1]):
        # No flow around one of them would find the others.
        yield from _mixture(key, model, settings, det, exchangeable)
        return
    if verdicts[-1].elbo < det.elbo:
        gaussian = _back_to_mean_field(gaussian, det)
    yield from _last_stage(key, model, data, settings, verdicts, det, gaussian)


def _no_other_helps(verdict: Verdict) -> bool:
    """Whether a better guide would be no use: it is good; or the weights are nearly equal, so that
    what is missing is missing in theta's moments themselves; or the density is rounding.
    """
    nearly_equal = verdict.of_weights == "good" and verdict.ess >= HIGH_ESS
    return verdict.level == "good" or nearly_equal or verdict.spacing > MAX_SPACING


def runaway(det: Deterministic) -> str | None:
    """In words, that Newton has not converged because a scale grows without end; None otherwise."""
    log_scale = trees.unravel(det.model.latents, np.asarray(det.params["log_scale"]))
    leaves = named_leaves(log_scale)
    widest = {name: float(np.max(leaf)) for name, leaf in leaves.items() if leaf.size}
    name = max(widest, key=widest.__getitem__, default=None)
    if det.converged or name is None or widest[name] < np.log(1e3):
        return None
    sd = f"1e{widest[name] / np.log(10):.0f}"
    how = f"along `{name}`, whose sd is {sd} and grows"
    return f"the fit runs away {how}: the posterior looks improper"


def _misses_an_optimum(verdict: Verdict) -> bool:
    return verdict.missed is not None and verdict.missed > MAX_MISSED


def _mixture(
    key: Array,
    model: Model,
    settings: Settings,
    det: Deterministic,
    exchangeable: tuple[str, ...],
) -> Iterator[Candidate]:
    """The mixture of the Gaussians at all optima, if there are several."""
    size = trees.spec(model.latents).shape[0]
    settings.display.begin("mixture of optima")
    found = mixture_of_optima(key, det, settings.over) if size <= MAX_DENSE else None
    if found is not None:
        guide, params = found.fitted(model.latents)
        name = f"mixture of {len(found.components)}"
        yield Candidate(name, guide, params, det, exchangeable)


# --- The deterministic mean field. ---


def _from_several_starts(key: Array, model: Model, data: Data, settings: Settings) -> Deterministic:
    """The best of several starts. With a `batch_size` they descend on some of the rows, which cost
    less, and the best goes on with all of them: no posterior of some rows is near enough to that of
    all for its weights to be good.
    """
    rows, weight = data, None
    if settings.batch_size is not None:
        num_rows = _ROWS_PER_BATCH_ROW * settings.batch_size
        rows, weight = _some_rows(generator(key, 3), data, num_rows)
    settings.display.begin("mean field from several starts")
    size = trees.spec(model.latents).shape[0]
    options = {
        "start": settings.start,
        "weight": weight,
        "num_restarts": 8 if size <= MAX_EIGHT_STARTS else 4,
        "restart_draws": 8,
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
    data: Data,
    settings: Settings,
    det: Deterministic,
    num_draws: int,
) -> Deterministic:
    """The fit from where `det` ended, on all rows and so many draws; with the optima of `det`,
    which are those of all starts.
    """
    settings.display.begin(name)
    start = trees.unravel(model.latents, np.asarray(det.params["loc"]))
    options = {
        "start": start,
        "num_restarts": 1,
        "num_draws": num_draws,
        "restart_draws": num_draws,
    }
    again = _remembered(name, key, model, data, settings, options)
    return again._replace(optima=det.optima)


class _Kept(NamedTuple):
    """What the checkpoints keep of a deterministic fit: what cannot be had from the arguments."""

    params: Params
    eps: Any
    elbo: Any
    elbo_se: Any
    optimism: Any
    converged: Any
    optima: Optima


def _remembered(
    name: str, key: Array, model: Model, rows: Data, settings: Settings, options: dict[str, Any]
) -> Deterministic:
    """The deterministic fit, or what the checkpoints have of it. A fit that the budget cut short is
    not kept.
    """
    options = {"max_draws": options["num_draws"], "deadline": settings.deadline} | options
    if settings.checkpoint_dir is None:
        return deterministic(key, model, *rows, **options)

    def compute() -> _Kept:
        det = deterministic(key, model, *rows, **options)
        return _Kept(
            params=det.params,
            eps=det.fixed.eps,
            elbo=det.elbo,
            elbo_se=det.elbo_se,
            optimism=det.optimism,
            converged=det.converged,
            optima=det.optima,
        )

    path = settings.checkpoint_dir / name
    kept = checkpoint.remembered(path, compute, _like_kept(), settings.deadline)
    return Deterministic(
        model=model,
        guide=mean_field(model.latents),
        params=kept.params,
        fixed=Fixed(kept.eps, rows, options.get("weight")),
        elbo=kept.elbo,
        elbo_se=kept.elbo_se,
        optimism=kept.optimism,
        converged=kept.converged,
        optima=kept.optima,
    )


def _like_kept() -> _Kept:
    """A tree with the structure of what is kept, in which the leaves have no meaning."""
    leaf: Any = 0
    optima = Optima(**dict.fromkeys(Optima._fields, leaf))
    params = {"loc": leaf, "log_scale": leaf}
    others = dict.fromkeys(["eps", "elbo", "elbo_se", "optimism", "converged"], leaf)
    return _Kept(params=params, optima=optima, **others)


def _some_rows(rng: np.random.Generator, data: Data, num_rows: int) -> tuple[Data, float | None]:
    """So many rows of the data and their weight N/B; or all rows and None, if there are no more."""
    total = jax.tree.leaves(data)[0].shape[0]
    if num_rows >= total:
        return data, None
    rows = rng.choice(total, num_rows, replace=False)
    return jax.tree.map(lambda leaf: leaf[rows], data), total / num_rows


# --- The Gaussian of the linear response. ---


def _gaussian(det: Deterministic) -> _Gaussian:
    """The mean field's location and the linear response; or its variances, where the response is
    too large to compute, or absurd.
    """
    loc = np.asarray(det.params["loc"])
    log_scale = np.asarray(det.params["log_scale"])
    with np.errstate(over="ignore"):  # of a fit that runs away
        variances = np.exp(2 * log_scale)
    cov = variances
    if loc.size <= MAX_DENSE and not interrupted():
        response = np.asarray(linear_response(det))
        # In a Gaussian no variance is smaller than the mean field's. NaN compares as False.
        is_sound = np.all(np.diagonal(response) > 0.8 * variances)
        cov = response if is_sound else variances
    return _Gaussian(trees.unravel(det.model.latents, loc), cov)


def _first(det: Deterministic, gaussian: _Gaussian) -> Candidate:
    if gaussian.cov.ndim == 1:
        return Candidate("mean field", det.guide, det.params, det)
    loc = np.asarray(det.params["loc"])
    only = Gaussians(np.zeros(1), (Gaussian.of(loc, gaussian.cov),))
    guide, params = only.fitted(det.model.latents)
    return Candidate("linear response", guide, params, det)


def _back_to_mean_field(gaussian: _Gaussian, det: Deterministic) -> _Gaussian:
    """The mean field in place of a Gaussian, in the same form: the next guide is then compiled
    once, whichever of the two it starts from.
    """
    variances = np.exp(2 * np.asarray(det.params["log_scale"]))
    is_dense = gaussian.cov.ndim == 2
    return gaussian._replace(cov=np.diag(variances) if is_dense else variances)


def _around(guide: Whitened, key: Array, gaussian: _Gaussian) -> Params:
    """The parameters of the guide's start, in the coordinates of that Gaussian."""
    spec = trees.spec(guide.latents)
    only = Gaussian.of(ravel_rows(gaussian.loc, 1)[0], gaussian.cov)
    factor = np.log(only.sds()) if guide.diagonal else only.log_factor()
    return {
        "loc": only.loc.astype(spec.dtype),
        "factor": factor.astype(spec.dtype),
        "x": _init(guide.guide, rbg_key(key, 6)),
    }


@partial(jax.jit, static_argnames="guide")
def _init(guide: Any, key: Array) -> Params:
    spec = trees.spec(guide.latents)
    origin = trees.unravel(guide.latents, jnp.zeros(spec.shape, spec.dtype))
    return guide.init(key, loc=origin)


# --- The stochastic fit. ---


def _last_stage(
    key: Array,
    model: Model,
    data: Data,
    settings: Settings,
    verdicts: list[Verdict],
    det: Deterministic,
    gaussian: _Gaussian,
) -> Iterator[Candidate]:
    """The last guide from that Gaussian, after each run of the optimiser."""
    start = _non_centred(key, model, data, settings, gaussian)
    if start is not None:
        # Where it was measured it left less to do than the other flow, of which it has a part.
        yield from _run("non-centred flow", *start, key, model, data, settings, verdicts, det)
        return
    size = trees.spec(model.latents).shape[0]
    name, guide = _last_guide(model.latents, size, settings.batch_size)
    params = _around(guide, key, gaussian)
    yield from _run(name, guide, params, key, model, data, settings, verdicts, det)


def _non_centred(
    key: Array, model: Model, data: Data, settings: Settings, gaussian: _Gaussian
) -> tuple[Guide, Params] | None:
    """The guide in which some latents drive the others' scales, and its start, if any do so."""
    if settings.batch_size is not None or settings.over():
        return None
    settings.display.begin("what drives the scales")
    return non_centred(key, model, data, gaussian.loc, gaussian.cov)


def _run(
    name: str,
    guide: Guide,
    params: Params,
    key: Array,
    model: Model,
    data: Data,
    settings: Settings,
    verdicts: list[Verdict],
    det: Deterministic,
) -> Iterator[Candidate]:
    """The guide after each run of the optimiser."""
    settings.display.begin(name)
    directory = settings.checkpoint_dir
    states = stochastic(
        key,
        model,
        guide,
        *data,
        params=params,
        b2=B2,
        batch_size=settings.batch_size,
        deadline=settings.deadline,
        checkpoint_dir=None if directory is None else directory / name,
        checkpoint_every=settings.checkpoint_every,
    )
    for state in states:
        yield Candidate(f"{name}, {state.step} steps", guide, state.params, det)
        verdict = verdicts[-1]
        kl = verdict.log_evidence - verdict.elbo
        if _no_other_helps(verdict) and kl < MAX_KL:
            return
        settings.display.begin(name)


def _last_guide(latents: Latents, size: int, batch_size: int | None) -> tuple[str, Whitened]:
    if size > MAX_DENSE:
        return "low rank", whitened(low_rank(latents, RANK, 1.0), diagonal=True)
    if batch_size is not None:
        return "full rank by minibatches", whitened(full_rank(latents, 1.0))
    # The narrower network fits small posteriors as well, in half the time.
    width = 32 if size <= 32 else 64
    base = mean_field(latents, 1.0)
    return "flow", whitened(affine_coupling(base, network=mlp(width, width)))
