"""Annealing: a model and a guide whose log densities are multiplied by weights, beta.

    log w = beta_l log p(D | theta) + beta_k (log p(theta) + log|det J|) - beta_k log q(u)

With beta_k from zero to one the fit begins at the likelihood alone, and the prior comes in slowly
(Bowman et al. 2016); with beta_l from zero to one it is the other way about (Mandt et al. 2016).
"""

from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from minisvi.guides.base import Distribution
from minisvi.guides.wrapped import Pushed
from minisvi.model.model import Model
from minisvi.tools.types import Draw


@dataclass(frozen=True)
class TemperedModel:
    """beta_l times the log likelihood, and beta_k times the log prior with log|det J|."""

    model: Model
    kl_weight: Any
    likelihood_weight: Any

    def log_density(self, u: Draw, *data: Any, weight: Any = None) -> Array:
        log_prior, log_likelihood = self.model.log_terms(u, *data, weight=weight)
        return self.likelihood_weight * log_likelihood + self.kl_weight * log_prior


@dataclass(frozen=True)
class Tempered(Pushed):
    """The draws of `base`, with its log densities multiplied by beta."""

    beta: Any

    def _push(self, x: Draw, log_q: Array) -> tuple[Draw, Array]:
        return x, self.beta * log_q

    def _push_score(self, x: Draw, score: Draw) -> Draw:
        return jax.tree.map(lambda leaf: self.beta * leaf, score)

    def log_prob(self, u: Draw, /) -> Array:
        return self.beta * self.base.log_prob(u)

    def score_log_prob(self, u: Draw) -> Array:
        return self.beta * self.base.score_log_prob(u)

    def entropy(self) -> Array:
        return self.beta * self.base.entropy()

    def parts_at(self, u: Draw) -> Any:
        return self.base.parts_at(u)


def tempered(q: Distribution, beta: Any) -> Tempered:
    return Tempered(None, q, beta)
