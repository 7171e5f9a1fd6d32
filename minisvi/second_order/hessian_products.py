"""Products with the Hessian of a scalar function, in units in which its coordinates are alike."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

Product = Callable[[Array], Array]


def scaled_products(
    fun: Callable[[Array], Array], x: Array, unit: Array
) -> tuple[Array, Array, Product]:
    """f(x), its gradient S g(x), and the function v -> S H(x) S v, with S = diag(unit); x, v and
    `unit` are (n,).

    The products are exact, by forward over reverse mode. Where a part of f has a reverse mode
    alone, as what `jax.custom_vjp` defines (`jax.experimental.ode.odeint` does), they are
    differences of gradients (see `_by_differences`).
    """
    value_and_grad = jax.value_and_grad(fun)
    try:
        (value, grad), times = jax.linearize(value_and_grad, x)
        jax.eval_shape(
            jax.vmap(times), x[None]
        )  # inside a batch a part without a forward mode says so at once
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        value, grad = value_and_grad(x)
        return value, unit * grad, _by_differences(jax.grad(fun), x, unit)
    return value, unit * grad, lambda v: unit * times(unit * v)[1]


def _by_differences(gradient: Callable[[Array], Array], x: Array, unit: Array) -> Product:
    """v -> S (g(x + h S v) - g(x - h S v)) / 2h, for |v| = 1, whose error is of order h^2.

    h = eps^(1/4) is more than the rounding of g asks for, eps^(1/3), since what solves equations
    inside f, such as an integrator, leaves errors in g that are larger than rounding.
    """
    step = jnp.finfo(x.dtype).eps ** 0.25

    def product(v: Array) -> Array:
        norm = jnp.linalg.norm(v)
        norm = jnp.where(norm == 0, 1.0, norm)
        shift = step * unit * v / norm
        difference = gradient(x + shift) - gradient(x - shift)
        return unit * difference * norm / (2 * step)

    return product


def dense(product: Callable[[Array], Array], like: Array) -> Array:
    """The symmetric matrix (n, n) of a product with vectors like `like` (n,).

    One column after the other: a batch of them can hang XLA's thread pool on a CPU where the
    function has triangular solves.
    """
    matrix = jax.lax.map(product, jnp.eye(like.size, dtype=like.dtype))
    return (matrix + matrix.T) / 2
