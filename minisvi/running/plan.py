"""What a run is asked for besides steps, and a start on its way."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.running.averaging import Tail
from minisvi.tools import checks
from minisvi.tools.types import Data, Engine, Params

MAX_CONSECUTIVE_FAILURES = 10


class Lane(NamedTuple):
    """One start on its way: the engine's state, the tail average or None, and the stopping rule's
    memory or None. Several starts are one lane, whose leaves have a leading axis.
    """

    state: Any
    tail: Tail | None
    memory: Any


@dataclass(frozen=True)
class Plan:
    """How many starts there are, whether their iterates are averaged, and the rule that stops them.

    A plan is static: equal plans share a compilation. TypeError or ValueError for other values.
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
                "`stop` must be a rule, such as Patience() or Convergence(), or None; "
                f"got {self.stop!r}"
            )

    def over_lanes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of one start, made into one of all of them."""
        return function if self.num_restarts == 1 else jax.vmap(function)

    def start(self, svi: Engine, state: Any, data: Data, held_out: Any) -> Lane:
        tail = Tail.start(state.params) if self.average else None
        memory = None if self.stop is None else self.stop.init(svi, state, data, held_out)
        return Lane(state, tail, memory)

    def candidate(self, lane: Lane) -> Params:
        """The parameters of the step: the tail average if it is wanted, else the iterate."""
        return lane.state.params if lane.tail is None else lane.tail.mean()

    def params(self, lane: Lane) -> Params:
        """What the fit comes to: the rule's choice if there is a rule, else the candidate."""
        candidate = self.candidate(lane)
        return candidate if self.stop is None else self.stop.params(lane.memory, candidate)

    def alive(self, lane: Lane) -> Array:
        """Whether a start goes on: it has not failed too often, and the rule has not ended it."""
        running = lane.state.num_failed < MAX_CONSECUTIVE_FAILURES
        return running if self.stop is None else running & ~lane.memory.ended

    def unless_over(self, lane: Lane, new: Any, old: Any) -> Any:
        """`new`, but `old` for a start that is over, which stays as it is while others go on. A
        single start needs no such choice, for the loop ends with it.
        """
        if self.num_restarts == 1:
            return new
        return jax.tree.map(partial(jnp.where, self.alive(lane)), new, old)
