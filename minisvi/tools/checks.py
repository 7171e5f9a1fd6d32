"""Static mistakes in arguments, found before anything is compiled.

Each error names the thing, what was expected and what came.
"""

import inspect
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minisvi.tools.keys import is_key
from minisvi.tools.names import leaf_names, named_leaves
from minisvi.tools.types import Latents


def positive_integer(name: str, value: Any) -> int:
    """`value` as an int >= 1; TypeError if it is no integer, ValueError if it is below one."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer >= 1; got {value!r}") from None
    if number < 1:
        raise ValueError(f"`{name}` must be an integer >= 1; got {number}")
    return number


def finite_number(name: str, value: Any) -> float:
    """`value` as a float; TypeError if it is no number, ValueError if it is not finite."""
    number = _number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number; got {value}")
    return number


def seconds(value: Any) -> float:
    """A budget of time as a float, where infinity means none and a negative one is spent.

    TypeError if it is no number, ValueError if it is NaN.
    """
    number = _number("`seconds`", value)
    if math.isnan(number):
        raise ValueError("`seconds` must be a number; got nan")
    return number


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, bool | str | bytes):  # `float` would read text
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number; got {value!r}") from None


def probabilities(values: Any) -> None:
    """ValueError unless all the values, where they are known, are in [0, 1]."""
    if isinstance(values, jax.core.Tracer):
        return
    numbers = np.asarray(values)
    is_inside = (numbers >= 0) & (numbers <= 1)  # False for NaN
    if not np.all(is_inside):
        raise ValueError(f"`probabilities` must be in [0, 1]; got {values}")


def shape(name: str, value: Any) -> tuple[int, ...]:
    """`value`, an integer or several, as a shape.

    TypeError if it is none, ValueError if a size is below zero.
    """
    sizes = value if isinstance(value, tuple | list) else (value,)
    try:
        if any(isinstance(size, bool) for size in sizes):
            raise TypeError
        integers = tuple(operator.index(size) for size in sizes)
    except TypeError:
        raise TypeError(f"{name}: expected a shape such as 3 or (3, 2); got {value!r}") from None
    if any(size < 0 for size in integers):
        raise ValueError(f"{name}: expected a shape of sizes >= 0; got {value!r}")
    return integers


def shape_ends_in_size(name: str, shape: tuple[int, ...]) -> None:
    """ValueError unless the shape has a last size, which is at least one."""
    if len(shape) < 1 or shape[-1] < 1:
        raise ValueError(f"{name}: expected a shape that ends in a size >= 1; got {shape}")


def shape_ends_in_square(name: str, shape: tuple[int, ...]) -> None:
    """ValueError unless the last two sizes are equal, and at least one."""
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 1:
        raise ValueError(f"{name}: expected a shape (..., n, n) with n >= 1; got {shape}")


def at_least_single(latents: Latents) -> None:
    """TypeError if a latent is of half precision.

    There are no eigenvalues or quasi-random numbers in it.
    """
    for name, support in named_leaves(latents).items():
        dtype = support.value_dtype
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise TypeError(f"latent `{name}`: expected float32 or float64; got {dtype}")


def takes(name: str, function: Any, call: str, num_arguments: int) -> None:
    """TypeError unless `function` takes `num_arguments`, as far as its signature tells.

    `call` names them in the error, such as "fn(key, theta)".
    """
    if not callable(function):
        raise TypeError(f"`{name}` must be a function {call}; got {function!r}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some built-in functions
        return
    try:
        signature.bind(*range(num_arguments))
    except TypeError:
        raise TypeError(f"`{name}` must take {call}; got a function of {signature}") from None


def prng_key(key: Any) -> jax.Array:
    """`key` itself if it is one PRNG key, typed, or legacy and of JAX's default kind.

    TypeError if it is anything else.
    """
    dtype = getattr(key, "dtype", None)
    shape = getattr(key, "shape", None)
    if dtype is None or shape is None:
        raise _no_key(repr(key))
    is_typed = is_key(key) and shape == ()
    is_legacy = dtype == jnp.uint32 and shape == _legacy_shape()
    if not (is_typed or is_legacy):
        raise _no_key(f"{dtype}{list(shape)}")
    return key


def _no_key(got: str) -> TypeError:
    return TypeError(
        "`key` must be one PRNG key, such as jax.random.key(0), or jax.random.key(0, impl='rbg'); "
        f"got {got}"
    )


def _legacy_shape() -> tuple[int, ...]:
    """The shape of a legacy key that JAX can use: it takes any for one of its default kind."""
    return jax.eval_shape(jax.random.PRNGKey, 0).shape


def same_tree(name: str, expected: Any, got: Any) -> None:
    """Raise unless `got` has the leaves of `expected`, with their shapes, and floats for floats.

    ValueError names the leaves that are missing, unexpected or of another shape; TypeError those of
    another kind.
    """
    wanted: Any = jax.tree.structure(expected)
    if wanted != jax.tree.structure(got):
        raise ValueError(
            f"{name}: expected a tree with leaves {leaf_names(expected)}; got "
            f"{type(got).__name__} with leaves {leaf_names(got)}"
        )
    leaves = zip(leaf_names(expected), jax.tree.leaves(expected), jax.tree.leaves(got))
    for leaf, like, value in leaves:
        _same_leaf(f"{name} `{leaf}`", like, value)


def _same_leaf(name: str, expected: Any, got: Any) -> None:
    if jnp.shape(got) != jnp.shape(expected):
        raise ValueError(f"{name}: expected shape {jnp.shape(expected)}; got {jnp.shape(got)}")
    dtype = jnp.result_type(got)
    if jnp.issubdtype(expected.dtype, jnp.floating):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype; got {dtype}")
    elif not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name}: expected an integer dtype; got {dtype}")


def factored(model: Any, what: str = "a minibatch") -> None:
    """ValueError unless the model has a likelihood apart, with one term per row.

    `what` begins the error: it is what needs such a model.
    """
    if model.log_likelihood is None:
        raise ValueError(f"{what} needs a factored model: give `log_prior` and `log_likelihood`")
    if not model.per_row:
        raise ValueError(
            f"{what} needs a likelihood with one term per row, and the model says `per_row=False`"
        )
