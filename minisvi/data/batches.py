"""D: which rows a step sees, as a pure function of the step, so that a fit can be replayed from its
state.

The contract of a source of batches, called with the step and the data: the rows of this step, and
their weights in the likelihood, None for one each. `num_rows(data)` is the N that the weights of a
batch add up to.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.data.permutation import shuffled
from minisvi.tools import checks
from minisvi.tools.names import named_leaves
from minisvi.tools.sharding import apart


@dataclass(frozen=True)
class FullBatch:
    """All rows at every step."""

    def __call__(self, step: Array, data: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
        del step
        return data, None

    def num_rows(self, data: tuple[Any, ...]) -> int:
        return jax.tree.leaves(data)[0].shape[0]


@dataclass(frozen=True)
class Minibatches:
    """Every row once an epoch, in an order that is new in each, in K = ceil(N / batch_size)
    batches.

    Rows are the leading axis of every array of the data. Batch k of an epoch has floor(N/K) or
    ceil(N/K) rows, b_k, so that none is small, and a row in it has the weight N / b_k: each batch
    is a random subset, its likelihood unbiased for that of all rows, and the mean over an epoch,
    batches counted by their rows, is that of all rows. Nothing of size N is stored or computed (see
    `permutation`).

    **Arguments**

    - `batch_size`: at most so many rows a step.
    - `seed`: makes the order.
    - `shards`: the rows are cut into so many runs of N / shards, each in an order of its own, and a
      batch takes as many from each. On as many devices, with the rows sharded over them, no row
      leaves its device; the batches are the same on any number of devices.

    TypeError or ValueError unless batch_size is in 1..N, all arrays have N rows, `shards` divides
    both, and a shard has fewer than 2^31.
    """

    batch_size: int
    seed: int = 0
    shards: int = 1

    def __post_init__(self) -> None:
        checks.positive_integer("batch_size", self.batch_size)
        if self.batch_size % checks.positive_integer("shards", self.shards):
            raise ValueError(
                f"`shards` must divide `batch_size`, {self.batch_size}; got {self.shards}"
            )

    def num_rows(self, data: tuple[Any, ...]) -> int:
        sizes = {
            name: jnp.shape(leaf)[:1] for name, leaf in named_leaves(data, what="data").items()
        }
        if len(set(sizes.values())) != 1 or () in sizes.values():
            raise ValueError(
                f"minibatches: expected data with the same number of rows; got {sizes}"
            )
        (num,) = next(iter(sizes.values()))
        if self.batch_size > num:
            raise ValueError(f"`batch_size` must be in 1..{num}; got {self.batch_size}")
        if num % self.shards:
            raise ValueError(f"`shards` must divide the number of rows, {num}; got {self.shards}")
        if num // self.shards >= 2**31:
            raise ValueError(
                f"expected fewer than 2^31 rows a shard; got {num} in {self.shards}: give more `shards`"
            )
        return num

    def __call__(self, step: Array, data: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
        num = self.num_rows(data)
        rows, weights = self._rows(step, num // self.shards)
        if self.shards == 1:
            return jax.tree.map(lambda leaf: leaf[rows[0]], data), weights

        def take(leaf: Array) -> Array:
            # One gather a run, with the runs as its batch: XLA then needs no other device's rows.
            runs = leaf.reshape(self.shards, num // self.shards, *leaf.shape[1:])
            return jax.vmap(lambda run, rows: run[rows])(runs, rows).reshape(-1, *leaf.shape[1:])

        return jax.tree.map(take, data), weights if jnp.ndim(weights) == 0 else jnp.tile(
            weights, self.shards
        )

    def _rows(self, step: Array, num: int) -> tuple[Array, Any]:
        """Each run's rows, (shards, b), and the weights of a run's."""
        num_batches = -(-num // (self.batch_size // self.shards))
        size, longer = divmod(num, num_batches)  # that many batches have one row more
        epoch, k = step // num_batches, step % num_batches
        key = jax.random.fold_in(jax.random.key(self.seed), epoch)
        place: Any = k * size + jnp.minimum(k, longer) + jnp.arange(size + (longer > 0))
        weights: Any = num / size
        if longer:
            # A shorter batch has its first row twice, which does not count.
            there = (jnp.arange(size + 1) < size) | (k < longer)
            place = jnp.where(there, place, place[0])
            weights = jnp.where(there, num / jnp.where(k < longer, size + 1, size), 0.0)
        order = partial(shuffled, index=place, num=num)
        orders = jax.vmap(lambda shard: order(jax.random.fold_in(key, shard)))
        return apart("rows", orders, jnp.arange(self.shards)), weights


class Chunk(NamedTuple):
    """S successive batches, from number `first` on: `rows`, each leaf (S, B, ...), and their
    `weights` (S, B).
    """

    first: Any
    rows: tuple[Any, ...]
    weights: Any


@dataclass(frozen=True)
class Chunks:
    """The batches of a stream: the data are a `Chunk`, and step t sees batch number t, which is one
    of its. N is `num_data`.
    """

    num_data: int

    def num_rows(self, data: tuple[Any, ...]) -> int:
        del data
        return self.num_data

    def __call__(self, step: Array, data: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
        (block,) = data
        i = jnp.clip(step - block.first, 0, len(block.weights) - 1)
        return jax.tree.map(lambda leaf: leaf[i], (block.rows, block.weights))
