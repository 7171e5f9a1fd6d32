"""A guide in the coordinates of a Gaussian: u = loc + L x, x from any family, so that all latents
are of one scale.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from minisvi.guides import base
from minisvi.guides.flow import Flow
from minisvi.guides.gaussian import Family, log_cholesky
from minisvi.guides.location_scale import Diagonal, Triangular
from minisvi.guides.wrapped import Pushed, Wrapper
from minisvi.model import trees


@dataclass(frozen=True)
class Affine(Pushed):
    """log q(u) = log q_x(L^-1 (u - loc)) - log det L."""

    loc: Array
    factor: Any

    @property
    def noise_dtype(self) -> Any:
        return self.loc.dtype

    def _push(self, x: Any, log_q: Array) -> tuple[Any, Array]:
        vector = self.loc + self.factor.times(trees.ravel(self.latents, x))
        return trees.unravel(self.latents, vector), log_q - self.factor.log_det()

    def log_prob(self, u: Any, /) -> Array:
        vector = self.factor.solve(trees.ravel(self.latents, u) - self.loc)
        return self.base.log_prob(trees.unravel(self.latents, vector)) - self.factor.log_det()

    def entropy(self) -> Array:
        return base.entropy(self.base) + self.factor.log_det()


@dataclass(frozen=True, eq=False)
class Whitened(Wrapper):
    """See `whitened`."""

    guide: Any
    diagonal: bool = False

    def init(self, key: Array, /, loc: Any = None, cov: Any = None) -> dict[str, Any]:
        spec = trees.spec(self.latents)
        zero = jnp.zeros(spec.shape, spec.dtype)
        vector = zero if loc is None else trees.start(self.latents, key, loc)
        cov = jnp.ones_like(zero) if cov is None else trees.covariance(cov, zero)
        variances = cov if cov.ndim == 1 else jnp.diagonal(cov)
        factor = 0.5 * jnp.log(variances) if self.diagonal else log_cholesky(cov)
        return {
            "loc": vector,
            "factor": factor,
            "x": self.guide.init(key, loc=trees.unravel(self.latents, zero)),
        }

    def distribution(self, params: Any, /, *data: Any) -> Affine:
        loc, factor = stop_gradient((params["loc"], params["factor"]))
        x = self.guide.distribution(params["x"], *data)
        return Affine(
            self.latents, x, loc, Diagonal(factor) if self.diagonal else Triangular(factor)
        )


def whitened(guide: Any, diagonal: bool = False) -> Whitened:
    """u = loc + L x, x ~ `guide`, in coordinates where a Gaussian that is known already would be
    N(0, I).

    `guide` is a Gaussian family, such as `full_rank(latents)`, or a flow over one; TypeError for
    any other, which could not be told to start about the origin.

    `init(key, loc=u, cov=c)` takes the Gaussian, as from `laplace` or `linear_response`: a tree u,
    and a covariance (D, D) or variances (D,); if `diagonal`, for many latents, only these are used
    and kept. `loc` and L, the `factor`, stay as they are, and the guide's own parameters, `x`, are
    fitted. One learning rate then suits all latents, and a gradient sees no correlation (Kim et al.
    2024, section 4).
    """
    base = guide
    while isinstance(base, Flow):
        base = base.base
    if not isinstance(base, Family):
        raise TypeError(
            f"whitened: expected a Gaussian, such as `full_rank(latents)`, or a flow over one; got {guide!r}"
        )
    return Whitened(guide, diagonal)
