"""A guide of your own, of any distributions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax import Array

from minisvi.guides.joint import Joint
from minisvi.tools.record import Record
from minisvi.tools.tracing import fresh
from minisvi.tools.types import Params


@dataclass(frozen=True, eq=False)
class Custom(Record):
    """See `custom`."""

    init: Callable[[Array], Params]
    family: Callable[..., Any]
    constrained: Any = False

    def distribution(self, params: Params, /, *data: Any) -> Joint:
        parts = self.family(params, *fresh(data))
        return Joint(parts)


def custom(
    init: Callable[[Array], Params], distribution: Callable[..., Any], constrained: Any = False
) -> Custom:
    """A guide of your own: a distribution of Distrax, TFP, NumPyro or FlowJAX, or a tree of them in
    the form of the latents.

    **Arguments**

    - `init(key)`: the initial parameters, any pytree of floats.
    - `distribution(params, *data)`: the distribution, or the tree of them, independent of each
      other. It is given the data because a guide may be amortised; one that is not takes `*_`.
      Over a local latent it is a batch of distributions, one for each row of the data. In a
      minibatch each row's log density counts N/B times.
    - `constrained`: a bool, or a prefix tree of bools over the latents. True where the draws are
      theta itself, such as those of a Gamma for a positive latent; False where they are u.

    ValueError, by the engine's `init`, for minibatches if a distribution over a local latent has no
    log density for each row.

    Draws should be reparameterised: Gamma and Beta are, through implicit gradients (Figurnov et al.
    2018). Parts that are not (integers, or those with an attribute `reparameterised = False`) need
    `gradient="score_function"`.
    """
    return Custom(init, distribution, constrained)
