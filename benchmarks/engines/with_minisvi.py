"""The two fits with minisvi, as a user would write them."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from engines.mathematics import SHAPES, bnn_log_likelihood, bnn_log_prior, gamma_log_joint, key

from minisvi import ELBO, SVI, Model, mean_field, positive, real

STARTS = {"gamma": {"loc": jnp.array([0.5]), "log_scale": jnp.array([math.log(0.1)])}, "bnn": None}


@cache
def engine(example: str) -> SVI:
    """The records; kept, because a rebuilt optimiser would compile again."""
    if example == "gamma":
        model = Model({"concentration": positive()}, gamma_log_joint)
        return SVI(model, mean_field(model.latents), optax.adam(0.005), ELBO(num_particles=10))
    latents = {name: real(shape) for name, shape in SHAPES.items()}
    model = Model(latents, log_prior=bnn_log_prior, log_likelihood=bnn_log_likelihood)
    return SVI(model, mean_field(latents), optax.adam(0.01))


def fit(
    example: str, num_steps: int, data: tuple[Any, ...], progress_bar: bool = True
) -> tuple[Any, Any]:
    """`svi.run`: parameters and the loss of each step."""
    result = engine(example).run(
        key(), num_steps, *data, params=STARTS[example], progress_bar=progress_bar
    )
    return result.params, -result.elbo


def steady(example: str, num_steps: int, data: tuple[Any, ...]) -> dict[str, Callable[[], Any]]:
    """Compiled fits that return their losses: `svi.scan` under the user's own jit, and
    `svi.run`.
    """
    svi = engine(example)
    state = svi.init(key(), *data, params=STARTS[example])
    scan = jax.jit(lambda state, *data: svi.scan(state, num_steps, *data))
    return {
        "minisvi scan": lambda: -scan(state, *data)[1].elbo,
        "minisvi run": lambda: fit(example, num_steps, data, progress_bar=False)[1],
    }
