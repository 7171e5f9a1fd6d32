"""Several optima as one answer: a mixture of the Gaussians at them.

Where restarts end at different optima, q is sum_k w_k N(loc_k, C_k) with the linear response C_k at
each. The weights minimise KL(p || q), by EM on draws of all components that are weighted by the
balance heuristic (Veach & Guibas 1995; Cappe et al. 2008; S-VBMC, Silvestrin et al. 2025, has them
by the ELBO).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array

from minisvi.auto.gaussians import Gaussians
from minisvi.model.at_rows import never
from minisvi.posterior import diagnostics
from minisvi.second_order.deterministic import Deterministic
from minisvi.second_order.fixed_draws import expansions, log_p_at, minimised
from minisvi.second_order.gaussian import Gaussian
from minisvi.second_order.response import covariance, is_sound
from minisvi.tools.keys import generator

_MOST = 24  # components: the labels of four
_LEAST_MASS = 1e-4  # of the best optimum's
_NUM_DRAWS = 1000  # of each component, for the weights
_NUM_EM = 50
_PRIOR_DRAWS = 10  # a component


def mixture_of_optima(
    key: Array, det: Deterministic, over: Callable[[], bool] = never
) -> Gaussians | None:
    """The mixture of the Gaussians at all optima that have mass; None if there is but one."""
    rng = generator(key, 7)
    x, log_mass = _with_mass(det)
    if len(x) > 1:
        x, log_mass = _distinct(_refined(det, x, over), log_mass)
    if len(x) <= 1 or over():
        return None
    components = tuple(_gaussian(at, row) for at, row in zip(_expansions(det, x), x))
    log_weights = _weights(rng, det, components, log_mass)
    kept = log_weights > np.log(_LEAST_MASS)
    components = tuple(part for part, keep in zip(components, kept) if keep)
    log_weights = log_weights[kept] - np.logaddexp.reduce(log_weights[kept])
    return Gaussians(log_weights, components)


def _with_mass(det: Deterministic) -> tuple[np.ndarray, np.ndarray]:
    """The optima x (R, 2 D) that have mass, the best one first, and their ELBOs."""
    optima = det.optima
    leaders = np.unique(optima.optimum)
    elbo = optima.elbo[leaders]
    best = np.max(elbo, where=np.isfinite(elbo), initial=-np.inf)
    leaders = leaders[elbo > best + np.log(_LEAST_MASS)]  # False for NaN
    leaders = leaders[np.argsort(-optima.elbo[leaders])][:_MOST]
    x = np.concatenate([optima.loc[leaders], optima.log_scale[leaders]], axis=1)
    return x, optima.elbo[leaders]


def _expansions(det: Deterministic, x: np.ndarray) -> list[Any]:
    return [expansions(det.model, det.fixed, row[None], dense=True)[0] for row in x]


def _refined(det: Deterministic, x: np.ndarray, over: Callable[[], bool]) -> np.ndarray:
    """Where Newton ends from there on the draws of the fit."""
    states = minimised(det.model, det.fixed, x, 50, over)
    return np.stack([state.x for state in states])


def _distinct(x: np.ndarray, log_mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each optimum once, the first of those that are alike."""
    loc, log_scale = np.split(x, 2, axis=1)
    kept = np.unique(diagnostics.distinct_optima(log_mass, loc, np.exp(log_scale)))
    return x[kept], log_mass[kept]


def _gaussian(at: Any, x: np.ndarray) -> Gaussian:
    """N(loc, linear response), or the mean field where that is unsound."""
    loc, log_scale = np.split(x, 2)
    variances = np.exp(2 * log_scale)
    cov = covariance(at)
    if not is_sound(cov, variances):
        cov = np.diag(variances)
    return Gaussian.of(loc, cov)


def _weights(
    rng: np.random.Generator,
    det: Deterministic,
    components: tuple[Gaussian, ...],
    log_mass: np.ndarray,
) -> np.ndarray:
    """The log weights that minimise KL(p || q), found by EM from the ELBOs'. These count as a prior
    of ten draws a component, which decides where importance weights of few draws cannot.
    """
    num = len(components)
    equal = Gaussians(np.full(num, -np.log(num)), components)
    u = equal.draw(rng, _NUM_DRAWS * num).u
    log_p = log_p_at(det.model, u, det.fixed)
    log_q = np.stack([part.log_prob(part.pull(u)) for part in components], axis=1)
    log_w = log_p - np.logaddexp.reduce(log_q, axis=1)
    log_importance = diagnostics.psis(log_w).log_weights
    num_worth = diagnostics.importance_ess(log_importance)
    prior = _PRIOR_DRAWS * num * np.exp(log_mass - np.logaddexp.reduce(log_mass))
    weights = prior / np.sum(prior)
    for _ in range(_NUM_EM):
        with np.errstate(divide="ignore"):
            joint = np.log(weights) + log_q
        shares = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
        counts = prior + num_worth * (np.exp(log_importance) @ shares)
        weights = counts / np.sum(counts)
    return np.log(weights)
