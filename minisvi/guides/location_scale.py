"""Location-scale distributions in unconstrained space: u = loc + L z, z_i ~ N(0, 1) or Student's t.

What differs between families is the factor L, and what z is.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, gammaln, log_ndtr, ndtr

from minisvi.guides.base import FromNoise
from minisvi.model import trees

LOG_2PI = 1.8378770664093453


class Diagonal(NamedTuple):
    """L = diag(exp(log_scale))."""

    log_scale: Array

    def times(self, z: Array) -> Array:
        return jnp.exp(self.log_scale) * z

    def solve(self, x: Array) -> Array:
        return x * jnp.exp(-self.log_scale)

    def log_det(self) -> Array:
        return jnp.sum(self.log_scale)


class Triangular(NamedTuple):
    """L = the matrix's entries below the diagonal, and exp of those on it; those above are not
    used.
    """

    matrix: Array

    def dense(self) -> Array:
        return jnp.tril(self.matrix, -1) + jnp.diag(jnp.exp(jnp.diagonal(self.matrix)))

    def times(self, z: Array) -> Array:
        return self.dense() @ z

    def solve(self, x: Array) -> Array:
        return jax.scipy.linalg.solve_triangular(self.dense(), x, lower=True)

    def log_det(self) -> Array:
        return jnp.trace(self.matrix)


@dataclass(frozen=True)
class Normal:
    """z_i ~ N(0, 1)."""

    per_coordinate = 1

    def from_noise(self, eps: Array) -> Array:
        return eps

    def log_prob(self, z: Array) -> Array:
        return -0.5 * (jnp.sum(z * z) + z.size * LOG_2PI)

    def entropy(self) -> Any:
        return 0.5 * (1 + LOG_2PI)


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


@dataclass(frozen=True)
class LocationScale(FromNoise):
    """u = loc + L z over the flat vector, drawn and scored as the tree of latents.

    log q(u) = sum_i log p(z_i) - log det L, with z = L^-1 (u - loc).
    """

    latents: Any
    loc: Array
    factor: Any
    standard: Any = Normal()

    @property
    def noise_size(self) -> int:
        return self.standard.per_coordinate * self.loc.size

    @property
    def noise_dtype(self) -> Any:
        return self.loc.dtype

    def from_noise(self, eps: Array) -> tuple[Any, Array]:
        z = self.standard.from_noise(eps.astype(self.loc.dtype))
        return trees.unravel(self.latents, self.loc + self.factor.times(z)), self._log_prob(z)

    def log_prob(self, u: Any, /) -> Array:
        return self._log_prob(self.factor.solve(trees.ravel(self.latents, u) - self.loc))

    def _log_prob(self, z: Array) -> Array:
        return self.standard.log_prob(z) - self.factor.log_det()

    def entropy(self) -> Array:
        return self.loc.size * self.standard.entropy() + self.factor.log_det()

    @property
    def parts(self) -> Any:
        """A tree of independent normals where that is what q is; None otherwise."""
        if not (isinstance(self.factor, Diagonal) and isinstance(self.standard, Normal)):
            return None
        import distrax  # heavy: only a closed-form KL asks for it

        loc, scale = (
            trees.unravel(self.latents, v) for v in (self.loc, jnp.exp(self.factor.log_scale))
        )
        return jax.tree.map(distrax.Normal, loc, scale)

    def affine(self) -> tuple[Array, Any]:
        return self.loc, self.factor
