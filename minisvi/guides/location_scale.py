"""Location-scale distributions of a vector u in R^D: u = loc + L z, with independent z_i.

Families differ in two things: what the factor L is (`Diagonal` or `Triangular`), and what each z_i
is (`Normal` or `StudentT`).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, gammaln, log_ndtr, ndtr

from minisvi.guides.base import Distribution
from minisvi.model import trees
from minisvi.tools.types import Draw, Latents

LOG_2PI = 1.8378770664093453


class Factor(Protocol):
    """L, an invertible matrix (D, D) in whatever form is cheap to compute with."""

    def times(self, z: Array) -> Array:
        """L z, for z of shape (D,)."""
        ...

    def solve(self, x: Array) -> Array:
        """L^-1 x, for x of shape (D,)."""
        ...

    def log_det(self) -> Array:
        """log |det L|, a scalar."""
        ...


def pulled_back(factor: Factor, score: Array) -> Array:
    """L^-T score: the score at L z, from that at z, which are both of shape (D,)."""
    _, pull = jax.vjp(factor.solve, score)
    (score,) = pull(score)
    return score


class Diagonal(NamedTuple):
    """L = diag(exp(log_scale)), with `log_scale` of shape (D,)."""

    log_scale: Array

    def times(self, z: Array) -> Array:
        return jnp.exp(self.log_scale) * z

    def solve(self, x: Array) -> Array:
        return x * jnp.exp(-self.log_scale)

    def log_det(self) -> Array:
        return jnp.sum(self.log_scale)


class Triangular(NamedTuple):
    """L is lower triangular: it has the entries of `matrix` (D, D) below the diagonal, and exp of
    those on it. The entries above the diagonal are not used.
    """

    matrix: Array

    def dense(self) -> Array:
        """L itself, shape (D, D)."""
        below = jnp.tril(self.matrix, -1)
        return below + jnp.diag(jnp.exp(self._log_diagonal()))

    def _log_diagonal(self) -> Array:
        # A sum, for the gradient of `jnp.diagonal` is a scatter, which takes longer to compile.
        is_diagonal = jnp.eye(len(self.matrix), dtype=bool)
        return jnp.sum(jnp.where(is_diagonal, self.matrix, 0.0), axis=1)

    def times(self, z: Array) -> Array:
        return self.dense() @ z

    def solve(self, x: Array) -> Array:
        return jax.scipy.linalg.solve_triangular(self.dense(), x, lower=True)

    def log_det(self) -> Array:
        return jnp.sum(self._log_diagonal())


class Standard(Protocol):
    """The distribution of each z_i, the same for all of them."""

    @property
    def noise_per_coordinate(self) -> int:
        """How many standard normals a draw of one z_i is made of."""
        ...

    def from_noise(self, eps: Array) -> Array:
        """z of shape (D,), from the standard normals of all coordinates."""
        ...

    def log_prob(self, z: Array) -> Array:
        """sum_i log p(z_i), a scalar in nats."""
        ...

    def entropy(self) -> Any:
        """H[z_i] in nats, of one coordinate."""
        ...


@dataclass(frozen=True)
class Normal:
    """z_i ~ N(0, 1)."""

    noise_per_coordinate = 1

    def from_noise(self, eps: Array) -> Array:
        return eps

    def log_prob(self, z: Array) -> Array:
        return -0.5 * (jnp.sum(z * z) + z.size * LOG_2PI)

    def entropy(self) -> float:
        return 0.5 * (1 + LOG_2PI)


@dataclass(frozen=True)
class StudentT:
    """z_i ~ Student's t with `df` degrees of freedom, which has heavier tails than the normal."""

    df: float
    noise_per_coordinate = 2

    def from_noise(self, eps: Array) -> Array:
        """z = sqrt(df (U^(-2/df) - 1)) sin(2 pi V), for uniform U and V (Bailey 1994).

        A standard normal gives a uniform number by its distribution function.
        """
        first, second = jnp.split(eps, 2)
        # In logs, so that the far tail is not rounded away.
        log_u = log_ndtr(first)
        radius = jnp.sqrt(self.df * jnp.expm1(-2 / self.df * log_u))
        angle = 2 * jnp.pi * ndtr(second)
        return radius * jnp.sin(angle)

    def log_prob(self, z: Array) -> Array:
        """log p(z_i) = log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(df pi) / 2
        - (df + 1) / 2 log(1 + z_i^2 / df), summed over i.
        """
        half = self.df / 2
        power = (self.df + 1) / 2
        log_norm = gammaln(power) - gammaln(half) - 0.5 * jnp.log(self.df * jnp.pi)
        return z.size * log_norm - power * jnp.sum(jnp.log1p(z * z / self.df))

    def entropy(self) -> Array:
        """With a = df / 2 and b = (df + 1) / 2, and psi the digamma function:
        H[z_i] = b (psi(b) - psi(a)) + log(df) / 2 + log B(a, 1/2).
        """
        half = self.df / 2
        power = (self.df + 1) / 2
        log_beta = gammaln(half) + gammaln(0.5) - gammaln(power)
        return power * (digamma(power) - digamma(half)) + 0.5 * jnp.log(self.df) + log_beta


@dataclass(frozen=True)
class LocationScale(Distribution):
    """q(u), where u = loc + L z.

    With z = L^-1 (u - loc), a change of variables gives

        log q(u) = sum_i log p(z_i) - log |det L|
        H[q] = sum_i H[z_i] + log |det L|

    `loc` and z are vectors of shape (D,). A draw u has the form of the tree of latents, into which
    the vector is unravelled.
    """

    latents: Latents
    loc: Array
    factor: Factor
    standard: Standard = Normal()

    @property
    def noise_size(self) -> int:
        return self.standard.noise_per_coordinate * self.loc.size

    @property
    def noise_dtype(self) -> Any:
        return self.loc.dtype

    def from_noise(self, eps: Array) -> tuple[Draw, Array]:
        z = self.standard.from_noise(eps.astype(self.loc.dtype))
        u = trees.unravel(self.latents, self.loc + self.factor.times(z))
        return u, self._log_prob_at(z)

    def log_prob(self, u: Draw, /) -> Array:
        z = self.factor.solve(trees.ravel(self.latents, u) - self.loc)
        return self._log_prob_at(z)

    def _log_prob_at(self, z: Array) -> Array:
        return self.standard.log_prob(z) - self.factor.log_det()

    def entropy(self) -> Array:
        return self.loc.size * self.standard.entropy() + self.factor.log_det()

    def parts_at(self, u: Draw) -> Any:
        """The tree of independent normals that q is, for closed-form KLs; None if q is no such
        tree.
        """
        del u
        if not isinstance(self.factor, Diagonal) or not isinstance(self.standard, Normal):
            return None
        import distrax  # heavy: only a closed-form KL asks for it

        loc = trees.unravel(self.latents, self.loc)
        scale = trees.unravel(self.latents, jnp.exp(self.factor.log_scale))
        return jax.tree.map(distrax.Normal, loc, scale)

    def affine(self) -> tuple[Array, Factor]:
        return self.loc, self.factor
