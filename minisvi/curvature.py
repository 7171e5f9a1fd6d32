"""The mode of a log density and the Hessian there, without forming a D x D matrix unless it is asked for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from minisvi import trees


@partial(jax.jit, static_argnames=("model", "max_steps"))
def climb(model: Any, start: Array, data: tuple[Any, ...], max_steps: int) -> tuple[Array, Array, Array]:
    """The mode, the log density and its gradient there."""
    optimizer, loss = optax.lbfgs(), partial(_loss, model, data)

    def step(carry: Any) -> Any:
        x, state, _, taken = carry
        value, grad = optax.value_and_grad_from_state(loss)(x, state=state)
        updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(x, updates), state, jnp.any(updates != 0), taken + 1

    def go_on(carry: Any) -> Array:
        _, _, moved, taken = carry
        return moved & (taken < max_steps)

    x, *_ = jax.lax.while_loop(go_on, step, (start, optimizer.init(start), jnp.array(True), 0))
    value, grad = jax.value_and_grad(loss)(x)
    return x, -value, -grad


def _loss(model: Any, data: tuple[Any, ...], x: Array) -> Array:
    return -model.log_density(trees.unravel(model.latents, x), *data)


@partial(jax.jit, static_argnames="model")
def hessian_times(model: Any, x: Array, data: tuple[Any, ...], vectors: Array) -> Array:
    """H v for each row v; one by one, for a batch of triangular solves can hang XLA's thread pool on a CPU."""
    grad = jax.grad(partial(_loss, model, data))
    return jax.lax.map(lambda v: jax.jvp(grad, (x,), (v,))[1], vectors)


def smallest_eigenpairs(times: Any, size: int, rank: int, key: Array) -> tuple[Array, Array]:
    """The smallest eigenvalues and vectors of a symmetric operator on columns, as the largest of (top - operator)."""
    from jax.experimental.sparse.linalg import lobpcg_standard

    start = jax.random.normal(key, (size, rank))
    top = 1.01 * lobpcg_standard(times, start[:, :1], m=50)[0][0]
    values, vectors, _ = lobpcg_standard(lambda x: top * x - times(x), start, m=200)
    return top - values, vectors
