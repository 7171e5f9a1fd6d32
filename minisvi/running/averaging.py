"""The mean of the last iterates, kept without knowing how many are to come."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Tail(NamedTuple):
    """Tail average of the iterates (Polyak & Juditsky 1992), at any time, in two running means.

    `older` is the mean over the steps (t0, t1] and `newer` that over (t1, t]. At t = 2 t1 the newer
    takes the older's place and a new one begins, so that t1 is the last power of two and t0 its
    half: what is averaged, (t0, t], is between the last half and the last three quarters of the
    steps.
    """

    older: Any
    newer: Any
    turn: Array
    step: Array

    @classmethod
    def start(cls, params: Any) -> "Tail":
        zero = jnp.zeros((), jnp.int32)
        return cls(params, params, zero, zero)

    def add(self, params: Any) -> "Tail":
        """With the next iterate. After a skipped step this is the last good one: it counts again,
        and is finite.
        """
        step = self.step + 1
        newer = jax.tree.map(
            lambda mean, x: mean + (x - mean) / (step - self.turn).astype(x.dtype),
            self.newer,
            params,
        )
        full = step >= 2 * self.turn
        older = jax.tree.map(lambda old, new: jnp.where(full, new, old), self.older, newer)
        return Tail(older, newer, jnp.where(full, step, self.turn), step)

    def mean(self) -> Any:
        """The mean over (t0, t]; before the first step, the start."""
        newer, both = self.step - self.turn, jnp.maximum(self.step - self.turn // 2, 1)

        def combine(old: Array, new: Array) -> Array:
            return old + newer.astype(old.dtype) / both.astype(old.dtype) * (new - old)

        return jax.tree.map(combine, self.older, self.newer)
