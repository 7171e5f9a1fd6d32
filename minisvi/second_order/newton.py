"""Damped Newton: the minimum of a deterministic function, without a learning rate and with a true
test of convergence.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.second_order.hessian_products import Product, dense, scaled_products

Function = Callable[..., Array]
Solver = Literal["eigh", "cg"]


class NewtonState(NamedTuple):
    """Where the descent is: `x` (n,), f there (+inf before the first step), and the damping of the
    next step.

    `decrement`: how much the undamped Newton step would lower the quadratic, |g^T H^-1 g| / 2, in
    units of f. `num_idle`: for how many steps in a row that has been below rounding. `converged`:
    three such steps, or a Newton step of no more than the square root of the dtype's precision in
    any coordinate, in units of `scale`. `stuck`: the damping is so strong that no step is left.
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
    solver: Solver = "eigh",
    max_steps: int = 100,
) -> NewtonState:
    """A minimum of fun(x, *args), a smooth scalar function of x (n,), found from x. It is pure:
    jit and vmap it.

    A step is p = -S (|S H S| + damping)^-1 S g, where H is the Hessian and S = diag(scale(x)) holds
    the units in which the coordinates are alike. It is taken if f falls; the damping follows from
    how well the quadratic foretold it (Nocedal & Wright 2006, section 4.1). |.| takes the modulus
    of each eigenvalue, so that saddles repel (Dauphin et al. 2014). Where f has no forward mode,
    products with H are differences of gradients (see `hessian_products.scaled_products`).

    **Arguments**

    - `solver`: `"eigh"` forms H, by n products and O(n^3) operations, for n up to a few hundred;
      `"cg"` solves by conjugate gradients on products with H, cut short at negative curvature
      (Nocedal & Wright 2006, algorithm 7.2).
    """
    return descend(fun, start(x), *args, scale=scale, solver=solver, max_steps=max_steps)


def start(x: Array) -> NewtonState:
    """The state before the first step."""
    one = jnp.ones((), x.dtype)
    zero = jnp.zeros((), jnp.int32)
    nothing_to_do = x.size == 0
    return NewtonState(
        x=x,
        value=jnp.inf * one,
        damping=one,
        decrement=jnp.inf * one,
        num_steps=zero,
        num_idle=zero,
        converged=jnp.array(nothing_to_do),
        stuck=jnp.array(False),
    )


def descend(
    fun: Function,
    state: NewtonState,
    *args: Any,
    scale: Callable[[Array], Array] = jnp.ones_like,
    solver: Solver = "eigh",
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
        trial_value = fun(trial, *args)
        return _judged(state._replace(value=value), trial, trial_value, proposal)

    if state.x.size == 0:
        return state
    return jax.lax.while_loop(unfinished, step, state)


class _Step(NamedTuple):
    """A proposed step `p`, and how much the quadratic promises that f falls by it.

    `largest` and `decrement` are those of the undamped Newton step: its largest coordinate, and the
    fall that the quadratic promises of it.
    """

    p: Array
    promise: Array
    largest: Array
    decrement: Array


def _judged(state: NewtonState, trial: Array, value: Array, step: _Step) -> NewtonState:
    """The state after a proposal, taken or not; `value` is f at `trial`, where it leads."""
    eps = jnp.finfo(value.dtype).eps
    rounding = 8 * eps * (1 + jnp.abs(state.value))
    fall = state.value - value
    # Near the end the values of f cannot tell better from worse. The gradient, from which the
    # promise comes, can: the promise is believed, unless it is small only for the damping.
    believed = (step.promise < rounding) & (state.damping <= 1)
    ratio = jnp.where(believed, 1.0, fall / step.promise)
    is_lower = fall > 0
    is_level = (step.promise < rounding) & (fall > -rounding)
    taken = is_lower | is_level
    damping = jnp.maximum(state.damping * _damping_factor(ratio, taken), eps)
    is_idle = step.decrement <= rounding
    num_idle = jnp.where(is_idle, state.num_idle + 1, 0)
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


def _damping_factor(ratio: Array, taken: Array) -> Array:
    """What the damping is multiplied by, where f fell by `ratio` times as much as was promised."""
    foretold_well = ratio > 0.75
    foretold_badly = ratio < 0.25
    of_others = jnp.where(foretold_badly, 2.0, 1.0)
    of_taken = jnp.where(foretold_well, 0.2, of_others)
    return jnp.where(taken, of_taken, 4.0)


def _by_eigenvalues(product: Product, grad: Array, damping: Array) -> _Step:
    values, vectors = jnp.linalg.eigh(dense(product, grad))
    # In the coordinates of the eigenvectors:
    along = grad @ vectors
    p = -along / (jnp.abs(values) + damping)
    # f may not depend on some coordinate: then both the slope and the curvature are zero there.
    whole = jnp.where(along == 0, 0.0, along / jnp.abs(values))
    largest = jnp.max(jnp.abs(vectors @ whole))
    return _Step(
        p=vectors @ p,
        promise=-jnp.sum(along * p + 0.5 * values * p**2),
        largest=largest,
        decrement=0.5 * jnp.sum(along * whole),
    )


class _Solution(NamedTuple):
    """Conjugate gradients on their way: p, H p, the residual of (H + damping) p = -g, the next
    direction, whether they stop for the curvature, and how many steps they have `taken`.
    """

    p: Array
    hp: Array
    residual: Array
    direction: Array
    stop: Array
    taken: Any


def _by_conjugate_gradients(product: Product, grad: Array, damping: Array) -> _Step:
    norm = jnp.linalg.norm(grad)
    goal = jnp.minimum(0.1, jnp.sqrt(norm)) * norm
    max_taken = 2 * grad.size + 10

    def unfinished(now: _Solution) -> Array:
        go_on = ~now.stop
        is_far = jnp.linalg.norm(now.residual) > goal
        return go_on & is_far & (now.taken < max_taken)

    zero = jnp.zeros_like(grad)
    first = _Solution(zero, zero, -grad, -grad, jnp.array(False), 0)
    found = jax.lax.while_loop(unfinished, lambda now: _next(now, product, damping), first)
    p = found.p
    promise = -(grad @ p + 0.5 * p @ found.hp)
    # With more damping p is not the Newton step, of which nothing is known then.
    little_damped = damping <= 1e-2
    largest = jnp.max(jnp.abs(p))
    return _Step(
        p=p,
        promise=promise,
        largest=jnp.where(little_damped, largest, jnp.inf),
        decrement=jnp.where(little_damped, promise, jnp.inf),
    )


def _next(now: _Solution, product: Product, damping: Array) -> _Solution:
    """One step of conjugate gradients. Where the curvature along the direction is bad, it is the
    last: a step down the gradient if it is also the first one, else none.
    """
    direction = now.direction
    image = product(direction)
    curvature = direction @ image + damping * direction @ direction
    square = now.residual @ now.residual
    is_bad = ~(curvature > 1e-6 * (direction @ direction))  # negative, flat or not a number
    is_first = now.taken == 0
    length_if_bad = jnp.where(is_first, 1 / damping, 0.0)
    length_if_good = square / jnp.where(is_bad, 1.0, curvature)
    length = jnp.where(is_bad, length_if_bad, length_if_good)
    p = now.p + length * direction
    hp = now.hp + length * image
    residual = now.residual - length * (image + damping * direction)
    next_direction = residual + (residual @ residual) / square * direction
    return _Solution(p, hp, residual, next_direction, is_bad, now.taken + 1)
