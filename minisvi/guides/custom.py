"""A guide of your own, of any distributions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax import Array

from minisvi.guides.joint import Joint
from minisvi.tools.record import Record
from minisvi.tools.tracing import fresh


@dataclass(frozen=True, eq=False)
class Custom(Record):
    """See `custom`."""

    init: Callable[[Array], Any]
    family: Callable[..., Any]
    constrained: Any = False

    def distribution(self, params: Any, /, *data: Any) -> Joint:
        return Joint(self.family(params, *fresh(data)))


def custom(
    init: Callable[[Array], Any], distribution: Callable[..., Any], constrained: Any = False
) -> Custom:
    """A guide of your own: any Distrax or TFP distribution, or a tree of them shaped like the
    latents.

    **Arguments**

    - `init(key)`: the initial parameters, any pytree of floats.
    - `distribution(params, *data)`: the distribution, or the tree of them, independent of each
      other. It is given the data because a guide may be amortised; one that is not takes `*_`.
    - `constrained`: a bool, or a prefix tree of bools over the latents. True where the draws are
      theta itself, such as those of a Gamma for a positive latent; False where they are u.

    Draws should be reparameterised: Gamma and Beta are, through implicit gradients (Figurnov et al.
    2018). Parts that are not (integers, or an attribute `reparameterised = False`) need
    `gradient="score_function"`.
    """
    return Custom(init, distribution, constrained)
