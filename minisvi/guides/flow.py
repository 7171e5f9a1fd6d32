"""Normalising flows: the draws of a base family go through invertible layers.

    u = A(f_L(... f_1(A^-1(x)))),  x ~ q_base

A(z) = loc + L z is the base's own affine map, if it has one, so that the layers f_l work in
coordinates where the base is about standard. Every layer starts at the identity, and a fit so at
its base. The layers' parameters are stacked and scanned over, so that one layer is compiled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import stop_gradient

from minisvi.guides.base import Distribution
from minisvi.guides.flow_layers import (
    Autoregressive,
    Bijector,
    Coupling,
    Spline,
    affine,
    mlp,
)
from minisvi.guides.foreign import member
from minisvi.guides.gaussian import Family
from minisvi.guides.location_scale import pulled_back
from minisvi.guides.weights import Init, pair
from minisvi.guides.wrapped import Pushed
from minisvi.model import trees
from minisvi.tools import checks
from minisvi.tools.record import Record
from minisvi.tools.types import Draw, Latents, Params

Layer = Coupling | Autoregressive
Passed = tuple[Array, Array]  # z, and the sum of the log-determinants so far
Direction = Callable[[Bijector, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Pushforward(Pushed):
    """q(u), where u comes from a draw x of the base.

        log q(u) = log q_base(x) - sum_l log |det J_l|

    J_l is the Jacobian of f_l where x passes through it; those of A and A^-1 cancel. `params` are
    the layers', stacked; `orders` (L, D) has the order of the coordinates in each layer.
    """

    layer: Layer
    params: Params
    orders: Array

    @property
    def noise_dtype(self) -> Any:
        return trees.spec(self.latents).dtype

    def _push(self, x: Draw, log_q: Array) -> tuple[Draw, Array]:
        u, log_det = self._through_layers(x, _forward, reverse=False)
        return u, log_q - log_det

    def log_prob(self, u: Draw, /) -> Array:
        x, log_det = self._through_layers(u, _inverse, reverse=True)
        return self.base.log_prob(x) + log_det

    def draw_and_score(self, noise: Array, stopped: Distribution) -> tuple[Draw, Array, Draw]:
        """The score of log q goes along with the draw from layer to layer, and no layer has to be
        inverted.
        """
        coupling = self.layer
        if not isinstance(stopped, Pushforward) or not isinstance(coupling, Coupling):
            return Distribution.draw_and_score(self, noise, stopped)
        x, log_q, score = self.base.draw_and_score(noise, stopped.base)
        loc, factor = _affine(self.base)

        def step(passed: Any, layer: Any) -> tuple[Any, None]:
            z, score, total = passed
            params, stopped_params, order = layer
            fixed = coupling.bijector(stopped_params, order)
            score = fixed.push_score(stop_gradient(z), score)
            z, log_det = coupling.bijector(params, order).forward_and_log_det(z)
            return (z.astype(score.dtype), score, total + jnp.sum(log_det)), None

        z = factor.solve(trees.ravel(self.latents, x) - loc)
        _, pull = jax.vjp(factor.times, stop_gradient(z))
        (score,) = pull(trees.ravel(self.latents, score))
        start = z, stop_gradient(score), jnp.zeros((), z.dtype)
        layers = self.params, stopped.params, self.orders
        (z, score, log_det), _ = jax.lax.scan(step, start, layers)
        u = trees.unravel(self.latents, loc + factor.times(z))
        score = stop_gradient(pulled_back(factor, score))
        return u, stop_gradient(log_q - log_det), trees.unravel(self.latents, score)

    def _through_layers(
        self, tree: Draw, direction: Direction, reverse: bool
    ) -> tuple[Draw, Array]:
        """The tree at the other end of the layers, and the log-determinant of the way there."""

        def step(passed: Passed, layer: tuple[Params, Array]) -> tuple[Passed, None]:
            z, total = passed
            params, order = layer
            z, log_det = direction(self.layer.bijector(params, order), z)
            # A network may compute in another precision than that of the latents.
            z = z.astype(total.dtype)
            log_det = jnp.sum(log_det).astype(total.dtype)
            return (z, total + log_det), None

        loc, factor = _affine(self.base)
        z = factor.solve(trees.ravel(self.latents, tree) - loc)
        start = (z, jnp.zeros((), z.dtype))
        layers = (self.params, self.orders)
        (z, log_det), _ = jax.lax.scan(step, start, layers, reverse=reverse)
        return trees.unravel(self.latents, loc + factor.times(z)), log_det


def _affine(base: Distribution) -> tuple[Any, Any]:
    """A's location and factor."""
    return base.affine() or (0.0, _Identity())


def _forward(bijector: Bijector, z: Array) -> tuple[Array, Array]:
    return bijector.forward_and_log_det(z)


def _inverse(bijector: Bijector, z: Array) -> tuple[Array, Array]:
    return bijector.inverse_and_log_det(z)


class _Identity(NamedTuple):
    """The factor of a base that has no affine map of its own."""

    def times(self, z: Array) -> Array:
        return z

    def solve(self, x: Array) -> Array:
        return x


@dataclass(frozen=True, eq=False)
class Flow(Record):
    """A flow guide; see `affine_coupling`, `spline_coupling` and `inverse_autoregressive`."""

    base: Any
    layer: Layer
    num_layers: int

    @property
    def constrained(self) -> Any:
        return self.base.constrained

    @property
    def latents(self) -> Latents:
        return self.base.latents

    def init(self, key: Array, /, base: Params | None = None, **start: Any) -> dict[str, Params]:
        base_key, *layer_keys = jax.random.split(key, self.num_layers + 1)
        spec = trees.spec(self.latents)
        layers = jax.lax.map(lambda key: self.layer.init(key, spec), jnp.stack(layer_keys))
        if base is None:
            base = self.base.init(base_key, **start)
        return {"base": base, "layers": layers}

    def distribution(self, params: Params, /, *data: Any) -> Pushforward:
        q = member(self.base, params["base"], *data)
        orders = jnp.asarray(self._orders())
        return Pushforward(self.latents, q, self.layer, params["layers"], orders)

    def _orders(self) -> np.ndarray:
        """(L, D): the place of each coordinate in the order of each layer.

        Every second layer has the reverse of the random order before it.
        """
        size = trees.spec(self.latents).shape[0]
        orders = []
        for layer in range(self.num_layers):
            order = np.random.default_rng(layer // 2).permutation(size)
            is_second = layer % 2 == 1
            orders.append(size - 1 - order if is_second else order)
        return np.stack(orders)


def affine_coupling(
    guide: Any, num_layers: int = 8, network: tuple[Init | Any, Any] | None = None
) -> Flow:
    """RealNVP: half of the coordinates are scaled and shifted by a network of the other half (Dinh
    et al. 2017, eq. 7).

    **Arguments**

    - `guide`: the base, any family over all of u, such as `full_rank(latents)`.
    - `num_layers`: the number of coupling layers. The coordinates are halved at random, and the
      halves swap roles in every second layer.
    - `network`: `(init, apply)`. `init(key, num_inputs)` returns the weights of a layer, or is a
      tree of arrays with which all layers start; `apply(weights, x)` returns a vector of features.
      `bnn.pure(module)` makes such a pair of a Flax module of D inputs. By default it has two
      hidden layers of 64. A linear readout follows, which starts at zero.

    Parameters: `base`, the base family's, and `layers`, stacked. `init(key, base=params)` starts at
    a fitted base, and `init(key, loc=u, cov=c)` at a base that starts there. TypeError or
    ValueError unless num_layers is an integer >= 1, for another network, and for a base over theta.
    """
    layer = Coupling(affine, num_params=2, network=pair("`network`", network or mlp(64, 64)))
    return _flow(guide, layer, num_layers)


def spline_coupling(
    guide: Any,
    num_layers: int = 8,
    network: tuple[Init | Any, Any] | None = None,
    num_bins: int = 8,
    bound: float = 5.0,
) -> Flow:
    """Coupling by monotone rational-quadratic splines (Durkan et al. 2019, section 3.1).

    A spline has `num_bins` bins on [-bound, bound], in units of the base's scale. The affine map of
    `affine_coupling` follows each, for what lies beyond. Otherwise as `affine_coupling`. ValueError
    unless num_bins >= 1 and bound > 0.
    """
    if not bound > 0:
        raise ValueError(f"`bound` must be > 0; got {bound}")
    bins = checks.positive_integer("num_bins", num_bins)
    layer = Coupling(
        Spline(float(bound)),
        num_params=3 * bins + 3,
        network=pair("`network`", network or mlp(64, 64)),
    )
    return _flow(guide, layer, num_layers)


def inverse_autoregressive(guide: Any, num_layers: int = 4, hidden: int = 64) -> Flow:
    """Each coordinate is scaled and shifted by a masked network of those before it (Kingma et al.
    2016, eq. 10; the masks: Germain et al. 2015).

    A draw takes one pass through each layer's network. log q of any other point takes D passes, and
    so does sticking the landing. Otherwise as `affine_coupling`. ValueError unless num_layers >= 1
    and hidden >= 1.
    """
    layer = Autoregressive(checks.positive_integer("hidden", hidden))
    return _flow(guide, layer, num_layers)


def _flow(guide: Any, layer: Layer, num_layers: int) -> Flow:
    if not hasattr(guide, "latents") or any(jax.tree.leaves(guide.constrained)):
        raise TypeError(
            "a flow's base: expected a guide over all of u, such as `full_rank(latents)`; "
            f"got {guide!r}"
        )
    return Flow(guide, layer, checks.positive_integer("num_layers", num_layers))


def check_about_standard(name: str, example: str, guide: Any) -> None:
    """TypeError unless `guide` is a Gaussian or a flow over one, which can start about N(0, I)."""
    innermost = guide
    while isinstance(innermost, Flow):
        innermost = innermost.base
    if not isinstance(innermost, Family):
        raise TypeError(
            f"{name}: expected a Gaussian, such as `{example}`, or a flow over one; got {guide!r}"
        )
