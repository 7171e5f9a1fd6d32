"""Indices that the data give and that are outside of the array they are for.

JAX promises XLA that indices are in bounds. Others read some other entry, without a word: labels
that are counted from 1 do, and the fit of that may well be good.
"""

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import GatherScatterMode

Value = Callable[[], Any]
"""What is to be known of an array: its integers, of NumPy, or None. Asked for only where an index
depends on it, for it may have to come from another device.
"""


def check(name: str, traced: Any, args: Any) -> None:
    """IndexError where the term `name`, whose trace is that `traced` (a closed jaxpr) of `args`,
    reads outside of an array.

    Known are integers of the data, and what a few operations make of them, which NumPy does again.
    Nothing is said of indices that are traced or on other processes, nor of those that JAX was told
    to clip, fill or drop, as `vmap` of a scalar index and `segment_sum` do.
    """
    _follow(name, traced, [_once(_integers, leaf) for leaf in jax.tree.leaves(args)])


def _once(function: Callable[..., Any], *args: Any) -> Value:
    return cache(partial(function, *args))


def _integers(leaf: Any) -> Any:
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        return None
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return None
    return np.asarray(leaf) if _is_integer(jnp.result_type(leaf)) else None


def _is_integer(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_))


def _follow(name: str, traced: Any, args: Iterable[Value]) -> list[Value]:
    """The values of what the trace returns."""
    values: dict[Any, Value] = dict(zip(traced.jaxpr.invars, args))
    for variable, leaf in zip(traced.jaxpr.constvars, traced.consts):
        values[variable] = _once(_integers, leaf)

    def value(atom: Any) -> Value:
        if hasattr(atom, "val"):
            return lambda: atom.val
        return values.get(atom, _unknown)

    for equation in traced.jaxpr.eqns:
        inputs = [value(atom) for atom in equation.invars]
        if equation.primitive.name == "gather":
            _check_gather(name, equation, inputs[1])
        values.update(zip(equation.outvars, _results(name, equation, inputs)))
    return [value(atom) for atom in traced.jaxpr.outvars]


def _unknown() -> None:
    return None


def _results(name: str, equation: Any, inputs: list[Value]) -> list[Value]:
    """What an operation makes of its inputs; nothing where that is not known."""
    operation = equation.primitive.name
    if operation in ("jit", "pjit"):  # JAX has renamed it
        return _follow(name, equation.params["jaxpr"], inputs)
    on_host = _ON_HOST.get(operation)
    if on_host is None or not _is_integer(equation.outvars[0].aval.dtype):
        return []
    return [_once(_computed, on_host, inputs, equation.params)]


def _computed(on_host: Callable[..., Any], inputs: list[Value], params: dict[str, Any]) -> Any:
    values = [value() for value in inputs]
    if any(value is None for value in values):
        return None
    try:
        return on_host(*values, **params)
    except Exception:  # a check must not refuse a model for what NumPy cannot do
        return None


def _check_gather(name: str, equation: Any, value: Value) -> None:
    if equation.params["mode"] != GatherScatterMode.PROMISE_IN_BOUNDS:
        return
    index = value()
    if index is None or not index.size:
        return
    shape = equation.invars[0].aval.shape
    sizes = equation.params["slice_sizes"]
    for place, axis in enumerate(equation.params["dimension_numbers"].start_index_map):
        last = shape[axis] - sizes[axis]
        least, most = int(np.min(index[..., place])), int(np.max(index[..., place]))
        if least < 0 or most > last:
            raise IndexError(
                f"`{name}` reads outside of axis {axis} of an array of shape {shape}: expected "
                f"indices in 0..{last}; got {least}..{most}{_remedy(least, most, last)}"
            )


def _remedy(least: int, most: int, last: int) -> str:
    """What to do about it, as the end of a sentence."""
    if (least, most) == (1, last + 1):
        return ". Labels are counted from 0 here: subtract 1"
    from_the_end = ", where those below zero were counted from the end" if least < 0 else ""
    masked = "If what they read is masked, write array.at[index].get(mode='clip')"
    return f"{from_the_end}. {masked}"


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


def _slice(x: Any, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> Any:
    steps = strides or (1,) * len(start_indices)
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


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
    "slice": _slice,
    "concatenate": _concatenate,
    "copy": _same,
}
