"""D: which rows a step sees, as a pure function of the step.

A fit can therefore be replayed from its state. A source of batches is called with the step and the
data, and returns the rows of this step, and their weights in the likelihood: N/B, or None where all
rows are there. Its `num_rows(data)` is the N that the weights of a batch add up to.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.data.permutation import shuffled
from minisvi.tools import checks
from minisvi.tools.names import named_leaves
from minisvi.tools.sharding import apart
from minisvi.tools.types import Data, Weight


@dataclass(frozen=True)
class FullBatch:
    """All rows at every step."""

    def __call__(self, step: Array, data: Data) -> tuple[Data, Weight]:
        del step
        return data, None

    def num_rows(self, data: Data) -> int:
        return jax.tree.leaves(data)[0].shape[0]


@dataclass(frozen=True)
class Minibatches:
    """Every row once an epoch, in an order that is new in each, in K = ceil(N / batch_size)
    batches.

    Rows are the leading axis of every array of the data. Batch k of an epoch has b_k rows, which is
    floor(N/K) or ceil(N/K), so that none is small. A row in it has the weight N / b_k: each batch
    is a random subset, its likelihood is unbiased for that of all rows, and the mean over an epoch,
    batches counted by their rows, is that of all rows. Nothing of size N is stored or computed (see
    `permutation`).

    **Arguments**

    - `batch_size`: the most rows that a step may have.
    - `seed`: makes the order.
    - `shards`: the rows are cut into as many runs of N / shards, each in an order of its own, and a
      batch takes as many rows from each. On as many devices, with the rows sharded over them, no
      row leaves its device. The batches are the same on any number of devices.

    TypeError or ValueError unless batch_size is in 1..N, all arrays have N rows, `shards` divides
    both, and a shard has fewer than 2^31.
    """

    batch_size: int
    seed: int = 0
    shards: int = 1

    def __post_init__(self) -> None:
        checks.positive_integer("batch_size", self.batch_size)
        checks.positive_integer("shards", self.shards)
        if self.batch_size % self.shards:
            raise ValueError(
                f"`shards` must divide `batch_size`, {self.batch_size}; got {self.shards}"
            )

    def num_rows(self, data: Data) -> int:
        num = _common_num_rows(data)
        if self.batch_size > num:
            raise ValueError(f"`batch_size` must be in 1..{num}; got {self.batch_size}")
        if num % self.shards:
            raise ValueError(f"`shards` must divide the number of rows, {num}; got {self.shards}")
        if num // self.shards >= 2**31:
            raise ValueError(
                f"expected fewer than 2^31 rows a shard; got {num} in {self.shards}: give more "
                "`shards`"
            )
        return num

    def __call__(self, step: Array, data: Data) -> tuple[Data, Weight]:
        num_of_run = self.num_rows(data) // self.shards
        epoch, places, weight = self._places(step, num_of_run)
        rows = self._in_order_of(epoch, places, num_of_run)
        if self.shards == 1:
            return jax.tree.map(lambda leaf: leaf[rows[0]], data), weight
        batch = jax.tree.map(lambda leaf: _take_from_runs(leaf, rows), data)
        if jnp.ndim(weight) == 0:
            return batch, weight
        return batch, jnp.tile(weight, self.shards)

    def _places(self, step: Array, num: int) -> tuple[Array, Array, Array | float]:
        """The epoch of a step, the places in a run's order that its batch has, and their weight.

        All batches of an epoch have arrays of one size. A batch that is a row shorter than others
        has its first row twice, the second time with a weight of zero.
        """
        num_batches = -(-num // (self.batch_size // self.shards))  # rounded up
        size, num_longer = divmod(num, num_batches)  # so many batches have one row more
        epoch = step // num_batches
        k = step % num_batches
        start = k * size + jnp.minimum(k, num_longer)
        if num_longer == 0:
            return epoch, start + jnp.arange(size), num / size
        is_longer = k < num_longer
        own_size = jnp.where(is_longer, size + 1, size)
        places = start + jnp.arange(size + 1)
        counts = (jnp.arange(size + 1) < size) | is_longer
        places = jnp.where(counts, places, places[0])
        weights = jnp.where(counts, num / own_size, 0.0)
        return epoch, places, weights

    def _in_order_of(self, epoch: Array, places: Array, num: int) -> Array:
        """Each run's rows at those places of its order in this epoch, (shards, b)."""
        key = jax.random.fold_in(jax.random.key(self.seed), epoch)

        def rows_of(shard: Array) -> Array:
            return shuffled(jax.random.fold_in(key, shard), places, num)

        return apart("rows", jax.vmap(rows_of), jnp.arange(self.shards))


def _common_num_rows(data: Data) -> int:
    """N, the size of the leading axis of all arrays; ValueError unless they have one, and agree."""
    leaves = named_leaves(data, what="data")
    sizes = {name: jnp.shape(leaf)[:1] for name, leaf in leaves.items()}
    distinct = set(sizes.values())
    if len(distinct) != 1 or () in distinct:
        raise ValueError(f"minibatches: expected data with the same number of rows; got {sizes}")
    (num,) = distinct.pop()
    return num


def _take_from_runs(leaf: Array, rows: Array) -> Array:
    """The rows (shards, b) of as many runs of the leaf, one run after the other.

    There is one gather a run, with the runs as its batch: XLA then needs no other device's rows.
    """
    num_runs = len(rows)
    runs = leaf.reshape(num_runs, len(leaf) // num_runs, *leaf.shape[1:])
    taken = jax.vmap(lambda run, index: run[index])(runs, rows)
    return taken.reshape(-1, *leaf.shape[1:])


class Chunk(NamedTuple):
    """S successive batches of a stream, from number `first` on.

    Each leaf of `rows` is (S, B, ...), and `weights` are those of the rows, (S, B).
    """

    first: Array | np.int32
    rows: Data
    weights: Array


@dataclass(frozen=True)
class Chunks:
    """The batches of a stream of `num_data` rows.

    The data are a `Chunk`, and step t sees batch number t, which is one of its.
    """

    num_data: int

    def num_rows(self, data: tuple[Chunk]) -> int:
        del data
        return self.num_data

    def __call__(self, step: Array, data: tuple[Chunk]) -> tuple[Data, Weight]:
        (chunk,) = data
        i = jnp.clip(step - chunk.first, 0, len(chunk.weights) - 1)
        batch = jax.tree.map(lambda leaf: leaf[i], chunk.rows)
        return batch, chunk.weights[i]
