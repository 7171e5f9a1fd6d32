"""Data as people have them, made into arrays; what holds no numbers is refused by its path."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minisvi.tools.names import data_name
from minisvi.tools.types import Data


def arrays(data: Data) -> Data:
    """The data as trees of arrays.

    A list of numbers, or a nested list of them, is one array. So is a data frame, with a column for
    each of its own, and whatever else NumPy can read. Any other list, and each tuple or dict, is a
    tree of arrays. Arrays stay as they are. TypeError names the leaf that is no number: a string,
    None, an array or a column of objects.
    """
    return jax.tree_util.tree_map_with_path(_array, data, is_leaf=_is_leaf)


def _is_leaf(node: Any) -> bool:
    return node is None or _is_list_of_numbers(node)


def _is_list_of_numbers(node: Any) -> bool:
    if not isinstance(node, list):
        return False
    return all(_is_number(item) or _is_list_of_numbers(item) for item in node)


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | complex | np.number | np.bool_)


def _array(path: tuple[Any, ...], leaf: Any) -> Any:
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(
            f"data `{data_name(path)}`: expected numbers; got a masked array: give it and its mask "
            "as two arrays"
        )
    if isinstance(leaf, jax.Array) or _is_number(leaf) or hasattr(leaf, "__jax_array__"):
        return leaf
    array = _read(leaf)
    if array is None or not _is_numeric(array.dtype):
        got = _described(leaf, array)
        raise TypeError(
            f"data `{data_name(path)}`: expected numbers, in an array or a list of them; got {got}"
        )
    return array


def _read(leaf: Any) -> np.ndarray | None:
    """The array that NumPy makes of it; None if it makes none."""
    if not (isinstance(leaf, list) or hasattr(leaf, "__array__")):
        return None
    try:
        array = np.asarray(leaf)
    except (TypeError, ValueError):  # lists of unequal lengths
        return None
    if _is_frame(leaf) and array.dtype == object:
        return _of_columns(leaf)
    return array


def _is_frame(leaf: Any) -> bool:
    return hasattr(leaf, "columns") and hasattr(leaf, "dtypes")


def _columns(frame: Any) -> list[np.ndarray]:
    """The columns of a data frame by place, for two may have one name."""
    return [np.asarray(frame.iloc[:, i]) for i in range(len(frame.columns))]


def _of_columns(frame: Any) -> np.ndarray:
    """One array of columns of several dtypes.

    NumPy has no dtype in common for them where one is of bools; here a bool counts as a small
    integer.
    """
    columns = _columns(frame)
    if not all(_is_numeric(column.dtype) for column in columns):
        return np.asarray(frame)
    dtype = np.result_type(np.int8, *columns)
    return np.stack([column.astype(dtype) for column in columns], axis=-1)


def _is_numeric(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_))


def _described(leaf: Any, array: np.ndarray | None) -> str:
    """What it is that holds no numbers, in words."""
    if _is_frame(leaf):
        pairs = zip(leaf.columns, _columns(leaf))
        others = [name for name, column in pairs if not _is_numeric(column.dtype)]
        return f"a {type(leaf).__name__} whose columns {others} are no numbers"
    if array is not None:
        return f"{type(leaf).__name__} of {array.dtype}"
    return "lists of unequal lengths" if isinstance(leaf, list) else repr(leaf)
