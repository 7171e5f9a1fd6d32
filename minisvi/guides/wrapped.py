"""What guides around a guide share, and what distributions do that push another one's draws through
a bijection.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides import base
from minisvi.tools.record import Record


def split(noise: Array, num: int) -> Array:
    """The noise of each of `num` equal parts: so many pieces of the normals, or keys."""
    return (
        noise.reshape(num, -1)
        if jnp.issubdtype(noise.dtype, jnp.floating)
        else jax.random.split(noise, num)
    )


class Wrapper(Record):
    """A guide around `guide`, over the same latents."""

    guide: Any

    @property
    def constrained(self) -> Any:
        return self.guide.constrained

    @property
    def latents(self) -> Any:
        return self.guide.latents


@dataclass(frozen=True)
class Pushed(base.FromNoise):
    """Draws of `base` through `_push(x, log q(x)) -> (u, log q(u))`."""

    latents: Any
    base: Any

    def _push(self, x: Any, log_q: Array) -> tuple[Any, Array]:
        raise NotImplementedError

    @property
    def noise_size(self) -> int | None:
        return base.noise_size(self.base)

    @property
    def reparameterised(self) -> bool:
        return base.is_reparameterised(self.base)

    @property
    def stratified(self) -> bool:
        return base.is_stratified(self.base)

    def from_noise(self, noise: Array) -> tuple[Any, Array]:
        return self._push(*base.draw(self.base, noise))

    def strata(self, noise: Array) -> tuple[Any, Array, Array]:
        x, log_q, log_weight = base.strata(self.base, noise)
        return *jax.vmap(self._push)(x, log_q), log_weight
