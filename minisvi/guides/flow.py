"""Normalising flows: a base family pushed through invertible layers, in coordinates where the base
is about standard.

u = A(f_L(... f_1(A^-1(x)))), x ~ q_base, with A(z) = loc + L z the base's own affine map where it
has one. Every layer starts at the identity, so that a fit begins as its base. Layers are stacked
and scanned: one is compiled.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.guides.flow_layers import Autoregressive, Coupling, Spline, affine, mlp
from minisvi.guides.weights import Init, pair
from minisvi.guides.wrapped import Pushed
from minisvi.model import trees
from minisvi.tools import checks
from minisvi.tools.record import Record


@dataclass(frozen=True)
class Pushforward(Pushed):
    """log q(u) = log q_base(x) - sum_l log|det J_l|, with x the preimage of u."""

    layer: Any
    params: Any
    orders: Array

    @property
    def noise_dtype(self) -> Any:
        return trees.spec(self.latents).dtype

    def _push(self, x: Any, log_q: Array) -> tuple[Any, Array]:
        u, log_det = self._through(x, "forward_and_log_det", reverse=False)
        return u, log_q - log_det

    def log_prob(self, u: Any, /) -> Array:
        x, log_det = self._through(u, "inverse_and_log_det", reverse=True)
        return self.base.log_prob(x) + log_det

    def _through(self, tree: Any, method: str, reverse: bool) -> tuple[Any, Array]:
        def step(
            carry: tuple[Array, Array], layer: tuple[Any, Array]
        ) -> tuple[tuple[Array, Array], None]:
            z, total = carry
            z, log_det = getattr(self.layer.bijector(*layer), method)(z)
            # A network may compute in another precision than that of the latents.
            return (z.astype(total.dtype), total + jnp.sum(log_det).astype(total.dtype)), None

        loc, factor = self.base.affine() or (0.0, None)
        z = trees.ravel(self.latents, tree) - loc
        z = z if factor is None else factor.solve(z)
        (z, log_det), _ = jax.lax.scan(
            step, (z, jnp.zeros((), z.dtype)), (self.params, self.orders), reverse=reverse
        )
        z = z if factor is None else factor.times(z)
        return trees.unravel(self.latents, loc + z), log_det


@dataclass(frozen=True, eq=False)
class Flow(Record):
    """A flow guide; see `affine_coupling`, `spline_coupling` and `inverse_autoregressive`."""

    base: Any
    layer: Any
    num_layers: int

    @property
    def constrained(self) -> Any:
        return self.base.constrained

    @property
    def latents(self) -> Any:
        return self.base.latents

    def init(self, key: Array, /, base: Any = None, **start: Any) -> dict[str, Any]:
        base_key, *keys = jax.random.split(key, self.num_layers + 1)
        spec = trees.spec(self.latents)
        layers = jax.lax.map(lambda key: self.layer.init(key, spec), jnp.stack(keys))
        return {
            "base": self.base.init(base_key, **start) if base is None else base,
            "layers": layers,
        }

    def distribution(self, params: Any, /, *data: Any) -> Pushforward:
        q = self.base.distribution(params["base"], *data)
        return Pushforward(
            self.latents, q, self.layer, params["layers"], jnp.asarray(self._orders())
        )

    def _orders(self) -> np.ndarray:
        """The place of each coordinate in each layer's order, (L, D): permutations, each followed
        by its reverse.
        """
        size = trees.spec(self.latents).shape[0]
        orders = [
            np.random.default_rng(layer // 2).permutation(size) for layer in range(self.num_layers)
        ]
        return np.stack(
            [size - 1 - order if layer % 2 else order for layer, order in enumerate(orders)]
        )


def affine_coupling(
    guide: Any, num_layers: int = 8, network: tuple[Init | Any, Any] | None = None
) -> Flow:
    """RealNVP: half of the coordinates are scaled and shifted by a network of the other half (Dinh
    et al. 2017, eq. 7).

    **Arguments**

    - `guide`: the base, any family over all of u, such as `full_rank(latents)`.
    - `num_layers`: coupling layers; the halves are permuted at random and swap roles in every
      second one.
    - `network`: `(init, apply)`. `init(key, num_inputs)` returns the weights of a layer, or is a
      tree of arrays with which all layers start; `apply(weights, x)` returns a vector of features.
      `bnn.pure(module)` is such a pair of a Flax module of D inputs. By default it has two hidden
      layers of 64. A linear readout from zero follows.

    Parameters: `base`, the base family's, and `layers`, stacked. `init(key, base=params)` starts as
    a fitted base, `init(key, loc=u, cov=c)` as one at u. TypeError or ValueError unless num_layers
    is an integer >= 1, for another network, and for a base over theta.
    """
    return _flow(guide, Coupling(affine, 2, pair("`network`", network or mlp(64, 64))), num_layers)


def spline_coupling(
    guide: Any,
    num_layers: int = 8,
    network: tuple[Init | Any, Any] | None = None,
    num_bins: int = 8,
    bound: float = 5.0,
) -> Flow:
    """Coupling by monotone rational-quadratic splines of `num_bins` bins on [-bound, bound], in
    units of the base's scale (Durkan et al. 2019, section 3.1), each followed by the affine map of
    `affine_coupling`, for what lies beyond. Otherwise as `affine_coupling`. ValueError unless
    num_bins >= 1 and bound > 0.
    """
    if not bound > 0:
        raise ValueError(f"`bound` must be > 0; got {bound}")
    bins = checks.positive_integer("num_bins", num_bins)
    layer = Coupling(Spline(float(bound)), 3 * bins + 3, pair("`network`", network or mlp(64, 64)))
    return _flow(guide, layer, num_layers)


def inverse_autoregressive(guide: Any, num_layers: int = 4, hidden: int = 64) -> Flow:
    """Each coordinate scaled and shifted by a masked network of those before it (Kingma et al.
    2016, eq. 10; the masks: Germain et al. 2015). A draw takes one pass a layer; log q of any other
    point takes D, so that sticking the landing costs D passes too. Otherwise as `affine_coupling`.
    ValueError unless num_layers >= 1 and hidden >= 1.
    """
    return _flow(guide, Autoregressive(checks.positive_integer("hidden", hidden)), num_layers)


def _flow(guide: Any, layer: Any, num_layers: int) -> Flow:
    if not hasattr(guide, "latents") or any(jax.tree.leaves(guide.constrained)):
        raise TypeError(
            f"a flow's base: expected a guide over all of u, such as `full_rank(latents)`; got {guide!r}"
        )
    return Flow(guide, layer, checks.positive_integer("num_layers", num_layers))
