"""T and log|det J_T|: what values a latent may take, and the map onto them from unconstrained
space.

A support is a shape, a dtype and a bijector T: R^n -> support (`bijectors` has the closed forms).
The log-determinant is in nats, summed over the whole array.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.model import bijectors
from minisvi.model.bijectors import Bijector
from minisvi.tools import checks
from minisvi.tools.record import Record
from minisvi.tools.types import Latents

Shape = int | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Support(Record):
    """A latent's shape, its bijector and its dtype, where None is JAX's default float.

    `num_values` is set for a discrete latent. `local` says that there is one such latent for each
    row of the data, along a leading axis (see `local`).
    """

    shape: tuple[int, ...]
    bijector: Bijector
    dtype: Any = None
    num_values: int | None = None
    local: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = jnp.floating if self.num_values is None else jnp.integer
        if not jnp.issubdtype(self.value_dtype, kind):
            raise TypeError(f"a support's dtype must be floating; got {self.dtype}")

    @property
    def value_dtype(self) -> Any:
        return jnp.result_type(float) if self.dtype is None else jnp.dtype(self.dtype)

    @property
    def spec(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of theta (of one row)."""
        return jax.ShapeDtypeStruct(self.shape, self.value_dtype)

    @property
    def unconstrained(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of u (of one row).

        It is smaller than theta for a simplex or a triangular matrix.
        """
        try:
            hash(self)
        except TypeError:  # of a bijector with arrays
            return _unconstrained.__wrapped__(self, self.value_dtype)
        return _unconstrained(self, self.value_dtype)

    def forward_and_log_det(self, u: Array) -> tuple[Array, Array]:
        """T(u) and the scalar log|det J_T(u)|, in nats."""
        theta, log_det = self.bijector.forward_and_log_det(u)
        return theta, jnp.sum(log_det)

    def inverse(self, theta: Array) -> Array:
        """T^-1(theta)."""
        return self.bijector.inverse(theta)


@cache  # tracing takes milliseconds, and `fit` asks a dozen times
def _unconstrained(support: Support, dtype: Any) -> jax.ShapeDtypeStruct:
    def inverse(theta: Array) -> Array:
        return support.bijector.inverse(theta).astype(dtype)

    return jax.eval_shape(inverse, support.spec)


def _support(name: str, shape: Shape, bijector: Bijector, dtype: Any, *before: Any) -> Support:
    """A support made by the function `name`, called with `before`, the shape and the dtype.

    TypeError or ValueError unless the shape is one, or if its second size was given where the dtype
    belongs.
    """
    sizes = checks.shape(name, shape)
    if isinstance(dtype, int):
        meant = [*before, (*sizes, dtype)]
        arguments = ", ".join(repr(argument) for argument in meant)
        raise TypeError(
            f"{name}: expected a floating dtype; got {dtype}: for a shape of more axes write "
            f"{name}({arguments})"
        )
    return Support(sizes, bijector, dtype)


def real(shape: Shape = (), dtype: Any = None) -> Support:
    """All of R."""
    return _support("real", shape, bijectors.Identity(), dtype)


def positive(shape: Shape = (), dtype: Any = None) -> Support:
    """theta > 0, by exp."""
    return _support("positive", shape, bijectors.Exp(), dtype)


def greater_than(lower: float, shape: Shape = (), dtype: Any = None) -> Support:
    """theta > lower, by lower + exp; ValueError unless lower is finite."""
    low = checks.finite_number("greater_than: `lower`", lower)
    return _support("greater_than", shape, bijectors.Exp(low), dtype, lower)


def unit_interval(shape: Shape = (), dtype: Any = None) -> Support:
    """0 < theta < 1, by the logistic function."""
    return _support("unit_interval", shape, bijectors.Sigmoid(), dtype)


def interval(low: float, high: float, shape: Shape = (), dtype: Any = None) -> Support:
    """low < theta < high, by the logistic function.

    ValueError unless low < high, and both are finite.
    """
    lower = checks.finite_number("interval: `low`", low)
    upper = checks.finite_number("interval: `high`", high)
    if not lower < upper:
        raise ValueError(f"interval: expected low < high; got {low} and {high}")
    return _support("interval", shape, bijectors.Sigmoid(lower, upper), dtype, low, high)


def finite(num_values: int, shape: Shape = ()) -> Support:
    """theta in {0, ..., num_values - 1}, int32: a discrete latent.

    It is for guides such as `categorical`, or to be summed out of the model by `sum_out`.
    ValueError unless num_values >= 1.
    """
    n = checks.positive_integer("num_values", num_values)
    sizes = checks.shape("finite", shape)
    return Support(sizes, bijectors.Identity(), jnp.int32, num_values=n)


def local(support: Latents) -> Latents:
    """The same support, or tree of supports, once for each row of the data.

    theta has a leading axis of B rows, those of the batch at hand. In a minibatch its prior,
    log-determinant and log q count N/B times, as the rows' likelihood does.
    """
    return jax.tree.map(lambda s: replace(s, local=True), support)


def simplex(shape: Shape, dtype: Any = None) -> Support:
    """theta >= 0 that sum to one along the last axis, by stick-breaking."""
    support = _support("simplex", shape, bijectors.StickBreaking(), dtype)
    checks.shape_ends_in_size("simplex", support.shape)
    return support


def ordered(shape: Shape, dtype: Any = None) -> Support:
    """theta increasing along the last axis."""
    support = _support("ordered", shape, bijectors.Ordered(), dtype)
    checks.shape_ends_in_size("ordered", support.shape)
    return support


def lower_cholesky(shape: tuple[int, ...], dtype: Any = None) -> Support:
    """Lower-triangular matrices (..., n, n) with positive diagonal."""
    support = _support("lower_cholesky", shape, bijectors.LowerCholesky(), dtype)
    checks.shape_ends_in_square("lower_cholesky", support.shape)
    return support


def corr_cholesky(shape: tuple[int, ...], dtype: Any = None) -> Support:
    """Cholesky factors (..., n, n) of correlation matrices."""
    support = _support("corr_cholesky", shape, bijectors.CorrelationCholesky(), dtype)
    checks.shape_ends_in_square("corr_cholesky", support.shape)
    return support


def transformed(bijector: Any, shape: Shape = (), dtype: Any = None) -> Support:
    """The image of any Distrax or TFP bijector; `shape` is the shape of theta."""
    if not hasattr(bijector, "forward_and_log_det"):
        import distrax  # heavy (it brings TFP), so only when such a bijector is given

        bijector = distrax.as_bijector(bijector)
    return _support("transformed", shape, bijector, dtype, bijector)
