"""Static mistakes, found before anything is compiled: each error names the thing, what was expected
and what came.
"""

import inspect
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minisvi.tools.names import leaf_names, named_leaves

_A = {jnp.floating: "a floating", jnp.integer: "an integer"}


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
    """ValueError unless all of them, where they are known, are in [0, 1]."""
    if isinstance(values, jax.core.Tracer):
        return
    numbers = np.asarray(values)
    if not np.all((numbers >= 0) & (numbers <= 1)):  # written so that NaN fails too
        raise ValueError(f"`probabilities` must be in [0, 1]; got {values}")


def shape(name: str, value: Any) -> tuple[int, ...]:
    """`value`, an integer or several, as a shape; TypeError if it is none, ValueError if a size is
    below zero.
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


def shape_ends_in_size(ndim: int, name: str, shape: tuple[int, ...]) -> None:
    if len(shape) < ndim or shape[-1] < 1:
        raise ValueError(f"{name}: expected a shape that ends in a size >= 1; got {shape}")


def shape_ends_in_square(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 1:
        raise ValueError(f"{name}: expected a shape (..., n, n) with n >= 1; got {shape}")


def at_least_single(latents: Any) -> None:
    """TypeError if a latent is of half precision, in which there are no eigenvalues or quasi-random
    numbers.
    """
    for name, support in named_leaves(latents).items():
        dtype = support.value_dtype
        if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise TypeError(f"latent `{name}`: expected float32 or float64; got {dtype}")


def takes(name: str, function: Any, call: str, num_arguments: int) -> None:
    """TypeError unless `function` takes so many arguments, which `call` names, as far as its
    signature tells.
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
    """`key` itself if it is one PRNG key, typed, or legacy and of JAX's default kind; TypeError
    otherwise.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    legacy = dtype == jnp.uint32 and shape == _legacy_shape()
    if not (typed or legacy):
        got = f"{dtype}{list(shape)}" if dtype is not None and shape is not None else repr(key)
        raise TypeError(
            f"`key` must be one PRNG key, such as jax.random.key(0), or jax.random.key(0, impl='rbg'); got {got}"
        )
    return key


def _legacy_shape() -> tuple[int, ...]:
    """The shape of a legacy key that JAX can use: it takes any for one of its default kind."""
    return jax.eval_shape(jax.random.PRNGKey, 0).shape


def same_tree(name: str, expected: Any, got: Any) -> None:
    """Raise unless `got` has the leaves of `expected`, with their shapes, and floats where it has
    floats.

    ValueError names the leaves that are missing, unexpected or of another shape; TypeError those of
    another kind.
    """
    wanted: Any = jax.tree.structure(expected)
    if wanted != jax.tree.structure(got):
        want, have = leaf_names(expected), leaf_names(got)
        raise ValueError(
            f"{name}: expected a tree with leaves {want}; got {type(got).__name__} with leaves {have}"
        )
    for leaf, spec, value in zip(
        leaf_names(expected), jax.tree.leaves(expected), jax.tree.leaves(got), strict=True
    ):
        if jnp.shape(value) != jnp.shape(spec):
            raise ValueError(
                f"{name} `{leaf}`: expected shape {jnp.shape(spec)}; got {jnp.shape(value)}"
            )
        kind = jnp.floating if jnp.issubdtype(spec.dtype, jnp.floating) else jnp.integer
        if not jnp.issubdtype(jnp.result_type(value), kind):
            raise TypeError(
                f"{name} `{leaf}`: expected {_A[kind]} dtype; got {jnp.result_type(value)}"
            )


def factored(model: Any, what: str = "a minibatch") -> None:
    """ValueError, of `what` needs it, unless the model has a likelihood apart, with one term per
    row.
    """
    if model.log_likelihood is None:
        raise ValueError(f"{what} needs a factored model: give `log_prior` and `log_likelihood`")
    if not model.per_row:
        raise ValueError(
            f"{what} needs a likelihood with one term per row, and the model says `per_row=False`"
        )
