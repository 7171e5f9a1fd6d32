"""T and log|det J_T|: what values a latent may take, and the map onto them from unconstrained space.

A support is a shape, a dtype and a bijector T: R^n -> support. The log-determinant is in nats, summed over the whole
array. The maps equal NumPyro's `biject_to`, so that both engines optimise the same function; this is also why the
matrix-valued ones are written here: TFP fills a triangle in another order and takes another map to correlations.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_sigmoid, softplus

from minisvi.record import Record

Shape = int | tuple[int, ...]


class Bijector(Protocol):
    """T. Distrax's interface, so that its bijectors are supports' bijectors as they stand."""

    def forward_and_log_det(self, u: Array, /) -> tuple[Array, Array]:
        """theta = T(u), and log|det dT/du|; any shape that sums to the total."""
        ...

    def inverse(self, theta: Array, /) -> Array:
        """u with T(u) = theta; NaN, or a u that T sends elsewhere, if theta lies outside the support."""
        ...


@dataclass(frozen=True, eq=False)
class Support(Record):
    """A latent's shape, bijector and dtype (None: JAX's default float)."""

    shape: tuple[int, ...]
    bijector: Any
    dtype: Any = None

    def __post_init__(self) -> None:
        if not jnp.issubdtype(self.float_dtype, jnp.floating):
            raise TypeError(f"a support's dtype must be floating; got {self.dtype}")

    @property
    def float_dtype(self) -> Any:
        return jnp.result_type(float) if self.dtype is None else jnp.dtype(self.dtype)

    @property
    def unconstrained(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of u, which is smaller than theta for a simplex or a triangular matrix."""
        theta = jax.ShapeDtypeStruct(self.shape, self.float_dtype)
        return jax.eval_shape(lambda x: self.bijector.inverse(x).astype(self.float_dtype), theta)

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        """T(u) and the scalar log|det J_T(u)|, in nats."""
        theta, log_det = self.bijector.forward_and_log_det(u)
        return theta, jnp.sum(log_det)

    def inverse(self, theta: Array) -> Array:
        """T^-1(theta)."""
        return self.bijector.inverse(theta)


@dataclass(frozen=True)
class _Identity:
    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        return u, jnp.zeros((), u.dtype)

    def inverse(self, theta: Array) -> Array:
        return theta


@dataclass(frozen=True)
class _Exp:
    """theta = lower + exp(u)."""

    lower: float = 0.0

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        return self.lower + jnp.exp(u), u

    def inverse(self, theta: Array) -> Array:
        return jnp.log(theta - self.lower)


@dataclass(frozen=True)
class _Sigmoid:
    """theta = low + (high - low) sigmoid(u)."""

    low: float = 0.0
    high: float = 1.0

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        width = self.high - self.low
        return self.low + width * jax.nn.sigmoid(u), jnp.log(width) + log_sigmoid(u) + log_sigmoid(-u)

    def inverse(self, theta: Array) -> Array:
        return jnp.log(theta - self.low) - jnp.log(self.high - theta)


@dataclass(frozen=True)
class _StickBreaking:
    """theta_k = z_k prod_{j<k} (1 - z_j), z_k = sigmoid(u_k - log(K - k)), k = 1..K-1 (Stan reference manual, 10.7)."""

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
class _Ordered:
    """theta_1 = u_1, theta_k = theta_{k-1} + exp(u_k)."""

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        steps = jnp.concatenate([u[..., :1], jnp.exp(u[..., 1:])], axis=-1)
        return jnp.cumsum(steps, axis=-1), u[..., 1:]

    def inverse(self, theta: Array) -> Array:
        return jnp.concatenate([theta[..., :1], jnp.log(jnp.diff(theta, axis=-1))], axis=-1)


@dataclass(frozen=True)
class _LowerCholesky:
    """Row by row, the entries below the diagonal come first in u, then the logarithms of the diagonal."""

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        n = round((np.sqrt(1 + 8 * u.shape[-1]) - 1) / 2)
        below, log_diagonal = u[..., : u.shape[-1] - n], u[..., u.shape[-1] - n :]
        theta = jnp.zeros((*u.shape[:-1], n, n), u.dtype).at[..., *np.tril_indices(n, -1)].set(below)
        return theta.at[..., *np.diag_indices(n)].set(jnp.exp(log_diagonal)), log_diagonal

    def inverse(self, theta: Array) -> Array:
        n = theta.shape[-1]
        log_diagonal = jnp.log(jnp.diagonal(theta, axis1=-2, axis2=-1))
        return jnp.concatenate([theta[..., *np.tril_indices(n, -1)], log_diagonal], axis=-1)


@dataclass(frozen=True)
class _CorrelationCholesky:
    """theta_ij = r_ij prod_{k<j} sqrt(1 - r_ik^2), r = tanh(u) below the diagonal, 1 on it (Stan, 10.12)."""

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        n = round((1 + np.sqrt(1 + 8 * u.shape[-1])) / 2)
        index = (..., *np.tril_indices(n, -1))
        log_sech2 = 2 * (jnp.log(2.0) - u - softplus(-2 * u))  # log(1 - tanh(u)^2), without cancellation
        r = jnp.broadcast_to(jnp.eye(n, dtype=u.dtype), (*u.shape[:-1], n, n)).at[index].set(jnp.tanh(u))
        half = jnp.zeros_like(r).at[index].set(log_sech2 / 2)
        log_rest = jnp.cumsum(half, axis=-1) - half
        return r * jnp.exp(log_rest), log_sech2 + log_rest[index]

    def inverse(self, theta: Array) -> Array:
        squares = theta * theta
        rest = 1 - (jnp.cumsum(squares, axis=-1) - squares)
        return jnp.arctanh((theta / jnp.sqrt(rest))[..., *np.tril_indices(theta.shape[-1], -1)])


def _shape(shape: Shape) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def real(shape: Shape = (), dtype: Any = None) -> Support:
    """All of R."""
    return Support(_shape(shape), _Identity(), dtype)


def positive(shape: Shape = (), dtype: Any = None) -> Support:
    """theta > 0, by exp."""
    return Support(_shape(shape), _Exp(), dtype)


def greater_than(lower: float, shape: Shape = (), dtype: Any = None) -> Support:
    """theta > lower, by lower + exp."""
    return Support(_shape(shape), _Exp(float(lower)), dtype)


def unit_interval(shape: Shape = (), dtype: Any = None) -> Support:
    """0 < theta < 1, by the logistic function."""
    return Support(_shape(shape), _Sigmoid(), dtype)


def interval(low: float, high: float, shape: Shape = (), dtype: Any = None) -> Support:
    """low < theta < high, by the logistic function; ValueError unless low < high."""
    if not low < high:
        raise ValueError(f"interval: expected low < high; got {low} and {high}")
    return Support(_shape(shape), _Sigmoid(float(low), float(high)), dtype)


def simplex(shape: Shape, dtype: Any = None) -> Support:
    """theta >= 0 that sum to one along the last axis, by stick-breaking."""
    return Support(_at_least(1, "simplex", _shape(shape)), _StickBreaking(), dtype)


def ordered(shape: Shape, dtype: Any = None) -> Support:
    """theta increasing along the last axis."""
    return Support(_at_least(1, "ordered", _shape(shape)), _Ordered(), dtype)


def lower_cholesky(shape: tuple[int, ...], dtype: Any = None) -> Support:
    """Lower-triangular matrices (..., n, n) with positive diagonal."""
    return Support(_square("lower_cholesky", _shape(shape)), _LowerCholesky(), dtype)


def corr_cholesky(shape: tuple[int, ...], dtype: Any = None) -> Support:
    """Cholesky factors (..., n, n) of correlation matrices."""
    return Support(_square("corr_cholesky", _shape(shape)), _CorrelationCholesky(), dtype)


def transformed(bijector: Any, shape: Shape = (), dtype: Any = None) -> Support:
    """The image of any Distrax or TFP bijector; `shape` is that of theta."""
    if not hasattr(bijector, "forward_and_log_det"):
        import distrax  # heavy (it brings TFP), so only when such a bijector is given

        bijector = distrax.as_bijector(bijector)
    return Support(_shape(shape), bijector, dtype)


def _at_least(ndim: int, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) < ndim or shape[-1] < 1:
        raise ValueError(f"{name}: expected a shape that ends in a size >= 1; got {shape}")
    return shape


def _square(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 1:
        raise ValueError(f"{name}: expected a shape (..., n, n) with n >= 1; got {shape}")
    return shape
