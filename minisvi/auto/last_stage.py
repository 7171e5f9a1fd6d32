"""The last stage of a fit: a guide beyond Gaussians, by stochastic steps."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.auto.non_centring import non_centred, over_a_flow
from minisvi.auto.stages import MAX_DENSE, Around, Candidate, Settings, no_other_helps
from minisvi.auto.stochastic import stochastic
from minisvi.auto.verdict import Verdict
from minisvi.guides.base import Guide
from minisvi.guides.driven import Driven
from minisvi.guides.flow import affine_coupling
from minisvi.guides.flow_layers import mlp
from minisvi.guides.gaussian import full_rank, mean_field
from minisvi.guides.low_rank import low_rank
from minisvi.guides.whitened import Whitened, whitened
from minisvi.model import trees
from minisvi.model.at_rows import ravel_rows
from minisvi.model.model import Model
from minisvi.second_order.deterministic import Deterministic
from minisvi.second_order.gaussian import Gaussian
from minisvi.tools.keys import rbg_key
from minisvi.tools.programs import IN_HASTE, HostProgram
from minisvi.tools.types import Data, Latents, Params

RANK = 10
MAX_KL = 0.01  # nats, of a flow that needs no more steps
# Of S, for more steps of `driven`. They sharpen what is near already, as on a funnel. On nine other
# posteriors, most of them below this, they left the KL as it was, to within a quarter.
MIN_ESS = 0.5
# Nats, of a guide that is good. One that was fitted by its own draws may follow one part of the
# posterior, and none of its draws come near another: on a Brownian motion with 32 latents `driven`
# had good weights at 0.2 to 0.4 nats, and lacked a tenth of the posterior.
MAX_GOOD_KL = 0.15


def last_stage(
    key: Array,
    model: Model,
    data: Data,
    settings: Settings,
    verdicts: list[Verdict],
    det: Deterministic,
    gaussian: Around,
) -> Iterator[Candidate]:
    """The last guides from that Gaussian, after each run of the optimiser."""
    run = partial(_run, key, model, data, settings, det)
    start = _non_centred(key, model, data, settings, gaussian)
    if start is None:
        size = trees.spec(model.latents).shape[0]
        name, flow = _last_guide(model.latents, size, settings.batch_size)
        yield from _until_near(run(name, flow, _around(flow, key, gaussian)), verdicts)
        return
    guide, params = start
    for candidate in run("driven", guide, params):
        yield candidate
        if no_other_helps(verdicts[-1]):
            return
        if verdicts[-1].ess < MIN_ESS:
            break
    # From the same start: from the fitted guide it ends further from the posterior.
    yield from _until_near(run("driven flow", *over_a_flow(key, guide, params)), verdicts)


def _non_centred(
    key: Array, model: Model, data: Data, settings: Settings, gaussian: Around
) -> tuple[Driven, Params] | None:
    """The guide in which some latents drive the others' scales, and its start, if any do so."""
    if settings.batch_size is not None or settings.over():
        return None
    settings.display.begin("what drives the scales")
    return non_centred(key, model, data, gaussian.loc, gaussian.cov)


def _until_near(candidates: Iterator[Candidate], verdicts: list[Verdict]) -> Iterator[Candidate]:
    """The candidates until no other helps. A flow that has only just left its Gaussian has no tails
    yet by which it could be judged, so that it must also be near the posterior.
    """
    for candidate in candidates:
        yield candidate
        if no_other_helps(verdicts[-1]) and verdicts[-1].kl < MAX_KL:
            return


def _run(
    key: Array,
    model: Model,
    data: Data,
    settings: Settings,
    det: Deterministic,
    name: str,
    guide: Guide,
    params: Params,
) -> Iterator[Candidate]:
    """The guide after each run of the optimiser."""
    directory = settings.checkpoint_dir
    settings.display.begin(name)
    states = stochastic(
        key,
        model,
        guide,
        *data,
        params=params,
        batch_size=settings.batch_size,
        deadline=settings.deadline,
        checkpoint_dir=None if directory is None else directory / name,
        checkpoint_every=settings.checkpoint_every,
    )
    for state in states:
        after = f"{name}, {state.step} steps"
        yield Candidate(after, guide, state.params, det, max_kl=MAX_GOOD_KL)
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


def _around(guide: Whitened, key: Array, gaussian: Around) -> Params:
    """The parameters of the guide's start, in the coordinates of that Gaussian."""
    spec = trees.spec(guide.latents)
    only = Gaussian.of(ravel_rows(gaussian.loc, 1)[0], gaussian.cov)
    factor = np.log(only.sds()) if guide.diagonal else only.log_factor()
    return {
        "loc": only.loc.astype(spec.dtype),
        "factor": factor.astype(spec.dtype),
        "x": _init(guide.guide, rbg_key(key, 6)),
    }


@partial(HostProgram, static_argnames="guide", options=IN_HASTE)
def _init(guide: Any, key: Array) -> Params:
    spec = trees.spec(guide.latents)
    origin = trees.unravel(guide.latents, jnp.zeros(spec.shape, spec.dtype))
    return guide.init(key, loc=origin)
