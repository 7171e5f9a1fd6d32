"""A mixture of members of any family, for several modes: every component is drawn, none picked."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import Distribution
from minisvi.guides.foreign import member
from minisvi.guides.wrapped import Wrapper
from minisvi.tools import checks
from minisvi.tools.noise import split
from minisvi.tools.types import Data, Draw, Params


@dataclass(frozen=True)
class MixtureOf(Distribution):
    """q(u) = sum_c pi_c q_c(u), pi = softmax(logits), with stacked parameters of the components."""

    guide: Any
    logits: Array
    components: Any
    data: Data

    def _member(self, params: Params) -> Distribution:
        return member(self.guide, params, *self.data)

    def _component(self, index: int | Array) -> Distribution:
        return self._member(jax.tree.map(lambda leaf: leaf[index], self.components))

    @property
    def noise_size(self) -> int | None:
        size = self._component(0).noise_size
        return None if size is None else self.logits.size * size

    @property
    def reparameterised(self) -> bool:
        return self._component(0).reparameterised

    @property
    def stratified(self) -> bool:
        return True

    def strata(self, noise: Array) -> tuple[Draw, Array, Array]:
        """A draw of each component, log q of the whole mixture at it, and log pi_c."""

        def strata(params: Params, piece: Array) -> tuple[Draw, Array, Array]:
            return self._member(params).strata(piece)

        pieces = split(noise, self.logits.size)
        u, _, inner_log_weight = jax.vmap(strata)(self.components, pieces)
        log_pi = jax.nn.log_softmax(self.logits)
        log_weight = log_pi[:, None] + inner_log_weight
        u = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), u)
        return u, jax.vmap(self.log_prob)(u), log_weight.ravel()

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Draw, Array]:
        """A draw of one component, picked at random: for samples, not for gradients."""
        pick_key, draw_key = jax.random.split(seed)
        picked = jax.random.categorical(pick_key, self.logits)
        u, _ = self._component(picked).draw(draw_key)
        return u, self.log_prob(u)

    def log_prob(self, u: Draw, /) -> Array:
        log_q = jax.vmap(lambda params: self._member(params).log_prob(u))(self.components)
        log_pi = jax.nn.log_softmax(self.logits)
        return jax.nn.logsumexp(log_pi + log_q)


@dataclass(frozen=True, eq=False)
class Mixture(Wrapper):
    """See `mixture`."""

    guide: Any
    num_components: int

    def init(self, key: Array, /) -> dict[str, Any]:
        keys = jax.random.split(key, self.num_components)
        return {
            "logits": jnp.zeros(self.num_components),
            "components": jax.vmap(self.guide.init)(keys),
        }

    def distribution(self, params: Any, /, *data: Any) -> MixtureOf:
        return MixtureOf(self.guide, params["logits"], params["components"], data)


def mixture(guide: Any, num_components: int) -> Mixture:
    """sum_c pi_c q_c, C members of the family `guide`, which start at as many draws of its own
    start.

    Parameters: `logits` (C,) and `components`, the guide's parameters with a leading axis C. Each
    particle holds a draw of every component, so that E_q[f] = sum_c pi_c E_{q_c}[f] is
    reparameterised with no discrete draw (Morningstar et al. 2021, eq. 7): C densities of the model
    a particle, C^2 of the components. The ELBO is content with all of them in one mode: to find
    several, start with wide components by `ForwardKL`. TypeError or ValueError unless
    num_components is an integer >= 1, and for local latents, whose rows would all have to share one
    component.
    """
    if any(support.local for support in jax.tree.leaves(getattr(guide, "latents", ()))):
        raise ValueError(f"mixture: expected components without local latents; got {guide!r}")
    return Mixture(guide, checks.positive_integer("num_components", num_components))
