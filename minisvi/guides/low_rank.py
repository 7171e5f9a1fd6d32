"""A Gaussian whose covariance is a diagonal plus a factor of few columns, for latents too many for
a D x D matrix: all its costs are linear in D.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from minisvi.guides.base import FromNoise
from minisvi.guides.gaussian import Family, precisions
from minisvi.guides.location_scale import LOG_2PI, Diagonal
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools import checks
from minisvi.tools.noise import normals
from minisvi.tools.types import Draw, Latents, Params


@dataclass(frozen=True)
class DiagonalPlusFactor(FromNoise):
    """q(u) = N(u; loc, S (I + F F^T) S), with S = diag(exp(log_scale)) and F the factor, (D, R).

    A draw is u = loc + S x, where x = eps_1 + F eps_2 with standard normals eps_1 (D,) and eps_2
    (R,). With C = I + F^T F, of shape (R, R), and y = C^-1 F^T x, Woodbury's identity gives

        log q(u) = -(|x - F y|^2 + |y|^2 + D log 2 pi) / 2 - log det S - log det C / 2
    """

    latents: Latents
    loc: Array
    log_scale: Array
    factor: Array

    @property
    def noise_size(self) -> int:
        return self.loc.size + self.factor.shape[1]

    @property
    def noise_dtype(self) -> Any:
        return self.loc.dtype

    def from_noise(self, eps: Array) -> tuple[Draw, Array]:
        eps = eps.astype(self.loc.dtype)
        eps_1 = eps[: self.loc.size]
        eps_2 = eps[self.loc.size :]
        x = eps_1 + self.factor @ eps_2
        u = trees.unravel(self.latents, self.loc + jnp.exp(self.log_scale) * x)
        return u, self._log_prob_at(x)

    def log_prob(self, u: Draw, /) -> Array:
        centred = trees.ravel(self.latents, u) - self.loc
        return self._log_prob_at(centred * jnp.exp(-self.log_scale))

    def _log_prob_at(self, x: Array) -> Array:
        # Computed once for both terms, as XLA would not share the products in its gradients.
        cholesky = self._cholesky()
        y = jax.scipy.linalg.cho_solve((cholesky, True), self.factor.T @ x)
        # A sum of squares, where |x|^2 - x^T F y would cancel.
        rest = x - self.factor @ y
        squares = jnp.sum(rest * rest) + jnp.sum(y * y)
        return -0.5 * (squares + x.size * LOG_2PI) - self._log_det(cholesky)

    def _cholesky(self) -> Array:
        """The Cholesky factor of C, shape (R, R)."""
        identity = jnp.eye(self.factor.shape[1], dtype=self.loc.dtype)
        return jnp.linalg.cholesky(identity + self.factor.T @ self.factor)

    def _log_det(self, cholesky: Array) -> Array:
        """log det S + log det C / 2, half the log determinant of q's covariance."""
        log_det_scale = jnp.sum(self.log_scale)
        log_diagonal = jnp.log(jnp.diagonal(cholesky))
        return log_det_scale + jnp.sum(log_diagonal)

    def entropy(self) -> Array:
        of_normals = 0.5 * self.loc.size * (1 + LOG_2PI)
        return of_normals + self._log_det(self._cholesky())

    def affine(self) -> tuple[Array, Diagonal]:
        return self.loc, Diagonal(self.log_scale)


@dataclass(frozen=True, eq=False)
class LowRank(Family):
    """See `low_rank`."""

    rank: int = 1

    def init(
        self, key: Array, /, loc: Draw | None = None, cov: ArrayLike | None = None
    ) -> dict[str, Array]:
        loc_key, factor_key = jax.random.split(key)
        vector, cov = self._start(loc_key, loc, cov)
        if cov.ndim == 1:
            log_scale = 0.5 * jnp.log(cov)
            # Small but not zero, where the gradient of F vanishes by symmetry.
            factor = 0.1 * normals(factor_key, (vector.size, self.rank), vector.dtype)
        else:
            scale = 1 / jnp.sqrt(precisions(cov))
            log_scale = jnp.log(scale)
            factor = nearest_factor(cov / jnp.outer(scale, scale), self.rank)
        return {"loc": vector, "log_scale": log_scale, "factor": factor}

    def distribution(self, params: Params, /, *data: Any) -> DiagonalPlusFactor:
        del data
        return DiagonalPlusFactor(
            self.latents, params["loc"], params["log_scale"], params["factor"]
        )


def nearest_factor(cov: Array, rank: int) -> Array:
    """F (D, R) such that I + F F^T has the R largest eigenvalues of `cov`, and their eigenvectors.

    Columns have a length of at least 0.01, for one of zero would get no gradient.
    """
    values, vectors = jnp.linalg.eigh(cov)
    largest = values[::-1][:rank]
    directions = vectors[:, ::-1][:, :rank]
    lengths = jnp.sqrt(jnp.maximum(largest - 1, 1e-4))
    return directions * lengths[None]


def low_rank(latents: Latents | Model, rank: int, scale: float = 0.1) -> LowRank:
    """A Gaussian of covariance diagonal plus rank R, q(u) = N(u; loc, S (I + F F^T) S) (Ong, Nott &
    Smith 2018), with NumPyro's parameters.

    Parameters: `loc` (D,), `log_scale` (D,) with S = diag(exp(log_scale)), and `factor` F (D, R). A
    draw and its log density cost O(D R). One R x R matrix, the same for all particles, costs
    O(D R^2) a step. Nothing is D x D. It starts as `mean_field` does, with a small random F.
    TypeError or ValueError unless rank is an integer in 1..D.
    """
    latents = trees.latents_of(latents)
    size = trees.spec(latents).shape[0]
    if checks.positive_integer("rank", rank) > size:
        raise ValueError(
            f"`rank` must be in 1..{size}, the number of unconstrained latents; got {rank}"
        )
    return LowRank(latents, scale, rank)
