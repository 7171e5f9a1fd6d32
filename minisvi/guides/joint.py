"""q(u) = prod_i q_i(u_i | some of the others): distributions of parts, of which some may depend on
the draws of others.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import Distribution
from minisvi.guides.foreign import adapted, is_distribution
from minisvi.tools.names import named_leaves
from minisvi.tools.noise import pieces
from minisvi.tools.types import Draw

Draws = dict[str, Draw]  # of parts, by the part's path


@dataclass(frozen=True)
class Dependent(Distribution):
    """A part given the draws of others: `make(draws)` is its distribution, and `draws` are those of
    the parts named `on`.
    """

    on: tuple[str, ...]
    make: Callable[[Draws], Any]
    noise_size: int | None = None
    reparameterised: bool = True

    def given(self, draws: Draws) -> Distribution:
        return adapted(self.make({name: draws[name] for name in self.on}))

    def weighted(self, weight: Any, local: Any) -> "Dependent":
        def make(draws: Draws) -> Distribution:
            return adapted(self.make(draws)).weighted(weight, local)

        return replace(self, make=make)


@dataclass(frozen=True)
class Joint(Distribution):
    """q over a tree of distributions, each over a leaf, or a subtree, of the latents; some may
    depend on others.

        log q(u) = sum_i log q_i(u_i | u_on(i))

    A part may be a batch of independent scalars: its terms are summed.
    """

    parts: Any

    @property
    def _parts(self) -> dict[str, Distribution]:
        """The parts by their path."""
        named = named_leaves(self.parts, is_distribution)
        return {name: adapted(part) for name, part in named.items()}

    @property
    def _ordered(self) -> dict[str, Distribution]:
        """The parts by their path, each after those that it depends on."""
        waiting = self._parts
        ordered: dict[str, Distribution] = {}
        while waiting:
            ready = [name for name, part in waiting.items() if _needs(part) <= ordered.keys()]
            if not ready:
                needs = {n: part.on for n, part in waiting.items() if isinstance(part, Dependent)}
                raise ValueError(
                    f"parts depend on {needs}: expected parts of {[*ordered]}, and no circle"
                )
            for name in ready:
                ordered[name] = waiting.pop(name)
        return ordered

    def _tree(self, draws: Draws) -> Draw:
        treedef = jax.tree.structure(self.parts, is_leaf=is_distribution)
        return jax.tree.unflatten(treedef, [draws[name] for name in self._parts])

    def _draws(self, u: Draw) -> Draws:
        """The subtree of u that each part is over."""
        treedef: Any = jax.tree.structure(self.parts, is_leaf=is_distribution)
        return dict(zip(self._parts, treedef.flatten_up_to(u), strict=True))

    def _at(self, u: Draw) -> Iterator[tuple[Distribution, Draw]]:
        """Each part's distribution given the others, and its own subtree of u."""
        draws = self._draws(u)
        for name, part in self._ordered.items():
            yield _given(part, draws), draws[name]

    @property
    def noise_size(self) -> int | None:
        total = 0
        for part in self._ordered.values():
            if part.noise_size is None:
                return None
            total += part.noise_size
        return total

    @property
    def reparameterised(self) -> bool:
        return all(part.reparameterised for part in self._ordered.values())

    @property
    def stratified(self) -> bool:
        return any(part.stratified for part in self._ordered.values())

    def _pieces(self, noise: Array) -> Iterator[tuple[str, Distribution, Array]]:
        """Each part with its own piece of the noise."""
        ordered = self._ordered
        sizes = [part.noise_size for part in ordered.values()]
        for (name, part), piece in zip(ordered.items(), pieces(noise, sizes), strict=True):
            yield name, part, piece

    def from_noise(self, noise: Array) -> tuple[Draw, Array]:
        draws: Draws = {}
        terms = []
        for name, part, piece in self._pieces(noise):
            draws[name], log_q = _given(part, draws).draw(piece)
            terms.append(log_q)
        return self._tree(draws), jnp.asarray(sum(terms, 0.0))

    def strata(self, noise: Array) -> tuple[Draw, Array, Array]:
        """All combinations of the parts' strata: the first part's C_1 draws, each with the second
        part's C_2, and so on.
        """
        draws: Draws = {}
        log_q = jnp.zeros(1)
        log_weight = jnp.zeros(1)
        for name, part, piece in self._pieces(noise):

            def strata(draws: Draws, part: Any = part, piece: Array = piece) -> Any:
                return _given(part, draws).strata(piece)

            num_before = log_q.size
            u, part_log_q, part_log_weight = jax.vmap(strata, axis_size=num_before)(draws)
            num_own = part_log_weight.shape[1]
            draws = _repeated(draws, num_own)
            draws[name] = jax.tree.map(_flat, u)
            log_q = _flat(log_q[:, None] + part_log_q)
            log_weight = _flat(log_weight[:, None] + part_log_weight)
        return self._tree(draws), log_q, log_weight

    def log_prob(self, u: Draw, /) -> Array:
        terms = [part.log_prob(own) for part, own in self._at(u)]
        return jnp.asarray(sum(terms, 0.0))

    def score_log_prob(self, u: Draw) -> Array:
        terms = [part.score_log_prob(own) for part, own in self._at(u)]
        return jnp.asarray(sum(terms, 0.0))

    def entropy(self) -> Array:
        terms = [part.entropy() for part in self._ordered.values()]
        return jnp.asarray(sum(terms, 0.0))

    def weighted(self, weight: Any, local: Any) -> "Joint":
        def one(part: Any, local_of_part: Any) -> Distribution:
            return adapted(part).weighted(weight, local_of_part)

        return replace(self, parts=jax.tree.map(one, self.parts, local, is_leaf=is_distribution))

    def parts_at(self, u: Draw) -> Any:
        draws = self._draws(u)

        def one(part: Any) -> Any:
            return part.given(draws) if isinstance(part, Dependent) else part

        return jax.tree.map(one, self.parts, is_leaf=is_distribution)


def _needs(part: Any) -> set[str]:
    return set(part.on) if isinstance(part, Dependent) else set()


def _given(part: Distribution, draws: Draws) -> Distribution:
    return part.given(draws) if isinstance(part, Dependent) else part


def _repeated(draws: Draws, num: int) -> Draws:
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, num, axis=0), draws)


def _flat(leaf: Array) -> Array:
    """The two leading axes as one."""
    return leaf.reshape(-1, *leaf.shape[2:])
