"""Static mistakes, found before anything is compiled: each error names the thing, what was expected
and what came.
"""

import inspect
import itertools
import math
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_A = {jnp.floating: "a floating", jnp.integer: "an integer"}


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf, as a person would write it: `net.layers.0.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def leaf_names(tree: Any, is_leaf: Any = None) -> list[str]:
    """The dotted path of each leaf of `tree`; two leaves may have the same one."""
    return [
        path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    ]


def named_leaves(tree: Any, is_leaf: Any = None, what: str = "a tree") -> dict[str, Any]:
    """Leaves of `tree` by their dotted path; ValueError if two of them have the same one."""
    paths: dict[str, Any] = {}
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        name = path_name(path)
        if name in paths:
            both = f"{jax.tree_util.keystr(paths[name])} and {jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{what}: expected leaves with names of their own; got `{name}` for both {both}: rename one"
            )
        paths[name], leaves[name] = path, leaf
    return leaves


def data_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf of the data, by its place among them: `[1].y`."""
    if not (path and hasattr(path[0], "idx")):  # held-out data that are in no tuple
        return path_name(path)
    first, *rest = path
    return f"[{first.idx}]" + (f".{path_name(tuple(rest))}" if rest else "")


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


def density_term(
    name: str, function: Callable[..., Any], shape: tuple[int, ...] | None, known: Any, *args: Any
) -> None:
    """Raise unless `function(*args)` is a float array of `shape`; by shapes alone, nothing is
    computed.

    ValueError or TypeError if it is not, if it asks for a latent that is not in the tree `known`,
    or if a (N,) array meets a (N, 1) one, which would silently become (N, N).
    """
    try:
        term = _eval_shape_without_outer_broadcast(name, function, *args)
    except (KeyError, AttributeError) as error:
        latents = leaf_names(known)
        raise ValueError(
            f"`{name}` failed with {error!r}; the model's latents are {latents}"
        ) from error
    what = "one term per row" if name == "log_likelihood" and shape != () else "a scalar"
    if not isinstance(term, jax.ShapeDtypeStruct):
        raise TypeError(
            f"`{name}` must return {what}: expected an array; got {type(term).__name__}"
        )
    shape = (
        term.shape[:1] if shape is None else shape
    )  # without data no one knows how many rows there are
    if term.shape != shape or not jnp.issubdtype(term.dtype, jnp.floating):
        got = f"expected float{list(shape)}; got {term.dtype}{list(term.shape)}"
        raise ValueError(f"`{name}` must return {what}: {got}{_remedy(name, shape, term.shape)}")


def _remedy(name: str, expected: tuple[int, ...], got: tuple[int, ...]) -> str:
    if name == "log_likelihood" and expected != () and len(got) < 2:
        return (
            ". Rows are the leading axis of the first array of the data. Where the likelihood has no term for each of "
            "them, as in a time series or a Gaussian process, give `log_joint`, or `per_row=False` and return a scalar"
        )
    if name == "log_joint" and len(got) == 1:
        return ". One term per row is a `log_likelihood`, which goes by that name beside `prior` or `log_prior`"
    return ""


def _eval_shape_without_outer_broadcast(name: str, function: Callable[..., Any], *args: Any) -> Any:
    # JAX warns of every rank promotion when asked to; of these only (N,) against (..., N, 1) is
    # surely a mistake.
    with jax.numpy_rank_promotion("warn"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shape = jax.eval_shape(function, *args)
    for warning in caught:
        found = re.search(r"rank promotion for (\S+) on shapes (.*?)\. Set", str(warning.message))
        shapes = re.findall(r"\([^()]*\)", found[2]) if found else []
        sizes = [tuple(map(int, re.findall(r"\d+", text))) for text in shapes]
        for low, high in itertools.permutations(sizes, 2):
            if len(low) == 1 and low[0] > 1 and high[-2:] == (low[0], 1):
                raise ValueError(
                    f"`{name}`: {found and found[1]} met shapes {low} and {high}, which broadcast to "
                    f"{(*high[:-1], *low)}: expected equal shapes. Reshape one; write x[None, :] if the table is meant"
                )
    return shape
