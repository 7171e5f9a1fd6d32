"""A random order of 0..N-1 that is computed and not stored, so that any part of it costs what that
part holds.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

_ROUNDS = 16  # with 12, pairs of places of 5 or 6 points were seen not to be uniform in 2e5 draws


def shuffled(key: Array, index: Array, num: int) -> Array:
    """pi(index) for a permutation pi of 0..num-1, which `key` chooses; int32, the shape of `index`.
    num < 2^31.

    A Feistel network: with i = (l, r) on a grid of a x b >= num points, a and b about the square
    root of num, a round adds a hash of one half to the other, l <- l + h_k(r) mod a and then r <- r
    + h_k(l) mod b, which subtracting it would undo. What falls outside 0..num-1 goes through again
    until it is inside, which leaves a permutation of these (Black & Rogaway 2002, section 5 and
    method 2); the grid has few points more than num, because all go if one does.
    """
    rows, columns = _grid(num)
    keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)

    def encipher(index: Array) -> Array:
        left, right = index // columns, index % columns
        for i in range(0, _ROUNDS, 2):
            left = (left + _hash(right ^ keys[i]) % rows) % rows
            right = (right + _hash(left ^ keys[i + 1]) % columns) % columns
        return left * columns + right

    def walk(index: Array) -> Array:
        return jnp.where(index >= num, encipher(index), index)

    # For an odd number of places, of a thousand or more, XLA takes four times as long on a CPU. The
    # loop, needed or not, keeps it from leaving out the places that were put in.
    places = jnp.pad(index.astype(jnp.uint32).ravel(), (0, -index.size % 8))
    image = jax.lax.while_loop(lambda image: jnp.any(image >= num), walk, encipher(places))
    return image[: index.size].reshape(index.shape).astype(jnp.int32)


def _grid(num: int) -> tuple[int, int]:
    """The sides of the smallest grid of `num` points or more, among nearly square ones."""
    least = max(math.isqrt(num - 1) + 1, 1)
    return min(((a, -(-num // a)) for a in range(least, least + least // 8 + 1)), key=math.prod)


def _hash(x: Array) -> Array:
    """32 bits to 32 bits, each of which depends on all (Wellons 2018, `lowbias32`)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
