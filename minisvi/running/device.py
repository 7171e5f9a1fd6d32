"""The compiled loop: a block of updates on the device, with all that has to happen at each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.running.plan import Lane, Plan
from minisvi.tools.programs import known
from minisvi.tools.types import Data, Engine, Params

BLOCK_CAPACITY = 4096  # steps; the trace of a block has this length however few are asked for
MAX_BLOCKS = 32  # kept compiled; each takes hundreds of the 65,530 memory maps of a process


class Program:
    """The compiled loop of one engine under one plan; see `program`.

    `block(lane, span, data, held_out)` is `_block`. It overwrites the lane that it is given, which
    comes from `start(program, ...)`.
    """

    def __init__(self, svi: Engine, plan: Plan) -> None:
        self.svi = svi
        self.plan = plan
        self.forget()

    def forget(self) -> None:
        """Free what is compiled."""
        self.num_compiled = 0
        # Bound and not static arguments: JAX keeps those of a function with donated arguments for
        # ever.
        self.block = jax.jit(
            update_wrapper(partial(self._counted), _block),
            donate_argnums=0,
            compiler_options=known(self.svi.compiler_options),
        )

    def _counted(self, *args: Any) -> "BlockResult":
        self.num_compiled += 1  # once for each program, when it is traced
        return _block(self.svi, self.plan, *args)


# JAX's own cache holds a program, as a static argument of `start`, so that `jax.clear_caches()`
# frees it.
_programs: WeakValueDictionary[tuple[Engine, Plan], Program] = WeakValueDictionary()


def program(svi: Engine, plan: Plan) -> Program:
    """The program of this engine and plan; equal ones have the same, and share its compilation.

    Of `MAX_BLOCKS` that are compiled the least recently used is forgotten, so that there is no
    limit to the models that one process fits.
    """
    found = _programs.pop((svi, plan), None) or Program(svi, plan)
    _programs[svi, plan] = found  # the last of them now
    _forget_the_oldest()
    return found


def _forget_the_oldest() -> None:
    programs = list(_programs.values())
    num_compiled = sum(each.num_compiled for each in programs)
    for oldest in programs:
        if num_compiled < MAX_BLOCKS:
            return
        num_compiled -= oldest.num_compiled
        oldest.forget()


@partial(jax.jit, static_argnames="program")
def start(program: Program, state: Any, data: Data, held_out: Any) -> Lane:
    """The lane before the first step, at the engine's `state`."""

    def lane(state: Any) -> Lane:
        return program.plan.start(program.svi, state, data, held_out)

    # Blocks overwrite their input: the state that the user holds must stay theirs.
    return jax.tree.map(jnp.copy, program.plan.over_lanes(lane)(state))


@partial(jax.jit, static_argnames="plan")
def params(plan: Plan, lane: Lane) -> Params:
    """What each start returns: the rule's choice, the tail average, or the iterate."""
    return plan.over_lanes(plan.params)(lane)


class BlockResult(NamedTuple):
    """A block's end: the `lane`; whether a start is `alive`; the numbers `taken` of steps and of
    looks by the rule; and, for each of these, the ELBO estimate and what the rule saw. The last two
    are of full length, and of them only so many are filled.
    """

    lane: Lane
    alive: Array
    taken: Array
    elbo: Array
    checks: Any


def _block(
    svi: Engine, plan: Plan, lane: Lane, span: Array, data: Data, held_out: Any
) -> BlockResult:
    """The updates of the run's steps span[0] to span[1] - 1, with the rule's looks between them.

    It ends before if no start is alive. A span of no steps is one look by the rule.

    While loops and not scans, so that the number of steps is not part of the program: the last,
    shorter block runs the same one, the host sets the pace, and a fit that fails ends at once.
    """
    block = _Block(svi, plan, data, held_out, *span)
    carry = block.empty(lane)
    if plan.stop is None:
        carry = block.while_alive(block.step, carry, lambda c: c.step < block.end)
    else:
        carry = block.while_alive(block.steps_and_look, carry, block.unfinished)
    taken = jnp.stack([carry.step - block.begin, carry.num_checks])
    return BlockResult(carry.lane, block.any_alive(carry), taken, carry.elbo, carry.checks)


class _Carry(NamedTuple):
    lane: Lane
    step: Any  # of the run
    elbo: Array
    num_checks: Any
    checks: Any


@dataclass(frozen=True)
class _Block:
    """The pieces of a block's loop, for the steps from `begin` to before `end`."""

    svi: Engine
    plan: Plan
    data: Data
    held_out: Any
    begin: Array
    end: Array

    def empty(self, lane: Lane) -> _Carry:
        """The carry before the first step."""
        elbo = jnp.zeros((BLOCK_CAPACITY, *lane.state.step.shape))
        checks = None
        if self.plan.stop is not None:
            size = BLOCK_CAPACITY // self.plan.stop.every + 2
            checks = jax.tree.map(
                lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), lane.memory.seen
            )
        return _Carry(lane, self.begin, elbo, jnp.int32(0), checks)

    def any_alive(self, carry: _Carry) -> Array:
        return jnp.any(self.plan.alive(carry.lane))

    def while_alive(
        self,
        body: Callable[[_Carry], _Carry],
        carry: _Carry,
        unfinished: Callable[[_Carry], Array],
    ) -> _Carry:
        return jax.lax.while_loop(lambda c: unfinished(c) & self.any_alive(c), body, carry)

    def step(self, carry: _Carry) -> _Carry:
        """One update of each start."""
        advance = self.plan.over_lanes(partial(_advance, self.svi, self.plan, self.data))
        lane, estimate = advance(carry.lane)
        elbo = carry.elbo.at[carry.step - self.begin].set(estimate)
        return carry._replace(lane=lane, step=carry.step + 1, elbo=elbo)

    def look(self, carry: _Carry) -> _Carry:
        """One look by the rule at each start."""
        check = self.plan.over_lanes(partial(_check, self.svi, self.plan, self.data, self.held_out))
        lane = check(carry.lane)
        i = carry.num_checks
        checks = jax.tree.map(
            lambda trace, value: trace.at[i].set(value), carry.checks, lane.memory.seen
        )
        return carry._replace(lane=lane, num_checks=i + 1, checks=checks)

    def steps_and_look(self, carry: _Carry) -> _Carry:
        """The steps up to the next look, and the look if it is due there."""
        # These steps have a loop of their own, which then carries no branch.
        every = self.plan.stop.every
        until = jnp.minimum(self.end, (carry.step // every + 1) * every)
        carry = self.while_alive(self.step, carry, lambda c: c.step < until)
        due = (carry.step % every == 0) | self._only_looks
        look = due & self.any_alive(carry)
        return jax.lax.cond(look, self.look, lambda carry: carry, carry)

    @property
    def _only_looks(self) -> Array:
        return self.begin == self.end

    def unfinished(self, carry: _Carry) -> Array:
        return (carry.step < self.end) | (self._only_looks & (carry.num_checks == 0))


def _advance(svi: Engine, plan: Plan, data: Data, lane: Lane) -> tuple[Lane, Array]:
    """One start's next lane, and the estimate of the ELBO that its step saw."""
    state, info = svi.update(lane.state, *data)
    tail = None if lane.tail is None else lane.tail.add(state.params)
    state, tail = plan.unless_over(lane, (state, tail), (lane.state, lane.tail))
    elbo = plan.unless_over(lane, info.elbo, jnp.full_like(info.elbo, jnp.nan))
    # The memory of a start that is over may go on: it is large, and what was chosen from it does
    # not change.
    memory = None if plan.stop is None else plan.stop.observe(lane.memory, state)
    return Lane(state, tail, memory), elbo


def _check(svi: Engine, plan: Plan, data: Data, held_out: Any, lane: Lane) -> Lane:
    """One start's lane after a look by the rule."""
    candidate = plan.candidate(lane)
    state, memory = plan.stop.check(svi, lane.memory, lane.state, candidate, data, held_out)
    return plan.unless_over(lane, Lane(state, lane.tail, memory), lane)
