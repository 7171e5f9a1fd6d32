"""Minus the ELBO of a mean field on draws that are made once: a smooth function of x = (loc,
log_scale).

    f(x) = -(1/M) sum_k log p(loc + exp(log_scale) eps_k) - sum_i log_scale_i - D/2 (1 + log 2 pi)

Of the log density's gradient and Hessian at the points loc + exp(log_scale) eps_k, which are
compiled, the host makes those of f.
"""

from collections.abc import Callable
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from minisvi.guides.location_scale import Normal
from minisvi.model import trees
from minisvi.model.at_rows import density_at_rows, never, unravel_rows
from minisvi.model.model import Model
from minisvi.second_order import newton
from minisvi.second_order.derivatives import hessians, products
from minisvi.second_order.newton import Expansion, NewtonState
from minisvi.tools.types import Data

# Latents. With more of them conjugate gradients take less time than whole Hessians.
MAX_DENSE = 64


class Fixed(NamedTuple):
    """What f is a function of beside x: the draws `eps` (M, D), the data, and the `weight` N/B of
    their likelihood.
    """

    eps: np.ndarray
    data: Data
    weight: Any


def fixed_draws(rng: np.random.Generator, num_draws: int, size: int) -> np.ndarray:
    """M normals (M, D): half of them, and their reflection.

    In each coordinate one comes from every interval of equal probability (McKay, Beckman & Conover
    1979), and all are scaled so that each coordinate's mean square is one. Where there are enough
    of them for it, their mean products are zero, too. These errors would otherwise be the largest
    in the mean field's variances.
    """
    num = num_draws // 2
    intervals = np.argsort(rng.random((num, size)), axis=0)
    uniform = (intervals + rng.random((num, size))) / num
    # SciPy's quantile function takes longer to import than these take to compute.
    quantiles = [NormalDist().inv_cdf(p) for p in uniform.ravel()]
    eps = np.reshape(quantiles, uniform.shape)
    if 2 * size <= num:
        second_moments = eps.T @ eps / num
        eps = np.linalg.solve(np.linalg.cholesky(second_moments), eps.T).T
    eps = eps / np.sqrt(np.mean(eps**2, axis=0, keepdims=True))
    return np.concatenate([eps, -eps])


def expansions(
    model: Model, fixed: Fixed, x: np.ndarray, dense: bool | None = None
) -> list[Expansion]:
    """f near each row of x (R, 2 D), in the units (exp(log_scale), 1); with whole Hessians if they
    are `dense`, by default of few latents.

    With w = exp(log_scale) eps, g and H the gradient and the Hessian of log p, and means over the
    draws, f has the gradient (-mean(g), -mean(w g) - 1) and the Hessian

        [ -mean(H)    -mean(H w^T)                      ]
        [  its T      -mean(w H w^T) - diag(mean(w g))  ]
    """
    num, size = len(x), x.shape[1] // 2
    is_dense = size <= MAX_DENSE if dense is None else dense
    loc, log_scale = np.split(x, 2, axis=1)
    with np.errstate(all="ignore"):  # of a trial too far away
        scale = np.exp(log_scale)
        u = loc[:, None] + scale[:, None] * fixed.eps
        rows = u.reshape(num * len(fixed.eps), size)
        if is_dense:
            at = hessians(model, rows, fixed.data, fixed.weight)
        else:
            at = products(model, rows, rows, fixed.data, fixed.weight)
        log_p = at.log_p.reshape(num, -1)
        grads = scale[:, None] * at.grad.reshape(u.shape)
        slopes = np.mean(fixed.eps * grads, axis=1)
        values = -np.mean(log_p, axis=1) - np.sum(log_scale, axis=1) - size * Normal().entropy()
        whole = -np.concatenate([np.mean(grads, axis=1), slopes + 1], axis=1)
    units = np.concatenate([scale, np.ones_like(scale)], axis=1)
    found = []
    for r in range(num):
        product = partial(_product, model, fixed, u[r], scale[r], slopes[r])
        hessian = None
        if is_dense:
            of_draws = at.hessian.reshape(num, len(fixed.eps), size, size)[r]
            hessian = _mean_hessian(scale[r], fixed.eps, of_draws, slopes[r])
        found.append(Expansion(float(values[r]), whole[r], units[r], product, hessian))
    return found


def _product(
    model: Model, fixed: Fixed, u: np.ndarray, scale: np.ndarray, slope: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """S H S v, of f at one point; u (M, D) are its draws, and `slope` is mean(w g)."""
    along_loc, along_log_scale = np.split(v, 2)
    directions = scale * (along_loc + fixed.eps * along_log_scale)
    images = scale * products(model, u, directions, fixed.data, fixed.weight).hessian
    of_loc = -np.mean(images, axis=0)
    of_log_scale = -np.mean(fixed.eps * images, axis=0) - slope * along_log_scale
    return np.concatenate([of_loc, of_log_scale])


def _mean_hessian(
    scale: np.ndarray, eps: np.ndarray, hessian: np.ndarray, slope: np.ndarray
) -> np.ndarray:
    """S H S of f, (2 D, 2 D), from the Hessians (M, D, D) of log p."""
    size = scale.size
    with np.errstate(all="ignore"):
        of_draws = scale[:, None] * hessian * scale
        times_eps = eps[:, :, None] * of_draws
        whole = np.empty((2 * size, 2 * size))
        whole[:size, :size] = -np.mean(of_draws, axis=0)
        whole[size:, :size] = -np.mean(times_eps, axis=0)
        whole[:size, size:] = whole[size:, :size].T
        whole[size:, size:] = -np.mean(times_eps * eps[:, None], axis=0) - np.diag(slope)
    return whole


def minimised(
    model: Model,
    fixed: Fixed,
    x: np.ndarray,
    max_steps: int,
    over: Callable[[], bool] = never,
) -> list[NewtonState]:
    """Where Newton's method ends from each row of x (R, 2 D)."""
    expand = partial(expansions, model, fixed)
    eps = trees.precision(model.latents)
    states = [newton.start(row) for row in x]
    return newton.descend(expand, states, eps, max_steps, over)


def log_p_at(model: Model, rows: np.ndarray, fixed: Fixed) -> np.ndarray:
    """The log density at each row, (S,), in nats and in the model's dtype."""
    u = unravel_rows(model.latents, rows)
    _, log_p = density_at_rows(model, u, len(rows), fixed.data, fixed.weight)
    return log_p
