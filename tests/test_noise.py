"""Noise cut into pieces, and keys as integers: both forms of noise, and both kinds of keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minisvi.tools import keys, noise

KEYS = {
    "typed": jax.random.key(3),
    "of another kind": jax.random.key(3, impl="rbg"),
    "legacy": jax.random.PRNGKey(3),
}


def test_normals_are_split_into_rows_and_cut_into_pieces():
    normals = jnp.arange(6.0)
    assert np.array_equal(noise.split(normals, 3), [[0, 1], [2, 3], [4, 5]])
    pieces = noise.pieces(normals, [1, 0, 5])
    assert [piece.tolist() for piece in pieces] == [[0], [], [1, 2, 3, 4, 5]]


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_key_is_split_into_keys_whatever_the_sizes(key):
    expected = keys.to_integers(jax.random.split(key, 2))
    assert np.array_equal(keys.to_integers(noise.split(key, 2)), expected)
    pieces = noise.pieces(key, [4, None])
    assert np.array_equal([keys.to_integers(piece) for piece in pieces], expected)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_keys_come_back_from_their_integers(key):
    integers = keys.to_integers(key)
    again = keys.from_integers(integers, like=key)
    assert integers.dtype == jnp.uint32
    assert again.dtype == key.dtype
    assert np.array_equal(jax.random.normal(again), jax.random.normal(key))


def test_other_arrays_are_no_keys():
    numbers = jnp.arange(3)
    assert keys.to_integers(numbers) is numbers
    assert keys.from_integers(numbers, like=numbers) is numbers
