"""Discrete guides: an independent categorical for each finite latent."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr

from minisvi.guides.base import FromNoise
from minisvi.model import trees
from minisvi.tools import checks
from minisvi.tools.record import Record


@dataclass(frozen=True)
class Categoricals(FromNoise):
    """z_i ~ Categorical(softmax(logits_i)) for a tree of logits (*shape, n); by inversion of one
    normal each.
    """

    logits: Any
    reparameterised = False

    @property
    def noise_size(self) -> int:
        return sum(leaf[..., 0].size for leaf in jax.tree.leaves(self.logits))

    def from_noise(self, eps: Array) -> tuple[Any, Array]:
        leaves, treedef = jax.tree.flatten(self.logits)
        draws, start = [], 0
        for logits in leaves:
            shape, end = logits.shape[:-1], start + logits[..., 0].size
            cdf = jnp.cumsum(jax.nn.softmax(logits), axis=-1)[..., :-1]
            draws.append(
                jnp.sum(ndtr(eps[start:end]).reshape(*shape, 1) > cdf, axis=-1, dtype=jnp.int32)
            )
            start = end
        z = jax.tree.unflatten(treedef, draws)
        return z, self.log_prob(z)

    def log_prob(self, z: Any, /) -> Array:
        def term(logits: Array, z: Array) -> Array:
            return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), z[..., None], axis=-1))

        return jnp.asarray(sum(jax.tree.leaves(jax.tree.map(term, self.logits, z)), 0.0))

    def entropy(self) -> Array:
        terms = [
            -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x))
            for x in jax.tree.leaves(self.logits)
        ]
        return jnp.asarray(sum(terms, 0.0))


@dataclass(frozen=True, eq=False)
class Categorical(Record):
    """See `categorical`."""

    latents: Any
    constrained = False

    def __post_init__(self) -> None:
        for name, support in checks.named_leaves(self.latents).items():
            if support.num_values is None:
                raise ValueError(
                    f"categorical: expected a `finite` support for latent `{name}`; got {support}"
                )

    def init(self, key: Array, /) -> Any:
        del key
        return jax.tree.map(lambda s: jnp.zeros((*s.shape, s.num_values)), self.latents)

    def distribution(self, params: Any, /, *data: Any) -> Categoricals:
        del data
        return Categoricals(params)


def categorical(latents: Any) -> Categorical:
    """Independent categoricals over a tree of `finite` latents, for `gradient="score_function"`.

    Parameters: logits (*shape, n) for each latent, zero at first, which is the uniform
    distribution. ValueError for a latent that is not finite.
    """
    return Categorical(trees.latents_of(latents))
