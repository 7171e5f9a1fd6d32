"""q_phi(u): the contract of a guide, and custom guides around any distribution.

A guide is a family of distributions over the latents: two pure functions in a frozen, hashable record. Its parameters
phi are a plain pytree outside it, so the family with its gradient stopped is `distribution(stop_gradient(params))`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.record import Record


class Distribution(Protocol):
    """q, one member of a family. Draws are trees like the model's latents; log densities are scalars in nats."""

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Any, Array]:
        """A reparameterised draw u and log q(u), in one pass."""
        ...

    def log_prob(self, u: Any, /) -> Array:
        """log q(u)."""
        ...

    # Where it is known, also `entropy() -> Array`, H[q] = -E_q[log q].


class Guide(Protocol):
    """A family of distributions. `constrained` is a bool, or a prefix tree of bools over the latents: True where the
    draws are theta itself, inside the support, rather than u.
    """

    @property
    def constrained(self) -> Any: ...

    def init(self, key: Array, /) -> Any:
        """Initial parameters, a pytree of floats."""
        ...

    def distribution(self, params: Any, /, *data: Any) -> Distribution:
        """The member of the family at `params`; `data` serves amortised guides, and others ignore it."""
        ...


def is_distribution(node: Any) -> bool:
    """True for a Distrax, TFP or minisvi distribution (TFP has no `sample_and_log_prob` of this name)."""
    return hasattr(node, "sample_and_log_prob") or hasattr(node, "experimental_sample_and_log_prob")


@dataclass(frozen=True)
class Independent:
    """q(u) = prod_i q_i(u_i) over a tree of distributions, each over a leaf, or a subtree, of the latents."""

    parts: Any

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Any, Array]:
        parts, treedef = jax.tree.flatten(self.parts, is_leaf=is_distribution)
        pairs = [_draw(part, key) for part, key in zip(parts, jax.random.split(seed, len(parts)), strict=True)]
        return jax.tree.unflatten(treedef, [u for u, _ in pairs]), _total([log_q for _, log_q in pairs])

    def log_prob(self, u: Any) -> Array:
        terms = jax.tree.map(lambda part, leaf: part.log_prob(leaf), self.parts, u, is_leaf=is_distribution)
        return _total(jax.tree.leaves(terms))

    def entropy(self) -> Array:
        return _total([part.entropy() for part in jax.tree.leaves(self.parts, is_leaf=is_distribution)])


def _draw(part: Any, key: Array) -> tuple[Any, Array]:
    if hasattr(part, "sample_and_log_prob"):
        return part.sample_and_log_prob(seed=key)
    return part.experimental_sample_and_log_prob(seed=key)


def _total(terms: list[Array]) -> Array:
    # A part may be a batch of independent scalars, such as Normal(loc, scale) with vectors: its terms are summed too.
    return jnp.asarray(sum(jnp.sum(term) for term in terms))


@dataclass(frozen=True, eq=False)
class Custom(Record):
    """See `custom`."""

    init: Callable[[Array], Any]
    family: Callable[..., Any]
    constrained: Any = False

    def distribution(self, params: Any, /, *data: Any) -> Independent:
        return Independent(self.family(params, *data))


def custom(init: Callable[[Array], Any], distribution: Callable[..., Any], constrained: Any = False) -> Custom:
    """A guide of your own: any Distrax or TFP distribution, or a tree of them shaped like the latents.

    **Arguments**

    - `init(key)`: the initial parameters, any pytree of floats.
    - `distribution(params, *data)`: the distribution, or the tree of them, independent of each other. It is given the
      data because a guide may be amortised; one that is not takes `*_`.
    - `constrained`: a bool, or a prefix tree of bools over the latents. True where the draws are theta itself, such as
      those of a Gamma for a positive latent; False where they are u.

    Draws must be reparameterised: Gamma and Beta are, through implicit gradients (Figurnov et al. 2018).
    """
    return Custom(init, distribution, constrained)
