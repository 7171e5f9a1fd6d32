"""The stages of a fit without tuning, one after the other as long as the caller asks for more.

deterministic mean field -> N(loc, linear response) -> a mixture of optima, or a flow
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from minisvi.auto.gaussians import Gaussians
from minisvi.auto.labels import with_relabelled
from minisvi.auto.last_stage import last_stage
from minisvi.auto.optima import mixture_of_optima
from minisvi.auto.stages import MAX_DENSE, Around, Candidate, Settings, no_other_helps
from minisvi.auto.verdict import Verdict
from minisvi.guides.gaussian import mean_field
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.posterior.diagnostics import Optima
from minisvi.running import checkpoint
from minisvi.second_order.deterministic import Deterministic, Fixed, deterministic
from minisvi.second_order.gaussian import Gaussian
from minisvi.second_order.response import is_sound, linear_response
from minisvi.tools.interrupts import interrupted
from minisvi.tools.keys import generator
from minisvi.tools.names import named_leaves
from minisvi.tools.types import Data, Params

NUM_DRAWS, MAX_OPTIMISM = 32, 1.0
MAX_EIGHT_STARTS = 64  # latents
_ROWS_PER_BATCH_ROW = 16  # of the deterministic fit on some of the rows


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
    if no_other_helps(verdicts[-1]) or runaway(det):
        return
    of_gaussian = verdicts[-1]
    # The optima are tried even where it misses none: a few draws may have come near another.
    yield from _mixture(key, model, settings, det, exchangeable)
    if of_gaussian.misses_a_mode() or no_other_helps(verdicts[-1]):
        # No flow around one of them would find the others.
        return
    if det.optimism > MAX_OPTIMISM:
        det = _again("mean field on more draws", key, model, data, settings, det, 4 * NUM_DRAWS)
        gaussian = _gaussian(det)
        candidate = _first(det, gaussian)
        yield candidate._replace(name=f"{candidate.name}, {len(det.fixed.eps)} draws")
        of_gaussian = verdicts[-1]
        if no_other_helps(of_gaussian):
            return
    if of_gaussian.elbo < det.elbo:
        gaussian = _back_to_mean_field(gaussian, det)
    yield from last_stage(key, model, data, settings, verdicts, det, gaussian)


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
    settings.display.begin("mean field from several starts; a new model is compiled first")
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


def _gaussian(det: Deterministic) -> Around:
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
        cov = response if is_sound(response, variances) else variances
    return Around(trees.unravel(det.model.latents, loc), cov)


def _first(det: Deterministic, gaussian: Around) -> Candidate:
    if gaussian.cov.ndim == 1:
        return Candidate("mean field", det.guide, det.params, det)
    loc = np.asarray(det.params["loc"])
    only = Gaussians(np.zeros(1), (Gaussian.of(loc, gaussian.cov),))
    guide, params = only.fitted(det.model.latents)
    return Candidate("linear response", guide, params, det)


def _back_to_mean_field(gaussian: Around, det: Deterministic) -> Around:
    """The mean field in place of a Gaussian, in the same form: the next guide is then compiled
    once, whichever of the two it starts from.
    """
    variances = np.exp(2 * np.asarray(det.params["log_scale"]))
    is_dense = gaussian.cov.ndim == 2
    return gaussian._replace(cov=np.diag(variances) if is_dense else variances)
