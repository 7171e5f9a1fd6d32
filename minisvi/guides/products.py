"""Products of guides: one guide for each latent, or subtree of latents."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.foreign import adapted, member
from minisvi.guides.joint import Dependent, Draws, Joint
from minisvi.model import trees
from minisvi.tools.names import named_leaves
from minisvi.tools.record import Record
from minisvi.tools.types import Data, Draw, Params


def _is_guide(node: Any) -> bool:
    return hasattr(node, "init") and hasattr(node, "distribution")


@dataclass(frozen=True, eq=False)
class Product(Record):
    """See `product`."""

    parts: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, part in named_leaves(self.parts, _is_guide, "product").items():
            if not _is_guide(part):
                raise TypeError(f"product: expected a guide for `{name}`; got {part!r}")

    @property
    def constrained(self) -> Any:
        return jax.tree.map(lambda guide: guide.constrained, self.parts, is_leaf=_is_guide)

    @property
    def latents(self) -> Any:
        return jax.tree.map(lambda guide: guide.latents, self.parts, is_leaf=_is_guide)

    def init(self, key: Array, /) -> Params:
        guides, treedef = jax.tree.flatten(self.parts, is_leaf=_is_guide)
        keys = jax.random.split(key, len(guides))
        params = [guide.init(own) for guide, own in zip(guides, keys, strict=True)]
        return jax.tree.unflatten(treedef, params)

    def distribution(self, params: Params, /, *data: Any) -> Joint:
        guides = named_leaves(self.parts, _is_guide)
        treedef: Any = jax.tree.structure(self.parts, is_leaf=_is_guide)
        given = dict(zip(guides, treedef.flatten_up_to(params), strict=True))
        independent = {}
        for name, guide in guides.items():
            if not _depends(guide):
                independent[name] = guide.distribution(given[name], *data)
        standardised = partial(_standardised, guides, independent)
        parts = dict(independent)
        for name, guide in guides.items():
            if _depends(guide):
                parts[name] = _dependent(guide, given[name], standardised, data)
        return Joint(treedef.unflatten([parts[name] for name in guides]))


def _depends(guide: Any) -> bool:
    """True of a part with a dict `on` of other parts, whose draws it is given."""
    return bool(getattr(guide, "on", None))


def _standardised(guides: dict[str, Any], independent: dict[str, Any], draws: Draws) -> Draws:
    """The draws, with those of independent parts that are about Gaussian brought to about the
    standard normal. What a dependent part has learnt of them then holds wherever the fit moves
    them.
    """
    moved = dict(draws)
    for name, u in draws.items():
        if name in independent:
            moved[name] = _standard(guides[name], independent[name], u)
    return moved


def _standard(guide: Any, q: Any, u: Draw) -> Draw:
    """L^-1 (u - loc) if q is about Gaussian, as a tree like u; u itself if it is not."""
    affine = adapted(q).affine()
    if affine is None:
        return u
    loc, factor = affine
    z = factor.solve(trees.ravel(guide.latents, u) - loc)
    return trees.unravel(guide.latents, z)


def _dependent(
    guide: Any, params: Params, standardised: Callable[[Draws], Draws], data: Data
) -> Dependent:
    """The part that depends on others, as a function of their draws."""

    def make(draws: Draws) -> Any:
        return guide.distribution(params, standardised(draws), *data)

    # What does not depend on the draws is read off the distribution at zero. Nothing of it is
    # computed.
    shapes = trees.unconstrained_like(trees.with_rows(dict(guide.on), data))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    at_zero = member(guide, params, zeros, *data)
    return Dependent(tuple(guide.on), make, at_zero.noise_size, at_zero.reparameterised)


def product(parts: Any) -> Product:
    """q(u) = prod_i q_i(u_i): a guide for each latent, or subtree of latents.

    `parts` is a tree of guides in the form of the latents, such as `{"w": full_rank(latents["w"]),
    "tau": ...}`. A part may be a `conditional` on others, a `delta` (a learnable constant), over
    theta, local or discrete. The parameters are a tree of the parts' own. TypeError for what is no
    guide; ValueError if conditional parts form a circle.
    """
    return Product(parts)
