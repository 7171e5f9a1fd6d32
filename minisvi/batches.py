"""D: which rows a step sees, as a pure function of the step, so that a fit can be replayed from its state."""

from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from minisvi import checks


@dataclass(frozen=True)
class FullBatch:
    """All rows at every step.

    The contract of a source of batches: called with the step and the data, it returns the rows of this step and the
    factor N/B of their likelihood, None where no row was left out.
    """

    def __call__(self, step: Array, data: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
        del step
        return data, None


@dataclass(frozen=True)
class Minibatches:
    """`batch_size` of the N rows at each step, at random with replacement, and the factor N/B.

    Rows are the leading axis of every array of the data. `seed` makes the choice of rows, step by step. TypeError or
    ValueError unless batch_size is in 1..N and all arrays have N rows.
    """

    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        checks.positive_integer("batch_size", self.batch_size)

    def __call__(self, step: Array, data: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
        sizes = {name: jax.numpy.shape(leaf)[:1] for name, leaf in checks.named_leaves(data).items()}
        if len(set(sizes.values())) != 1 or () in sizes.values():
            raise ValueError(f"minibatches: expected data with the same number of rows; got {sizes}")
        (num_rows,) = next(iter(sizes.values()))
        if self.batch_size > num_rows:
            raise ValueError(f"`batch_size` must be in 1..{num_rows}; got {self.batch_size}")
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        rows = jax.random.randint(key, (self.batch_size,), 0, num_rows)
        return jax.tree.map(lambda leaf: leaf[rows], data), num_rows / self.batch_size
