"""The same family and bound in both engines: w ~ N(0, I) in D dimensions, y_i ~ N(w_i, 2), one scan
jitted once.

The likelihood costs a few flops a coordinate, so that a step's time is the guide's, the bound's and
the optimiser's. All fits start at the same location, at sd 0.1 without correlation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from jax.scipy.stats import norm
from numpyro.infer import SVI as NumpyroSVI
from numpyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO, autoguide, init_to_value

import minisvi
from minisvi import ELBO, SVI, ImportanceWeighted, Model, Renyi

RANK, PARTICLES, NOISE_SD = 10, 8, 2.0

# Family: minisvi's constructor of the latents, and NumPyro's of the model.
FAMILIES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "mean_field": (minisvi.mean_field, autoguide.AutoNormal),
    "full_rank": (minisvi.full_rank, autoguide.AutoMultivariateNormal),
    "low_rank": (
        lambda latents: minisvi.low_rank(latents, RANK),
        partial(autoguide.AutoLowRankMultivariateNormal, rank=RANK),
    ),
    "delta": (minisvi.delta, autoguide.AutoDelta),
}

# Bound: minisvi's objective and NumPyro's loss.
BOUNDS: dict[str, tuple[Any, Any]] = {
    "ELBO": (ELBO(), Trace_ELBO()),
    "closed-form KL": (ELBO(gradient="closed_form_kl"), TraceMeanField_ELBO()),
    "Renyi 0.5": (Renyi(PARTICLES, alpha=0.5), RenyiELBO(alpha=0.5, num_particles=PARTICLES)),
    "importance-weighted": (
        ImportanceWeighted(PARTICLES),
        RenyiELBO(alpha=0, num_particles=PARTICLES),
    ),
}


def problem(dim: int) -> tuple[Array, Array]:
    """The data y and the location of the start, both (D,)."""
    data_key, start_key = jax.random.split(jax.random.key(3))
    return 1.0 + jax.random.normal(data_key, (dim,)), jax.random.uniform(
        start_key, (dim,), minval=-2.0, maxval=2.0
    )


def num_params(family: str, dim: int) -> int:
    guide = FAMILIES[family][0]({"w": minisvi.real(dim)})
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(guide.init, jax.random.key(0))))


def log_prior(theta: dict[str, Array]) -> Array:
    return jnp.sum(norm.logpdf(theta["w"]))


def log_likelihood(theta: dict[str, Array], y: Array) -> Array:
    return norm.logpdf(y, theta["w"], NOISE_SD)


def with_minisvi(family: str, bound: str, dim: int) -> tuple[SVI, Any]:
    """The engine, and its state at the start."""
    y, loc = problem(dim)
    latents = {"w": minisvi.real(dim)}
    prior: dict[str, Any] = {"log_prior": log_prior}
    if bound == "closed-form KL":
        prior = {"prior": lambda theta: {"w": distrax.Normal(jnp.zeros(dim), jnp.ones(dim))}}
    guide = FAMILIES[family][0](latents)
    svi = SVI(
        Model(latents, log_likelihood=log_likelihood, **prior),
        guide,
        optax.adam(1e-3),
        BOUNDS[bound][0],
    )
    params = guide.init(jax.random.key(0), loc={"w": loc})
    if family == "low_rank":
        params = params | {"factor": jnp.zeros_like(params["factor"])}  # as NumPyro's
    return svi, svi.init(jax.random.key(0), y, params=params)


def minisvi_scan(family: str, bound: str, dim: int, num_steps: int) -> Callable[[], Array]:
    """A compiled fit that returns its losses: `svi.scan` under the user's jit."""
    svi, state = with_minisvi(family, bound, dim)
    y, _ = problem(dim)
    scan = jax.jit(lambda state, y: svi.scan(state, num_steps, y))
    return lambda: -scan(state, y)[1].elbo


def numpyro_model(y: Array) -> None:
    w = numpyro.sample("w", dist.Normal(jnp.zeros(y.shape), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(w, NOISE_SD).to_event(1), obs=y)


def numpyro_scan(
    family: str, bound: str, dim: int, num_steps: int, method: str = "update"
) -> Callable[[], Array]:
    """The same with NumPyro: `svi.update`, or another method of its SVI, in a scan that is jitted
    once.
    """
    y, loc = problem(dim)
    guide = FAMILIES[family][1](numpyro_model, init_loc_fn=init_to_value(values={"w": loc}))
    svi = NumpyroSVI(numpyro_model, guide, optax.adam(1e-3), BOUNDS[bound][1])
    state, update = svi.init(jax.random.key(0), y), getattr(svi, method)
    scan = jax.jit(
        lambda state, y: jax.lax.scan(lambda s, _: update(s, y), state, length=num_steps)
    )
    return lambda: scan(state, y)[1]


# `stable_update` drops a step that is not finite, as minisvi always does; `update` does not look.
ENGINES = {
    "minisvi": minisvi_scan,
    "numpyro": numpyro_scan,
    "numpyro stable": partial(numpyro_scan, method="stable_update"),
}
