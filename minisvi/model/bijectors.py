"""T: the closed forms behind the supports.

Each gives theta = T(u) and its log-determinant in one stable pass. The maps equal NumPyro's
`biject_to`, so that both engines optimise the same function. This is also why the matrix-valued
ones are written here: TFP fills a triangle in another order and takes another map to correlations.
Every map works on leading axes too.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_sigmoid, softplus


class Bijector(Protocol):
    """The map T. This is Distrax's interface, so that its bijectors can be used as they stand."""

    def forward_and_log_det(self, u: Array, /) -> tuple[Array, Array]:
        """theta = T(u), and log|det dT/du| in nats, in any shape that sums to the total."""
        ...

    def inverse(self, theta: Array, /) -> Array:
        """u with T(u) = theta.

        Outside the support the result is NaN, or a u that T sends elsewhere.
        """
        ...


@dataclass(frozen=True)
class Identity:
    """theta = u."""

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        return u, jnp.zeros((), u.dtype)

    def inverse(self, theta: Array) -> Array:
        return theta


@dataclass(frozen=True)
class Exp:
    """theta = lower + exp(u)."""

    lower: float = 0.0

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        theta = self.lower + jnp.exp(u)
        return theta, u

    def inverse(self, theta: Array) -> Array:
        return jnp.log(theta - self.lower)


@dataclass(frozen=True)
class Sigmoid:
    """theta = low + (high - low) sigmoid(u)."""

    low: float = 0.0
    high: float = 1.0

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        width = self.high - self.low
        theta = self.low + width * jax.nn.sigmoid(u)
        log_det = jnp.log(width) + log_sigmoid(u) + log_sigmoid(-u)
        return theta, log_det

    def inverse(self, theta: Array) -> Array:
        return jnp.log(theta - self.low) - jnp.log(self.high - theta)


@dataclass(frozen=True)
class StickBreaking:
    """theta_k = z_k prod_{j<k} (1 - z_j), with z_k = sigmoid(u_k - log(K - k)) for k = 1..K-1.

    The last theta_K is what is left of the stick (Stan reference manual, 10.7).
    """

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        x = u - _log_num_left(u)
        # In logs, so that no stick is rounded to exactly zero or one before the product.
        log_left = jnp.cumsum(log_sigmoid(-x), axis=-1)  # after each break
        log_left = _pad_last(log_left, before=1)  # and before it
        log_z = _pad_last(log_sigmoid(x), after=1)  # z_K = 1
        log_theta = log_left + log_z
        theta = jnp.exp(log_theta)
        return theta, log_theta[..., :-1] + log_sigmoid(-x)

    def inverse(self, theta: Array) -> Array:
        from_the_end = jnp.cumsum(theta[..., ::-1], axis=-1)
        left = from_the_end[..., ::-1][..., 1:]  # what is left after stick k
        log_odds = jnp.log(theta[..., :-1]) - jnp.log(left)
        return log_odds + _log_num_left(left)


def _log_num_left(u: Array) -> Array:
    """log(K - k) for k = 1..K-1, by which u = 0 is the uniform simplex."""
    counts = jnp.cumsum(jnp.ones_like(u), axis=-1)
    return jnp.log(counts[..., ::-1])


def _pad_last(x: Array, before: int = 0, after: int = 0) -> Array:
    """The array with zeros put in before and after its last axis."""
    widths = [(0, 0)] * x.ndim
    widths[-1] = (before, after)
    return jnp.pad(x, widths)


@dataclass(frozen=True)
class Ordered:
    """theta_1 = u_1, and theta_k = theta_{k-1} + exp(u_k)."""

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        first = u[..., :1]
        log_gaps = u[..., 1:]
        steps = jnp.concatenate([first, jnp.exp(log_gaps)], axis=-1)
        theta = jnp.cumsum(steps, axis=-1)
        return theta, log_gaps

    def inverse(self, theta: Array) -> Array:
        first = theta[..., :1]
        gaps = jnp.diff(theta, axis=-1)
        return jnp.concatenate([first, jnp.log(gaps)], axis=-1)


@dataclass(frozen=True)
class LowerCholesky:
    """theta is lower triangular with a positive diagonal.

    u holds the entries below the diagonal, row by row, and then the logarithms of the diagonal.
    """

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        size = u.shape[-1]
        n = _order_of_triangle(size)
        below = u[..., : size - n]
        log_diagonal = u[..., size - n :]
        theta = jnp.zeros((*u.shape[:-1], n, n), u.dtype)
        theta = theta.at[_below_diagonal(n)].set(below)
        theta = theta.at[..., *np.diag_indices(n)].set(jnp.exp(log_diagonal))
        return theta, log_diagonal

    def inverse(self, theta: Array) -> Array:
        n = theta.shape[-1]
        diagonal = jnp.diagonal(theta, axis1=-2, axis2=-1)
        log_diagonal = jnp.log(diagonal)
        below = theta[_below_diagonal(n)]
        return jnp.concatenate([below, log_diagonal], axis=-1)


@dataclass(frozen=True)
class CorrelationCholesky:
    """theta_ij = r_ij prod_{k<j} sqrt(1 - r_ik^2), r = tanh(u) below the diagonal and 1 on it.

    u holds the entries below the diagonal, row by row (Stan reference manual, 10.12).
    """

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        n = _order_of_triangle(u.shape[-1]) + 1
        below = _below_diagonal(n)
        # log(1 - tanh(u)^2), without cancellation
        log_sech2 = 2 * (jnp.log(2.0) - u - softplus(-2 * u))
        identity = jnp.eye(n, dtype=u.dtype)
        r = jnp.broadcast_to(identity, (*u.shape[:-1], n, n))
        r = r.at[below].set(jnp.tanh(u))
        half = jnp.zeros_like(r).at[below].set(log_sech2 / 2)
        log_rest = jnp.cumsum(half, axis=-1) - half  # of the columns before
        theta = r * jnp.exp(log_rest)
        return theta, log_sech2 + log_rest[below]

    def inverse(self, theta: Array) -> Array:
        squares = theta * theta
        rest = 1 - (jnp.cumsum(squares, axis=-1) - squares)
        r = theta / jnp.sqrt(rest)
        n = theta.shape[-1]
        return jnp.arctanh(r[_below_diagonal(n)])


def _order_of_triangle(size: int) -> int:
    """n of a triangle, its diagonal included, of `size` = n (n + 1) / 2 entries."""
    return (math.isqrt(1 + 8 * size) - 1) // 2


def _below_diagonal(n: int) -> tuple[object, ...]:
    """An index of the entries below the diagonal of (..., n, n), row by row."""
    return (..., *np.tril_indices(n, -1))
