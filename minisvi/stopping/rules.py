"""When to stop: what a rule is, and patience on a held-out score; `convergence` has the rule on the
iterates.

A rule is a frozen record of pure functions, which run inside the compiled loop. Its memory is a
NamedTuple; `ended` in it ends the fit, and `seen` is what `result.checks` holds of a check. Any
record with these works as one:

- `every` and `reason`: the steps between checks, and what `result.reason` is when the rule ends the
  fit;
- `init(svi, state, data, held_out) -> memory`: where static mistakes raise;
- `observe(memory, state) -> memory`: at each step, cheap;
- `check(svi, memory, state, params, data, held_out) -> (state, memory)`: at `every` step and the
  last one, of the `params` of this step: the iterate, or the tail average if that is wanted;
- `params(memory, params)`: what the fit returns.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def choose(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def rule_key(state: Any) -> Array:
    """A key for a rule's own draws, apart from those of the steps."""
    return jax.random.fold_in(state.key, 2**31 - 1)
