"""Yesterday's posterior as today's prior."""

from dataclasses import dataclass, replace
from typing import Any

import jax
from jax import Array

from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools import checks
from minisvi.tools.types import Draw, Latents, Params


def with_prior(model: Model, guide: Any, params: Params, weight: float = 1.0) -> Model:
    """The model with a fitted guide in its prior's place, for rows that come after those that the
    guide was fitted to:

        log p(theta) = weight (log q(u) - log|det J_T(u)|),    u = T^-1(theta)

    Where rows are independent given theta, this is Bayes' rule in two steps, up to how near q came
    to the posterior. The ELBO is then a bound on the log evidence of the new rows given the old
    ones.

    **Arguments**

    - `guide`, `params`: of the same latents. None of them may be local, nor the guide amortised.
    - `weight`: below one the past counts for less, which is what a drifting stream needs (the power
      prior, Ibrahim & Chen 2000). The prior is then not normalised. With as many rows a day it
      remembers 1 / (1 - weight) days.

    The parameters are constants of the new model: its first fit compiles. ValueError for a model
    that is not factored, or has local latents, and for another guide's parameters.
    """
    if model.log_likelihood is None:
        raise ValueError(
            "with_prior needs a factored model: give `log_prior` and `log_likelihood`; got a "
            "`log_joint`"
        )
    local = trees.local_names(model.latents)
    if local:
        raise ValueError(
            f"with_prior: latents {local} are local, and the new rows have latents of their own"
        )
    if not 0 < weight <= 1:
        raise ValueError(f"`weight` must be in (0, 1]; got {weight}")
    like = jax.eval_shape(guide.init, jax.random.key(0))
    checks.same_tree("params", like, params)
    latents = model.over(guide.constrained).latents
    log_prior = _FittedPrior(latents, guide, params, weight)
    return replace(model, prior=None, log_prior=log_prior)


@dataclass(frozen=True, eq=False)
class _FittedPrior:
    """log p(theta) of a fitted guide, compared by identity, for arrays have no hash.

    `latents` are those of the guide, with T the identity where the guide is over theta itself.
    """

    latents: Latents
    guide: Any
    params: Params
    weight: float

    def __call__(self, theta: Draw) -> Array:
        u = jax.tree.map(lambda support, value: support.inverse(value), self.latents, theta)
        _, log_det = trees.constrain(self.latents, u)
        q = self.guide.distribution(self.params)
        return self.weight * (q.log_prob(u) - log_det)
