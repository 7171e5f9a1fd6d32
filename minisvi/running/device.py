"""The compiled loop: a block of updates on the device, with all that has to happen at each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.running.averaging import Tail
from minisvi.tools import checks

MAX_CONSECUTIVE_FAILURES = 10
BLOCK_CAPACITY = (
    4096  # steps; the trace of a block has this length whatever the number of steps asked for
)


class Lane(NamedTuple):
    """One start on its way: the engine's state, the tail average or None, and the stopping rule's
    memory or None.
    """

    state: Any
    tail: Any
    memory: Any


@dataclass(frozen=True)
class Plan:
    """What a run is asked for besides steps; static. Lanes get a leading axis only if there are
    several.

    TypeError or ValueError for other values.
    """

    num_restarts: int = 1
    average: bool = False
    stop: Any = None

    def __post_init__(self) -> None:
        checks.positive_integer("num_restarts", self.num_restarts)
        if not isinstance(self.average, bool):
            raise TypeError(f"`average` must be True or False; got {self.average!r}")
        if self.stop is not None and not callable(getattr(self.stop, "check", None)):
            raise TypeError(
                f"`stop` must be a rule, such as Patience() or Convergence(), or None; got {self.stop!r}"
            )

    def over_lanes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if self.num_restarts == 1 else jax.vmap(function)

    def start(self, svi: Any, state: Any, data: Any, held_out: Any) -> Lane:
        tail = Tail.start(state.params) if self.average else None
        return Lane(
            state, tail, None if self.stop is None else self.stop.init(svi, state, data, held_out)
        )

    def candidate(self, lane: Lane) -> Any:
        """The parameters of the step: the tail average if it is wanted, else the iterate."""
        return lane.tail.mean() if self.average else lane.state.params

    def params(self, lane: Lane) -> Any:
        """What the fit comes to: the rule's choice if there is a rule, else the candidate."""
        candidate = self.candidate(lane)
        return candidate if self.stop is None else self.stop.params(lane.memory, candidate)

    def alive(self, lane: Lane) -> Array:
        running = lane.state.num_failed < MAX_CONSECUTIVE_FAILURES
        return running if self.stop is None else running & ~lane.memory.ended

    def unless_over(self, lane: Lane, new: Any, old: Any) -> Any:
        """`new`, but a lane that is over stays as it is while others go on; one alone ends the loop
        instead.
        """
        return (
            new
            if self.num_restarts == 1
            else jax.tree.map(partial(jnp.where, self.alive(lane)), new, old)
        )


class _Carry(NamedTuple):
    lane: Lane
    step: Any  # of this call
    elbo: Array
    num_checks: Any
    checks: Any


class Program:
    """The compiled loop of one engine under one plan; `program` gives the same one for equal
    engines and plans.

    `block(lane, span, data, held_out)` overwrites the lane that it is given, which comes from
    `start(program, ...)`.
    """

    def __init__(self, svi: Any, plan: Plan) -> None:
        self.svi, self.plan = svi, plan
        # Bound and not static arguments: JAX keeps those of a function with donated arguments for
        # ever.
        self.block = jax.jit(partial(_block, svi, plan), donate_argnums=0)


# JAX's own cache holds a program, as a static argument of `start`, so that `jax.clear_caches()`
# frees it.
_programs: WeakValueDictionary[tuple[Any, Plan], Program] = WeakValueDictionary()


def program(svi: Any, plan: Plan) -> Program:
    return _programs.setdefault((svi, plan), Program(svi, plan))


def _block(
    svi: Any, plan: Plan, lane: Lane, span: Any, data: tuple[Any, ...], held_out: Any
) -> tuple[Any, ...]:
    # From step to step of the span; one of no steps is a look by the rule. While loops and not
    # scans, so that the number of steps is not part of the program: the last, shorter block runs
    # the same one, the host sets the pace, and a fit that fails ends at once.
    begin, end = span
    looking = begin == end
    advance = plan.over_lanes(partial(_advance, svi, plan, data))
    check = plan.over_lanes(partial(_check, svi, plan, data, held_out))

    def while_alive(
        step: Callable[[_Carry], _Carry], carry: _Carry, unfinished: Callable[[_Carry], Array]
    ) -> _Carry:
        return jax.lax.while_loop(
            lambda c: unfinished(c) & jnp.any(plan.alive(c.lane)), step, carry
        )

    def step(carry: _Carry) -> _Carry:
        lane, elbo = advance(carry.lane)
        return carry._replace(
            lane=lane, step=carry.step + 1, elbo=carry.elbo.at[carry.step - begin].set(elbo)
        )

    def look(carry: _Carry) -> _Carry:
        lane, i = check(carry.lane), carry.num_checks
        seen = jax.tree.map(
            lambda trace, value: trace.at[i].set(value), carry.checks, lane.memory.seen
        )
        return carry._replace(lane=lane, num_checks=i + 1, checks=seen)

    def steps_and_check(carry: _Carry) -> _Carry:
        # The steps up to the next check have a loop of their own, which then carries no branch.
        every = plan.stop.every
        until = jnp.minimum(end, (carry.step // every + 1) * every)
        carry = while_alive(step, carry, lambda c: c.step < until)
        due = (carry.step % every == 0) | looking
        return jax.lax.cond(due & jnp.any(plan.alive(carry.lane)), look, lambda carry: carry, carry)

    dtype = jax.eval_shape(
        plan.over_lanes(lambda state: svi.evaluate(state, *data)), lane.state
    ).dtype
    carry = _Carry(
        lane, begin, jnp.zeros((BLOCK_CAPACITY, *lane.state.step.shape), dtype), jnp.int32(0), None
    )
    if plan.stop is None:
        carry = while_alive(step, carry, lambda c: c.step < end)
    else:
        size = BLOCK_CAPACITY // plan.stop.every + 2
        seen = jax.tree.map(lambda a: jnp.zeros((size, *a.shape), a.dtype), lane.memory.seen)
        unfinished = lambda c: (c.step < end) | (looking & (c.num_checks == 0))
        carry = while_alive(steps_and_check, carry._replace(checks=seen), unfinished)
    taken = jnp.stack([carry.step - begin, carry.num_checks])
    return carry.lane, jnp.any(plan.alive(carry.lane)), taken, carry.elbo, carry.checks


def _advance(svi: Any, plan: Plan, data: tuple[Any, ...], lane: Lane) -> tuple[Lane, Array]:
    state, info = svi.update(lane.state, *data)
    tail = lane.tail.add(state.params) if plan.average else None
    state, tail = plan.unless_over(lane, (state, tail), (lane.state, lane.tail))
    elbo = plan.unless_over(lane, info.elbo, jnp.full_like(info.elbo, jnp.nan))
    # The memory of a lane that is over may go on: it is large, and what was chosen from it does not
    # change.
    memory = None if plan.stop is None else plan.stop.observe(lane.memory, state)
    return Lane(state, tail, memory), elbo


def _check(svi: Any, plan: Plan, data: tuple[Any, ...], held_out: Any, lane: Lane) -> Lane:
    state, memory = plan.stop.check(
        svi, lane.memory, lane.state, plan.candidate(lane), data, held_out
    )
    return plan.unless_over(lane, Lane(state, lane.tail, memory), lane)


@partial(jax.jit, static_argnames="program")
def start(program: Program, state: Any, data: tuple[Any, ...], held_out: Any) -> Lane:
    # Blocks overwrite their input: the state that the user holds must stay theirs.
    svi, plan = program.svi, program.plan
    lane = plan.over_lanes(lambda state: plan.start(svi, state, data, held_out))(state)
    return jax.tree.map(jnp.copy, lane)


@partial(jax.jit, static_argnames="plan")
def params(plan: Plan, lane: Lane) -> Any:
    return plan.over_lanes(plan.params)(lane)
