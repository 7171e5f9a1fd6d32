"""One flat vector for all latents: one random call, one small optimiser state and few kernels, whatever the tree."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi import checks, supports


def spec(latents: Any) -> jax.ShapeDtypeStruct:
    """Shape (D,) and dtype of the vector of all unconstrained latents."""
    leaves = jax.tree.leaves(supports.unconstrained_like(latents))
    dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
    return jax.ShapeDtypeStruct((sum(math.prod(leaf.shape) for leaf in leaves),), dtype)


def ravel(latents: Any, u: Any) -> Array:
    """The tree u as a vector, shape (D,)."""
    flat = spec(latents)
    parts = [jnp.ravel(leaf).astype(flat.dtype) for leaf in jax.tree.leaves(u)]
    return jnp.concatenate(parts) if parts else jnp.zeros(flat.shape, flat.dtype)


def unravel(latents: Any, vector: Array) -> Any:
    """The inverse of `ravel`."""
    leaves, treedef = jax.tree.flatten(supports.unconstrained_like(latents))
    parts, start = [], 0
    for leaf in leaves:
        end = start + math.prod(leaf.shape)
        parts.append(vector[start:end].reshape(leaf.shape).astype(leaf.dtype))
        start = end
    return jax.tree.unflatten(treedef, parts)


def start(latents: Any, key: Array, loc: Any = None) -> Array:
    """Initial location, shape (D,): the tree `loc`, or uniform(-2, 2). ValueError names a leaf of another shape."""
    vector = spec(latents)
    if loc is None:
        return jax.random.uniform(key, vector.shape, vector.dtype, -2.0, 2.0)
    checks.same_tree("loc", supports.unconstrained_like(latents), loc)
    return ravel(latents, loc)
