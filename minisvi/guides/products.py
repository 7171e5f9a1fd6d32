"""Guides made of guides: products of parts, parts that depend on other parts' draws, and guides of
your own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import is_reparameterised, noise_size
from minisvi.guides.foreign import adapted
from minisvi.guides.joint import Dependent, Joint
from minisvi.guides.weights import Init, Network, pair
from minisvi.guides.wrapped import Wrapper
from minisvi.model import trees
from minisvi.tools import checks
from minisvi.tools.record import Record
from minisvi.tools.tracing import fresh


@dataclass(frozen=True, eq=False)
class Custom(Record):
    """See `custom`."""

    init: Callable[[Array], Any]
    family: Callable[..., Any]
    constrained: Any = False

    def distribution(self, params: Any, /, *data: Any) -> Joint:
        return Joint(self.family(params, *fresh(data)))


def custom(
    init: Callable[[Array], Any], distribution: Callable[..., Any], constrained: Any = False
) -> Custom:
    """A guide of your own: any Distrax or TFP distribution, or a tree of them shaped like the
    latents.

    **Arguments**

    - `init(key)`: the initial parameters, any pytree of floats.
    - `distribution(params, *data)`: the distribution, or the tree of them, independent of each
      other. It is given the data because a guide may be amortised; one that is not takes `*_`.
    - `constrained`: a bool, or a prefix tree of bools over the latents. True where the draws are
      theta itself, such as those of a Gamma for a positive latent; False where they are u.

    Draws should be reparameterised: Gamma and Beta are, through implicit gradients (Figurnov et al.
    2018). Parts that are not (integers, or an attribute `reparameterised = False`) need
    `gradient="score_function"`.
    """
    return Custom(init, distribution, constrained)


def _is_guide(node: Any) -> bool:
    return hasattr(node, "init") and hasattr(node, "distribution")


@dataclass(frozen=True, eq=False)
class Product(Record):
    """See `product`."""

    parts: Any

    def __post_init__(self) -> None:
        for name, part in checks.named_leaves(self.parts, _is_guide, "product").items():
            if not _is_guide(part):
                raise TypeError(f"product: expected a guide for `{name}`; got {part!r}")

    @property
    def constrained(self) -> Any:
        return jax.tree.map(lambda guide: guide.constrained, self.parts, is_leaf=_is_guide)

    @property
    def latents(self) -> Any:
        return jax.tree.map(lambda guide: guide.latents, self.parts, is_leaf=_is_guide)

    def init(self, key: Array, /) -> Any:
        guides, treedef = jax.tree.flatten(self.parts, is_leaf=_is_guide)
        return jax.tree.unflatten(
            treedef, [g.init(k) for g, k in zip(guides, jax.random.split(key, len(guides)))]
        )

    def distribution(self, params: Any, /, *data: Any) -> Joint:
        guides = checks.named_leaves(self.parts, _is_guide)
        treedef: Any = jax.tree.structure(self.parts, is_leaf=_is_guide)
        given = dict(zip(guides, treedef.flatten_up_to(params)))
        free = {
            n: g.distribution(given[n], *data)
            for n, g in guides.items()
            if not getattr(g, "on", None)
        }

        def standard(draws: dict[str, Any]) -> dict[str, Any]:
            return {
                n: _standard(guides[n], free[n], u) if n in free else u for n, u in draws.items()
            }

        parts = [
            free[n] if n in free else _part(g, given[n], standard, data) for n, g in guides.items()
        ]
        return Joint(treedef.unflatten(parts))


def _standard(guide: Any, q: Any, u: Any) -> Any:
    """L^-1 (u - loc) of a Gaussian part: of mean zero wherever the fit has brought it. u itself of
    another part.
    """
    affine = adapted(q).affine()
    if affine is None:
        return u
    loc, factor = affine
    return trees.unravel(guide.latents, factor.solve(trees.ravel(guide.latents, u) - loc))


def _part(guide: Any, params: Any, standard: Callable[..., Any], data: tuple[Any, ...]) -> Any:
    on = guide.on
    # What does not depend on the draws is read off the distribution at zero; nothing of it is
    # computed.
    at_zero = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        trees.unconstrained_like(trees.with_rows(dict(on), data)),
    )
    q = guide.distribution(params, at_zero, *data)
    return Dependent(
        tuple(on),
        lambda u: guide.distribution(params, standard(u), *data),
        noise_size(q),
        is_reparameterised(q),
    )


def product(parts: Any) -> Product:
    """q(u) = prod_i q_i(u_i): a guide for each latent, or subtree of latents.

    `parts` is a tree of guides in the shape of the latents, such as `{"w": full_rank(latents["w"]),
    "tau": ...}`; a part may be a `conditional` on others, a `delta` (a learnable constant), over
    theta, local or discrete. The parameters are a tree of the parts' own. TypeError for what is no
    guide; ValueError if conditional parts form a circle.
    """
    return Product(parts)


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
