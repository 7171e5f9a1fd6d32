"""The linear response of the deterministic fit: the covariance that a mean field lacks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.model.model import Model
from minisvi.second_order.deterministic import Deterministic, Fixed, loss, units
from minisvi.second_order.hessian_products import Product, dense, scaled_products
from minisvi.tools.batching import one_by_one


def linear_response(fit: Deterministic, vectors: Array | None = None) -> Array:
    """The linear-response covariance of u (Giordano, Ingram & Broderick 2024, eq. 9): C =
    [H^-1]_(loc, loc).

    H is the Hessian of f at the fit, over loc and log_scale alike. C is (D, D), and exact for any
    Gaussian posterior, of which the mean field itself has too small variances. With `vectors` (n,
    D) the result is their products with C, (n, D), by conjugate gradients, which form no matrix. It
    is NaN where H is not positive definite: there is no maximum there.
    """
    x = np.concatenate([fit.params["loc"], fit.params["log_scale"]])
    return _response(fit.model, x, fit.fixed, vectors)


@partial(jax.jit, static_argnames="model")
def _response(model: Model, x: Array, fixed: Fixed, vectors: Array | None) -> Array:
    unit = units(x)
    _, _, product = scaled_products(partial(loss, fixed=fixed, model=model), x, unit)
    if vectors is None:
        return _covariance(product, x, unit)
    return _products(product, x, unit, vectors)


def _covariance(product: Product, x: Array, unit: Array) -> Array:
    """C, by a Cholesky factor of S H S, of which `product` is the product."""
    size = x.size // 2
    factor = jax.scipy.linalg.cho_factor(dense(product, x))
    identity = jnp.eye(2 * size, size, dtype=x.dtype)
    columns = jax.scipy.linalg.cho_solve(factor, identity)
    inverse = columns[:size]
    return unit[:size, None] * inverse * unit[None, :size]


def _products(product: Product, x: Array, unit: Array, vectors: Array) -> Array:
    """C v for each row v of `vectors`, by conjugate gradients."""
    size = x.size // 2
    tolerance = jnp.finfo(x.dtype).eps ** 0.75

    def solve(row: Array) -> Array:
        solution, _ = jax.scipy.sparse.linalg.cg(product, row, tol=tolerance, maxiter=4 * size)
        return solution[:size] * unit[:size]

    # With zeros for log_scale.
    padded = jnp.pad(vectors, ((0, 0), (0, size)))
    rows = padded * unit[None]
    return one_by_one(solve, rows)
