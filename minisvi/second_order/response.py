"""The linear response of the deterministic fit: the covariance that a mean field lacks."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.model.model import Model
from minisvi.second_order.deterministic import Deterministic, Fixed, loss, units
from minisvi.second_order.hessian_products import dense, scaled_products


def linear_response(fit: Deterministic, vectors: Array | None = None) -> Array:
    """The linear-response covariance of u (Giordano, Ingram & Broderick 2024, eq. 9): C =
    [H^-1]_(loc, loc).

    H is the Hessian of f at the fit, over loc and log_scale alike. (D, D), exact for any Gaussian
    posterior, of which the mean field itself has too small variances; or, of the rows of `vectors`
    (n, D), the products (n, D), by conjugate gradients, forming no matrix. NaN where H is not
    positive definite: there is no maximum there.
    """
    return _response(
        fit.model, np.concatenate([fit.params["loc"], fit.params["log_scale"]]), fit.fixed, vectors
    )


@partial(jax.jit, static_argnames="model")
def _response(model: Model, x: Array, fixed: Fixed, vectors: Any) -> Array:
    unit, size = units(x), x.size // 2
    _, _, product = scaled_products(partial(loss, fixed=fixed, model=model), x, unit)
    if vectors is None:
        factor = jax.scipy.linalg.cho_factor(dense(product, x))
        inverse = jax.scipy.linalg.cho_solve(factor, jnp.eye(2 * size, size, dtype=x.dtype))[:size]
        return unit[:size, None] * inverse * unit[None, :size]
    solve = partial(
        jax.scipy.sparse.linalg.cg, product, tol=jnp.finfo(x.dtype).eps ** 0.75, maxiter=4 * size
    )
    rows = jnp.pad(vectors, ((0, 0), (0, size))) * unit[None]
    return jax.lax.map(lambda row: solve(row)[0][:size] * unit[:size], rows)
