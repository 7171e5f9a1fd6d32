"""A Gaussian whose covariance is diagonal plus a factor: linear in D, for latents too many for a D
x D matrix.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import FromNoise
from minisvi.guides.gaussian import Family
from minisvi.guides.location_scale import LOG_2PI, Diagonal
from minisvi.model import trees
from minisvi.tools import checks
from minisvi.tools.noise import normals


@dataclass(frozen=True)
class DiagonalPlusFactor(FromNoise):
    """N(loc, S (I + F F^T) S), S = diag(exp(log_scale)), F (D, R): u = loc + S (eps_1 + F eps_2).

    With x = S^-1 (u - loc), C = I + F^T F and y = C^-1 F^T x (Woodbury),
    log q(u) = -(|x - F y|^2 + |y|^2) / 2 - D/2 log 2 pi - log det S - log det C / 2.
    """

    latents: Any
    loc: Array
    log_scale: Array
    factor: Array

    @property
    def noise_size(self) -> int:
        return self.loc.size + self.factor.shape[1]

    @property
    def noise_dtype(self) -> Any:
        return self.loc.dtype

    def from_noise(self, eps: Array) -> tuple[Any, Array]:
        eps = eps.astype(self.loc.dtype)
        x = eps[: self.loc.size] + self.factor @ eps[self.loc.size :]
        return trees.unravel(self.latents, self.loc + jnp.exp(self.log_scale) * x), self._log_prob(
            x
        )

    def log_prob(self, u: Any, /) -> Array:
        return self._log_prob((trees.ravel(self.latents, u) - self.loc) * jnp.exp(-self.log_scale))

    def _log_prob(self, x: Array) -> Array:
        cholesky = (
            self._cholesky()
        )  # once: the products of its gradient are ones that XLA would not share
        y = jax.scipy.linalg.cho_solve((cholesky, True), self.factor.T @ x)
        rest = x - self.factor @ y  # a sum of squares, where |x|^2 - x^T F y would cancel
        return -0.5 * (jnp.sum(rest * rest) + jnp.sum(y * y) + x.size * LOG_2PI) - self._log_det(
            cholesky
        )

    def _cholesky(self) -> Array:
        return jnp.linalg.cholesky(
            jnp.eye(self.factor.shape[1], dtype=self.loc.dtype) + self.factor.T @ self.factor
        )

    def _log_det(self, cholesky: Array) -> Array:
        return jnp.sum(self.log_scale) + jnp.sum(jnp.log(jnp.diagonal(cholesky)))

    def entropy(self) -> Array:
        return 0.5 * self.loc.size * (1 + LOG_2PI) + self._log_det(self._cholesky())

    def affine(self) -> tuple[Array, Diagonal]:
        return self.loc, Diagonal(self.log_scale)


@dataclass(frozen=True, eq=False)
class LowRank(Family):
    """See `low_rank`."""

    rank: int = 1

    def init(self, key: Array, /, loc: Any = None, cov: Any = None) -> dict[str, Array]:
        loc_key, factor_key = jax.random.split(key)
        vector, cov = self._start(loc_key, loc, cov)
        if cov.ndim == 1:
            # Not zero, where the gradient of F vanishes by symmetry.
            factor = 0.1 * normals(factor_key, (vector.size, self.rank), vector.dtype)
            return {"loc": vector, "log_scale": 0.5 * jnp.log(cov), "factor": factor}
        scale = 1 / jnp.sqrt(jnp.diagonal(jnp.linalg.inv(cov)))
        values, vectors = jnp.linalg.eigh(cov / jnp.outer(scale, scale))
        top = jnp.sqrt(jnp.maximum(values[::-1][: self.rank] - 1, 1e-4))
        return {
            "loc": vector,
            "log_scale": jnp.log(scale),
            "factor": vectors[:, ::-1][:, : self.rank] * top[None],
        }

    def distribution(self, params: Any, /, *data: Any) -> DiagonalPlusFactor:
        del data
        return DiagonalPlusFactor(
            self.latents, params["loc"], params["log_scale"], params["factor"]
        )


def low_rank(latents: Any, rank: int, scale: float = 0.1) -> LowRank:
    """N(loc, S (I + F F^T) S), diagonal plus rank R (Ong, Nott & Smith 2018), parametrised as
    NumPyro's.

    Parameters `loc` (D,), `log_scale` (D,) with S = diag(exp(log_scale)), and `factor` F (D, R). A
    draw and its log density take O(D R), and one R x R matrix, the same for all particles, O(D R^2)
    a step; nothing is D x D. Starts like `mean_field`, with a small random F. TypeError or
    ValueError unless rank is an integer in 1..D.
    """
    latents = trees.latents_of(latents)
    size = trees.spec(latents).shape[0]
    if checks.positive_integer("rank", rank) > size:
        raise ValueError(
            f"`rank` must be in 1..{size}, the number of unconstrained latents; got {rank}"
        )
    return LowRank(latents, scale, rank)
