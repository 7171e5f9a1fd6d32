"""Gaussian guides in unconstrained space: `mean_field` and `full_rank`, and what all Gaussian
families share.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from minisvi.guides.location_scale import Diagonal, LocationScale, Normal, StudentT, Triangular
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools.record import Record
from minisvi.tools.types import Draw, Latents, Params


@dataclass(frozen=True, eq=False)
class Family(Record):
    """What the Gaussian families share: a location `loc` (D,), and where a fit starts.

    `init(key)` starts at loc ~ uniform(-2, 2) with every sd equal to `scale`. `init(key, loc=u,
    cov=c)` starts at the tree u, such as `model.unconstrain(theta)` or a Laplace fit's, and as near
    as the family comes to the covariance c, of shape (D, D), or (D,) for variances. ValueError for
    other shapes, or unless scale > 0.
    """

    latents: Latents
    scale: float = 0.1
    constrained = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"`scale` must be > 0; got {self.scale}")

    def _start(self, key: Array, loc: Draw | None, cov: ArrayLike | None) -> tuple[Array, Array]:
        """The initial location (D,), and the initial covariance (D, D) or variances (D,)."""
        vector = trees.start(self.latents, key, loc)
        if cov is None:
            return vector, jnp.full_like(vector, self.scale**2)
        return vector, trees.covariance(cov, vector)


@dataclass(frozen=True, eq=False)
class MeanField(Family):
    """See `mean_field`."""

    df: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.df is not None and not self.df > 0:
            raise ValueError(f"`df` must be > 0; got {self.df}")

    def init(
        self, key: Array, /, loc: Draw | None = None, cov: ArrayLike | None = None
    ) -> dict[str, Array]:
        vector, cov = self._start(key, loc, cov)
        return {"loc": vector, "log_scale": log_scale_given_others(cov)}

    def distribution(self, params: Params, /, *data: Any) -> LocationScale:
        del data
        standard = Normal() if self.df is None else StudentT(self.df)
        factor = Diagonal(params["log_scale"])
        return LocationScale(self.latents, params["loc"], factor, standard)


@dataclass(frozen=True, eq=False)
class FullRank(Family):
    """See `full_rank`."""

    def init(
        self, key: Array, /, loc: Draw | None = None, cov: ArrayLike | None = None
    ) -> dict[str, Array]:
        vector, cov = self._start(key, loc, cov)
        return {"loc": vector, "scale_tril": log_cholesky(cov)}

    def distribution(self, params: Params, /, *data: Any) -> LocationScale:
        del data
        factor = Triangular(params["scale_tril"])
        return LocationScale(self.latents, params["loc"], factor)


def precisions(cov: Array) -> Array:
    """The diagonal (D,) of cov^-1: one over the variance of each latent given all others."""
    return jnp.diagonal(jnp.linalg.inv(cov))


def log_scale_given_others(cov: Array) -> Array:
    """log sd (D,) of each latent given all others, which is the best mean field of a Gaussian of
    covariance `cov`, (D, D) or variances (D,) (Bishop 2006, eq. 10.12).
    """
    if cov.ndim == 1:
        return 0.5 * jnp.log(cov)
    return -0.5 * jnp.log(precisions(cov))


def log_cholesky(cov: Any) -> Any:
    """The matrix of which `Triangular` makes L, where L L^T is `cov`, (D, D) or variances (D,). It
    is NumPy's where `cov` is.
    """
    xp = cov.__array_namespace__()
    if cov.ndim == 1:
        return xp.diag(0.5 * xp.log(cov))
    tril = xp.linalg.cholesky(cov)
    below = xp.tril(tril, -1)
    log_diagonal = xp.log(xp.diagonal(tril))
    return below + xp.diag(log_diagonal)


def mean_field(latents: Latents | Model, scale: float = 0.1, df: float | None = None) -> MeanField:
    """The factorised Gaussian, q(u) = N(u; loc, diag(exp(log_scale))^2) (Kucukelbir et al. 2017,
    section 2.4).

    **Arguments**

    - `latents`: a tree of supports, or the model that has them, as for every other family.
    - `scale`: the sd of every u_i at the start. The start of `loc` is uniform(-2, 2), as that of
      NumPyro's AutoNormal, and `init(key, loc=u, cov=c)` starts elsewhere (see `Family`).
    - `df`: None, or the degrees of freedom of a Student's t in place of each normal, for heavy
      tails.

    Parameters: `loc` (D,) and `log_scale` (D,). ValueError unless scale > 0 and df > 0.
    """
    return MeanField(trees.latents_of(latents), scale, df)


def full_rank(latents: Latents | Model, scale: float = 0.1) -> FullRank:
    """The Gaussian with any covariance, q(u) = N(u; loc, L L^T), by its Cholesky factor L
    (Kucukelbir et al. 2017, section 2.4).

    Parameters: `loc` (D,), and `scale_tril` (D, D), which holds L below the diagonal and log L on
    it. It starts as `mean_field` does.
    """
    return FullRank(trees.latents_of(latents), scale)
