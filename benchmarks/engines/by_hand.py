"""The floor: the same mathematics in plain JAX and optax, with no library around it and no check of
any step.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from engines.mathematics import (
    LOG_2PI,
    SHAPES,
    Weights,
    bnn_log_likelihood,
    bnn_log_prior,
    gamma_log_joint,
    key,
)
from jax import Array


def gamma_log_density(u: Array, z: Array) -> Array:
    return gamma_log_joint({"concentration": jnp.exp(u[0])}, z) + u[0]


def bnn_log_density(u: Array, x: Array, y: Array) -> Array:
    w = unflatten(u)
    return bnn_log_prior(w) + jnp.sum(bnn_log_likelihood(w, x, y))


def unflatten(u: Array) -> Weights:
    weights, start = {}, 0
    for name, shape in SHAPES.items():
        end = start + math.prod(shape)
        weights[name], start = u[start:end].reshape(shape), end
    return weights


def negative_elbo(log_density: Callable[..., Array], num_particles: int) -> Callable[..., Array]:
    def particle(step_key: Array, params: dict[str, Array], *data: Array) -> Array:
        loc, log_scale = params["loc"], params["log_scale"]
        eps = jax.random.normal(step_key, loc.shape)
        log_q = -0.5 * (jnp.sum(eps * eps) + eps.size * LOG_2PI) - jnp.sum(log_scale)
        return log_q - log_density(loc + jnp.exp(log_scale) * eps, *data)

    def loss(params: dict[str, Array], step_key: Array, *data: Array) -> Array:
        if num_particles == 1:
            return particle(step_key, params, *data)
        keys = jax.random.split(step_key, num_particles)
        return jnp.mean(jax.vmap(lambda k: particle(k, params, *data))(keys))

    return loss


def problem(example: str, start_key: Array) -> tuple[Callable[..., Array], Any, dict[str, Array]]:
    """The loss, the optimiser and the parameters at the start."""
    if example == "gamma":
        start = {"loc": jnp.array([0.5]), "log_scale": jnp.array([math.log(0.1)])}
        return negative_elbo(gamma_log_density, 10), optax.adam(0.005), start
    size = sum(map(math.prod, SHAPES.values()))
    start = {
        "loc": jax.random.uniform(start_key, (size,), minval=-2.0, maxval=2.0),
        "log_scale": jnp.full(size, math.log(0.1)),
    }
    return negative_elbo(bnn_log_density, 1), optax.adam(0.01), start


def steady(example: str, num_steps: int, data: tuple[Any, ...]) -> dict[str, Callable[[], Any]]:
    """A compiled fit that returns its losses: one scan, jitted once."""
    first_key, start_key = jax.random.split(key())
    loss, optimizer, start = problem(example, start_key)

    def step(carry: Any, data: tuple[Any, ...]) -> tuple[Any, Array]:
        params, opt_state, carry_key = carry
        carry_key, step_key = jax.random.split(carry_key)
        value, grad = jax.value_and_grad(loss)(params, step_key, *data)
        updates, opt_state = optimizer.update(grad, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, carry_key), value

    scan = jax.jit(
        lambda carry, *data: jax.lax.scan(lambda c, _: step(c, data), carry, length=num_steps)
    )
    return {"by hand": lambda: scan((start, optimizer.init(start), first_key), *data)[1]}
