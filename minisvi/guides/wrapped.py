"""What guides around a guide share, and what distributions do that push another one's draws
through a bijection.
"""

from dataclasses import dataclass
from typing import Any

import jax
from jax import Array
from jax.lax import stop_gradient

from minisvi.guides.base import Distribution
from minisvi.tools.record import Record
from minisvi.tools.types import Draw, Latents


class Wrapper(Record):
    """A guide around `guide`, over the same latents."""

    guide: Any

    @property
    def constrained(self) -> Any:
        return self.guide.constrained

    @property
    def latents(self) -> Latents:
        return self.guide.latents


@dataclass(frozen=True)
class Pushed(Distribution):
    """Draws of `base` through `_push(x, log q(x)) -> (u, log q(u))`."""

    latents: Latents
    base: Distribution

    def _push(self, x: Draw, log_q: Array) -> tuple[Draw, Array]:
        raise NotImplementedError

    def _push_score(self, x: Draw, score: Draw) -> Draw:
        """The score of log q(u) at the u of x, from that of the base's at x. With J = du/dx it is
        J^-T (score - grad log|det J|) (Vaitl, Nicoli, Nakajima & Kessel 2022, eq. 16).
        """
        raise NotImplementedError

    @property
    def noise_size(self) -> int | None:
        return self.base.noise_size

    @property
    def reparameterised(self) -> bool:
        return self.base.reparameterised

    @property
    def stratified(self) -> bool:
        return self.base.stratified

    def from_noise(self, noise: Array) -> tuple[Draw, Array]:
        x, log_q = self.base.draw(noise)
        return self._push(x, log_q)

    def draw_and_score(self, noise: Array, stopped: Any) -> tuple[Draw, Array, Draw]:
        """The score of log q goes along with the draw, so that nothing has to be inverted."""
        x, log_q, score = self.base.draw_and_score(noise, stopped.base)
        score = stopped._push_score(stop_gradient(x), score)
        u, log_q = self._push(x, log_q)
        return u, stop_gradient(log_q), score

    def strata(self, noise: Array) -> tuple[Draw, Array, Array]:
        x, log_q, log_weight = self.base.strata(noise)
        u, log_q = jax.vmap(self._push)(x, log_q)
        return u, log_q, log_weight
