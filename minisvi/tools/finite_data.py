"""Numbers of the data that are not finite, and whether they are why a density is not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minisvi.tools.names import data_name


def non_finite_data(data: Any) -> list[str]:
    """Each leaf that holds a number that is not finite, with its first such row: "data `[1].y`: NaN
    at row 17 (3 of 500 rows)". What is traced, or on other processes, is passed over.
    """
    return [
        _first_bad_row(data_name(path), array)
        for path, array in _known_floats(data)
        if not _all_finite(array)
    ]


def _known_floats(data: Any) -> list[tuple[Any, Any]]:
    """Paths and leaves of the floating numbers that are known here."""
    return [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(data)
        if _is_known_float(leaf)
    ]


def _is_known_float(leaf: Any) -> bool:
    if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return False
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)


def _all_finite(leaf: Any) -> bool:
    # Arrays of an accelerator are looked at where they are.
    if isinstance(leaf, jax.Array) and any(device.platform != "cpu" for device in leaf.devices()):
        with jax.ensure_compile_time_eval():
            return bool(jnp.all(jnp.isfinite(leaf)))
    return bool(np.all(np.isfinite(np.asarray(leaf))))


def _first_bad_row(name: str, leaf: Any) -> str:
    array = np.asarray(leaf)
    rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    bad = ~np.isfinite(rows)
    first = int(np.argmax(bad.any(axis=1)))
    kind = "NaN" if np.isnan(rows[first][bad[first]][0]) else "infinity"
    return f"data `{name}`: {kind}" + (
        f" at row {first} ({int(bad.any(axis=1).sum())} of {len(rows)} rows)" if array.ndim else ""
    )


def or_the_data(data: Any) -> str:
    """What to add to an error about a density that is not finite: where the data are not, or
    nothing.
    """
    found = non_finite_data(data)
    return f". The data hold numbers that are not finite: {'; '.join(found)}" if found else ""


def finite_terms(terms: Callable[..., dict[str, Any]], data: Any) -> None:
    """ValueError if numbers of the data that are not finite make a term of the density not finite.

    They may be legitimate, such as missing values that the likelihood masks. They are to blame
    where a term is not finite and becomes finite with numbers of other rows in their place.
    `terms(*data)` is computed only if there are any.
    """
    found = non_finite_data(data)
    # What other processes hold, all of them would have to compute with.
    if not found or not all(
        leaf.is_fully_addressable for leaf in jax.tree.leaves(data) if _is_array(leaf)
    ):
        return
    compiled = jax.jit(terms)
    with jax.ensure_compile_time_eval():  # in a trace the data may be known all the same
        given, others = compiled(*data), compiled(*jax.tree.map(_with_finite_rows, data))
    if any(
        isinstance(term, jax.core.Tracer) for term in given.values()
    ):  # of a model made inside a trace
        return
    for name, term in given.items():
        where = ~np.isfinite(np.asarray(term))
        if where.any() and np.all(np.isfinite(np.asarray(others[name]))):
            row = f" at row {int(np.argmax(where))}" if where.ndim else ""
            raise ValueError(
                f"`{name}` is not finite{row}, because of the data: {'; '.join(found)}"
            )


def _with_finite_rows(leaf: Any) -> Any:
    """The leaf with a row that is finite in place of each that is not; zeros where there is none."""
    if not _is_known_float(leaf) or _all_finite(leaf):
        return leaf
    array = np.asarray(leaf)
    rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    bad = ~np.isfinite(rows).all(axis=1)
    good = np.zeros_like(rows[0]) if bad.all() else rows[int(np.argmin(bad))]
    return np.where(bad[:, None], good, rows).reshape(array.shape)
