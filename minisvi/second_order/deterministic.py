"""The deterministic fit: a mean field on fixed draws by Newton's method from several starts.

Its function is that of `fixed_draws`, and its starts are those of `starts`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from minisvi.guides.gaussian import MeanField, mean_field
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.posterior import diagnostics
from minisvi.posterior.diagnostics import Optima
from minisvi.second_order.fixed_draws import Fixed, fixed_draws, log_p_at, minimised
from minisvi.second_order.starts import finite_starts, given
from minisvi.tools import checks, inputs, noise
from minisvi.tools.interrupts import interrupted, time_is_up
from minisvi.tools.keys import generator
from minisvi.tools.types import Draw, Params

_NUM_FRESH = 1024


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
    max_steps: int = 400,
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
    first = np.zeros(size) if start is None else given(model.latents, start)
    search = _Search(key, model, data, weight, max_steps, deadline)
    fixed = search.fixed(restart_draws)
    x = finite_starts(model, num_restarts, generator(key, 0), first, fixed)
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
    with np.errstate(over="ignore"):  # of a fit that runs away
        x = found.x[best].astype(trees.spec(model.latents).dtype)
    loc, log_scale = np.split(x, 2)
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


@dataclass(frozen=True)
class _Search:
    """What all descents of a fit share."""

    key: Array
    model: Model
    data: Any
    weight: Any
    max_steps: int
    deadline: float

    def over(self) -> bool:
        return time_is_up(self.deadline)

    def fixed(self, num_draws: int) -> Fixed:
        size = trees.spec(self.model.latents).shape[0]
        return Fixed(fixed_draws(generator(self.key, 1), num_draws, size), self.data, self.weight)

    def run(self, fixed: Fixed, x: np.ndarray) -> _Found:
        """Newton from the rows of x to its end, and the ELBO at fresh draws there."""
        states = minimised(self.model, fixed, x, self.max_steps, self.over)
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

    def _fresh(self, x: np.ndarray) -> tuple[float, float]:
        """The ELBO at fresh draws and its standard error, in nats."""
        loc, log_scale = np.split(x, 2)
        eps = generator(self.key, 2).standard_normal((_NUM_FRESH, loc.size))
        log_q = _log_normal(eps) - np.sum(log_scale)
        with np.errstate(over="ignore", invalid="ignore"):  # of a fit that runs away
            rows = loc + np.exp(log_scale) * eps
            log_w = log_p_at(self.model, rows, Fixed(eps, self.data, self.weight)) - log_q
            elbo, elbo_se = diagnostics.elbo(log_w)
        return float(elbo), float(elbo_se)


def _log_normal(eps: np.ndarray) -> np.ndarray:
    """log N(eps; 0, I) of each row, in nats."""
    return -0.5 * np.sum(eps**2 + np.log(2 * np.pi), axis=1)
