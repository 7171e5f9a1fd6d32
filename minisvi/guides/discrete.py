"""Discrete guides: an independent categorical for each finite latent."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr

from minisvi.guides.base import Distribution
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools.names import named_leaves
from minisvi.tools.record import Record
from minisvi.tools.types import Draw, Latents, Params


@dataclass(frozen=True)
class Categoricals(Distribution):
    """z_i ~ Categorical(softmax(logits_i)), all independent.

    `logits` is a tree whose leaves have shape (*shape, n); a draw z has integers of shape (*shape,)
    in their place, each made of one standard normal.
    """

    logits: Any
    reparameterised = False

    @property
    def noise_size(self) -> int:
        return sum(_num_draws(leaf) for leaf in jax.tree.leaves(self.logits))

    def from_noise(self, eps: Array) -> tuple[Draw, Array]:
        leaves, treedef = jax.tree.flatten(self.logits)
        draws = []
        start = 0
        for logits in leaves:
            end = start + _num_draws(logits)
            draws.append(_at_quantile(logits, ndtr(eps[start:end])))
            start = end
        z = jax.tree.unflatten(treedef, draws)
        return z, self.log_prob(z)

    def log_prob(self, z: Draw, /) -> Array:
        terms = jax.tree.map(_log_prob, self.logits, z)
        return jnp.asarray(sum(jax.tree.leaves(terms), 0.0))

    def entropy(self) -> Array:
        terms = [_entropy(logits) for logits in jax.tree.leaves(self.logits)]
        return jnp.asarray(sum(terms, 0.0))


def _num_draws(logits: Array) -> int:
    return math.prod(logits.shape[:-1])


def _at_quantile(logits: Array, uniform: Array) -> Array:
    """The draw by inversion: z is the number of values k with P(z <= k) < uniform."""
    shape = logits.shape[:-1]
    probabilities = jax.nn.softmax(logits)
    # The last value, one, is left out: rounded down, it could be passed.
    cdf = jnp.cumsum(probabilities, axis=-1)[..., :-1]
    is_passed = uniform.reshape(*shape, 1) > cdf
    return jnp.sum(is_passed, axis=-1, dtype=jnp.int32)


def _log_prob(logits: Array, z: Array) -> Array:
    log_probabilities = jax.nn.log_softmax(logits)
    taken = jnp.take_along_axis(log_probabilities, z[..., None], axis=-1)
    return jnp.sum(taken)


def _entropy(logits: Array) -> Array:
    """-sum_k p_k log p_k, summed over the latents of a leaf."""
    return -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits))


@dataclass(frozen=True, eq=False)
class Categorical(Record):
    """See `categorical`."""

    latents: Latents
    constrained = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, support in named_leaves(self.latents).items():
            if support.num_values is None:
                raise ValueError(
                    f"categorical: expected a `finite` support for latent `{name}`; got {support}"
                )

    def init(self, key: Array, /) -> Params:
        del key
        return jax.tree.map(lambda s: jnp.zeros((*s.shape, s.num_values)), self.latents)

    def distribution(self, params: Params, /, *data: Any) -> Categoricals:
        del data
        return Categoricals(params)


def categorical(latents: Latents | Model) -> Categorical:
    """Independent categoricals over a tree of `finite` latents, for `gradient="score_function"`.

    The parameters are logits (*shape, n) for each latent, zero at first, which is the uniform
    distribution. ValueError for a latent that is not finite.
    """
    return Categorical(trees.latents_of(latents))
