"""Gaussian guides in unconstrained space: what they share, `mean_field`, and `full_rank`."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from minisvi.guides.location_scale import Diagonal, LocationScale, Normal, StudentT, Triangular
from minisvi.model import trees
from minisvi.tools.record import Record


@dataclass(frozen=True, eq=False)
class Family(Record):
    """Gaussian families: parameters `loc` (D,) and those of a factor.

    `init(key, loc=u, cov=c)` starts at a tree u, such as `model.unconstrain(theta)` or a Laplace
    fit's, with the covariance c, (D, D) or variances (D,), as near as the family comes. ValueError
    for other shapes, or scale <= 0.
    """

    latents: Any
    scale: float = 0.1
    constrained = False

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"`scale` must be > 0; got {self.scale}")

    def _start(self, key: Array, loc: Any, cov: Any) -> tuple[Array, Array]:
        vector = trees.start(self.latents, key, loc)
        return vector, jnp.full_like(vector, self.scale**2) if cov is None else trees.covariance(
            cov, vector
        )


@dataclass(frozen=True, eq=False)
class MeanField(Family):
    """See `mean_field`."""

    df: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.df is not None and not self.df > 0:
            raise ValueError(f"`df` must be > 0; got {self.df}")

    def init(self, key: Array, /, loc: Any = None, cov: Any = None) -> dict[str, Array]:
        vector, cov = self._start(key, loc, cov)
        # Of a full covariance the sd given all others: the mean-field optimum on a Gaussian (Bishop
        # 2006, eq. 10.12).
        log_scale = (
            0.5 * jnp.log(cov)
            if cov.ndim == 1
            else -0.5 * jnp.log(jnp.diagonal(jnp.linalg.inv(cov)))
        )
        return {"loc": vector, "log_scale": log_scale}

    def distribution(self, params: Any, /, *data: Any) -> LocationScale:
        del data
        standard = Normal() if self.df is None else StudentT(self.df)
        return LocationScale(self.latents, params["loc"], Diagonal(params["log_scale"]), standard)


@dataclass(frozen=True, eq=False)
class FullRank(Family):
    """See `full_rank`."""

    def init(self, key: Array, /, loc: Any = None, cov: Any = None) -> dict[str, Array]:
        vector, cov = self._start(key, loc, cov)
        return {"loc": vector, "scale_tril": log_cholesky(cov)}

    def distribution(self, params: Any, /, *data: Any) -> LocationScale:
        del data
        return LocationScale(self.latents, params["loc"], Triangular(params["scale_tril"]))


def log_cholesky(cov: Array) -> Array:
    if cov.ndim == 1:
        return jnp.diag(0.5 * jnp.log(cov))
    tril = jnp.linalg.cholesky(cov)
    return jnp.tril(tril, -1) + jnp.diag(jnp.log(jnp.diagonal(tril)))


def mean_field(latents: Any, scale: float = 0.1, df: float | None = None) -> MeanField:
    """N(loc, diag(exp(log_scale))^2), the factorised Gaussian (Kucukelbir et al. 2017, section
    2.4).

    `latents` is a tree of supports, or the model that has them, here and for every other family.

    Parameters `loc` (D,) and `log_scale` (D,). It starts, as NumPyro's AutoNormal, at loc ~
    uniform(-2, 2) and every scale at `scale`; `init(key, loc=u, cov=c)` starts elsewhere (see
    `Family`). With `df`, Student's t of that many degrees of freedom in place of each normal, for
    heavy tails. ValueError unless scale > 0 and df > 0.
    """
    return MeanField(trees.latents_of(latents), scale, df)


def full_rank(latents: Any, scale: float = 0.1) -> FullRank:
    """N(loc, L L^T), the Gaussian with any covariance, by its Cholesky factor (Kucukelbir et al.
    2017, section 2.4).

    Parameters `loc` (D,) and `scale_tril` (D, D): L below the diagonal, log L on it. Starts like
    `mean_field`.
    """
    return FullRank(trees.latents_of(latents), scale)
