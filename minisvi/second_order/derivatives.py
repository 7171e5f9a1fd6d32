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
from minisvi.tools.programs import ByRows, HostProgram
from minisvi.tools.sharding import to_host
from minisvi.tools.types import Data, Weight

CHUNK = 8  # points at a time
_MOST_CHUNKS = 32  # of a block
_MOST_NUMBERS = 2**20  # of a block's Hessians


class Derivatives(NamedTuple):
    """log p (S,), its gradient (S, D), and the Hessian (S, D, D), or its product with a vector at
    each point, (S, D). They are on the host, in double precision.
    """

    log_p: Any
    grad: Any
    hessian: Any


def hessians(
    model: Model, u: np.ndarray, data: Data, weight: Weight = None, chunk: int = CHUNK
) -> Derivatives:
    """The derivatives of log p(T(u), D) + log|det J_T(u)| at each row, with the whole Hessian.

    A `chunk` of points is computed at a time, and less than one costs as much.
    """
    most = min(_MOST_CHUNKS * chunk, _MOST_NUMBERS // max(u.shape[1] ** 2, 1))
    chunk = max(min(chunk, most), 1)
    program = _hessians.of(data)

    def compute(block: Any, num_chunks: int) -> Any:
        return program(model, block, num_chunks, data, weight, chunk)

    return _doubles(in_blocks(compute, u, len(u), chunk=chunk, most=most))


def products(
    model: Model, u: np.ndarray, v: np.ndarray, data: Data, weight: Weight = None
) -> Derivatives:
    """The derivatives at each row, with the Hessian's product with the row of v (S, D)."""
    program = _products.of(data)

    def compute(block: Any, num_chunks: int) -> Any:
        return program(model, *block, num_chunks, data, weight)

    most = _MOST_CHUNKS * CHUNK
    return _doubles(in_blocks(compute, (u, v), len(u), chunk=CHUNK, most=most))


def images(model: Model, u: np.ndarray, v: np.ndarray, data: Data) -> np.ndarray:
    """The Hessian's products with each row of v (S, D), at one point u (D,)."""

    def compute(block: Any, num_rows: int) -> Any:
        return _images(model, u, block, num_rows, data)

    return in_blocks(compute, v, len(v), chunk=1, most=_MOST_CHUNKS).astype(float)


def gradient(model: Model, u: np.ndarray, data: Data) -> tuple[float, np.ndarray]:
    """The log density and its gradient (D,) at one point u (D,)."""
    log_p, grad = to_host(_gradient(model, u, data))
    return float(log_p), grad.astype(float)


def _doubles(found: Derivatives) -> Derivatives:
    return Derivatives(*[part.astype(float) for part in found])


@partial(ByRows, static_argnames=("model", "chunk"))
def _hessians(
    model: Model, u: Array, num_chunks: Any, data: Data, weight: Weight, chunk: int
) -> Derivatives:
    def one(u: Array) -> Derivatives:
        log_p, grad, product = _at(model, u, data, weight)
        return Derivatives(log_p, grad, dense(product, grad))

    return over_chunks(batched(one), u, num_chunks, chunk)


@partial(ByRows, static_argnames="model")
def _products(
    model: Model, u: Array, v: Array, num_chunks: Any, data: Data, weight: Weight
) -> Derivatives:
    def one(point: tuple[Array, Array]) -> Derivatives:
        u, v = point
        log_p, grad, product = _at(model, u, data, weight)
        return Derivatives(log_p, grad, product(v.astype(grad.dtype)))

    return over_chunks(batched(one), (u, v), num_chunks, CHUNK)


@partial(HostProgram, static_argnames="model")
def _images(model: Model, u: Array, v: Array, num_rows: Any, data: Data) -> Array:
    _, grad, product = _at(model, u, data, None)

    def one(rows: Array) -> Array:
        return product(rows[0].astype(grad.dtype))[None]

    return over_chunks(one, v, num_rows, chunk=1)


@partial(HostProgram, static_argnames="model")
def _gradient(model: Model, u: Array, data: Data) -> tuple[Array, Array]:
    u = u.astype(trees.spec(model.latents).dtype)
    return jax.value_and_grad(partial(_log_p, model, data, None))(u)


def _at(
    model: Model, u: Array, data: Data, weight: Weight
) -> tuple[Array, Array, Callable[[Array], Array]]:
    u = u.astype(trees.spec(model.latents).dtype)
    return scaled_products(partial(_log_p, model, data, weight), u, jnp.ones_like(u))


def _log_p(model: Model, data: Data, weight: Weight, u: Array) -> Array:
    tree = trees.unravel(model.latents, u)
    return model.log_density(tree, *data, weight=weight)
