"""Student's t in place of the normal, for guides with heavy tails."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, gammaln, log_ndtr, ndtr


@dataclass(frozen=True)
class StudentT:
    """z_i ~ t_df, from two normals: sqrt(df (U^(-2/df) - 1)) sin(2 pi V), U and V uniform (Bailey
    1994).
    """

    df: float
    per_coordinate = 2

    def from_noise(self, eps: Array) -> Array:
        radius, angle = jnp.split(eps, 2)
        # U = ndtr(radius) in logs, so that the far tail is not rounded away.
        return jnp.sqrt(self.df * jnp.expm1(-2 / self.df * log_ndtr(radius))) * jnp.sin(
            2 * jnp.pi * ndtr(angle)
        )

    def log_prob(self, z: Array) -> Array:
        log_norm = (
            gammaln((self.df + 1) / 2) - gammaln(self.df / 2) - 0.5 * jnp.log(self.df * jnp.pi)
        )
        return z.size * log_norm - (self.df + 1) / 2 * jnp.sum(jnp.log1p(z * z / self.df))

    def entropy(self) -> Array:
        half, full = self.df / 2, (self.df + 1) / 2
        log_beta = gammaln(half) + gammaln(0.5) - gammaln(full)
        return full * (digamma(full) - digamma(half)) + 0.5 * jnp.log(self.df) + log_beta
