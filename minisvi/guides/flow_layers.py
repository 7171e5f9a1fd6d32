"""The layers of a flow: bijectors of a vector z (D,), whose parameters a network gives.

The network's features go through a linear readout that starts at zero, where every layer is the
identity.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.weights import Network
from minisvi.tools.noise import normals
from minisvi.tools.record import Record
from minisvi.tools.types import Params


class Bijector(Protocol):
    """An invertible map, such as Distrax's. Log-determinants may be one number, or one a
    coordinate.
    """

    def forward_and_log_det(self, z: Array) -> tuple[Array, Array]: ...

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]: ...


class Affine(NamedTuple):
    """y_i = z_i exp(s_i) + t_i."""

    shift: Array
    log_scale: Array

    def forward_and_log_det(self, z: Array) -> tuple[Array, Array]:
        return z * jnp.exp(self.log_scale) + self.shift, self.log_scale

    def inverse(self, y: Array) -> Array:
        return (y - self.shift) * jnp.exp(-self.log_scale)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        return self.inverse(y), -self.log_scale


def affine(params: Array) -> Affine:
    """z -> z exp(s) + t, from params (..., 2) that hold t and s; s is softly clipped to (-3, 3).

    The clip keeps draws finite. Andrade (2024) has 0.1 for its upper limit, which triples the gap
    on Neal's funnel.
    """
    return Affine(params[..., 0], _soft_clip(params[..., 1], 3.0))


@dataclass(frozen=True)
class Spline:
    """A monotone rational-quadratic spline on [-bound, bound], then `affine`, from params (...,
    3 bins + 3), of which the first two are the affine map's.

    The spline alone is the identity beyond its bound, where tails would be out of its reach. Its
    parameters are softly clipped to (-1, 1): slopes without a limit are soon so steep that float32
    cannot invert them.
    """

    bound: float

    def __call__(self, params: Array) -> Any:
        import distrax  # heavy (it brings TFP), so only when a spline is used

        bins = _soft_clip(params[..., 2:], 1.0)
        inner = distrax.RationalQuadraticSpline(
            bins, -self.bound, self.bound, boundary_slopes="identity"
        )
        return _Chain(inner, affine(params[..., :2]))


class _Chain(NamedTuple):
    """`first`, then `second`."""

    first: Any
    second: Any

    def forward_and_log_det(self, z: Array) -> tuple[Array, Array]:
        y, first_log_det = self.first.forward_and_log_det(z)
        y, second_log_det = self.second.forward_and_log_det(y)
        return y, first_log_det + second_log_det

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        z, second_log_det = self.second.inverse_and_log_det(y)
        z, first_log_det = self.first.inverse_and_log_det(z)
        return z, first_log_det + second_log_det


def _soft_clip(x: Array, limit: float) -> Array:
    """x brought into (-limit, limit), with slope one at zero."""
    return 2 / jnp.pi * limit * jnp.arctan(x / limit)


def mlp(*hidden: int) -> Network:
    """A fully connected network with tanh units, whose features are the last hidden layer."""
    return Network(_MLPInit(hidden), _apply_mlp)


@dataclass(frozen=True)
class _MLPInit:
    hidden: tuple[int, ...]

    def __call__(self, key: Array, num_inputs: int) -> list[Params]:
        keys = jax.random.split(key, len(self.hidden))
        layers = []
        for layer_key, size in zip(keys, self.hidden, strict=True):
            layers.append(_dense(layer_key, num_inputs, size))
            num_inputs = size
        return layers


def _apply_mlp(weights: list[Params], x: Array) -> Array:
    for layer in weights:
        x = jnp.tanh(layer["w"] @ x + layer["b"])
    return x


def _dense(key: Array, num_inputs: int, num_outputs: int) -> Params:
    """Weights w_ij ~ N(0, 1 / num_inputs), and biases of zero."""
    w = normals(key, (num_outputs, num_inputs)) / max(num_inputs, 1) ** 0.5
    return {"w": w, "b": jnp.zeros(num_outputs)}


def _zero_readout(size: int, num_params: int, num_features: int) -> dict[str, Array]:
    """The readout's parameters, which give zeros to the bijector of each of `size` coordinates."""
    return {
        "readout": jnp.zeros((size, num_params, num_features)),
        "bias": jnp.zeros((size, num_params)),
    }


def _readout(weights: Array, bias: Array, features: Array) -> Array:
    """W h / sqrt(H) + b, for features h (H,).

    The root of the width is there so that a step of the optimiser moves a wide layer no further
    than a narrow one.
    """
    return weights @ features / features.size**0.5 + bias


@dataclass(frozen=True, eq=False)
class Coupling(Record):
    """y_i = z_i in the first half of a layer's order, and y_i = g(z_i; c_i) in the second.

    g is `transform`, of `num_params` parameters c_i that are a function of the first half: the
    readout of `network` (Dinh et al. 2017, section 3.2).
    """

    transform: Callable[[Array], Any]
    num_params: int
    network: Network

    def init(self, key: Array, spec: jax.ShapeDtypeStruct) -> dict[str, Params]:
        size = spec.shape[0]
        weights = self.network.init(key, size)
        features = jax.eval_shape(self.network.apply, weights, spec)
        return {
            "network": weights,
            **_zero_readout(size, self.num_params, features.size),
        }

    def bijector(self, params: Params, order: Array) -> "Coupled":
        def conditioner(first_half: Array) -> Array:  # (D,), with zeros for the second half
            features = self.network.apply(params["network"], first_half)
            return _readout(params["readout"], params["bias"], features)

        return Coupled(order < order.size // 2, conditioner, self.transform)


class Coupled(NamedTuple):
    """The bijector of a coupling: what `stays` (D,) conditions what does not. Log-determinants are
    one a coordinate.
    """

    stays: Array
    conditioner: Callable[[Array], Array]
    transform: Callable[[Array], Any]

    def _first_half(self, z: Array) -> Array:
        return jnp.where(self.stays, z, 0.0)

    def forward_and_log_det(self, z: Array) -> tuple[Array, Array]:
        bijector = self.transform(self.conditioner(self._first_half(z)))
        y, log_det = bijector.forward_and_log_det(z)
        return jnp.where(self.stays, z, y), jnp.where(self.stays, 0.0, log_det)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        bijector = self.transform(self.conditioner(self._first_half(y)))
        z, log_det = bijector.inverse_and_log_det(y)
        return jnp.where(self.stays, y, z), jnp.where(self.stays, 0.0, log_det)

    def push_score(self, z: Array, score: Array) -> Array:
        """The score of log q at y = f(z), from that at z: J^-T (score - grad log|det J|) (Vaitl,
        Nicoli, Nakajima & Kessel 2022, eq. 16).

        J is triangular: with the second half's own slopes g' its score is h = (score - grad log g')
        / g', and the first half's is what is left of (score - grad log|det J|) less what h pulls
        back through the conditioner.
        """
        params, pull = jax.vjp(self.conditioner, self._first_half(z))

        def forward(params: Array) -> tuple[Array, Array]:
            return self.transform(params).forward_and_log_det(z)

        def log_dets(z: Array) -> tuple[Array, Array]:
            _, log_det = self.transform(params).forward_and_log_det(z)
            return jnp.sum(log_det), log_det

        slope, log_det = jax.grad(log_dets, has_aux=True)(z)
        h = jnp.where(self.stays, 0.0, (score - slope) * jnp.exp(-log_det))
        _, pull_params = jax.vjp(forward, params)
        (of_params,) = pull_params((h, jnp.where(self.stays, 0.0, 1.0)))
        (of_first_half,) = pull(of_params)
        return jnp.where(self.stays, score - of_first_half, h)


@dataclass(frozen=True, eq=False)
class Autoregressive(Record):
    """y_i = z_i exp(s_i) + t_i, where s_i and t_i are functions of the coordinates before i in a
    layer's order.

    One network gives them all, whose weights are masked (Germain et al. 2015). A hidden unit of
    degree d sees the coordinates at places 0..d, and the outputs at places above d see the unit.
    """

    hidden: int

    def init(self, key: Array, spec: jax.ShapeDtypeStruct) -> dict[str, Params]:
        size = spec.shape[0]
        first_key, second_key = jax.random.split(key)
        first = _dense(first_key, size, self.hidden)
        second = _dense(second_key, self.hidden, self.hidden)
        return {
            "network": [first, second],
            **_zero_readout(size, 2, self.hidden),
        }

    def bijector(self, params: Params, order: Array) -> Bijector:
        degree = jnp.arange(self.hidden) % max(order.size - 1, 1)
        first, second = params["network"]

        def transform(z: Array) -> Any:
            seen_inputs = degree[:, None] >= order[None, :]
            h = _masked(first, seen_inputs, z)
            seen_units = degree[:, None] >= degree[None, :]
            h = _masked(second, seen_units, h)
            seen_by_outputs = order[:, None] > degree[None, :]
            weights = params["readout"] * seen_by_outputs[:, None, :]
            return affine(_readout(weights, params["bias"], h))

        return _InOrder(transform, order.size)


def _masked(layer: Params, seen: Array, x: Array) -> Array:
    """tanh((w * seen) x + b), where seen_ij says whether unit i sees input j."""
    return jnp.tanh((layer["w"] * seen) @ x + layer["b"])


@dataclass(frozen=True)
class _InOrder:
    """y_i = g_i(z_i), where `transform(z)` makes g_i of the coordinates of z before i."""

    transform: Callable[[Array], Any]
    size: int

    def forward_and_log_det(self, z: Array) -> tuple[Array, Array]:
        return self.transform(z).forward_and_log_det(z)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        # Each pass makes one more coordinate right, in the layer's order, whatever it starts from.
        z = jax.lax.fori_loop(0, self.size, lambda _, z: self.transform(z).inverse(y), y)
        _, log_det = self.transform(z).forward_and_log_det(z)
        return z, -log_det
