"""The deterministic fit: a mean field on fixed draws by Newton's method from several starts.

The draws eps_k = (e, -e) are made once, so that minus the ELBO is a smooth function of x = (loc,
log_scale):

    f(x) = -(1/M) sum_k log p(loc + exp(log_scale) eps_k) - sum_i log_scale_i - D/2 (1 + log 2 pi)
"""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.guides.gaussian import MeanField, mean_field
from minisvi.guides.location_scale import Normal
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.posterior import diagnostics
from minisvi.posterior.diagnostics import Optima
from minisvi.second_order import newton
from minisvi.second_order.newton import NewtonState, Solver
from minisvi.tools import checks, finite_data, inputs, noise
from minisvi.tools.batching import batched
from minisvi.tools.interrupts import interrupted
from minisvi.tools.types import Data, Draw, Params

# Latents. With more of them conjugate gradients took less time on each of the models that were
# tried.
MAX_DENSE = 16
_NUM_FRESH, _CHUNK = 1024, 64
_START_SCALE = 0.1
_NUM_TRIES = 32
_BLOCK = 5  # Newton steps between two looks at the clock


class Fixed(NamedTuple):
    """What f is a function of beside x: the draws `eps` (M, D), the data, and the `weight` N/B of
    their likelihood.
    """

    eps: Array
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
    elbo: Any
    elbo_se: Any
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

    All starts descend at once, in one compiled program, on `restart_draws`; the best at fresh draws
    goes on with `num_draws`. While these promise more than `max_optimism` nats beyond fresh ones,
    they are made four times as many, up to `max_draws`.

    **Arguments**

    - `weight`: N/B, where the data are B of N rows.
    - `start`: a tree u, such as `model.unconstrain(theta)`, for the first start; by default zero.
      The others are uniform(-2, 2). Each is drawn again, up to 32 times, where the density is not
      finite.
    - `num_draws`, `restart_draws`: M, powers of two.
    - `max_steps`: of Newton, for each number of draws. `deadline`: of `time.monotonic()`, at which
      it stops.

    ValueError if no start has a finite density. The fit is for a mean field alone: with fewer draws
    than latents the optimum of a full-rank guide does not exist.
    """
    _check(model, num_restarts, max_steps, num_draws, restart_draws)
    data = inputs.arrays(data)
    model.check(*data)
    start_key, draw_key, fresh_key = jax.random.split(checks.prng_key(key), 3)
    first = None if start is None else trees.start(model.latents, start_key, start)
    guide = mean_field(model.latents)
    spec = trees.spec(model.latents)
    fixed = Fixed(_fixed_draws(draw_key, restart_draws, spec), data, weight)
    x = _finite_starts(model, num_restarts, start_key, first, fixed)
    run = partial(_run, model, guide, fresh_key, max_steps, deadline)
    found = run(fixed, x)
    optima = _optima(found)

    def go_on(num: int) -> tuple[Fixed, _Found]:
        more = fixed._replace(eps=_fixed_draws(draw_key, num, spec))
        best = found.state.x[found.best]
        return more, run(more, best[None])

    def time_is_up() -> bool:
        return time.monotonic() >= deadline or interrupted()

    if num_draws > restart_draws and not time_is_up():
        fixed, found = go_on(num_draws)
    more = 4 * max(num_draws, restart_draws)
    while found.optimism > max_optimism and more <= max_draws and not time_is_up():
        fixed, found = go_on(more)
        more *= 4
    return _result(model, guide, fixed, found, optima)


def _check(
    model: Model, num_restarts: int, max_steps: int, num_draws: int, restart_draws: int
) -> None:
    checks.positive_integer("num_restarts", num_restarts)
    checks.positive_integer("max_steps", max_steps)
    for num in (num_draws, restart_draws):
        noise.check("antithetic", num)
        noise.check("quasi", num)
    checks.at_least_single(model.latents)


class _Found(NamedTuple):
    """Where Newton ended from each start, with the ELBO at fresh draws. It is on the host, where
    small operations need no compilation.
    """

    state: NewtonState
    elbo: Any
    elbo_se: Any

    @property
    def best(self) -> int:
        """The start with the highest ELBO."""
        known = np.where(np.isfinite(self.elbo), self.elbo, -np.inf)
        return int(np.argmax(known))

    @property
    def converged(self) -> Any:
        """Whether Newton has converged, from each start, to a point that has an ELBO. A location
        that has run off to infinity moves no more, and Newton's test alone takes that for
        convergence.
        """
        return self.state.converged & jnp.isfinite(self.elbo)

    @property
    def optimism(self) -> float:
        """By how many nats the ELBO at the fixed draws is above that at fresh ones."""
        promised = -self.state.value[self.best]
        with np.errstate(invalid="ignore"):  # inf - inf, of a fit that runs away
            return float(promised - self.elbo[self.best])


def _result(
    model: Model, guide: MeanField, fixed: Fixed, found: _Found, optima: Optima
) -> Deterministic:
    best = found.best
    loc, log_scale = np.split(found.state.x[best], 2)
    return Deterministic(
        model=model,
        guide=guide,
        params={"loc": jnp.asarray(loc), "log_scale": jnp.asarray(log_scale)},
        fixed=fixed,
        elbo=found.elbo[best],
        elbo_se=found.elbo_se[best],
        optimism=found.optimism,
        converged=bool(found.converged[best]),
        optima=optima,
    )


@jax.jit
def _optima(found: _Found) -> Optima:
    loc, log_scale = jnp.split(found.state.x, 2, axis=1)
    optimum = diagnostics.distinct_optima(found.elbo, loc, jnp.exp(log_scale))
    return Optima(found.elbo, found.elbo_se, loc, log_scale, found.converged, optimum)


@partial(jax.jit, static_argnames=("num_draws", "spec"))
def _fixed_draws(key: Array, num_draws: int, spec: jax.ShapeDtypeStruct) -> Array:
    """M normals (M, D): a Sobol' net and its reflection, scaled so that each coordinate's mean
    square is one. The error of that square would otherwise be the largest in the mean field's
    variances.
    """
    size = spec.shape[0]
    sampling: noise.Sampling = "quasi" if size <= noise.MAX_QUASI else "independent"
    eps = noise.over_particles(lambda eps: eps, key, num_draws // 2, sampling, size)
    eps = eps.astype(spec.dtype)
    eps = eps / jnp.sqrt(jnp.mean(eps**2, axis=0))[None]
    return jnp.concatenate([eps, -eps])


def _run(
    model: Model,
    guide: MeanField,
    fresh_key: Array,
    max_steps: int,
    deadline: float,
    fixed: Fixed,
    x: Any,
) -> _Found:
    """Newton from the rows of x to its end, and the ELBO at fresh draws there."""
    state = jax.device_get(_newton(model, max_steps, deadline, fixed, x))
    if interrupted():
        unknown = np.full(len(state.x), np.nan, state.x.dtype)
        return _Found(state, unknown, unknown)
    # One row after the other, so that it is compiled for one row and never again.
    fresh = [jax.device_get(_fresh(model, guide, fresh_key, row, fixed)) for row in state.x]
    elbos, errors = zip(*fresh)
    return _Found(state, np.stack(elbos), np.stack(errors))


def _newton(model: Model, max_steps: int, deadline: float, fixed: Fixed, x: Any) -> NewtonState:
    """Newton's method, until all rows of x are at an end or the caller's time is up."""
    state = _begin(x)
    taken = 0
    while taken < max_steps and not np.all(state.converged | state.stuck) and not interrupted():
        taken = min(taken + _BLOCK, max_steps)
        state = jax.device_get(_descend(model, fixed, state, taken))
        if time.monotonic() > deadline:
            break
    return state


_begin = jax.jit(jax.vmap(newton.start))


def loss(x: Array, fixed: Fixed, *, model: Model) -> Array:
    """f(x), which is minus the ELBO on the fixed draws, in nats."""
    loc, log_scale = jnp.split(x, 2)

    def log_p(eps: Array) -> Array:
        u = trees.unravel(model.latents, loc + jnp.exp(log_scale) * eps)
        return model.log_density(u, *fixed.data, weight=fixed.weight)

    energy = -jnp.mean(batched(log_p)(fixed.eps))
    return energy - jnp.sum(log_scale) - loc.size * Normal().entropy()


def units(x: Array) -> Array:
    """What one unit of each coordinate is: a location's is its own sd."""
    _, log_scale = jnp.split(x, 2)
    return jnp.concatenate([jnp.exp(log_scale), jnp.ones_like(log_scale)])


def _finite_starts(
    model: Model, num_restarts: int, key: Array, first: Array | None, fixed: Fixed
) -> Array:
    """Points x (R, 2 D) to start from; ValueError unless f is finite at one of them."""
    x, finite = _starts(model, num_restarts, key, first, fixed)
    if not np.any(finite):
        raise ValueError(
            f"expected a finite log density at one of {num_restarts * _NUM_TRIES} starts, "
            "uniform(-2, 2) in unconstrained space: give a `start` where it is finite"
            f"{finite_data.or_the_data(fixed.data)}"
        )
    return x


class _Try(NamedTuple):
    """A point x (2 D) drawn as a start, after `num` tries, and whether f is finite there."""

    num: Any
    x: Array
    is_finite: Array


@partial(jax.jit, static_argnames=("model", "num_restarts"))
def _starts(
    model: Model, num_restarts: int, key: Array, first: Array | None, fixed: Fixed
) -> tuple[Array, Array]:
    """Points x (R, 2 D) to start from, and whether f is finite there."""
    spec = trees.spec(model.latents)
    log_scale = jnp.full(spec.shape, np.log(_START_SCALE), spec.dtype)
    if first is None:
        first = jnp.zeros(spec.shape, spec.dtype)

    def search(index: Array, key: Array) -> tuple[Array, Array]:
        def attempt(last: _Try) -> _Try:
            try_key = jax.random.fold_in(key, last.num)
            loc = jax.random.uniform(try_key, spec.shape, spec.dtype, -2.0, 2.0)
            is_given = (index == 0) & (last.num == 0)
            x = jnp.concatenate([jnp.where(is_given, first, loc), log_scale])
            return _Try(last.num + 1, x, jnp.isfinite(loss(x, fixed, model=model)))

        def unfinished(last: _Try) -> Array:
            return ~last.is_finite & (last.num < _NUM_TRIES)

        none = _Try(0, jnp.zeros(2 * spec.shape[0], spec.dtype), jnp.array(False))
        last = jax.lax.while_loop(unfinished, attempt, none)
        return last.x, last.is_finite

    starts = jnp.arange(num_restarts), jax.random.split(key, num_restarts)
    return jax.lax.map(lambda start: search(*start), starts)


@partial(jax.jit, static_argnames="model")
def _descend(model: Model, fixed: Fixed, state: NewtonState, max_steps: Any) -> NewtonState:
    size = state.x.shape[1] // 2
    solver: Solver = "eigh" if size <= MAX_DENSE else "cg"
    fun = partial(loss, model=model)

    def advance(state: NewtonState) -> NewtonState:
        return newton.descend(fun, state, fixed, scale=units, solver=solver, max_steps=max_steps)

    return batched(advance)(state)


@partial(jax.jit, static_argnames=("model", "guide"))
def _fresh(
    model: Model, guide: MeanField, key: Array, x: Array, fixed: Fixed
) -> tuple[Array, Array]:
    """The ELBO at fresh draws and its standard error, in nats."""
    loc, log_scale = jnp.split(x, 2)
    q = guide.distribution({"loc": loc, "log_scale": log_scale})

    def log_w(eps: Array) -> Array:
        u, log_q = q.from_noise(eps)
        return model.log_density(u, *fixed.data, weight=fixed.weight) - log_q

    def chunk(key: Array) -> Array:
        eps = noise.normals(key, (_CHUNK, loc.size), loc.dtype)
        return jax.vmap(log_w)(eps)

    chunks = jax.lax.map(chunk, jax.random.split(key, _NUM_FRESH // _CHUNK))
    return diagnostics.elbo(jnp.ravel(chunks))
