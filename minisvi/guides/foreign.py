"""Distributions of other libraries as guides: Distrax, TFP, NumPyro, FlowJAX, or a user's own."""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import Distribution, Guide, local_names
from minisvi.model import trees
from minisvi.tools.names import named_leaves
from minisvi.tools.types import Draw, Latents, Params, Weight


def member(guide: Guide, params: Params, *data: Any) -> Distribution:
    """q_phi, the member of the family `guide` at `params`, whichever library it is of."""
    return adapted(guide.distribution(params, *data))


def adapted(q: Any) -> Distribution:
    """q itself if it is a `Distribution`, else q made into one."""
    return q if isinstance(q, Distribution) else Foreign(q)


def weighted(q: Distribution, weight: Weight, latents: Latents) -> Distribution:
    """q over `latents`, with the log densities of the local ones counted `weight` times.

    In a minibatch `weight` is N/B, as for the rows' likelihood; None stands for one. ValueError if
    q has no log density of each row.
    """
    if weight is None:
        return q
    supports = named_leaves(latents).items()
    names = [name if support.local else "" for name, support in supports]
    local = jax.tree.unflatten(jax.tree.structure(latents), names)
    return q.weighted(weight, local)


def is_distribution(node: Any) -> bool:
    """True for a distribution of any library, which is a leaf in a tree of them."""
    return isinstance(node, Distribution) or hasattr(node, "log_prob")


@dataclass(frozen=True)
class Foreign(Distribution):
    """A distribution with `log_prob` and a way to draw of its own.

    A batch of independent distributions counts as one over an array: its log densities are summed.
    Where the array is a local latent, the leading axis of the batch is the rows of the data, and
    `weight` is what their log densities are multiplied by. None stands for one.
    """

    q: Any
    weight: Weight = None

    def log_prob(self, u: Draw, /) -> Array:
        return self._total(self.q.log_prob(u))

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Draw, Array]:
        u, log_q = self._sample_and_log_prob(seed)
        if not self.reparameterised:
            # A library may let a gradient through all the same, which the score would count again.
            u = jax.lax.stop_gradient(u)
            log_q = self.q.log_prob(u)
        return u, self._total(log_q)

    def _total(self, terms: Array) -> Array:
        """The sum of the batch's terms, each row's multiplied by its weight."""
        if self.weight is None:
            return jnp.sum(terms)
        rows = terms.reshape(terms.shape[0], -1).sum(-1)
        return trees.weighted_sum(rows, self.weight)

    def weighted(self, weight: Any, local: Any) -> Distribution:
        names = local_names(local)
        if not names:
            return self
        u, log_q = jax.eval_shape(lambda: self._sample_and_log_prob(jax.random.key(0)))
        num_rows = jax.tree.leaves(u)[0].shape[:1]
        all_local = len(names) == len(jax.tree.leaves(local))
        has_term_a_row = log_q.ndim > 0 and log_q.shape[:1] == num_rows
        if not (all_local and has_term_a_row):
            raise ValueError(
                f"minibatches with local latents {names}: expected of {type(self.q).__name__} a "
                "log density for each row of the batch, and latents that are all local; got log "
                f"densities of shape {log_q.shape}. Take a batch of distributions, one a row, in a "
                "tree with a part for each latent, or `per_row` or `amortised`"
            )
        return replace(self, weight=weight)

    def _sample_and_log_prob(self, key: Array) -> tuple[Draw, Array]:
        if hasattr(self.q, "experimental_sample_and_log_prob"):  # TFP
            return self.q.experimental_sample_and_log_prob(seed=key)
        if not hasattr(self.q, "sample_and_log_prob"):  # NumPyro
            u = self.q.sample(key)
            return u, self.q.log_prob(u)
        if "seed" in inspect.signature(self.q.sample_and_log_prob).parameters:  # Distrax
            return self.q.sample_and_log_prob(seed=key)
        return self.q.sample_and_log_prob(key)  # FlowJAX

    @property
    def reparameterised(self) -> bool:
        if hasattr(self.q, "reparameterised"):
            return self.q.reparameterised
        if hasattr(self.q, "reparameterization_type"):  # TFP
            return "NOT" not in repr(self.q.reparameterization_type)
        if hasattr(self.q, "has_rsample"):  # NumPyro
            return self.q.has_rsample
        return jnp.issubdtype(getattr(self.q, "dtype", jnp.float32), jnp.floating)

    def entropy(self) -> Array:
        try:
            return self._total(self.q.entropy())
        except (AttributeError, NotImplementedError):
            name = type(self.q).__name__
            raise ValueError(
                f"{name} has no closed-form entropy: take gradient='reparameterised'"
            ) from None
