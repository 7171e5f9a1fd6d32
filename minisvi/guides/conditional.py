"""Parts of a product that depend on other parts' draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.weights import Init, Network, pair
from minisvi.guides.wrapped import Wrapper
from minisvi.model import trees


@dataclass(frozen=True, eq=False)
class Conditional(Wrapper):
    """See `conditional`."""

    guide: Any
    on: dict[str, Any]
    network: Network | None = None

    def init(self, key: Array, /) -> dict[str, Any]:
        guide_key, network_key = jax.random.split(key)
        params, weights = (
            self.guide.init(guide_key),
            {} if self.network is None else self.network[0](network_key),
        )
        draws = trees.unconstrained_like(self.on)
        size = jax.eval_shape(self._features, weights, draws).size
        readout = jax.tree.map(lambda leaf: jnp.zeros((*leaf.shape, size), leaf.dtype), params)
        return {"guide": params, "network": weights, "readout": readout}

    def _features(self, weights: Any, draws: Any) -> Array:
        context = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(draws)])
        return context if self.network is None else self.network[1](weights, context)

    def distribution(self, params: Any, draws: Any, /, *data: Any) -> Any:
        features = self._features(params["network"], draws)
        shifted = jax.tree.map(
            lambda leaf, w: leaf + w @ features, params["guide"], params["readout"]
        )
        return self.guide.distribution(shifted, *data)


def parts_of(name: str, on: Any) -> dict[str, Any]:
    """The latents of other parts by their path; TypeError unless `on` is a dict of them."""
    if not isinstance(on, dict):
        raise TypeError(
            f'{name}: expected `on` as a dict of latents, such as {{"g": latents["g"]}}; got {on!r}'
        )
    return {path: trees.latents_of(latents) for path, latents in on.items()}


def conditional(
    guide: Any, on: dict[str, Any], network: tuple[Init | Any, Callable[..., Array]] | None = None
) -> Conditional:
    """q(u | v) for a part of a `product`: every parameter of `guide` is phi + W h(v), v the draws
    of other parts.

    **Arguments**

    - `guide`: the family, such as `mean_field(latents["z"])`.
    - `on`: the latents of the parts that it depends on by their path in the product, such as `{"g":
      latents["g"]}`.
    - `network`: None for h(v) = v, all leaves as one vector; or `(init, apply)`, with `init(key) ->
      weights`, or a tree of arrays in its place, and `apply(weights, v) -> h`, a vector of any
      size, such as `bnn.pure(module)` gives.

    W (`readout`) starts at zero, so that the fit begins at the independent part. A Gaussian part
    that is linear in the draws of a Gaussian part makes any joint Gaussian (Tan & Nott 2018 build
    hierarchies so).
    """
    return Conditional(
        guide, parts_of("conditional", on), None if network is None else pair("`network`", network)
    )
