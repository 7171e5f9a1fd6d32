"""The deterministic fit: a mean field on fixed draws by Newton's method from several starts.

The draws eps_k = (e, -e) are made once, so that minus the ELBO is a smooth function of x = (loc,
log_scale):

    f(x) = -(1/M) sum_k log p(loc + exp(log_scale) eps_k) - sum_i log_scale_i - D/2 (1 + log 2 pi)

Of the log density's gradient and Hessian at the points loc + exp(log_scale) eps_k, which are
compiled, the host makes those of f.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.guides.gaussian import MeanField, mean_field
from minisvi.guides.location_scale import Normal
from minisvi.model import trees
from minisvi.model.at_rows import density_at_rows, never, ravel_rows, unravel_rows
from minisvi.model.model import Model
from minisvi.posterior import diagnostics
from minisvi.posterior.diagnostics import Optima
from minisvi.second_order import newton
from minisvi.second_order.derivatives import hessians, products
from minisvi.second_order.newton import Expansion, NewtonState
from minisvi.tools import checks, finite_data, inputs, noise
from minisvi.tools.interrupts import interrupted
from minisvi.tools.keys import generator
from minisvi.tools.types import Data, Draw, Params

# Latents. With more of them conjugate gradients take less time than whole Hessians.
MAX_DENSE = 64
_NUM_FRESH = 1024
_START_SCALE = 0.1
_NUM_TRIES = 32
_FAR = ((8.0, 1.0), (-8.0, 1.0), (0.0, 4.0), (0.0, 16.0))  # by how much starts are shifted, widened


class Fixed(NamedTuple):
    """What f is a function of beside x: the draws `eps` (M, D), the data, and the `weight` N/B of
    their likelihood.
    """

    eps: np.ndarray
    data: Data
    weight: Any


class Deterministic(NamedTuple):
    """A mean field `guide` with its `params`, from `deterministic`; `linear_response` takes it.

    `fixed`: the draws and the data. `elbo`, `elbo_se`: at fresh draws, in nats. `optimism`: how
    much more the fixed draws promised. `converged`: Newton's test. `optima`: where each start
    ended.
    """

    model: Model
    guide: MeanField
    params: Params
    fixed: Fixed
    elbo: float
    elbo_se: float
    optimism: float
    converged: bool
    optima: Optima


def deterministic(
    key: Array,
    model: Model,
    *data: Any,
    weight: float | None = None,
    start: Draw | None = None,
    num_restarts: int = 8,
    num_draws: int = 32,
    restart_draws: int = 8,
    max_draws: int = 512,
    max_optimism: float = 1.0,
    max_steps: int = 100,
    deadline: float = np.inf,
) -> Deterministic:
    """The mean field that maximises the ELBO on fixed antithetic draws (Giordano, Ingram &
    Broderick 2024, eq. 5).

    All starts descend on `restart_draws`; the best at fresh draws goes on with `num_draws`. While
    these promise more than `max_optimism` nats beyond fresh ones, they are made four times as many,
    up to `max_draws`.

    **Arguments**

    - `weight`: N/B, where the data are B of N rows.
    - `start`: a tree u, such as `model.unconstrain(theta)`, for the first start; by default zero.
      The others are uniform(-2, 2), but for up to four, of half of the starts: two of these are
      shifted by 8 and -8 in all coordinates, and two are uniform(-8, 8) and (-32, 32), so that
      modes far from the origin are found. Each is drawn again, up to 32 times and nearer as they
      fail, where the density is not finite.
    - `num_draws`, `restart_draws`: M, even.
    - `max_steps`: of Newton, for each number of draws. `deadline`: of `time.monotonic()`, at which
      it stops.

    ValueError if no start has a finite density. The fit is for a mean field alone: with fewer draws
    than latents the optimum of a full-rank guide does not exist.
    """
    _check(model, num_restarts, max_steps, num_draws, restart_draws)
    data = inputs.arrays(data)
    model.check(*data)
    key = checks.prng_key(key)
    size = trees.spec(model.latents).shape[0]
    first = np.zeros(size) if start is None else _given(model, start)
    search = _Search(key, model, data, weight, max_steps, deadline)
    fixed = search.fixed(restart_draws)
    x = _finite_starts(model, num_restarts, generator(key, 0), first, fixed)
    found = search.run(fixed, x)
    optima = _optima(found)

    def go_on(num: int) -> tuple[Fixed, _Found]:
        more = search.fixed(num)
        return more, search.run(more, found.x[found.best][None])

    if num_draws > restart_draws and not search.over():
        fixed, found = go_on(num_draws)
    more = 4 * max(num_draws, restart_draws)
    while found.optimism > max_optimism and more <= max_draws and not search.over():
        fixed, found = go_on(more)
        more *= 4
    return _result(model, fixed, found, optima)


def _check(
    model: Model, num_restarts: int, max_steps: int, num_draws: int, restart_draws: int
) -> None:
    checks.positive_integer("num_restarts", num_restarts)
    checks.positive_integer("max_steps", max_steps)
    for num in (num_draws, restart_draws):
        noise.check("antithetic", checks.positive_integer("num_draws", num))
    checks.at_least_single(model.latents)


def _given(model: Model, start: Draw) -> np.ndarray:
    checks.same_tree("loc", trees.unconstrained_like(model.latents), start)
    return _row(start)


def _row(u: Draw) -> np.ndarray:
    """A tree u as a vector (D,)."""
    return ravel_rows(u, 1)[0]


class _Found(NamedTuple):
    """Where Newton ended from each start: x (R, 2 D), f there and whether it converged; the best of
    the starts that ended at the same optimum; and the ELBO there at fresh draws.
    """

    x: np.ndarray
    value: np.ndarray
    converged: np.ndarray
    optimum: np.ndarray
    elbo: np.ndarray
    elbo_se: np.ndarray

    @property
    def best(self) -> int:
        """The start with the highest ELBO."""
        known = np.where(np.isfinite(self.elbo), self.elbo, -np.inf)
        return int(np.argmax(known))

    @property
    def optimism(self) -> float:
        """By how many nats the ELBO at the fixed draws is above that at fresh ones."""
        promised = -self.value[self.best]
        with np.errstate(invalid="ignore"):  # inf - inf, of a fit that runs away
            return float(promised - self.elbo[self.best])


def _result(model: Model, fixed: Fixed, found: _Found, optima: Optima) -> Deterministic:
    best = found.best
    loc, log_scale = np.split(found.x[best].astype(trees.spec(model.latents).dtype), 2)
    return Deterministic(
        model=model,
        guide=mean_field(model.latents),
        params={"loc": loc, "log_scale": log_scale},
        fixed=fixed,
        elbo=float(found.elbo[best]),
        elbo_se=float(found.elbo_se[best]),
        optimism=found.optimism,
        converged=bool(found.converged[best]),
        optima=optima,
    )


def _optima(found: _Found) -> Optima:
    loc, log_scale = np.split(found.x, 2, axis=1)
    return Optima(found.elbo, found.elbo_se, loc, log_scale, found.converged, found.optimum)


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


@dataclass(frozen=True)
class _Search:
    """What all descents of a fit share."""

    key: Array
    model: Model
    data: Data
    weight: Any
    max_steps: int
    deadline: float

    def over(self) -> bool:
        return time.monotonic() >= self.deadline or interrupted()

    def fixed(self, num_draws: int) -> Fixed:
        size = trees.spec(self.model.latents).shape[0]
        return Fixed(fixed_draws(generator(self.key, 1), num_draws, size), self.data, self.weight)

    def run(self, fixed: Fixed, x: np.ndarray) -> _Found:
        """Newton from the rows of x to its end, and the ELBO at fresh draws there."""
        states = self._descend(fixed, x)
        ends = np.stack([state.x for state in states])
        value = np.array([state.value for state in states])
        loc, log_scale = np.split(ends, 2, axis=1)
        with np.errstate(over="ignore"):  # of a fit that runs away
            scale = np.exp(log_scale)
        optimum = np.asarray(diagnostics.distinct_optima(-value, loc, scale))
        elbo = np.full(len(x), np.nan)
        elbo_se = np.full(len(x), np.nan)
        for leader in np.unique(optimum):
            fresh = (np.nan, np.nan) if interrupted() else self._fresh(ends[leader])
            elbo[optimum == leader], elbo_se[optimum == leader] = fresh
        # A location that has run off to infinity moves no more, and Newton's test alone takes that
        # for convergence.
        converged = np.array([state.converged for state in states]) & np.isfinite(elbo)
        return _Found(ends, value, converged, optimum, elbo, elbo_se)

    def _descend(self, fixed: Fixed, x: np.ndarray) -> list[NewtonState]:
        expand = partial(expansions, self.model, fixed)
        eps = float(jnp.finfo(trees.spec(self.model.latents).dtype).eps)
        states = [newton.start(row) for row in x]
        return newton.descend(expand, states, eps, self.max_steps, self.over)

    def _fresh(self, x: np.ndarray) -> tuple[float, float]:
        """The ELBO at fresh draws and its standard error, in nats."""
        loc, log_scale = np.split(x, 2)
        eps = generator(self.key, 2).standard_normal((_NUM_FRESH, loc.size))
        log_q = _log_normal(eps) - np.sum(log_scale)
        with np.errstate(over="ignore", invalid="ignore"):  # of a fit that runs away
            rows = loc + np.exp(log_scale) * eps
            log_w = _log_p(self.model, rows, Fixed(eps, self.data, self.weight)) - log_q
            elbo, elbo_se = diagnostics.elbo(log_w)
        return float(elbo), float(elbo_se)


def _log_normal(eps: np.ndarray) -> np.ndarray:
    """log N(eps; 0, I) of each row, in nats."""
    return -0.5 * np.sum(eps**2 + np.log(2 * np.pi), axis=1)


def _log_p(
    model: Model, rows: np.ndarray, fixed: Fixed, over: Callable[[], bool] = never
) -> np.ndarray:
    u = unravel_rows(model.latents, rows)
    _, log_p = density_at_rows(model, u, len(rows), fixed.data, fixed.weight, over=over)
    return log_p


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
        rows = u.reshape(-1, size)
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
            of_draws = at.hessian.reshape(num, -1, size, size)[r]
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


def _finite_starts(
    model: Model, num_restarts: int, rng: np.random.Generator, first: np.ndarray, fixed: Fixed
) -> np.ndarray:
    """Points x (R, 2 D) to start from; ValueError unless f is finite at one of them."""
    loc = np.zeros((num_restarts, first.size))
    missing = np.ones(num_restarts, bool)
    for attempt in range(_NUM_TRIES):
        drawn = _drawn_starts(rng, num_restarts, first.size, 0.5 ** (attempt // 4))
        if attempt == 0:
            drawn[0] = first
        loc[missing] = drawn[missing]
        missing[missing] = ~_is_finite(model, loc[missing], fixed)
        if not missing.any():
            break
    if missing.all():
        raise ValueError(
            f"expected a finite log density at one of {num_restarts * _NUM_TRIES} starts, "
            "uniform(-2, 2) and wider in unconstrained space: give a `start` where it is finite"
            f"{finite_data.or_the_data(fixed.data)}"
        )
    loc = loc[~missing]
    return np.concatenate([loc, np.full_like(loc, np.log(_START_SCALE))], axis=1)


def _drawn_starts(rng: np.random.Generator, num: int, size: int, nearness: float) -> np.ndarray:
    """Locations (R, D), uniform(-2, 2), and the last half of them farther away: up to four, as
    `_FAR` says, by the factor `nearness`.
    """
    loc = rng.uniform(-2, 2, (num, size))
    far = _FAR[: num // 2]
    for start, (shift, width) in zip(loc[num - len(far) :], far):
        start *= max(nearness * width, 1.0)
        start += nearness * shift
    return loc


def _is_finite(model: Model, loc: np.ndarray, fixed: Fixed) -> np.ndarray:
    """Whether f is finite at each location (R, D)."""
    rows = loc[:, None] + _START_SCALE * fixed.eps
    log_p = _log_p(model, rows.reshape(-1, loc.shape[1]), fixed)
    return np.all(np.isfinite(log_p.reshape(len(loc), -1)), axis=1)
