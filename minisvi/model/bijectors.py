"""T: the closed forms behind the supports, each theta = T(u) with its log-determinant in one stable
pass.

The maps equal NumPyro's `biject_to`, so that both engines optimise the same function; this is also
why the matrix-valued ones are written here: TFP fills a triangle in another order and takes another
map to correlations. Every map works on leading axes too.
"""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_sigmoid, softplus


class Bijector(Protocol):
    """T. Distrax's interface, so that its bijectors are supports' bijectors as they stand."""

    def forward_and_log_det(self, u: Array, /) -> tuple[Array, Array]:
        """theta = T(u), and log|det dT/du|; any shape that sums to the total."""
        ...

    def inverse(self, theta: Array, /) -> Array:
        """u with T(u) = theta; NaN, or a u that T sends elsewhere, if theta lies outside the
        support.
        """
        ...


@dataclass(frozen=True)
class Identity:
    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        return u, jnp.zeros((), u.dtype)

    def inverse(self, theta: Array) -> Array:
        return theta


@dataclass(frozen=True)
class Exp:
    """theta = lower + exp(u)."""

    lower: float = 0.0

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        return self.lower + jnp.exp(u), u

    def inverse(self, theta: Array) -> Array:
        return jnp.log(theta - self.lower)


@dataclass(frozen=True)
class Sigmoid:
    """theta = low + (high - low) sigmoid(u)."""

    low: float = 0.0
    high: float = 1.0

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        width = self.high - self.low
        return self.low + width * jax.nn.sigmoid(u), jnp.log(width) + log_sigmoid(u) + log_sigmoid(
            -u
        )

    def inverse(self, theta: Array) -> Array:
        return jnp.log(theta - self.low) - jnp.log(self.high - theta)


@dataclass(frozen=True)
class StickBreaking:
    """theta_k = z_k prod_{j<k} (1 - z_j), z_k = sigmoid(u_k - log(K - k)), k = 1..K-1 (Stan
    reference manual, 10.7).
    """

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        x = u - _log_num_left(u)
        rows = [(0, 0)] * (u.ndim - 1)
        # In logs, so that no stick is rounded to exactly zero or one before the product.
        log_left = jnp.pad(jnp.cumsum(log_sigmoid(-x), axis=-1), [*rows, (1, 0)])
        log_theta = log_left + jnp.pad(log_sigmoid(x), [*rows, (0, 1)])
        return jnp.exp(log_theta), log_theta[..., :-1] + log_sigmoid(-x)

    def inverse(self, theta: Array) -> Array:
        left = jnp.cumsum(theta[..., ::-1], axis=-1)[..., ::-1][..., 1:]
        return jnp.log(theta[..., :-1]) - jnp.log(left) + _log_num_left(left)


def _log_num_left(u: Array) -> Array:
    # log(K - k) for k = 1..K-1: centred so that u = 0 is the uniform simplex
    return jnp.log(jnp.cumsum(jnp.ones_like(u), axis=-1)[..., ::-1])


@dataclass(frozen=True)
class Ordered:
    """theta_1 = u_1, theta_k = theta_{k-1} + exp(u_k)."""

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        steps = jnp.concatenate([u[..., :1], jnp.exp(u[..., 1:])], axis=-1)
        return jnp.cumsum(steps, axis=-1), u[..., 1:]

    def inverse(self, theta: Array) -> Array:
        return jnp.concatenate([theta[..., :1], jnp.log(jnp.diff(theta, axis=-1))], axis=-1)


@dataclass(frozen=True)
class LowerCholesky:
    """Row by row, the entries below the diagonal come first in u, then the logarithms of the
    diagonal.
    """

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        n = round((np.sqrt(1 + 8 * u.shape[-1]) - 1) / 2)
        below, log_diagonal = u[..., : u.shape[-1] - n], u[..., u.shape[-1] - n :]
        theta = (
            jnp.zeros((*u.shape[:-1], n, n), u.dtype).at[..., *np.tril_indices(n, -1)].set(below)
        )
        return theta.at[..., *np.diag_indices(n)].set(jnp.exp(log_diagonal)), log_diagonal

    def inverse(self, theta: Array) -> Array:
        n = theta.shape[-1]
        log_diagonal = jnp.log(jnp.diagonal(theta, axis1=-2, axis2=-1))
        return jnp.concatenate([theta[..., *np.tril_indices(n, -1)], log_diagonal], axis=-1)


@dataclass(frozen=True)
class CorrelationCholesky:
    """theta_ij = r_ij prod_{k<j} sqrt(1 - r_ik^2), r = tanh(u) below the diagonal, 1 on it (Stan,
    10.12).
    """

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        n = round((1 + np.sqrt(1 + 8 * u.shape[-1])) / 2)
        index = (..., *np.tril_indices(n, -1))
        log_sech2 = 2 * (
            jnp.log(2.0) - u - softplus(-2 * u)
        )  # log(1 - tanh(u)^2), without cancellation
        r = (
            jnp.broadcast_to(jnp.eye(n, dtype=u.dtype), (*u.shape[:-1], n, n))
            .at[index]
            .set(jnp.tanh(u))
        )
        half = jnp.zeros_like(r).at[index].set(log_sech2 / 2)
        log_rest = jnp.cumsum(half, axis=-1) - half
        return r * jnp.exp(log_rest), log_sech2 + log_rest[index]

    def inverse(self, theta: Array) -> Array:
        squares = theta * theta
        rest = 1 - (jnp.cumsum(squares, axis=-1) - squares)
        return jnp.arctanh((theta / jnp.sqrt(rest))[..., *np.tril_indices(theta.shape[-1], -1)])
