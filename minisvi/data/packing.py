"""Batches from outside, checked against the first one and laid side by side in one array a leaf."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minisvi.tools.names import leaf_names, named_leaves


class Form(NamedTuple):
    """What the batches of a stream have in common: a tree, and by leaf its name, shape and dtype in
    the first batch.
    """

    treedef: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, batch: Any) -> "Form":
        """ValueError unless all leaves have as many rows, one at least, of numbers."""
        named = named_leaves(batch, what="a batch")
        shapes = {name: np.shape(leaf) for name, leaf in named.items()}
        if len({shape[:1] for shape in shapes.values()}) != 1 or {(), (0,)} & {
            shape[:1] for shape in shapes.values()
        }:
            raise ValueError(
                f"expected arrays with equally many rows, one at least; got shapes {shapes}"
            )
        dtypes = tuple(np.asarray(leaf).dtype for leaf in named.values())
        for name, dtype in zip(named, dtypes):
            if not (jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)):
                raise ValueError(f"`{name}`: expected numbers; got {dtype}")
        return cls(jax.tree.structure(batch), tuple(named), tuple(shapes.values()), dtypes)

    @property
    def num_rows(self) -> int:
        """B, the most that a batch may have."""
        return self.shapes[0][0]

    def empty(self, num_batches: int) -> list[np.ndarray]:
        """Room for that many batches, (S, B, ...) each, in the dtypes that JAX has for theirs."""
        dtypes = [jax.dtypes.canonicalize_dtype(dtype) for dtype in self.dtypes]
        return [np.zeros((num_batches, *shape), dtype) for shape, dtype in zip(self.shapes, dtypes)]

    def put(
        self, batch: Any, slots: list[np.ndarray], skip_nan: bool
    ) -> tuple[int, np.ndarray | None]:
        """Write a batch into its slots, (B, ...) each; returns its number of rows, and which of
        them do not count.

        These, with a NaN and `skip_nan`, become copies of one that counts, and so do those beyond a
        smaller batch. ValueError or TypeError for a batch of another form, for a NaN otherwise, and
        if no row is left.
        """
        arrays = self._arrays(batch)
        num = len(arrays[0])
        bad = self._with_nan(arrays, skip_nan)
        if bad is not None and bad.all():
            raise ValueError(f"no row of {num} is without a NaN")
        good = 0 if bad is None else int(np.argmin(bad))
        for array, slot in zip(arrays, slots):
            slot[:num] = array
            slot[num:] = array[good]
            if bad is not None:
                slot[:num][bad] = array[good]
        return num, bad

    def _arrays(self, batch: Any) -> list[np.ndarray]:
        if jax.tree.structure(batch) != self.treedef:
            raise ValueError(
                f"expected a tree with leaves {self.names}; got leaves {leaf_names(batch)}"
            )
        arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
        num = arrays[0].shape[0] if arrays[0].ndim else None
        for name, array, shape, dtype in zip(self.names, arrays, self.shapes, self.dtypes):
            if array.shape != (num, *shape[1:]):
                raise ValueError(f"`{name}`: expected shape {(num, *shape[1:])}; got {array.shape}")
            if not 1 <= len(array) <= self.num_rows:
                raise ValueError(
                    f"`{name}`: expected 1 to {self.num_rows} rows, as the first batch has; got {num}"
                )
            if array.dtype != dtype:
                raise TypeError(f"`{name}`: expected {dtype}; got {array.dtype}")
        return arrays

    def _with_nan(self, arrays: list[np.ndarray], skip: bool) -> np.ndarray | None:
        bad = None
        for name, array in zip(self.names, arrays):
            # The least of numbers is NaN if one of them is, and takes one pass.
            if array.size and jnp.issubdtype(array.dtype, jnp.inexact) and np.isnan(array.min()):
                rows = np.isnan(array).reshape(len(array), -1).any(axis=1)
                if not skip:
                    raise ValueError(
                        f"`{name}` has a NaN in {rows.sum()} of {len(rows)} rows: drop them, or nan='skip'"
                    )
                bad = rows if bad is None else bad | rows
        return bad


@dataclass
class Packed:
    """Room for S batches from number `first` on, of which `num` are there: `arrays` (S, B, ...), a
    leaf each and last the weights of the rows.
    """

    form: Form
    first: int
    arrays: list[np.ndarray]
    num: int = 0

    @classmethod
    def empty(cls, form: Form, first: int, size: int) -> "Packed":
        weights = np.zeros((size, form.num_rows), np.dtype(jax.dtypes.canonicalize_dtype(float)))
        return cls(form, first, [*form.empty(size), weights])

    def add(self, batch: Any, num_data: float, skip_nan: bool) -> int:
        """The next batch, whose rows stand for `num_data`; returns how many were left out, and
        raises as `Form.put`.
        """
        *leaves, weights = (array[self.num] for array in self.arrays)
        num, bad = self.form.put(batch, leaves, skip_nan)
        dropped = 0 if bad is None else int(bad.sum())
        weights[:num] = num_data / (num - dropped)
        weights[num:] = 0.0
        if bad is not None:
            weights[:num][bad] = 0.0
        self.num += 1
        return dropped
