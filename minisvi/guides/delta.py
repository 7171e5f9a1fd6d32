"""A point: the maximum a posteriori, or parameters that are learnt and not inferred.

The point is given over theta, so no log-determinant enters: with a prior the ELBO is log p(theta,
D) and its maximum the MAP in the constrained space; without one it is maximum likelihood, as for
plain network weights.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from minisvi.model import trees
from minisvi.tools.record import Record


@dataclass(frozen=True)
class Point:
    """All mass on theta; log q = 0, its density relative to the point mass."""

    theta: Any

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Any, Array]:
        del seed
        return self.theta, jnp.zeros(())

    def log_prob(self, theta: Any, /) -> Array:
        del theta
        return jnp.zeros(())

    def entropy(self) -> Array:
        return jnp.zeros(())


@dataclass(frozen=True, eq=False)
class Delta(Record):
    """See `delta`."""

    latents: Any
    constrained = True

    def init(self, key: Array, /, loc: Any = None) -> Any:
        return trees.unravel(self.latents, trees.start(self.latents, key, loc))

    def distribution(self, params: Any, /, *data: Any) -> Point:
        del data
        return Point(trees.constrain(self.latents, params)[0])


def delta(latents: Any) -> Delta:
    """The point theta = T(params), for MAP and for learnable constants.

    Parameters: the tree u itself, at first uniform(-2, 2); `init(key, loc=u)` starts elsewhere.
    """
    return Delta(trees.latents_of(latents))
