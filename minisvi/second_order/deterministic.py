"""The deterministic fit: a mean field on fixed draws by Newton's method from several starts, and
its linear response.

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
from minisvi.tools import checks, finite_data, inputs, noise
from minisvi.tools.batching import batched
from minisvi.tools.interrupts import interrupted

MAX_DENSE = (
    16  # latents; above it conjugate gradients took less time on each of the models that were tried
)
_NUM_FRESH, _CHUNK = 1024, 64
_START_SCALE = 0.1
_NUM_TRIES = 32
_BLOCK = 5  # Newton steps between two looks at the clock


class Fixed(NamedTuple):
    """What f is a function of beside x: the draws `eps` (M, D), the data, and the `weight` N/B of
    their likelihood.
    """

    eps: Array
    data: tuple[Any, ...]
    weight: Any


class Deterministic(NamedTuple):
    """A mean field `guide` with its `params`, from `deterministic`; `linear_response` takes it.

    `fixed`: the draws and the data. `elbo`, `elbo_se`: at fresh draws, in nats. `optimism`: how
    much more the fixed draws promised. `converged`: Newton's test. `optima`: where each start
    ended.
    """

    model: Model
    guide: MeanField
    params: Any
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
    start: Any = None,
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

    ValueError if no start has a finite density. Only for a mean field: with fewer draws than
    latents the optimum of a full-rank guide does not exist.
    """
    for name, value in {"num_restarts": num_restarts, "max_steps": max_steps}.items():
        checks.positive_integer(name, value)
    for num in (num_draws, restart_draws):
        noise.check("antithetic", num)
        noise.check("quasi", num)
    checks.at_least_single(model.latents)
    data = inputs.arrays(data)
    model.check(*data)
    start_key, draw_key, fresh_key = jax.random.split(checks.prng_key(key), 3)
    first = None if start is None else trees.start(model.latents, start_key, start)
    guide, spec = mean_field(model.latents), trees.spec(model.latents)
    fixed = Fixed(_fixed_draws(draw_key, restart_draws, spec), data, weight)
    x, finite = _starts(model, num_restarts, start_key, first, fixed)
    if not np.any(finite):
        raise ValueError(
            f"expected a finite log density at one of {num_restarts * _NUM_TRIES} starts, uniform(-2, 2) in "
            f"unconstrained space: give a `start` where it is finite{finite_data.or_the_data(data)}"
        )
    run = partial(_run, model, guide, fresh_key, max_steps, deadline)
    found = run(fixed, x)
    optima = _optima(found)
    more = num_draws if num_draws > restart_draws else 4 * restart_draws
    over = lambda: time.monotonic() >= deadline or interrupted()
    while (
        more == num_draws or (found.optimism > max_optimism and more <= max_draws)
    ) and not over():
        fixed = fixed._replace(eps=_fixed_draws(draw_key, more, spec))
        found = run(fixed, found.state.x[found.best][None])
        more *= 4
    loc, log_scale = map(jnp.asarray, np.split(found.state.x[found.best], 2))
    elbo, elbo_se, converged = (a[found.best] for a in (found.elbo, found.elbo_se, found.converged))
    params = {"loc": loc, "log_scale": log_scale}
    return Deterministic(
        model, guide, params, fixed, elbo, elbo_se, found.optimism, bool(converged), optima
    )


class _Found(NamedTuple):
    """Where Newton ended from each start, on the host, where small operations need no compilation."""

    state: Any
    elbo: Any
    elbo_se: Any

    @property
    def best(self) -> int:
        return int(np.argmax(np.where(np.isfinite(self.elbo), self.elbo, -np.inf)))

    @property
    def converged(self) -> Any:
        """A location that has run to infinity is at rest there."""
        return self.state.converged & jnp.isfinite(self.elbo)

    @property
    def optimism(self) -> float:
        with np.errstate(invalid="ignore"):  # inf - inf, of a fit that runs away
            return float(-self.state.value[self.best] - self.elbo[self.best])


@jax.jit
def _optima(found: _Found) -> Optima:
    loc, log_scale = jnp.split(found.state.x, 2, axis=1)
    optimum = diagnostics.distinct_optima(found.elbo, loc, jnp.exp(log_scale))
    return Optima(found.elbo, found.elbo_se, loc, log_scale, found.converged, optimum)


@partial(jax.jit, static_argnames=("num_draws", "spec"))
def _fixed_draws(key: Array, num_draws: int, spec: jax.ShapeDtypeStruct) -> Array:
    """M normals (M, D): a Sobol' net and its reflection, scaled so that each coordinate's mean
    square is one, whose error would be the largest in the mean field's variances.
    """
    draws: noise.Sampling = "quasi" if spec.shape[0] <= noise.MAX_QUASI else "independent"
    eps = noise.over_particles(lambda eps: eps, key, num_draws // 2, draws, spec.shape[0]).astype(
        spec.dtype
    )
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
    state, taken = _begin(x), 0
    while taken < max_steps and not np.all(state.converged | state.stuck) and not interrupted():
        taken = min(taken + _BLOCK, max_steps)
        state = jax.device_get(_descend(model, fixed, state, taken))
        if time.monotonic() > deadline:
            break
    state = jax.device_get(state)
    if interrupted():
        unknown = np.full(len(state.x), np.nan, state.x.dtype)
        return _Found(state, unknown, unknown)
    fresh = [
        jax.device_get(_fresh(model, guide, fresh_key, row, fixed)) for row in state.x
    ]  # compiled for one
    return _Found(state, *map(np.stack, zip(*fresh)))


_begin = jax.jit(jax.vmap(newton.start))


def loss(x: Array, fixed: Fixed, *, model: Model) -> Array:
    loc, log_scale = jnp.split(x, 2)

    def log_p(eps: Array) -> Array:
        u = trees.unravel(model.latents, loc + jnp.exp(log_scale) * eps)
        return model.log_density(u, *fixed.data, weight=fixed.weight)

    return -jnp.mean(batched(log_p)(fixed.eps)) - jnp.sum(log_scale) - loc.size * Normal().entropy()


def units(x: Array) -> Array:
    """What one unit of each coordinate is: a location's is its own sd."""
    _, log_scale = jnp.split(x, 2)
    return jnp.concatenate([jnp.exp(log_scale), jnp.ones_like(log_scale)])


@partial(jax.jit, static_argnames=("model", "num_restarts"))
def _starts(
    model: Model, num_restarts: int, key: Array, first: Any, fixed: Fixed
) -> tuple[Array, Array]:
    """Points x (R, 2 D) to start from, and whether f is finite there."""
    spec = trees.spec(model.latents)
    log_scale = jnp.full(spec.shape, np.log(_START_SCALE), spec.dtype)
    first = jnp.zeros(spec.shape, spec.dtype) if first is None else first

    def search(index: Array, key: Array) -> tuple[Array, Array]:
        def attempt(carry: Any) -> Any:
            num, *_ = carry
            loc = jax.random.uniform(
                jax.random.fold_in(key, num), spec.shape, spec.dtype, -2.0, 2.0
            )
            x = jnp.concatenate([jnp.where((index == 0) & (num == 0), first, loc), log_scale])
            return num + 1, x, jnp.isfinite(loss(x, fixed, model=model))

        none = (0, jnp.zeros(2 * spec.shape[0], spec.dtype), jnp.array(False))
        return jax.lax.while_loop(lambda carry: ~carry[2] & (carry[0] < _NUM_TRIES), attempt, none)[
            1:
        ]

    return jax.lax.map(
        lambda start: search(*start),
        (jnp.arange(num_restarts), jax.random.split(key, num_restarts)),
    )


@partial(jax.jit, static_argnames="model")
def _descend(
    model: Model, fixed: Fixed, state: newton.NewtonState, max_steps: Any
) -> newton.NewtonState:
    solver: Any = "eigh" if state.x.shape[1] <= 2 * MAX_DENSE else "cg"
    advance = partial(
        newton.descend, partial(loss, model=model), scale=units, solver=solver, max_steps=max_steps
    )
    return batched(lambda state: advance(state, fixed))(state)


@partial(jax.jit, static_argnames=("model", "guide"))
def _fresh(
    model: Model, guide: MeanField, key: Array, x: Array, fixed: Fixed
) -> tuple[Array, Array]:
    loc, log_scale = jnp.split(x, 2)
    q = guide.distribution({"loc": loc, "log_scale": log_scale})

    def log_w(eps: Array) -> Array:
        u, log_q = q.from_noise(eps)
        return model.log_density(u, *fixed.data, weight=fixed.weight) - log_q

    def chunk(key: Array) -> Array:
        return jax.vmap(log_w)(noise.normals(key, (_CHUNK, loc.size), loc.dtype))

    return diagnostics.elbo(
        jnp.ravel(jax.lax.map(chunk, jax.random.split(key, _NUM_FRESH // _CHUNK)))
    )
