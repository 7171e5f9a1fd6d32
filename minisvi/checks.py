"""Static mistakes, found before anything is compiled: each error names the thing, what was expected and what came."""

import operator
from typing import Any

import jax
import jax.numpy as jnp


def path_name(path: tuple[Any, ...]) -> str:
    """The name of a leaf, as a person would write it: `net.layers.0.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def named_leaves(tree: Any, is_leaf: Any = None) -> dict[str, Any]:
    """Leaves of `tree` by their dotted path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)}


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


def prng_key(key: Any) -> jax.Array:
    """`key` itself if it is one PRNG key, typed or legacy; TypeError otherwise."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    legacy = dtype == jnp.uint32 and shape is not None and len(shape) == 1
    if not (typed or legacy):
        got = f"{dtype}{list(shape)}" if dtype is not None and shape is not None else repr(key)
        raise TypeError(f"`key` must be one PRNG key, such as jax.random.key(0); got {got}")
    return key


def same_tree(name: str, expected: Any, got: Any) -> None:
    """Raise unless `got` has the leaves of `expected`, with their shapes and with floating dtypes.

    ValueError names the leaves that are missing, unexpected or of another shape; TypeError those that are not floats.
    """
    wanted: Any = jax.tree.structure(expected)
    if wanted != jax.tree.structure(got):
        want, have = list(named_leaves(expected)), list(named_leaves(got))
        raise ValueError(f"{name}: expected a tree with leaves {want}; got {type(got).__name__} with leaves {have}")
    for (leaf, spec), value in zip(named_leaves(expected).items(), jax.tree.leaves(got), strict=True):
        if jnp.shape(value) != jnp.shape(spec):
            raise ValueError(f"{name} `{leaf}`: expected shape {jnp.shape(spec)}; got {jnp.shape(value)}")
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(f"{name} `{leaf}`: expected a floating dtype; got {jnp.result_type(value)}")
