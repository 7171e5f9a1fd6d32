"""The log density, its gradient and its Hessian at many points, for what is computed on the host.

What holds the model is compiled: one program for Hessians, and one for products with them. Points
are rows u (S, D).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.model import trees
from minisvi.model.at_rows import in_blocks, over_chunks
from minisvi.model.model import Model
from minisvi.second_order.hessian_products import dense, scaled_products
from minisvi.tools.batching import batched
from minisvi.tools.types import Data, Weight

_CHUNK = 8  # points at a time
_MOST_POINTS = 256  # of a block
_MOST_NUMBERS = 2**20  # of a block's Hessians


class Derivatives(NamedTuple):
    """log p (S,), its gradient (S, D), and the Hessian (S, D, D), or its product with a vector at
    each point, (S, D). They are on the host, in double precision.
    """

    log_p: Any
    grad: Any
    hessian: Any


def hessians(model: Model, u: np.ndarray, data: Data, weight: Weight = None) -> Derivatives:
    """The derivatives of log p(T(u), D) + log|det J_T(u)| at each row, with the whole Hessian."""
    most = min(_MOST_POINTS, _MOST_NUMBERS // max(u.shape[1] ** 2, 1))
    chunk = max(min(_CHUNK, most), 1)

    def compute(block: Any, num_chunks: int) -> Any:
        return _hessians(model, block, num_chunks, data, weight, chunk)

    return _doubles(in_blocks(compute, u, len(u), chunk=chunk, most=most))


def products(
    model: Model, u: np.ndarray, v: np.ndarray, data: Data, weight: Weight = None
) -> Derivatives:
    """The derivatives at each row, with the Hessian's product with the row of v (S, D)."""

    def compute(block: Any, num_chunks: int) -> Any:
        return _products(model, *block, num_chunks, data, weight)

    return _doubles(in_blocks(compute, (u, v), len(u), chunk=_CHUNK, most=_MOST_POINTS))


def _doubles(found: Derivatives) -> Derivatives:
    return Derivatives(*[part.astype(float) for part in found])


@partial(jax.jit, static_argnames=("model", "chunk"))
def _hessians(
    model: Model, u: Array, num_chunks: Any, data: Data, weight: Weight, chunk: int
) -> Derivatives:
    def one(u: Array) -> Derivatives:
        log_p, grad, product = _at(model, u, data, weight)
        return Derivatives(log_p, grad, dense(product, grad))

    return over_chunks(batched(one), u, num_chunks, chunk)


@partial(jax.jit, static_argnames="model")
def _products(
    model: Model, u: Array, v: Array, num_chunks: Any, data: Data, weight: Weight
) -> Derivatives:
    def one(point: tuple[Array, Array]) -> Derivatives:
        u, v = point
        log_p, grad, product = _at(model, u, data, weight)
        return Derivatives(log_p, grad, product(v.astype(grad.dtype)))

    return over_chunks(batched(one), (u, v), num_chunks, _CHUNK)


def _at(
    model: Model, u: Array, data: Data, weight: Weight
) -> tuple[Array, Array, Callable[[Array], Array]]:
    def log_p(u: Array) -> Array:
        tree = trees.unravel(model.latents, u)
        return model.log_density(tree, *data, weight=weight)

    u = u.astype(trees.spec(model.latents).dtype)
    return scaled_products(log_p, u, jnp.ones_like(u))
