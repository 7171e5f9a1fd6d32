"""The compiled figures of a verdict: what the log weights say, and what mass q misses."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.auto import defensive
from minisvi.auto.verdict import NUM_BATCHES
from minisvi.guides.base import Guide
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.posterior import diagnostics
from minisvi.posterior.diagnostics import PSIS, Optima
from minisvi.posterior.draws import Draws
from minisvi.tools.types import Data, Draw, Params


class Figures(NamedTuple):
    """Scalars that the log weights give, under the names that they have in `Verdict`."""

    broken: Any
    elbo: Any
    elbo_se: Any
    error_u: Any
    ess: Any
    khat: Any
    log_evidence: Any
    log_evidence_se: Any
    shift: Any


class Measured(NamedTuple):
    """Weighted draws of theta, their log weights before they are smoothed (S,), and the figures."""

    draws: Draws
    log_w: Array
    figures: Figures


@partial(jax.jit, static_argnames="target")
def measure(target: Model, u: Draw, log_w: Array, log_ratio: Array) -> Measured:
    """Draws u (S, ...) of q and of wider versions of it, with their log p/q and the log ratio of q
    to what they are from, both (S,): see `defensive`. The ELBO is that of q's own draws.
    """
    is_plain = defensive.is_plain(log_w.size) | jnp.all(log_ratio == 0)
    elbo, elbo_se = diagnostics.elbo(log_w, where=is_plain)
    log_w = log_w + log_ratio
    smoothed = diagnostics.psis(log_w)
    weights = smoothed.log_weights
    batches = _batches(log_w)
    x = _columns(u, log_w)
    error_of_means = diagnostics.weighted_mcse(x, weights)
    error_of_sds = diagnostics.weighted_sd_mcse(x, weights)
    error = jnp.maximum(error_of_means, error_of_sds)
    log_evidence, log_evidence_se = diagnostics.log_evidence(log_w)
    theta = jax.vmap(target.constrain, axis_size=log_w.size)(u)
    khat = _largest_khat(batches, smoothed)
    ess = diagnostics.importance_ess(weights) / log_w.size
    error_u = jnp.max(error, initial=0.0)
    shift = jnp.max(diagnostics.mean_shift(x, weights), initial=0.0)
    figures = Figures(
        broken=jnp.sum(jnp.isnan(log_w) | (log_w == jnp.inf)),
        elbo=elbo,
        elbo_se=elbo_se,
        error_u=error_u,
        ess=ess,
        khat=khat,
        log_evidence=log_evidence,
        log_evidence_se=log_evidence_se,
        shift=shift,
    )
    return Measured(Draws(theta, weights), log_w, figures)


def _batches(log_w: Array) -> Array:
    num = log_w.size // NUM_BATCHES * NUM_BATCHES
    return log_w[:num].reshape(NUM_BATCHES, -1)


def _columns(u: Draw, like: Array) -> Array:
    """All entries of the draws, (S, D), in the dtype of `like` (S,)."""
    num = like.size
    columns = [leaf.reshape(num, -1).astype(like.dtype) for leaf in jax.tree.leaves(u)]
    none = jnp.zeros((num, 0), like.dtype)
    return jnp.concatenate([none, *columns], axis=1)


def _largest_khat(batches: Array, smoothed: PSIS) -> Array:
    of_batches = jax.vmap(lambda log_w: diagnostics.psis(log_w).khat)(batches)
    return jnp.maximum(jnp.max(of_batches), smoothed.khat)


@partial(jax.jit, static_argnames=("model", "density", "guide"))
def missed_mass(
    model: Model,
    density: Model,
    guide: Guide,
    params: Params,
    data: Data,
    reference: tuple[Array, ...],
    optima: Optima,
    log_w: Array,
) -> Array:
    """The largest mass of an optimum that q misses, relative to the best optimum's, by their ELBOs.

    It is missed where p/q is above all that q drew, and above what p/q is at the optimum of the
    highest q: there q is, though of many latents no draw may reach the mode itself. `log_w` is of
    `density`, which wants the `reference` behind the data.
    """
    q = guide.distribution(params, *data)

    def at(loc: Array) -> tuple[Array, Array, Array]:
        u = trees.unravel(model.latents, loc)
        theta = model.constrain(u)
        # A guide over theta has a density over theta, and so has its target.
        point = jax.tree.map(_where_constrained, guide.constrained, theta, u)
        log_q = q.log_prob(point)
        log_p = density.over(guide.constrained).log_density(point, *data, *reference)
        return log_p - log_q, log_q, model.log_density(u, *data)

    log_p_over_q, log_q, peak = jax.lax.map(at, optima.loc)
    own = log_p_over_q[jnp.nanargmax(log_q)]
    covered = jnp.fmax(jnp.nanmax(log_w), own)
    is_missed = log_p_over_q > covered
    mass = _relative_mass(optima, peak)
    return jnp.max(jnp.where(is_missed, mass, 0.0))


def _where_constrained(flag: bool, theta: Draw, u: Draw) -> Draw:
    return theta if flag else u


def _relative_mass(optima: Optima, peak: Array) -> Array:
    """The mass of each optimum (R,), relative to the best one's, by their ELBOs.

    One draw can spoil an ELBO. Then the mass is taken to be that of a Gaussian with this log
    density at its `peak` and the optimum's sds.
    """
    log_volume = jnp.sum(optima.log_scale + 0.5 * jnp.log(2 * jnp.pi), axis=1)
    is_known = jnp.isfinite(optima.elbo)
    log_mass = jnp.where(is_known, optima.elbo, peak + log_volume)
    best = jnp.max(jnp.where(is_known, optima.elbo, -jnp.inf))
    return jnp.exp(log_mass - best)
