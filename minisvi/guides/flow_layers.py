"""The layers of a flow: Distrax bijectors of vectors, with parameters from a network whose readout
starts at zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.weights import Network
from minisvi.tools.noise import normals
from minisvi.tools.record import Record


def affine(params: Array) -> Any:
    """z -> z exp(s) + t from params (..., 2), s softly clipped to (-3, 3).

    The clip keeps draws finite. Andrade (2024) has 0.1 for its upper limit, which triples the gap
    on Neal's funnel.
    """
    import distrax  # heavy (it brings TFP), so only when a flow is used

    return distrax.ScalarAffine(params[..., 0], log_scale=_soft_clip(params[..., 1], 3.0))


@dataclass(frozen=True)
class Spline:
    """A monotone rational-quadratic spline on [-bound, bound], then `affine`, from params (..., 3
    bins + 3).

    The spline alone is the identity beyond its bound, where tails would be out of its reach. Its
    parameters are softly clipped to (-1, 1): slopes without a limit are soon so steep that float32
    cannot invert them.
    """

    bound: float

    def __call__(self, params: Array) -> Any:
        import distrax

        bins = _soft_clip(params[..., 2:], 1.0)
        inner = distrax.RationalQuadraticSpline(
            bins, -self.bound, self.bound, boundary_slopes="identity"
        )
        return distrax.Chain([affine(params[..., :2]), inner])


def _soft_clip(x: Array, limit: float) -> Array:
    return 2 / jnp.pi * limit * jnp.arctan(x / limit)


def mlp(*hidden: int) -> Network:
    """`(init, apply)` of a fully connected network, features of the last hidden size."""
    return _MLPInit(hidden), _apply_mlp


@dataclass(frozen=True)
class _MLPInit:
    hidden: tuple[int, ...]

    def __call__(self, key: Array, num_inputs: int) -> list[dict[str, Array]]:
        sizes, keys = (num_inputs, *self.hidden), jax.random.split(key, len(self.hidden))
        return [_dense(k, n, m) for k, n, m in zip(keys, sizes, self.hidden)]


def _apply_mlp(weights: list[dict[str, Array]], x: Array) -> Array:
    for layer in weights:
        x = jnp.tanh(layer["w"] @ x + layer["b"])
    return x


def _dense(key: Array, num_inputs: int, num_outputs: int) -> dict[str, Array]:
    w = normals(key, (num_outputs, num_inputs)) / max(num_inputs, 1) ** 0.5
    return {"w": w, "b": jnp.zeros(num_outputs)}


def _readout(params: Any, weights: Array, features: Array) -> Array:
    # Over the root of the width, so that a step of the optimiser moves a wide layer no further than
    # a narrow one.
    return weights @ features / features.size**0.5 + params["bias"]


@dataclass(frozen=True, eq=False)
class Coupling(Record):
    """The first half of the coordinates, in a layer's order, stay and feed the network; `transform`
    moves the rest.
    """

    transform: Callable[[Array], Any]
    num_params: int
    network: Network

    def init(self, key: Array, spec: jax.ShapeDtypeStruct) -> dict[str, Any]:
        weights = self.network[0](key, spec.shape[0])
        features = jax.eval_shape(self.network[1], weights, spec)
        return {
            "network": weights,
            "readout": jnp.zeros((spec.shape[0], self.num_params, features.size)),
            "bias": jnp.zeros((spec.shape[0], self.num_params)),
        }

    def bijector(self, params: Any, order: Array) -> Any:
        import distrax

        def conditioner(x: Array) -> Array:
            return _readout(params, params["readout"], self.network[1](params["network"], x))

        return distrax.MaskedCoupling(order < order.size // 2, conditioner, self.transform)


@dataclass(frozen=True, eq=False)
class Autoregressive(Record):
    """z_i -> z_i exp(s_i) + t_i with s_i and t_i functions of the coordinates before i in a layer's
    order (MADE).
    """

    hidden: int

    def init(self, key: Array, spec: jax.ShapeDtypeStruct) -> dict[str, Any]:
        size, (one, two) = spec.shape[0], jax.random.split(key)
        layers = [_dense(one, size, self.hidden), _dense(two, self.hidden, self.hidden)]
        return {
            "network": layers,
            "readout": jnp.zeros((size, 2, self.hidden)),
            "bias": jnp.zeros((size, 2)),
        }

    def bijector(self, params: Any, order: Array) -> Any:
        degree = jnp.arange(self.hidden) % max(order.size - 1, 1)
        first, second = params["network"]

        def transform(z: Array) -> Any:
            h = jnp.tanh((first["w"] * (degree[:, None] >= order[None, :])) @ z + first["b"])
            h = jnp.tanh((second["w"] * (degree[:, None] >= degree[None, :])) @ h + second["b"])
            seen = (order[:, None] > degree[None, :])[:, None, :]
            return affine(_readout(params, params["readout"] * seen, h))

        return _Sequential(transform, order.size)


@dataclass(frozen=True)
class _Sequential:
    transform: Callable[[Array], Any]
    size: int

    def forward_and_log_det(self, z: Array) -> tuple[Array, Array]:
        return self.transform(z).forward_and_log_det(z)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        # Each pass makes one more coordinate right, in the layer's order, whatever it starts from.
        z = jax.lax.fori_loop(0, self.size, lambda _, z: self.transform(z).inverse(y), y)
        return z, -self.transform(z).forward_and_log_det(z)[1]
