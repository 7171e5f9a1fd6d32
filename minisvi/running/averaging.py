"""The mean of the last iterates, kept without knowing how many are to come."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.tools.types import Params


class Tail(NamedTuple):
    """Tail average of the iterates (Polyak & Juditsky 1992), at any time, in two running means.

    `older` is the mean over the steps (t0, t1] and `newer` that over (t1, t]. At t = 2 t1 the newer
    takes the older's place and a new one begins, so that t1 is the last power of two and t0 its
    half: what is averaged, (t0, t], is between the last half and the last three quarters of the
    steps.
    """

    older: Params
    newer: Params
    turn: Array
    step: Array

    @classmethod
    def start(cls, params: Params) -> "Tail":
        zero = jnp.zeros((), jnp.int32)
        return cls(params, params, zero, zero)

    def add(self, params: Params) -> "Tail":
        """The averages with the next iterate. After a skipped step this is the last good one: it
        counts again, and is finite.
        """
        step = self.step + 1
        num_newer = step - self.turn

        def moved(mean: Array, iterate: Array) -> Array:
            return mean + (iterate - mean) / num_newer.astype(iterate.dtype)

        newer = jax.tree.map(moved, self.newer, params)
        at_turn = step >= 2 * self.turn
        older = jax.tree.map(partial(jnp.where, at_turn), newer, self.older)
        turn = jnp.where(at_turn, step, self.turn)
        return Tail(older, newer, turn, step)

    def mean(self) -> Params:
        """The mean over (t0, t]; before the first step, the start."""
        num_newer = self.step - self.turn
        num_both = jnp.maximum(self.step - self.turn // 2, 1)

        def combined(older: Array, newer: Array) -> Array:
            share = num_newer.astype(older.dtype) / num_both.astype(older.dtype)
            return older + share * (newer - older)

        return jax.tree.map(combined, self.older, self.newer)
