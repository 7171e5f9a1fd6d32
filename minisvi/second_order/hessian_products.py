"""Products with the Hessian of a scalar function, in units in which its coordinates are alike."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.tools.batching import one_by_one

Product = Callable[[Array], Array]


def scaled_products(
    fun: Callable[[Array], Array], x: Array, unit: Array
) -> tuple[Array, Array, Product]:
    """f(x), its gradient S g(x), and the function v -> S H(x) S v, with S = diag(unit); x, v and
    `unit` are (n,).

    The products are exact, by forward over reverse mode. Where a part of f has only a reverse mode,
    as whatever `jax.custom_vjp` defines has (`jax.experimental.ode.odeint` is made so), they are
    differences of gradients (see `_by_differences`).
    """
    value_and_grad = jax.value_and_grad(fun)
    try:
        (value, grad), times = jax.linearize(value_and_grad, x)
        # Inside a batch a part without a forward mode says so at once.
        jax.eval_shape(jax.vmap(times), x[None])
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        value, grad = value_and_grad(x)
        return value, unit * grad, _by_differences(jax.grad(fun), x, unit)

    def product(v: Array) -> Array:
        _, image = times(unit * v)
        return unit * image

    return value, unit * grad, product


def _by_differences(gradient: Callable[[Array], Array], x: Array, unit: Array) -> Product:
    """The function v -> S (g(x + h S v) - g(x - h S v)) / 2h, for |v| = 1; its error is of order
    h^2.

    h = eps^(1/4) is larger than eps^(1/3), which the rounding of g asks for: where f solves
    equations inside, as an integrator does, the errors in g are larger than rounding.
    """
    step = jnp.finfo(x.dtype).eps ** 0.25

    def product(v: Array) -> Array:
        norm = jnp.linalg.norm(v)
        norm = jnp.where(norm == 0, 1.0, norm)
        shift = step * unit * v / norm
        difference = gradient(x + shift) - gradient(x - shift)
        return unit * difference * norm / (2 * step)

    return product


def dense(product: Product, like: Array) -> Array:
    """The symmetric matrix (n, n) of a product with vectors like `like` (n,)."""
    identity = jnp.eye(like.size, dtype=like.dtype)
    matrix = one_by_one(product, identity)
    return (matrix + matrix.T) / 2
