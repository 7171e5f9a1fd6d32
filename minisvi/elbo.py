"""E and its gradient: the ELBO, in nats, larger is better.

    ELBO(phi) = E_{u ~ q_phi} [ log p(T(u), D) + log|det J_T(u)| - log q_phi(u) ]  <=  log p(D)

Reading order: `log_weight` is the bracket at one draw; `ELBO` its mean over particles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from minisvi import checks
from minisvi.guides import Guide
from minisvi.model import Model

Gradient = Literal["reparameterised", "sticking_the_landing"]


@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound, estimated at `num_particles` draws of the guide.

    **Arguments**

    - `num_particles`: draws per estimate, K >= 1; the estimate's variance falls as 1/K.
    - `gradient`: which unbiased gradient autodiff takes through the draws u = u(phi, eps). `"reparameterised"` is the
      total derivative (Kingma & Welling 2014). `"sticking_the_landing"` leaves out the score of q, whose mean is zero,
      so that the variance vanishes where q is the posterior (Roeder et al. 2017, eq. 8).

    ValueError or TypeError for other values.
    """

    num_particles: int = 1
    gradient: Gradient = "reparameterised"

    def __post_init__(self) -> None:
        checks.positive_integer("num_particles", self.num_particles)
        if self.gradient not in ("reparameterised", "sticking_the_landing"):
            raise ValueError(f"`gradient` must be 'reparameterised' or 'sticking_the_landing'; got {self.gradient!r}")

    def __call__(self, key: Array, model: Model, guide: Guide, params: Any, *data: Any, scale: Any = None) -> Array:
        """ELBO = mean_k log w_k, a scalar in nats."""

        def log_weight(key: Array) -> Array:
            q = guide.distribution(params, *data)
            u, log_q = q.sample_and_log_prob(seed=key)
            if self.gradient == "sticking_the_landing":
                log_q = guide.distribution(jax.lax.stop_gradient(params), *data).log_prob(u)
            return model.log_density(u, *data, scale=scale) - log_q

        return jnp.mean(over_particles(log_weight, key, self.num_particles))


def over_particles(log_weight: Callable[[Array], Array], key: Array, num_particles: int) -> Array:
    """log w_k for k = 1..K, shape (K,). One particle takes the key as it is, as NumPyro does."""
    if num_particles == 1:
        return log_weight(key)[None]
    return jax.vmap(log_weight)(jax.random.split(key, num_particles))
