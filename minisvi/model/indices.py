"""Indices that the data give and that are outside of the array they are for.

JAX promises XLA that indices are in bounds. Others read some other entry, without a word: labels
that are counted from 1 do, and the fit of what they read may well be good.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import GatherScatterMode


def check(name: str, traced: Any, args: Any) -> None:
    """IndexError where the term `name`, whose trace is that `traced` (a closed jaxpr) of `args`,
    reads outside of an array.

    Known are integers of the data, and what a few operations make of them, which NumPy does again.
    Nothing is said of indices that are traced or on other processes, nor of those that JAX was told
    to clip or to fill, as `vmap` of a scalar index does.
    """
    values = [_known(leaf) for leaf in jax.tree.leaves(args)]
    _follow(name, traced, values)


def _known(leaf: Any) -> Any:
    """The leaf as NumPy's integers, or None if it is not that, or not known here."""
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        return None
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return None
    return np.asarray(leaf) if _is_integer(jnp.result_type(leaf)) else None


def _is_integer(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_))


def _follow(name: str, traced: Any, args: Iterable[Any]) -> list[Any]:
    """The values of what the trace returns, None where they are not known."""
    known = dict(zip(traced.jaxpr.constvars, map(_known, traced.consts)))
    known.update(zip(traced.jaxpr.invars, args))

    def value(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else known.get(atom)

    for equation in traced.jaxpr.eqns:
        values = [value(atom) for atom in equation.invars]
        if equation.primitive.name == "gather":
            _check_bounds(name, equation, values[1])
        known.update(zip(equation.outvars, _results(name, equation, values)))
    return [value(atom) for atom in traced.jaxpr.outvars]


def _results(name: str, equation: Any, values: list[Any]) -> list[Any]:
    """What an operation makes of the values; nothing where that is not known."""
    operation = equation.primitive.name
    if operation in ("jit", "pjit"):  # the name has changed
        return _follow(name, equation.params["jaxpr"], values)
    on_host = _ON_HOST.get(operation)
    is_known = all(value is not None for value in values)
    if on_host is None or not is_known or not _is_integer(equation.outvars[0].aval.dtype):
        return []
    return [on_host(*values, **equation.params)]


def _check_bounds(name: str, equation: Any, index: Any) -> None:
    if index is None or not index.size:
        return
    if equation.params["mode"] != GatherScatterMode.PROMISE_IN_BOUNDS:
        return
    shape = equation.invars[0].aval.shape
    sizes = equation.params["slice_sizes"]
    for place, axis in enumerate(equation.params["dimension_numbers"].start_index_map):
        last = shape[axis] - sizes[axis]
        least, most = int(np.min(index[..., place])), int(np.max(index[..., place]))
        if least < 0 or most > last:
            remedy = ". Labels are counted from 0 here" if least > 0 else ""
            raise IndexError(
                f"`{name}` reads outside of axis {axis} of an array of shape {shape}: expected "
                f"indices in 0..{last}; got {least}..{most}{remedy}"
            )


def _select(which: Any, *cases: Any, **_: Any) -> Any:
    return np.choose(which, cases)


def _convert(x: Any, new_dtype: Any, **_: Any) -> Any:
    return np.asarray(x).astype(new_dtype)


def _broadcast(x: Any, shape: tuple[int, ...], broadcast_dimensions: Any, **_: Any) -> Any:
    with_ones = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, np.shape(x)):
        with_ones[axis] = size
    return np.broadcast_to(np.reshape(x, with_ones), shape)


def _reshape(x: Any, new_sizes: tuple[int, ...], **_: Any) -> Any:
    return np.reshape(x, new_sizes)


def _squeeze(x: Any, dimensions: tuple[int, ...], **_: Any) -> Any:
    return np.squeeze(x, dimensions)


def _concatenate(*parts: Any, dimension: int, **_: Any) -> Any:
    return np.concatenate(parts, dimension)


def _same(x: Any, **_: Any) -> Any:
    return x


def _of_two(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y, **_: function(x, y)


_ON_HOST: dict[str, Callable[..., Any]] = {
    "add": _of_two(np.add),
    "sub": _of_two(np.subtract),
    "mul": _of_two(np.multiply),
    "lt": _of_two(np.less),
    "select_n": _select,
    "convert_element_type": _convert,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "concatenate": _concatenate,
    "copy": _same,
}
