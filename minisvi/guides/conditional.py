"""Parts of a product that depend on the draws of other parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.joint import Draws
from minisvi.guides.weights import Init, Network, pair
from minisvi.guides.wrapped import Wrapper
from minisvi.model import trees
from minisvi.tools.types import Latents, Params


@dataclass(frozen=True, eq=False)
class Conditional(Wrapper):
    """See `conditional`."""

    guide: Any
    on: dict[str, Latents]
    network: Network | None = None

    def init(self, key: Array, /) -> dict[str, Params]:
        guide_key, network_key = jax.random.split(key)
        phi = self.guide.init(guide_key)
        weights = {} if self.network is None else self.network.init(network_key)
        draws = trees.unconstrained_like(self.on)
        size = jax.eval_shape(self._features, weights, draws).size
        readout = jax.tree.map(lambda leaf: jnp.zeros((*leaf.shape, size), leaf.dtype), phi)
        return {"guide": phi, "network": weights, "readout": readout}

    def _features(self, weights: Params, draws: Draws) -> Array:
        """h(v), a vector, where v has all leaves of the draws."""
        vectors = [jnp.ravel(leaf) for leaf in jax.tree.leaves(draws)]
        v = jnp.concatenate(vectors)
        return v if self.network is None else self.network.apply(weights, v)

    def distribution(self, params: Params, draws: Draws, /, *data: Any) -> Any:
        h = self._features(params["network"], draws)
        shifted = jax.tree.map(lambda phi, w: phi + w @ h, params["guide"], params["readout"])
        return self.guide.distribution(shifted, *data)


def parts_of(name: str, on: Any) -> dict[str, Latents]:
    """The latents of each part that another one depends on, by the part's path; TypeError unless
    `on` is a dict of them.
    """
    if not isinstance(on, dict):
        raise TypeError(
            f'{name}: expected `on` as a dict of latents, such as {{"g": latents["g"]}}; got {on!r}'
        )
    return {path: trees.latents_of(latents) for path, latents in on.items()}


def conditional(
    guide: Any,
    on: dict[str, Latents],
    network: tuple[Init | Params, Callable[..., Array]] | None = None,
) -> Conditional:
    """q(u | v) for a part of a `product`, where v is what other parts have drawn: every parameter
    of `guide` is phi + W h(v).

    **Arguments**

    - `guide`: the family, such as `mean_field(latents["z"])`.
    - `on`: the latents of the parts that it depends on, by their path in the product, such as
      `{"g": latents["g"]}`.
    - `network`: None for h(v) = v, all leaves as one vector; or `(init, apply)`. `init(key)`
      returns weights, or is a tree of arrays; `apply(weights, v)` returns h, a vector of any size.
      `bnn.pure(module)` gives such a pair.

    Parameters: `guide` (phi), `network`, and `readout` (W), which is zero at first, so that the fit
    begins at the independent part. A Gaussian part that is linear in the draws of a Gaussian part
    makes any joint Gaussian (Tan & Nott 2018 build hierarchies so).
    """
    parts = parts_of("conditional", on)
    features = None if network is None else pair("`network`", network)
    return Conditional(guide, parts, features)
