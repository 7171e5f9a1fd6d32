"""What a stopping rule is, and what rules share.

The engine comes with two: `Patience`, on a held-out score, and `Convergence`, on the iterates.
"""

from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.tools.types import Data, Params


class Memory(Protocol):
    """What a rule remembers from step to step: a NamedTuple of arrays, which keep their shapes."""

    @property
    def seen(self) -> Any:
        """What the latest check saw, a NamedTuple of arrays. `result.checks` has those of all
        checks, stacked.
        """

    @property
    def ended(self) -> Array:
        """A bool: whether the rule ends the fit."""


M = TypeVar("M", bound=Memory)


class Rule(Protocol[M]):
    """A stopping rule: a frozen, hashable record of pure functions.

    Any record with these methods works as one. They are compiled: `init` where the fit starts,
    `observe` and `check` inside its loop, and `params` where it ends. `svi` is the engine, whose
    `model`, `guide` and `batches` a rule may look at, and `state` its `SVIState`. With several
    restarts each has a memory of its own.
    """

    @property
    def every(self) -> int:
        """The number of steps between checks."""

    @property
    def reason(self) -> str:
        """What `result.reason` is when the rule has ended the fit."""

    def init(self, svi: Any, state: Any, data: Data, held_out: Any) -> M:
        """The memory before the first step. Static mistakes raise here, while it is traced.

        `held_out` are the rows that the user gave for the rule, or None.
        """

    def observe(self, memory: M, state: Any) -> M:
        """The memory after a step. It is called at each step, and should be cheap."""

    def check(
        self, svi: Any, memory: M, state: Any, params: Params, data: Data, held_out: Any
    ) -> tuple[Any, M]:
        """The state to go on from, and the memory with what was seen. It is called after each
        `every` steps, and after the last one.

        `params` are those of the step that the fit could return: the iterate, or the tail average
        where that is wanted.
        """

    def params(self, memory: M, params: Params) -> Params:
        """The parameters that the fit returns, if it ends now; `params` are as for `check`."""


def choose(condition: Array, new: Any, old: Any) -> Any:
    """The tree `new` where the condition, one bool, is true, and `old` elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def rule_key(state: Any) -> Array:
    """A key for a rule's own draws, apart from those of the steps."""
    return jax.random.fold_in(state.key, 2**31 - 1)
