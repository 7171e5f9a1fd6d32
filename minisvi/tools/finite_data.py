"""Numbers of the data that are not finite, and whether they are why a density is not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minisvi.tools.names import data_name
from minisvi.tools.types import Data

Terms = dict[str, Any]
"""Terms of a log density by name, scalars or one number a row."""


def non_finite_data(data: Any) -> list[str]:
    """What to say of each leaf that holds a number that is not finite, with its first such row.

    For example "data `[1].y`: NaN at row 17 (3 of 500 rows)". Leaves that are traced, or lie on
    other processes, are passed over.
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if _is_known_float(leaf) and not _all_finite(leaf):
            found.append(_first_bad_row(data_name(path), leaf))
    return found


def or_the_data(data: Any) -> str:
    """The end of an error about a density that is not finite: which data are not, or nothing."""
    found = non_finite_data(data)
    if not found:
        return ""
    return f". The data hold numbers that are not finite: {'; '.join(found)}"


def finite_terms(terms: Callable[..., Terms], data: Data) -> None:
    """ValueError if numbers of the data that are not finite make a term of the density not finite.

    They may be legitimate, such as missing values that the likelihood masks. They are to blame
    where a term is not finite and becomes finite with numbers of other rows in their place.
    `terms(*data)` is computed only if there are any.
    """
    found = non_finite_data(data)
    if not found or not _is_all_here(data):
        return
    compiled = jax.jit(terms)
    with jax.ensure_compile_time_eval():  # in a trace the data may be known all the same
        given = compiled(*data)
        with_others = compiled(*jax.tree.map(_with_finite_rows, data))
    if any(_is_traced(term) for term in given.values()):  # of a model made inside a trace
        return
    for name, term in given.items():
        is_bad = ~np.isfinite(np.asarray(term))
        if is_bad.any() and np.all(np.isfinite(np.asarray(with_others[name]))):
            row = f" at row {int(np.argmax(is_bad))}" if is_bad.ndim else ""
            raise ValueError(
                f"`{name}` is not finite{row}, because of the data: {'; '.join(found)}"
            )


def _is_all_here(data: Data) -> bool:
    """Whether no other process holds a part of the data. All would have to compute with that."""
    arrays = [leaf for leaf in jax.tree.leaves(data) if isinstance(leaf, jax.Array)]
    return all(_is_traced(array) or array.is_fully_addressable for array in arrays)


def _is_traced(leaf: Any) -> bool:
    return isinstance(leaf, jax.core.Tracer)


def _is_known_float(leaf: Any) -> bool:
    if _is_traced(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return False
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _all_finite(leaf: Any) -> bool:
    if _is_on_accelerator(leaf):  # looked at where it is
        with jax.ensure_compile_time_eval():
            return bool(jnp.all(jnp.isfinite(leaf)))
    return bool(np.all(np.isfinite(np.asarray(leaf))))


def _is_on_accelerator(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return False
    return any(device.platform != "cpu" for device in leaf.devices())


def _first_bad_row(name: str, leaf: Any) -> str:
    """What to say of a leaf with a number that is not finite."""
    rows = _as_rows(leaf)
    is_bad = ~np.isfinite(rows)
    is_bad_row = is_bad.any(axis=1)
    first = int(np.argmax(is_bad_row))
    value = rows[first][is_bad[first]][0]
    kind = "NaN" if np.isnan(value) else "infinity"
    if np.ndim(leaf) == 0:
        return f"data `{name}`: {kind}"
    count = int(is_bad_row.sum())
    return f"data `{name}`: {kind} at row {first} ({count} of {len(rows)} rows)"


def _as_rows(leaf: Any) -> np.ndarray:
    """The leaf as a table with one row for each of its rows; a scalar is one row."""
    array = np.atleast_1d(np.asarray(leaf))
    return array.reshape(len(array), -1)


def _with_finite_rows(leaf: Any) -> Any:
    """The leaf with a finite row in place of each row that is not; zeros if no row is finite."""
    if not _is_known_float(leaf) or _all_finite(leaf):
        return leaf
    rows = _as_rows(leaf)
    is_bad = ~np.isfinite(rows).all(axis=1)
    good = np.zeros_like(rows[0]) if is_bad.all() else rows[int(np.argmin(is_bad))]
    filled = np.where(is_bad[:, None], good, rows)
    return filled.reshape(np.shape(leaf))
