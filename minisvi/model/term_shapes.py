"""The shape of a term of the density, checked before anything is computed."""

import itertools
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from minisvi.model import indices
from minisvi.tools.names import leaf_names
from minisvi.tools.types import Latents

Shape = tuple[int, ...]


def density_term(
    name: str, function: Callable[..., Any], shape: Shape | None, known: Latents, *args: Any
) -> None:
    """Raise unless `function(*args)` is a float array of `shape`, where None is (N,) of any N.

    The function is traced with shapes alone, so that its numbers are not computed. ValueError or
    TypeError if it is no such array, if it asks for a latent that is not in the tree `known`, or if
    a (N,) array meets a (N, 1) one, which would silently become (N, N). IndexError where an index
    of the data is out of bounds (see `indices.check`).
    """
    try:
        traced, term = _trace_without_outer_broadcast(name, function, *args)
    except (KeyError, AttributeError) as error:
        latents = leaf_names(known)
        raise ValueError(
            f"`{name}` failed with {error!r}; the model's latents are {latents}"
        ) from error
    except Exception as error:
        error.add_note(f"This was `{name}`, {_called_with(args)}.")
        raise
    what = "one term per row" if name == "log_likelihood" and shape != () else "a scalar"
    if not isinstance(term, jax.ShapeDtypeStruct):
        raise TypeError(
            f"`{name}` must return {what}: expected an array; got {type(term).__name__}"
        )
    if shape is None:  # without data no one knows how many rows there are
        shape = term.shape[:1]
    if term.shape != shape or not jnp.issubdtype(term.dtype, jnp.floating):
        got = f"expected float{list(shape)}; got {term.dtype}{list(term.shape)}"
        remedy = _remedy(name, shape, term.shape)
        raise ValueError(f"`{name}` must return {what}: {got}{remedy}")
    indices.check(name, traced, args)


def _called_with(args: tuple[Any, ...]) -> str:
    """The shapes that a term was called with, in words."""
    theta, *data = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", args)
    of_data = f"data of {', '.join(map(str, data))}" if data else "no data"
    return f"called with theta of {theta} and {of_data}"


def _remedy(name: str, expected: Shape, got: Shape) -> str:
    """What to do about a term of another shape, as the end of a sentence, or nothing."""
    if name == "log_likelihood" and expected != () and len(got) < 2:
        return (
            ". Rows are the leading axis of the first array of the data. Where the likelihood has "
            "no term for each of them, as in a time series or a Gaussian process, give "
            "`log_joint`, or `per_row=False` and return a scalar"
        )
    if name == "log_joint" and len(got) == 1:
        return (
            ". One term per row is a `log_likelihood`, which goes by that name beside `prior` or "
            "`log_prior`"
        )
    return ""


def _trace_without_outer_broadcast(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """The trace of function(*args), and the shape of what it returns; ValueError where a (N,) meets
    a (..., N, 1).

    JAX warns of every rank promotion when asked to. Of these only this one is surely a mistake.
    """
    with jax.numpy_rank_promotion("warn"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = jax.make_jaxpr(function, return_shape=True)(*args)
    for warning in caught:
        _check_broadcast(name, str(warning.message))
    return found


def _check_broadcast(name: str, warning: str) -> None:
    """ValueError if JAX's warning is of a rank promotion of (N,) to (..., N, N)."""
    found = re.search(r"rank promotion for (\S+) on shapes (.*?)\. Set", warning)
    if found is None:
        return
    operation, shapes = found.groups()
    for low, high in itertools.permutations(_read_shapes(shapes), 2):
        if len(low) == 1 and low[0] > 1 and high[-2:] == (low[0], 1):
            result = (*high[:-1], *low)
            raise ValueError(
                f"`{name}`: {operation} met shapes {low} and {high}, which broadcast to {result}: "
                "expected equal shapes. Reshape one; write x[None, :] if the table is meant"
            )


def _read_shapes(text: str) -> list[Shape]:
    """The shapes in a text such as "(5,) (5, 1)"."""
    shapes = re.findall(r"\([^()]*\)", text)
    return [tuple(map(int, re.findall(r"\d+", shape))) for shape in shapes]
