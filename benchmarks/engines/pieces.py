"""Where a step's time goes: the step with ever more of it left out, and the random numbers alone.

Everything is a scan of the same number of steps, jitted once, so that buffers are reused and
nothing is dispatched.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from engines.pairs import problem, with_minisvi
from jax import Array
from jax.scipy.special import erfinv


def step_bytes(params: int) -> int:
    """Of one read and one write of the parameters, Adam's two moments and the gradient, in
    float32.
    """
    return 2 * 4 * 4 * params


def copy(size: int) -> tuple[Callable[[], None], int]:
    """x + 1 over a donated array, and the bytes that it reads and writes."""
    add, held = jax.jit(lambda x: x + 1.0, donate_argnums=0), [jnp.zeros(size)]

    def call() -> None:
        held[0] = jax.block_until_ready(add(held[0]))

    return call, 2 * 4 * size


def step(family: str, dim: int, num_steps: int) -> dict[str, Callable[[], None]]:
    """The whole step, and what is left of it without its parts."""
    svi, start = with_minisvi(family, "ELBO", dim)
    y, _ = problem(dim)
    size = svi.guide.distribution(start.params).noise_size
    eps = jax.random.normal(jax.random.key(1), (size,))

    def loss(params: Any, key: Array) -> Array:
        return -svi.objective(key, svi.target, svi.guide, params, y)

    def loss_given(params: Any, eps: Array) -> Array:
        u, log_q = svi.guide.distribution(params).from_noise(eps)
        return log_q - svi.target.log_density(u, y)

    def descend(params: Any, opt_state: Any, grad: Any) -> tuple[Any, Any]:
        updates, opt_state = svi.optimizer.update(grad, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def unchecked(carry: Any) -> Any:
        params, opt_state, key = carry
        key, step_key = jax.random.split(key)
        return *descend(params, opt_state, jax.grad(loss)(params, step_key)), key

    def drawn(carry: Any, eps: Array) -> Any:
        params, opt_state = carry
        return descend(params, opt_state, jax.grad(loss_given)(params, eps))

    def descent(carry: Any, grad: Any) -> Any:
        return descend(*carry, grad)

    at = start.params, start.opt_state
    grad = jax.jit(jax.grad(loss))(start.params, start.key)
    steps = {
        "whole step": scanned(lambda s, y: svi.update(s, y)[0], start, num_steps, y),
        "without the check that it is finite": scanned(unchecked, (*at, start.key), num_steps),
        "and with its draws given": scanned(drawn, at, num_steps, eps),
        "optimiser alone": scanned(descent, at, num_steps, grad),
    }
    for impl in ("rbg", "unsafe_rbg"):
        state = start._replace(key=jax.random.key(0, impl=impl))
        steps[f"whole step, {impl} keys"] = scanned(
            lambda s, y: svi.update(s, y)[0], state, num_steps, y
        )
    return steps


def random_numbers(dim: int, num_steps: int) -> dict[str, Callable[[], None]]:
    """D of them, in ways that JAX has."""

    def draws(sampler: Callable[..., Array], impl: str | None = None) -> Callable[[], None]:
        def draw(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            key, step_key = jax.random.split(carry[0])
            return key, sampler(step_key, (dim,))

        zeros = jnp.zeros((dim,), jax.eval_shape(lambda: sampler(jax.random.key(0), (dim,))).dtype)
        return scanned(draw, (jax.random.key(0, impl=impl), zeros), num_steps)

    normals = draws(jax.random.normal)

    def not_partitionable() -> None:
        with jax.threefry_partitionable(
            False
        ):  # one hash for two numbers; a sharded draw then needs communication
            normals()

    return {
        "bits": draws(jax.random.bits),
        "normals": normals,
        "normals, threefry not partitionable": not_partitionable,
        "normals, rbg": draws(jax.random.normal, "rbg"),
        "normals, unsafe_rbg": draws(jax.random.normal, "unsafe_rbg"),
        "erf_inv": scanned(lambda x: erfinv(0.9 * x), jnp.linspace(-0.99, 0.99, dim), num_steps),
        "exp": scanned(lambda x: jnp.exp(-x), jnp.linspace(-1.0, 1.0, dim), num_steps),
    }


def scanned(body: Callable[..., Any], start: Any, num_steps: int, *args: Any) -> Callable[[], None]:
    run = jax.jit(
        lambda carry, *args: jax.lax.scan(
            lambda c, _: (body(c, *args), None), carry, length=num_steps
        )[0]
    )

    def call() -> None:
        jax.block_until_ready(run(start, *args))

    return call
