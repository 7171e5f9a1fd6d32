"""Products of guides: one for each latent, or subtree of latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import is_reparameterised, noise_size
from minisvi.guides.foreign import adapted
from minisvi.guides.joint import Dependent, Joint
from minisvi.model import trees
from minisvi.tools import checks
from minisvi.tools.record import Record


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
