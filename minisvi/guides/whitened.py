"""A guide in the coordinates of a Gaussian: u = loc + L x, with x from any family, so that all
latents are of one scale.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient
from jax.typing import ArrayLike

from minisvi.guides.flow import check_about_standard
from minisvi.guides.foreign import member
from minisvi.guides.gaussian import log_cholesky
from minisvi.guides.location_scale import Diagonal, Factor, Triangular, pulled_back
from minisvi.guides.wrapped import Pushed, Wrapper
from minisvi.model import trees
from minisvi.tools.types import Draw, Params


@dataclass(frozen=True)
class Affine(Pushed):
    """q(u), where u = loc + L x and x is a draw of the base.

    log q(u) = log q_x(L^-1 (u - loc)) - log det L
    """

    loc: Array
    factor: Factor

    @property
    def noise_dtype(self) -> Any:
        return self.loc.dtype

    def _push(self, x: Draw, log_q: Array) -> tuple[Draw, Array]:
        vector = self.loc + self.factor.times(trees.ravel(self.latents, x))
        return trees.unravel(self.latents, vector), log_q - self.factor.log_det()

    def _push_score(self, x: Draw, score: Draw) -> Draw:
        vector = pulled_back(self.factor, trees.ravel(self.latents, score))
        return trees.unravel(self.latents, vector)

    def log_prob(self, u: Draw, /) -> Array:
        vector = self.factor.solve(trees.ravel(self.latents, u) - self.loc)
        x = trees.unravel(self.latents, vector)
        return self.base.log_prob(x) - self.factor.log_det()

    def entropy(self) -> Array:
        return self.base.entropy() + self.factor.log_det()


@dataclass(frozen=True, eq=False)
class Whitened(Wrapper):
    """See `whitened`."""

    guide: Any
    diagonal: bool = False

    def init(
        self, key: Array, /, loc: Draw | None = None, cov: ArrayLike | None = None
    ) -> dict[str, Params]:
        spec = trees.spec(self.latents)
        origin = jnp.zeros(spec.shape, spec.dtype)
        vector = origin if loc is None else trees.start(self.latents, key, loc)
        cov = jnp.ones_like(origin) if cov is None else trees.covariance(cov, origin)
        x = self.guide.init(key, loc=trees.unravel(self.latents, origin))
        return {"loc": vector, "factor": self._factor_of(cov), "x": x}

    def _factor_of(self, cov: Array) -> Array:
        """The parameters of L, where L L^T is `cov`: log sds (D,), or the matrix of `full_rank`."""
        if not self.diagonal:
            return log_cholesky(cov)
        variances = cov if cov.ndim == 1 else jnp.diagonal(cov)
        return 0.5 * jnp.log(variances)

    def distribution(self, params: Params, /, *data: Any) -> Affine:
        loc, matrix = stop_gradient((params["loc"], params["factor"]))
        x = member(self.guide, params["x"], *data)
        factor = Diagonal(matrix) if self.diagonal else Triangular(matrix)
        return Affine(self.latents, x, loc, factor)


def whitened(guide: Any, diagonal: bool = False) -> Whitened:
    """u = loc + L x, with x from `guide`: coordinates in which a Gaussian that is known already
    would be N(0, I).

    `guide` is a Gaussian family, such as `full_rank(latents)`, or a flow over one. TypeError for
    any other, which could not be told to start about the origin.

    `init(key, loc=u, cov=c)` takes the Gaussian, as from `laplace` or `linear_response`: a tree u,
    and a covariance (D, D) or variances (D,). With `diagonal`, for many latents, only the variances
    are used and kept. `loc` and L, the `factor`, stay as they are, and the guide's own parameters,
    `x`, are fitted. One learning rate then suits all latents, and a gradient sees no correlation
    (Kim et al. 2024, section 4).
    """
    check_about_standard("whitened", "full_rank(latents)", guide)
    return Whitened(guide, diagonal)
