"""Batches from outside, checked against the first one and laid side by side in one array a leaf."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minisvi.tools.names import leaf_names, named_leaves


class Form(NamedTuple):
    """What the batches of a stream have in common.

    It is a tree, and for each of its leaves the name, and the shape and dtype in the first batch.
    """

    treedef: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, batch: Any) -> "Form":
        """ValueError unless all leaves have as many rows, one at least, of numbers."""
        named = named_leaves(batch, what="a batch")
        shapes = {name: np.shape(leaf) for name, leaf in named.items()}
        _check_equally_many_rows(shapes)
        dtypes = {name: np.asarray(leaf).dtype for name, leaf in named.items()}
        _check_numbers(dtypes)
        treedef = jax.tree.structure(batch)
        return cls(treedef, tuple(named), tuple(shapes.values()), tuple(dtypes.values()))

    @property
    def num_rows(self) -> int:
        """B, the most that a batch may have."""
        first_shape = self.shapes[0]
        return first_shape[0]

    def empty(self, num_batches: int) -> list[np.ndarray]:
        """Room for that many batches, (S, B, ...) each, in the dtypes that JAX has for theirs."""
        arrays = []
        for shape, dtype in zip(self.shapes, self.dtypes):
            jax_dtype = jax.dtypes.canonicalize_dtype(dtype)
            arrays.append(np.zeros((num_batches, *shape), jax_dtype))
        return arrays

    def put(
        self, batch: Any, slots: list[np.ndarray], skip_nan: bool
    ) -> tuple[int, np.ndarray | None]:
        """Write a batch into its slots, (B, ...) each.

        Returns its number of rows, and which of them do not count, or None where all do. A row with
        a NaN does not count if `skip_nan`. Such a row, and each slot beyond a smaller batch, gets a
        copy of a row that counts. ValueError or TypeError for a batch of another form, for a NaN
        otherwise, and if no row is left.
        """
        arrays = self._arrays(batch)
        num = len(arrays[0])
        is_bad = self._with_nan(arrays, skip_nan)
        if is_bad is not None and is_bad.all():
            raise ValueError(f"no row of {num} is without a NaN")
        good = 0 if is_bad is None else int(np.argmin(is_bad))
        for array, slot in zip(arrays, slots):
            slot[:num] = array
            slot[num:] = array[good]
            if is_bad is not None:
                slot[:num][is_bad] = array[good]
        return num, is_bad

    def _arrays(self, batch: Any) -> list[np.ndarray]:
        """The leaves of a batch; ValueError or TypeError if it is of another form."""
        if jax.tree.structure(batch) != self.treedef:
            raise ValueError(
                f"expected a tree with leaves {self.names}; got leaves {leaf_names(batch)}"
            )
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
        num = arrays[0].shape[0] if arrays[0].ndim else None
        for name, array, shape, dtype in zip(self.names, arrays, self.shapes, self.dtypes):
            expected = (num, *shape[1:])
            if array.shape != expected:
                raise ValueError(f"`{name}`: expected shape {expected}; got {array.shape}")
            if not 1 <= len(array) <= self.num_rows:
                raise ValueError(
                    f"`{name}`: expected 1 to {self.num_rows} rows, as the first batch has; got "
                    f"{num}"
                )
            if array.dtype != dtype:
                raise TypeError(f"`{name}`: expected {dtype}; got {array.dtype}")
        return arrays

    def _with_nan(self, arrays: list[np.ndarray], skip_nan: bool) -> np.ndarray | None:
        """Which rows have a NaN in any leaf, None if none has; ValueError if none may."""
        is_bad = None
        for name, array in zip(self.names, arrays):
            if not _has_nan(array):
                continue
            rows = np.isnan(array).reshape(len(array), -1).any(axis=1)
            if not skip_nan:
                raise ValueError(
                    f"`{name}` has a NaN in {rows.sum()} of {len(rows)} rows: drop them, or "
                    "nan='skip'"
                )
            is_bad = rows if is_bad is None else is_bad | rows
        return is_bad


def _check_equally_many_rows(shapes: dict[str, tuple[int, ...]]) -> None:
    """ValueError unless all shapes begin with the same size, which is at least one."""
    sizes = {shape[:1] for shape in shapes.values()}
    if len(sizes) != 1 or () in sizes or (0,) in sizes:
        raise ValueError(
            f"expected arrays with equally many rows, one at least; got shapes {shapes}"
        )


def _check_numbers(dtypes: dict[str, np.dtype]) -> None:
    for name, dtype in dtypes.items():
        if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
            raise ValueError(f"`{name}`: expected numbers; got {dtype}")


def _has_nan(array: np.ndarray) -> bool:
    if array.size == 0 or not jnp.issubdtype(array.dtype, jnp.inexact):
        return False
    # The least of numbers is NaN if one of them is, and takes one pass.
    return bool(np.isnan(array.min()))


@dataclass
class Packed:
    """Room for S batches from number `first` on, of which `num` are there.

    `arrays`, (S, B, ...) each, are the leaves of the batches, and last the weights of the rows.
    """

    form: Form
    first: int
    arrays: list[np.ndarray]
    num: int = 0

    @classmethod
    def empty(cls, form: Form, first: int, size: int) -> "Packed":
        dtype = jax.dtypes.canonicalize_dtype(float)
        weights = np.zeros((size, form.num_rows), dtype)
        return cls(form, first, [*form.empty(size), weights])

    def add(self, batch: Any, num_data: float, skip_nan: bool) -> int:
        """Put in the next batch, whose rows stand for `num_data`.

        Returns how many rows were left out, and raises as `Form.put` does.
        """
        *leaves, weights = (array[self.num] for array in self.arrays)
        num, is_bad = self.form.put(batch, leaves, skip_nan)
        num_dropped = 0 if is_bad is None else int(is_bad.sum())
        weights[:num] = num_data / (num - num_dropped)
        weights[num:] = 0.0
        if is_bad is not None:
            weights[:num][is_bad] = 0.0
        self.num += 1
        return num_dropped
