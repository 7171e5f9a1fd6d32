"""The two fits with NumPyro, as its documentation writes them: the same optax optimisers, sites by
name.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpyro
import numpyro.distributions as dist
import optax
from engines.mathematics import SHAPES, key, logits
from jax import Array
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal


def gamma_model(z: Array) -> None:
    concentration = numpyro.sample("concentration", dist.HalfNormal(1.0))
    with numpyro.plate("data", len(z)):
        numpyro.sample("z", dist.Gamma(concentration, 1.0), obs=z)


def gamma_guide(z: Array) -> None:
    del z
    loc = numpyro.param("loc", 0.5)
    scale = numpyro.param("scale", 0.1, constraint=dist.constraints.positive)
    base = dist.Normal(loc, scale)
    numpyro.sample(
        "concentration", dist.TransformedDistribution(base, dist.transforms.ExpTransform())
    )


def bnn_model(x: Array, y: Array) -> None:
    priors = {name: dist.Normal if name.startswith("bias") else dist.SoftLaplace for name in SHAPES}
    w = {
        name: numpyro.sample(name, priors[name](0.0, 1.0).expand(shape).to_event())
        for name, shape in SHAPES.items()
    }
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=logits(w, x)), obs=y)


@cache
def engine(example: str) -> SVI:
    if example == "gamma":
        return SVI(gamma_model, gamma_guide, optax.adam(0.005), Trace_ELBO(num_particles=10))
    return SVI(bnn_model, AutoNormal(bnn_model), optax.adam(0.01), Trace_ELBO())


def fit(example: str, num_steps: int, data: tuple[Any, ...]) -> tuple[Any, Any]:
    """`svi.run` as it comes, with its progress bar: parameters and the loss of each step."""
    result = engine(example).run(key(), num_steps, *data)
    return result.params, result.losses


def steady(example: str, num_steps: int, data: tuple[Any, ...]) -> dict[str, Callable[[], Any]]:
    """A compiled fit that returns its losses: `svi.update` in a scan that is jitted once."""
    svi = engine(example)
    state = svi.init(key(), *data)
    scan = jax.jit(
        lambda state, *data: jax.lax.scan(
            lambda s, _: svi.update(s, *data), state, length=num_steps
        )
    )
    return {"numpyro scan": lambda: scan(state, *data)[1]}
