"""Damped Newton: the minimum of a deterministic function, with no learning rate and a true test of
convergence.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.second_order.hessian_products import dense, scaled_products

Function = Callable[..., Array]


class NewtonState(NamedTuple):
    """Where the descent is: `x` (n,), f there (+inf before the first step), and the damping of the
    next step.

    `decrement`: how much the whole Newton step would lower the quadratic, |g^T H^-1 g| / 2, in
    units of f. `num_idle`: the latest unbroken run of steps for which that was below rounding.
    `converged`: three of them, or a Newton step of no more than the square root of the dtype's
    precision in any coordinate, in units of `scale`. `stuck`: damped so much that no step is left.
    """

    x: Array
    value: Array
    damping: Array
    decrement: Array
    num_steps: Array
    num_idle: Array
    converged: Array
    stuck: Array


def newton(
    fun: Function,
    x: Array,
    *args: Any,
    scale: Callable[[Array], Array] = jnp.ones_like,
    solver: Literal["eigh", "cg"] = "eigh",
    max_steps: int = 100,
) -> NewtonState:
    """A minimum of fun(x, *args), a smooth scalar function of x (n,), from x; pure: jit and vmap
    it.

    p = -S (|S H S| + damping)^-1 S g, H the Hessian, S = diag(scale(x)) the units in which the
    coordinates are alike. A step is taken if f falls; the damping follows from how well the
    quadratic foretold it (Nocedal & Wright 2006, section 4.1). |.| takes the modulus of each
    eigenvalue, so that saddles repel (Dauphin et al. 2014). Where f has no forward mode, products
    with H are differences of gradients (see `products.scaled_products`).

    **Arguments**

    - `solver`: `"eigh"` forms H, n products and O(n^3), for n up to a few hundred; `"cg"` solves by
      conjugate gradients on products with H, cut short at negative curvature (Nocedal & Wright
      2006, algorithm 7.2).
    """
    return descend(fun, start(x), *args, scale=scale, solver=solver, max_steps=max_steps)


def start(x: Array) -> NewtonState:
    """The state before the first step."""
    one, zero = jnp.ones((), x.dtype), jnp.zeros((), jnp.int32)
    return NewtonState(
        x, jnp.inf * one, one, jnp.inf * one, zero, zero, jnp.array(x.size == 0), jnp.array(False)
    )


def descend(
    fun: Function,
    state: NewtonState,
    *args: Any,
    scale: Callable[[Array], Array] = jnp.ones_like,
    solver: Literal["eigh", "cg"] = "eigh",
    max_steps: Any = 100,
) -> NewtonState:
    """Steps from `state` until it has converged, is stuck, or has taken `max_steps` since the
    start.
    """
    solvers = {"eigh": _by_eigenvalues, "cg": _by_conjugate_gradients}
    if solver not in solvers:
        raise ValueError(f"`solver` must be one of {list(solvers)}; got {solver!r}")
    propose = solvers[solver]

    def unfinished(state: NewtonState) -> Array:
        return ~state.converged & ~state.stuck & (state.num_steps < max_steps)

    def step(state: NewtonState) -> NewtonState:
        unit = scale(state.x)
        value, grad, product = scaled_products(lambda x: fun(x, *args), state.x, unit)
        proposal = propose(product, grad, state.damping)
        trial = state.x + unit * proposal.p
        return _judged(state._replace(value=value), trial, fun(trial, *args), proposal)

    return jax.lax.while_loop(unfinished, step, state) if state.x.size else state


class _Step(NamedTuple):
    """A step, the fall that the quadratic promises, and of the Newton step: its largest coordinate
    and its fall.
    """

    p: Array
    promise: Array
    largest: Array
    decrement: Array


def _judged(state: NewtonState, trial: Array, value: Array, step: _Step) -> NewtonState:
    eps = jnp.finfo(value.dtype).eps
    rounding = 8 * eps * (1 + jnp.abs(state.value))
    fall, promise = state.value - value, step.promise
    # Near the end f cannot tell better from worse by its value; the gradient, from which the
    # promise comes, can: it is believed, unless the steps are so small for having been damped.
    ratio = jnp.where((promise < rounding) & (state.damping <= 1), 1.0, fall / promise)
    taken = (fall > 0) | ((promise < rounding) & (fall > -rounding))
    factor = jnp.where(taken, jnp.where(ratio > 0.75, 0.2, jnp.where(ratio < 0.25, 2.0, 1.0)), 4.0)
    damping = jnp.maximum(state.damping * factor, eps)
    num_idle = jnp.where(step.decrement <= rounding, state.num_idle + 1, 0)
    return NewtonState(
        x=jnp.where(taken, trial, state.x),
        value=jnp.where(taken, value, state.value),
        damping=damping,
        decrement=step.decrement,
        num_steps=state.num_steps + 1,
        num_idle=num_idle,
        converged=(taken & (step.largest <= eps**0.5)) | (num_idle >= 3),
        stuck=damping > 1 / eps,
    )


def _by_eigenvalues(product: Callable[[Array], Array], grad: Array, damping: Array) -> _Step:
    values, vectors = jnp.linalg.eigh(dense(product, grad))
    along = grad @ vectors
    p = -along / (jnp.abs(values) + damping)
    whole = jnp.where(along == 0, 0.0, along / jnp.abs(values))  # f may not have a coordinate
    largest = jnp.max(jnp.abs(vectors @ whole))
    return _Step(
        vectors @ p,
        -jnp.sum(along * p + 0.5 * values * p**2),
        largest,
        0.5 * jnp.sum(along * whole),
    )


def _by_conjugate_gradients(
    product: Callable[[Array], Array], grad: Array, damping: Array
) -> _Step:
    norm = jnp.linalg.norm(grad)
    goal = jnp.minimum(0.1, jnp.sqrt(norm)) * norm

    def unfinished(carry: Any) -> Array:
        *_, residual, _, stop, taken = carry
        return ~stop & (jnp.linalg.norm(residual) > goal) & (taken < 2 * grad.size + 10)

    def step(carry: Any) -> Any:
        p, hp, residual, direction, _, taken = carry
        image = product(direction)
        curvature = direction @ image + damping * direction @ direction
        square = residual @ residual
        bad = ~(curvature > 1e-6 * (direction @ direction))  # negative, flat or not a number
        length = jnp.where(
            bad, jnp.where(taken == 0, 1 / damping, 0.0), square / jnp.where(bad, 1.0, curvature)
        )
        p, hp = p + length * direction, hp + length * image
        new = residual - length * (image + damping * direction)
        return p, hp, new, new + (new @ new) / square * direction, bad, taken + 1

    zero = jnp.zeros_like(grad)
    p, hp, *_ = jax.lax.while_loop(
        unfinished, step, (zero, zero, -grad, -grad, jnp.array(False), 0)
    )
    promise = -(grad @ p + 0.5 * p @ hp)
    little_damped = damping <= 1e-2  # only then is this the Newton step
    return _Step(
        p, promise, *(jnp.where(little_damped, x, jnp.inf) for x in (jnp.max(jnp.abs(p)), promise))
    )
