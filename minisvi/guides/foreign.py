"""Distributions of other libraries as guides: Distrax, TFP, NumPyro, FlowJAX, or a user's own."""

import inspect
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import Distribution, Guide
from minisvi.tools.types import Draw, Params


def member(guide: Guide, params: Params, *data: Any) -> Distribution:
    """q_phi, the member of the family `guide` at `params`, whichever library it is of."""
    return adapted(guide.distribution(params, *data))


def adapted(q: Any) -> Distribution:
    """q itself if it is a `Distribution`, else q made into one."""
    return q if isinstance(q, Distribution) else Foreign(q)


def is_distribution(node: Any) -> bool:
    """True for a distribution of any library, which is a leaf in a tree of them."""
    return isinstance(node, Distribution) or hasattr(node, "log_prob")


@dataclass(frozen=True)
class Foreign(Distribution):
    """A distribution with `log_prob` and a way to draw of its own. A batch of independent scalars
    counts as one distribution over an array: its log densities are summed.
    """

    q: Any

    def log_prob(self, u: Draw, /) -> Array:
        return jnp.sum(self.q.log_prob(u))

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Draw, Array]:
        u, log_q = self._sample_and_log_prob(seed)
        return u, jnp.sum(log_q)

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
            return jnp.sum(self.q.entropy())
        except (AttributeError, NotImplementedError):
            name = type(self.q).__name__
            raise ValueError(
                f"{name} has no closed-form entropy: take gradient='reparameterised'"
            ) from None
