"""A mixture of members of any family, for several modes; every component is drawn, none is picked."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides import base
from minisvi.guides.wrapped import Wrapper, split
from minisvi.tools import checks


@dataclass(frozen=True)
class MixtureOf(base.FromNoise):
    """q(u) = sum_c pi_c q_c(u), pi = softmax(logits), with stacked parameters of the components."""

    guide: Any
    logits: Array
    components: Any
    data: tuple[Any, ...]

    def _member(self, params: Any) -> Any:
        return self.guide.distribution(params, *self.data)

    def _first(self) -> Any:
        return self._member(jax.tree.map(lambda leaf: leaf[0], self.components))

    @property
    def noise_size(self) -> int | None:
        size = base.noise_size(self._first())
        return None if size is None else self.logits.size * size

    def strata(self, noise: Array) -> tuple[Any, Array, Array]:
        """A draw of each component, log q of the whole mixture at it, and log pi_c."""
        pieces = split(noise, self.logits.size)
        u, _, inner = jax.vmap(lambda p, piece: base.strata(self._member(p), piece))(
            self.components, pieces
        )
        log_weight = jax.nn.log_softmax(self.logits)[:, None] + inner
        u = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), u)
        return u, jax.vmap(self.log_prob)(u), log_weight.ravel()

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Any, Array]:
        """A draw of one component, picked at random: for samples, not for gradients."""
        pick_key, draw_key = jax.random.split(seed)
        pick = jax.random.categorical(pick_key, self.logits)
        u, _ = base.draw(
            self._member(jax.tree.map(lambda leaf: leaf[pick], self.components)), draw_key
        )
        return u, self.log_prob(u)

    def log_prob(self, u: Any, /) -> Array:
        terms = jax.vmap(lambda p: self._member(p).log_prob(u))(self.components)
        return jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + terms)

    @property
    def reparameterised(self) -> bool:
        return base.is_reparameterised(self._first())


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
