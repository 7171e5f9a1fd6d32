"""Users' functions, called so that no two traces see one tracer.

A library may remember what it has computed from an array by the array's identity, as TFP's bijectors do. If two traces
were given the same tracer, the second would find with it what the first, which is over by then, has left behind.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def isolated(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of arrays to arrays, traced with arguments of its own. Inlined, it leaves no call in the program."""
    return jax.jit(function, inline=True)


def copied(tree: Any) -> Any:
    """The same arrays as new ones, for a function that cannot be `isolated`, since it returns no arrays. XLA removes
    the copies.
    """
    return jax.tree.map(jnp.copy, tree)
