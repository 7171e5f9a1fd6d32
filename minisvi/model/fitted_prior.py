"""Yesterday's posterior as today's prior."""

from dataclasses import dataclass, replace
from typing import Any

import jax
from jax import Array

from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools import checks
from minisvi.tools.names import named_leaves


def with_prior(model: Model, guide: Any, params: Any, weight: float = 1.0) -> Model:
    """The model with a fitted guide in its prior's place, for rows that come after those the guide
    was fitted to:

        log p(theta) = weight (log q(u) - log|det J_T(u)|),    u = T^-1(theta)

    Rows being independent given theta, this is Bayes' rule in two steps, up to how near q came to
    the posterior; the ELBO is then a bound on the log evidence of the new rows given the old ones.

    **Arguments**

    - `guide`, `params`: of the same latents; none of them local, and the guide not amortised.
    - `weight`: below one the past counts for less, which is what a drifting stream needs (the power
      prior, Ibrahim & Chen 2000); the prior is then not normalised. With as many rows a day it
      remembers 1 / (1 - weight) days.

    The parameters are constants of the new model: its first fit compiles. ValueError for a model
    that is not factored, or has local latents, and for another guide's parameters.
    """
    if model.log_likelihood is None:
        raise ValueError(
            "with_prior needs a factored model: give `log_prior` and `log_likelihood`; got a `log_joint`"
        )
    local = [name for name, support in named_leaves(model.latents).items() if support.local]
    if local:
        raise ValueError(
            f"with_prior: latents {local} are local, and the new rows have latents of their own"
        )
    if not 0 < weight <= 1:
        raise ValueError(f"`weight` must be in (0, 1]; got {weight}")
    checks.same_tree("params", jax.eval_shape(guide.init, jax.random.key(0)), params)
    latents = model.over(guide.constrained).latents
    return replace(model, prior=None, log_prior=_FittedPrior(latents, guide, params, weight))


@dataclass(frozen=True, eq=False)
class _FittedPrior:
    """Compared by identity, for arrays have no hash. `latents` are those of the guide, theta itself
    where it is over theta.
    """

    latents: Any
    guide: Any
    params: Any
    weight: float

    def __call__(self, theta: Any) -> Array:
        u = jax.tree.map(lambda support, value: support.inverse(value), self.latents, theta)
        _, log_det = trees.constrain(self.latents, u)
        return self.weight * (self.guide.distribution(self.params).log_prob(u) - log_det)
