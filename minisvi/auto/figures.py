"""The figures of a verdict: what the log weights say, and what mass q misses."""

from typing import Any, NamedTuple

import jax
import numpy as np

from minisvi.auto import defensive, drawing
from minisvi.auto.centred import Centred
from minisvi.auto.verdict import NUM_BATCHES
from minisvi.model.at_rows import density_at_rows, ravel_rows, unravel_rows
from minisvi.posterior import diagnostics
from minisvi.posterior.diagnostics import Optima
from minisvi.posterior.draws import Draws
from minisvi.posterior.posterior import Posterior
from minisvi.tools.types import Draw

_FEW = 1e-3  # of the draws, whose density may be NaN


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
    tail: Any
    unseen: Any


class Measured(NamedTuple):
    """Weighted draws of theta, their log weights before they are smoothed (S,), what the posterior
    beyond the draws may add to each (S,), and the figures.
    """

    draws: Draws
    log_w: np.ndarray
    unseen: np.ndarray
    figures: Figures


def measure(u: Draw, theta: Draw, log_w: np.ndarray, log_ratio: np.ndarray) -> Measured:
    """The figures of draws u (S, ...) of q and of wider versions of it, and theta = T(u), with
    their log p/q and the log ratio of q to what they are from, both (S,): see `defensive`. The ELBO
    is that of q's own draws. Up to a thousandth of the draws may have a density of NaN, and then
    they count as if it were zero.
    """
    num = log_w.size
    is_plain = defensive.is_plain(num) | np.all(log_ratio == 0)
    is_nan = np.isnan(log_w)
    num_broken = int(np.sum(is_nan | (log_w == np.inf)))
    if np.sum(is_nan) <= _FEW * num:  # the density may be rounding at a few draws far away
        is_plain = is_plain & ~is_nan
        log_w = np.where(is_nan, -np.inf, log_w).astype(log_w.dtype)
    elbo, elbo_se = diagnostics.elbo(log_w, where=is_plain)
    log_w = (log_w + log_ratio).astype(log_w.dtype)
    smoothed = diagnostics.psis(log_w)
    weights = np.asarray(smoothed.log_weights)
    khat = max(_khat_of_batches(log_w), float(smoothed.khat))
    excess = diagnostics.tail_excess(log_w)
    beyond = diagnostics.excess_beyond(khat, diagnostics.tail_size(num))
    unseen = beyond * excess
    rows = ravel_rows(u, num)
    log_evidence, log_evidence_se = diagnostics.log_evidence(log_w)
    figures = Figures(
        broken=num_broken,
        elbo=float(elbo),
        elbo_se=float(elbo_se),
        error_u=_error(rows, weights),
        ess=float(diagnostics.importance_ess(weights)) / num,
        khat=khat,
        log_evidence=float(log_evidence),
        log_evidence_se=float(np.hypot(log_evidence_se, np.sum(unseen))),
        shift=_largest(diagnostics.mean_shift(rows, weights)),
        tail=float(np.sum(excess)),
        unseen=float(np.sum(unseen)),
    )
    return Measured(Draws(theta, weights), log_w, unseen, figures)


def _khat_of_batches(log_w: np.ndarray) -> float:
    """The largest k-hat of the batches."""
    num = log_w.size // NUM_BATCHES * NUM_BATCHES
    batches = np.split(log_w[:num], NUM_BATCHES)
    return float(max(diagnostics.psis(batch).khat for batch in batches))


def _error(rows: np.ndarray, weights: np.ndarray) -> float:
    """The largest standard error of the weighted means and sds, in sds."""
    of_means = diagnostics.weighted_mcse(rows, weights)
    of_sds = diagnostics.weighted_sd_mcse(rows, weights)
    return _largest(np.maximum(of_means, of_sds))


def _largest(values: Any) -> float:
    return float(np.max(values, initial=0.0))


def missed_mass(posterior: Posterior, density: Centred, optima: Optima, log_w: np.ndarray) -> float:
    """The largest mass of an optimum that q misses, relative to the best optimum's, by their ELBOs.

    It is missed where p/q is above all that q drew, and above what p/q is at the optimum of the
    highest q: there q is, though of many latents no draw may reach the mode itself. `log_w` is of
    `density`.
    """
    model, guide, data = posterior.model, posterior.guide, posterior.data
    loc = np.asarray(optima.loc, float)
    num = len(loc)
    u = unravel_rows(model.latents, loc)
    theta, peak = density_at_rows(model, u, num, data)
    # A guide over theta has a density over theta, and so has its target.
    point = jax.tree.map(_where_constrained, guide.constrained, theta, u)
    log_q = drawing.log_prob(guide, posterior.params, data, point, loc)
    log_p = peak
    if density.reference or any(jax.tree.leaves(guide.constrained)):
        target = density.model.over(guide.constrained)
        _, log_p = density_at_rows(target, point, num, data, reference=density.reference)
    log_p_over_q = log_p - log_q
    own = log_p_over_q[np.nanargmax(log_q)]
    is_missed = log_p_over_q > np.fmax(np.nanmax(log_w), own)
    mass = relative_mass(optima, peak.astype(float))
    return _largest(np.where(is_missed, mass, 0.0))


def _where_constrained(flag: bool, theta: Draw, u: Draw) -> Draw:
    return theta if flag else u


def relative_mass(optima: Optima, peak: np.ndarray) -> np.ndarray:
    """The mass of each optimum (R,), relative to the best one's, by their ELBOs.

    One draw can spoil an ELBO. Then the mass is taken to be that of a Gaussian with this log
    density at its `peak` and the optimum's sds.
    """
    elbo = np.asarray(optima.elbo)
    log_volume = np.sum(optima.log_scale + 0.5 * np.log(2 * np.pi), axis=1)
    is_known = np.isfinite(elbo)
    log_mass = np.where(is_known, elbo, peak + log_volume)
    best = np.max(np.where(is_known, elbo, -np.inf))
    with np.errstate(over="ignore"):
        return np.exp(log_mass - best)
