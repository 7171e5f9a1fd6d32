"""PRNG keys as the integers that they are, for what reads and writes numbers alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_key(leaf: Any) -> bool:
    """True for an array of typed PRNG keys. Legacy keys are integers already."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_integers(leaf: Any) -> Any:
    """An array of keys as their integers, with one more axis; any other array as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def from_integers(integers: Any, like: Any) -> Any:
    """The inverse of `to_integers`: keys of the kind of `like` where that holds keys, and else the
    integers as they are.
    """
    if not is_key(like):
        return integers
    return jax.random.wrap_key_data(integers, impl=jax.random.key_impl(like))


def generator(key: Any, *path: int) -> np.random.Generator:
    """A NumPy generator seeded by the bits of a PRNG key, typed or legacy.

    Integers of the `path` tell streams apart that are independent of one another. Nothing is
    compiled.
    """
    words = np.asarray(to_integers(key)).astype(np.uint32).ravel()
    seeds = np.random.SeedSequence(words.tolist(), spawn_key=path)
    return np.random.default_rng(seeds)


def rbg_key(key: Any, *path: int) -> jax.Array:
    """A key of the kind "unsafe_rbg", by the bits of `key` and the `path`.

    Normals and new keys from it are by XLA's own generator, which takes a tenth of the time to
    compile; of the kind "rbg" new keys are by Threefry all the same.
    """
    bits: Any = generator(key, *path).integers(2**32, size=4, dtype=np.uint32)
    return jax.random.wrap_key_data(bits, impl="unsafe_rbg")
