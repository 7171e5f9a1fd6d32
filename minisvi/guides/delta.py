"""A point: the maximum a posteriori, or parameters that are learnt and not inferred.

The point is given over theta, so that no log-determinant enters. With a prior the ELBO is log
p(theta, D), and its maximum is the MAP in the constrained space. Without one it is maximum
likelihood, as for plain network weights.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import Distribution
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools.record import Record
from minisvi.tools.types import Draw, Latents, Params


@dataclass(frozen=True)
class Point(Distribution):
    """All mass is on theta. Its density relative to that point mass is one, so log q = 0."""

    theta: Draw

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Draw, Array]:
        del seed
        return self.theta, jnp.zeros(())

    def log_prob(self, theta: Draw, /) -> Array:
        del theta
        return jnp.zeros(())

    def entropy(self) -> Array:
        return jnp.zeros(())


@dataclass(frozen=True, eq=False)
class Delta(Record):
    """See `delta`."""

    latents: Latents
    constrained = True

    def init(self, key: Array, /, loc: Draw | None = None) -> Params:
        vector = trees.start(self.latents, key, loc)
        return trees.unravel(self.latents, vector)

    def distribution(self, params: Params, /, *data: Any) -> Point:
        del data
        theta, _ = trees.constrain(self.latents, params)
        return Point(theta)


def delta(latents: Latents | Model) -> Delta:
    """The point theta = T(params), for MAP and for learnable constants.

    The parameters are the tree u itself, at first uniform(-2, 2); `init(key, loc=u)` starts
    elsewhere.
    """
    return Delta(trees.latents_of(latents))
