"""Gaussian guides in unconstrained space: u = loc + L eps, eps ~ N(0, I).

A family is a factor L: diagonal for `mean_field`, lower-triangular for `full_rank`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from minisvi import trees
from minisvi.record import Record

LOG_2PI = 1.8378770664093453


class Diagonal(NamedTuple):
    """L = diag(exp(log_scale))."""

    log_scale: Array

    def times(self, eps: Array) -> Array:
        return jnp.exp(self.log_scale) * eps

    def solve(self, x: Array) -> Array:
        return x * jnp.exp(-self.log_scale)

    def log_det(self) -> Array:
        return jnp.sum(self.log_scale)


class Triangular(NamedTuple):
    """L = the matrix's entries below the diagonal, and exp of those on it; those above are not used."""

    matrix: Array

    def dense(self) -> Array:
        return jnp.tril(self.matrix, -1) + jnp.diag(jnp.exp(jnp.diagonal(self.matrix)))

    def times(self, eps: Array) -> Array:
        return self.dense() @ eps

    def solve(self, x: Array) -> Array:
        return jax.scipy.linalg.solve_triangular(self.dense(), x, lower=True)

    def log_det(self) -> Array:
        return jnp.trace(self.matrix)


@dataclass(frozen=True)
class Gaussian:
    """N(loc, L L^T) over the flat vector, drawn and scored as the tree of latents.

    log q(u) = -|eps|^2 / 2 - D/2 log 2 pi - log det L, with eps = L^-1 (u - loc).
    """

    latents: Any
    loc: Array
    factor: Diagonal | Triangular

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Any, Array]:
        eps = jax.random.normal(seed, self.loc.shape, self.loc.dtype)
        return trees.unravel(self.latents, self.loc + self.factor.times(eps)), self._log_prob(eps)

    def log_prob(self, u: Any, /) -> Array:
        return self._log_prob(self.factor.solve(trees.ravel(self.latents, u) - self.loc))

    def _log_prob(self, eps: Array) -> Array:
        return -0.5 * (jnp.sum(eps * eps) + eps.size * LOG_2PI) - self.factor.log_det()

    def entropy(self) -> Array:
        return 0.5 * self.loc.size * (1 + LOG_2PI) + self.factor.log_det()


@dataclass(frozen=True, eq=False)
class _GaussianFamily(Record):
    latents: Any
    scale: float = 0.1
    constrained = False

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"`scale` must be > 0; got {self.scale}")


@dataclass(frozen=True, eq=False)
class MeanField(_GaussianFamily):
    """See `mean_field`."""

    def init(self, key: Array, /, loc: Any = None) -> dict[str, Array]:
        vector = trees.start(self.latents, key, loc)
        return {"loc": vector, "log_scale": jnp.full_like(vector, jnp.log(self.scale))}

    def distribution(self, params: Any, /, *data: Any) -> Gaussian:
        del data
        return Gaussian(self.latents, params["loc"], Diagonal(params["log_scale"]))


@dataclass(frozen=True, eq=False)
class FullRank(_GaussianFamily):
    """See `full_rank`."""

    def init(self, key: Array, /, loc: Any = None) -> dict[str, Array]:
        vector = trees.start(self.latents, key, loc)
        return {"loc": vector, "scale_tril": jnp.log(self.scale) * jnp.eye(vector.size, dtype=vector.dtype)}

    def distribution(self, params: Any, /, *data: Any) -> Gaussian:
        del data
        return Gaussian(self.latents, params["loc"], Triangular(params["scale_tril"]))


def mean_field(latents: Any, scale: float = 0.1) -> MeanField:
    """N(loc, diag(exp(log_scale))^2), the factorised Gaussian (Kucukelbir et al. 2017, section 2.4).

    Parameters `loc` (D,) and `log_scale` (D,). It starts, as NumPyro's AutoNormal, at loc ~ uniform(-2, 2) and every
    scale at `scale`; `init(key, loc=u)` starts at a tree u, such as `model.unconstrain(theta)`.
    ValueError unless scale > 0.
    """
    return MeanField(latents, scale)


def full_rank(latents: Any, scale: float = 0.1) -> FullRank:
    """N(loc, L L^T), the Gaussian with any covariance, by its Cholesky factor (Kucukelbir et al. 2017, section 2.4).

    Parameters `loc` (D,) and `scale_tril` (D, D): L below the diagonal, log L on it. Starts like `mean_field`.
    """
    return FullRank(latents, scale)
