"""q(u) = prod_i q_i(u_i | some of the others): distributions of parts, products of guides, and
guides of your own.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides import base
from minisvi.tools import checks


@dataclass(frozen=True)
class Dependent:
    """A part given the draws of others: `make(draws)` is its distribution, `draws` those of the
    parts named `on`.
    """

    on: tuple[str, ...]
    make: Callable[[dict[str, Any]], Any]
    noise_size: int | None = None
    reparameterised: bool = True

    def weighted(self, weight: Any) -> "Dependent":
        return replace(self, make=lambda draws: base.weighted(self.make(draws), weight))


def _is_part(node: Any) -> bool:
    return isinstance(node, Dependent) or base.is_distribution(node)


@dataclass(frozen=True)
class Joint(base.FromNoise):
    """q over a tree of distributions, each over a leaf, or a subtree, of the latents; some may
    depend on others.

    log q(u) = sum_i log q_i(u_i | u_on(i)). A part may be a batch of independent scalars: its terms
    are summed.
    """

    parts: Any

    @property
    def _named(self) -> dict[str, Any]:
        """Parts by path, each after those that it depends on."""
        waiting: dict[str, Any] = checks.named_leaves(self.parts, _is_part)
        order: dict[str, Any] = {}
        while waiting:
            ready = [
                n for n, part in waiting.items() if all(d in order for d in getattr(part, "on", ()))
            ]
            if not ready:
                needs = {
                    name: part.on for name, part in waiting.items() if isinstance(part, Dependent)
                }
                raise ValueError(
                    f"parts depend on {needs}: expected parts of {[*order]}, and no circle"
                )
            order |= {name: waiting.pop(name) for name in ready}
        return order

    def resolved(self, u: Any) -> "Joint":
        """The same at u, where every part is a distribution of its own."""
        named = self._named
        qs = {name: q for name, (q, _) in zip(named, self._at(u), strict=True)}
        return Joint(self._tree(qs))

    def _tree(self, draws: dict[str, Any]) -> Any:
        treedef = jax.tree.structure(self.parts, is_leaf=_is_part)
        return jax.tree.unflatten(
            treedef, [draws[name] for name in checks.named_leaves(self.parts, _is_part)]
        )

    def _at(self, u: Any) -> list[tuple[Any, Any]]:
        """Each part's distribution, and its subtree of u."""
        named = self._named
        subtrees = dict(
            zip(checks.named_leaves(self.parts, _is_part), self._flatten(u), strict=True)
        )
        return [(_resolve(part, subtrees), subtrees[name]) for name, part in named.items()]

    def _flatten(self, u: Any) -> list[Any]:
        structure: Any = jax.tree.structure(self.parts, is_leaf=_is_part)
        return structure.flatten_up_to(u)

    @property
    def noise_size(self) -> int | None:
        sizes = [base.noise_size(part) for part in self._named.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def from_noise(self, noise: Array) -> tuple[Any, Array]:
        draws: dict[str, Any] = {}
        total = []
        for (name, part), piece in self._pieces(noise):
            draws[name], log_q = base.draw(_resolve(part, draws), piece)
            total.append(jnp.sum(log_q))
        return self._tree(draws), jnp.asarray(sum(total, 0.0))

    def _pieces(self, noise: Array) -> Any:
        named = self._named.items()
        if not jnp.issubdtype(noise.dtype, jnp.floating):
            return zip(named, jax.random.split(noise, len(named)), strict=True)
        ends = itertools.accumulate(base.noise_size(part) or 0 for _, part in named)
        return zip(named, jnp.split(noise, list(ends)))  # and what is left, of size zero

    @property
    def stratified(self) -> bool:
        return any(base.is_stratified(part) for part in self._named.values())

    def strata(self, noise: Array) -> tuple[Any, Array, Array]:
        """All combinations of the parts' strata: the first part's C_1 draws, each with the second
        part's C_2, ...
        """
        draws: dict[str, Any] = {}
        log_q = log_weight = jnp.zeros(1)
        for (name, part), piece in self._pieces(noise):

            def one(draws: dict[str, Any], part: Any = part, piece: Any = piece) -> Any:
                return base.strata(_resolve(part, draws), piece)

            num = log_q.size
            u, part_log_q, part_log_weight = jax.vmap(one, axis_size=num)(draws)
            count = part_log_weight.shape[1]
            draws = jax.tree.map(lambda leaf, count=count: jnp.repeat(leaf, count, axis=0), draws)
            draws[name] = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), u)
            part_log_q = part_log_q.reshape(num, count, -1).sum(-1)
            log_q = (log_q[:, None] + part_log_q).ravel()
            log_weight = (log_weight[:, None] + part_log_weight).ravel()
        return self._tree(draws), log_q, log_weight

    def log_prob(self, u: Any, /) -> Array:
        return jnp.asarray(sum((jnp.sum(q.log_prob(part)) for q, part in self._at(u)), 0.0))

    def score_log_prob(self, u: Any) -> Array:
        return jnp.asarray(sum((base.score_log_prob(q, part) for q, part in self._at(u)), 0.0))

    @property
    def reparameterised(self) -> bool:
        return all(base.is_reparameterised(part) for part in self._named.values())

    def entropy(self) -> Array:
        return jnp.asarray(sum((base.entropy(part) for part in self._named.values()), 0.0))

    def weighted(self, weight: Any) -> "Joint":
        return Joint(
            jax.tree.map(lambda part: base.weighted(part, weight), self.parts, is_leaf=_is_part)
        )


def _resolve(part: Any, draws: dict[str, Any]) -> Any:
    return (
        part.make({name: draws[name] for name in part.on}) if isinstance(part, Dependent) else part
    )
