"""The shape of a term of the density, checked before anything is computed."""

import itertools
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from minisvi.tools.names import leaf_names


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
