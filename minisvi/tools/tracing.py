"""Users' functions, called so that no two traces see one tracer.

A library may remember what it has computed from an array by the array's identity, as TFP's
bijectors do. If two traces were given the same tracer, the second would find with it what the
first, which is over by then, has left behind.
"""

from typing import Any

import jax
import jax.numpy as jnp


def fresh(tree: Any) -> Any:
    """The same tree with tracers of its own, for a user's function.

    A leaf that is no tracer stays as it is. XLA removes the copies.
    """
    return jax.tree.map(_fresh, tree)


def _fresh(leaf: Any) -> Any:
    if isinstance(leaf, jax.core.Tracer):
        return jnp.copy(leaf)
    return leaf
