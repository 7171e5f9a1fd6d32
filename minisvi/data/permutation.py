"""A random order of 0..N-1 that is computed and not stored.

Any part of it costs what that part holds.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

_ROUNDS = 16  # with 12, pairs of places of 5 or 6 points were seen not to be uniform in 2e5 draws


def shuffled(key: Array, index: Array, num: int) -> Array:
    """pi(index) for a permutation pi of 0..num-1, which `key` chooses; num < 2^31.

    The result is int32, in the shape of `index`.

    This is a Feistel network. An index is a point i = (l, r) on a grid of a x b >= num points, with
    a and b about the square root of num. A round adds a hash of one half to the other, l <- l +
    h_k(r) mod a and then r <- r + h_k(l) mod b, which subtracting it would undo. What falls outside
    0..num-1 goes through again until it is inside, which leaves a permutation of these (Black &
    Rogaway 2002, section 5 and method 2). The grid has few points more than num, because all go
    again if one does.
    """
    grid = _grid(num)
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)
    places = _padded(index)
    first = _encipher(places, round_keys, grid)

    def some_are_outside(image: Array) -> Array:
        return jnp.any(image >= num)

    def again(image: Array) -> Array:
        is_outside = image >= num
        return jnp.where(is_outside, _encipher(image, round_keys, grid), image)

    image = jax.lax.while_loop(some_are_outside, again, first)
    return image[: index.size].reshape(index.shape).astype(jnp.int32)


def _padded(index: Array) -> Array:
    """The index as a vector of uint32, whose length is a multiple of eight.

    For an odd number of places, of a thousand or more, XLA takes four times as long on a CPU. The
    loop over them, needed or not, keeps it from leaving out the places that were put in.
    """
    places = index.astype(jnp.uint32).ravel()
    return jnp.pad(places, (0, -index.size % 8))


def _encipher(index: Array, round_keys: Array, grid: tuple[int, int]) -> Array:
    """A permutation of the points of the grid, each given by its number."""
    rows, columns = grid
    left = index // columns
    right = index % columns
    for i in range(0, _ROUNDS, 2):
        left = (left + _hash(right ^ round_keys[i]) % rows) % rows
        right = (right + _hash(left ^ round_keys[i + 1]) % columns) % columns
    return left * columns + right


def _grid(num: int) -> tuple[int, int]:
    """The sides of the smallest grid of `num` points or more, among nearly square ones."""
    shortest = max(math.isqrt(num - 1) + 1, 1)
    longest = shortest + shortest // 8
    grids = [(rows, math.ceil(num / rows)) for rows in range(shortest, longest + 1)]
    return min(grids, key=math.prod)


def _hash(x: Array) -> Array:
    """32 bits to 32 bits, each of which depends on all (Wellons 2018, `lowbias32`)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
