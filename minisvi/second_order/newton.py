"""Damped Newton: the minimum of a deterministic function, without a learning rate and with a true
test of convergence.

The steps are taken on the host. What is compiled is the function's own derivatives.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.model.at_rows import never
from minisvi.second_order.hessian_products import dense, scaled_products
from minisvi.tools import blas
from minisvi.tools.programs import HostProgram
from minisvi.tools.sharding import to_host

Function = Callable[..., Array]
Solver = Literal["eigh", "cg"]


class Expansion(NamedTuple):
    """f near a point x: its value, and its derivatives in units S = diag(`unit`) in which the
    coordinates are alike.

    `grad` is S g (n,); `product(v)` is S H S v; `hessian` is S H S (n, n), or None where there are
    products alone.
    """

    value: float
    grad: np.ndarray
    unit: np.ndarray
    product: Callable[[np.ndarray], np.ndarray]
    hessian: np.ndarray | None


class NewtonState(NamedTuple):
    """Where the descent is: `x` (n,), f there (+inf before the first step), and the damping of the
    next step.

    `decrement`: how much the undamped Newton step would lower the quadratic, |g^T H^-1 g| / 2, in
    units of f. `num_idle`: for how many steps in a row that has been below rounding. `converged`:
    three such steps, or a Newton step of no more than the square root of the dtype's precision in
    any coordinate, in units of `scale`. `stuck`: the damping is so strong that no step is left.
    """

    x: np.ndarray
    value: float
    damping: float
    decrement: float
    num_steps: int
    num_idle: int
    converged: bool
    stuck: bool


def newton(
    fun: Function,
    x: Array,
    *args: Any,
    scale: Callable[[np.ndarray], np.ndarray] = np.ones_like,
    solver: Solver = "eigh",
    max_steps: int = 100,
) -> NewtonState:
    """A minimum of fun(x, *args), a smooth scalar function of x (n,), found from x.

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
    if solver not in ("eigh", "cg"):
        raise ValueError(f"`solver` must be one of ['eigh', 'cg']; got {solver!r}")
    dtype = jnp.result_type(x)
    expand = partial(_expand, fun, args, scale, solver, dtype)
    (state,) = descend(expand, [start(np.asarray(x))], float(jnp.finfo(dtype).eps), max_steps)
    return state


def _expand(
    fun: Function,
    args: tuple[Any, ...],
    scale: Callable[[np.ndarray], np.ndarray],
    solver: Solver,
    dtype: Any,
    rows: np.ndarray,
) -> list[Expansion]:
    (x,) = rows
    unit = np.asarray(scale(x), float)
    point, units = x.astype(dtype), unit.astype(dtype)

    def product(v: np.ndarray) -> np.ndarray:
        return to_host(_product(fun, point, units, v.astype(dtype), args)).astype(float)

    value, grad, hessian = to_host(_derivatives(fun, point, units, args, solver == "eigh"))
    if hessian is not None:
        hessian = hessian.astype(float)
    return [Expansion(float(value), grad.astype(float), unit, product, hessian)]


@partial(HostProgram, static_argnames=("fun", "is_dense"))
def _derivatives(fun: Function, x: Array, unit: Array, args: Any, is_dense: bool) -> Any:
    value, grad, product = scaled_products(lambda x: fun(x, *args), x, unit)
    return value, grad, dense(product, x) if is_dense else None


@partial(HostProgram, static_argnames="fun")
def _product(fun: Function, x: Array, unit: Array, v: Array, args: Any) -> Array:
    _, _, product = scaled_products(lambda x: fun(x, *args), x, unit)
    return product(v)


def start(x: np.ndarray) -> NewtonState:
    """The state before the first step."""
    return NewtonState(
        x=x.astype(float),
        value=np.inf,
        damping=1.0,
        decrement=np.inf,
        num_steps=0,
        num_idle=0,
        converged=x.size == 0,
        stuck=False,
    )


def descend(
    expand: Callable[[np.ndarray], list[Expansion]],
    states: list[NewtonState],
    eps: float,
    max_steps: int = 100,
    over: Callable[[], bool] = never,
) -> list[NewtonState]:
    """Steps from each of several states until it has converged, is stuck, or has taken `max_steps`.

    `expand(x)` is f near each row of x (R, n), and `eps` the precision of the dtype in which it is
    computed. Before each step `over()` is asked whether to stop.
    """
    size = max((state.x.size for state in states), default=0)
    with blas.threads_for(size), np.errstate(all="ignore"):  # what is not finite is not taken
        return _descend(expand, states, eps, max_steps, over)


def _descend(
    expand: Callable[[np.ndarray], list[Expansion]],
    states: list[NewtonState],
    eps: float,
    max_steps: int,
    over: Callable[[], bool],
) -> list[NewtonState]:
    def unfinished(state: NewtonState) -> bool:
        return not (state.converged or state.stuck) and state.num_steps < max_steps

    moving = [i for i, state in enumerate(states) if unfinished(state)]
    if not moving:
        return states
    near = dict(zip(moving, expand(np.stack([states[i].x for i in moving]))))
    states = list(states)
    for i in moving:
        states[i] = states[i]._replace(value=near[i].value)
    while moving and not over():
        steps = [_proposal(near[i], states[i].damping) for i in moving]
        trials = [states[i].x + near[i].unit * step.p for i, step in zip(moving, steps)]
        for i, step, trial, there in zip(moving, steps, trials, expand(np.stack(trials))):
            states[i] = _judged(states[i], trial, there.value, step, eps)
            if states[i].x is trial:
                near[i] = there
        moving = [i for i in moving if unfinished(states[i])]
    return states


class _Step(NamedTuple):
    """A proposed step `p`, and how much the quadratic promises that f falls by it.

    `largest` and `decrement` are those of the undamped Newton step: its largest coordinate, and the
    fall that the quadratic promises of it.
    """

    p: np.ndarray
    promise: float
    largest: float
    decrement: float


def _judged(
    state: NewtonState, trial: np.ndarray, value: float, step: _Step, eps: float
) -> NewtonState:
    """The state after a proposal, taken or not; `value` is f at `trial`, where it leads."""
    rounding = 8 * eps * (1 + abs(state.value))
    fall = state.value - value
    # Near the end the values of f cannot tell better from worse. The gradient, from which the
    # promise comes, can: the promise is believed, unless it is small only for the damping.
    is_small = step.promise < rounding
    believed = is_small and state.damping <= 1
    ratio = 1.0 if believed else fall / step.promise
    taken = fall > 0 or (is_small and fall > -rounding)
    num_idle = state.num_idle + 1 if step.decrement <= rounding else 0
    damping = max(state.damping * _damping_factor(ratio, taken), eps)
    has_arrived = taken and step.largest <= eps**0.5
    return NewtonState(
        x=trial if taken else state.x,
        value=value if taken else state.value,
        damping=damping,
        decrement=step.decrement,
        num_steps=state.num_steps + 1,
        num_idle=num_idle,
        converged=bool(has_arrived or num_idle >= 3),
        stuck=damping > 1 / eps,
    )


def _damping_factor(ratio: float, taken: bool) -> float:
    """What the damping is multiplied by, where f fell by `ratio` times as much as was promised."""
    if not taken:
        return 4.0
    if ratio > 0.75:
        return 0.2
    return 2.0 if ratio < 0.25 else 1.0


def _proposal(here: Expansion, damping: float) -> _Step:
    if here.hessian is None:
        return _by_conjugate_gradients(here.product, here.grad, damping)
    if not (np.all(np.isfinite(here.hessian)) and np.all(np.isfinite(here.grad))):
        unknown = np.full_like(here.grad, np.nan)
        return _Step(unknown, np.nan, np.nan, np.nan)
    return _by_eigenvalues(here.hessian, here.grad, damping)


def _by_eigenvalues(hessian: np.ndarray, grad: np.ndarray, damping: float) -> _Step:
    values, vectors = np.linalg.eigh(hessian)
    # In the coordinates of the eigenvectors:
    along = grad @ vectors
    p = -along / (np.abs(values) + damping)
    # f may not depend on some coordinate: then both the slope and the curvature are zero there.
    whole = np.where(along == 0, 0.0, along / np.abs(values))
    return _Step(
        p=vectors @ p,
        promise=float(-np.sum(along * p + 0.5 * values * p**2)),
        largest=float(np.max(np.abs(vectors @ whole))),
        decrement=float(0.5 * np.sum(along * whole)),
    )


def _by_conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray], grad: np.ndarray, damping: float
) -> _Step:
    """p, by steps along directions that are conjugate in (H + damping). Where the curvature along
    one is bad they end: with a step down the gradient if it is the first, else with none.
    """
    norm = np.linalg.norm(grad)
    goal = min(0.1, np.sqrt(norm)) * norm
    p = np.zeros_like(grad)
    image_of_p = np.zeros_like(grad)
    residual = -grad
    direction = residual
    for taken in range(2 * grad.size + 10):
        square = residual @ residual
        if not np.sqrt(square) > goal:
            break
        image = product(direction)
        length_squared = direction @ direction
        curvature = direction @ image + damping * length_squared
        is_bad = not curvature > 1e-6 * length_squared  # negative, flat or not a number
        if is_bad and taken > 0:
            break
        length = 1 / damping if is_bad else square / curvature
        p = p + length * direction
        image_of_p = image_of_p + length * image
        if is_bad:
            break
        residual = residual - length * (image + damping * direction)
        direction = residual + (residual @ residual) / square * direction
    promise = float(-(grad @ p + 0.5 * p @ image_of_p))
    # With more damping p is not the Newton step, of which nothing is known then.
    if damping > 1e-2:
        return _Step(p, promise, np.inf, np.inf)
    return _Step(p, promise, float(np.max(np.abs(p))), promise)
