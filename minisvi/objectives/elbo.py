"""E and its gradient: the evidence lower bound, in nats; larger is better.

    ELBO(phi) = E_{u ~ q_phi} [ log w(u) ]  <=  log p(D)
    log w(u)  = log p(T(u), D) + log|det J_T(u)| - log q_phi(u)

An estimate draws u_1, ..., u_K from q, weighs each by its log w, and takes the mean: see
`ELBO.__call__`. The functions above it are the log weight, once for each estimator of the gradient.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from jax import Array

from minisvi.guides.base import Guide
from minisvi.model.model import Model
from minisvi.objectives import closed_kl, score_function
from minisvi.objectives.objective import Objective, Problem, check_reparameterised
from minisvi.tools.types import Draw, Params


def reparameterised(problem: Problem, u: Draw, log_q: Array) -> Array:
    """log w = log p(u) - log q(u). All of it carries gradient, through the draw u(phi, eps) too."""
    return problem.log_p(u) - log_q


def sticking_the_landing(problem: Problem, u: Draw, log_q: Array) -> Array:
    """log p(u) - log q(u), where q is of the same phi with its gradient stopped: `log_q` carries
    gradient through the draw alone.
    """
    return problem.log_p(u) - log_q


def closed_form_entropy(problem: Problem, u: Draw, log_q: Array) -> Array:
    """log p(u) + H[q]: the mean of -log q(u) in its place."""
    del log_q
    return problem.log_p(u) + problem.q.entropy()


def closed_form_kl(problem: Problem, u: Draw, log_q: Array) -> Array:
    """log w, with the closed KL(q || prior) in the place of the sampled one."""
    log_w = problem.log_p(u) - log_q
    correction = closed_kl.sampled_minus_closed(problem.q, problem.model, u, problem.weight)
    return log_w + problem.kl_weight * correction


_LOG_WEIGHTS = {
    "reparameterised": reparameterised,
    "sticking_the_landing": sticking_the_landing,
    "closed_form_entropy": closed_form_entropy,
    "closed_form_kl": closed_form_kl,
}


@dataclass(frozen=True)
class ELBO(Objective):
    """The evidence lower bound, mean_k log w_k; its variance falls as 1/K.

    `gradient`, all unbiased:

    - `"reparameterised"`: the total derivative through the draws u(phi, eps) (Kingma & Welling
      2014).
    - `"sticking_the_landing"`: leaves out the score of q, whose mean is zero, so that the variance
      vanishes where q is the posterior (Roeder et al. 2017, eq. 8).
    - `"closed_form_entropy"`: mean_k log p + H[q] (Kucukelbir et al. 2017, eq. 5). ValueError if q
      does not know H.
    - `"closed_form_kl"`: mean_k log p(D | theta_k) - sum_i KL(q_i || p_i), per latent: closed where
      Distrax knows the KL of the guide's part and of `Model.prior`, sampled where it does not
      (Kingma & Welling 2014, eq. 10).
    - `"score_function"`: (log w_k - mean of the others) grad log q for the parts that are not
      reparameterised, the total derivative for the rest (Kool et al. 2019, eq. 8). K >= 2.
    """

    _gradients: ClassVar[tuple[str, ...]] = (*_LOG_WEIGHTS, "score_function")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient == "score_function" and self.num_particles < 2:
            raise ValueError(
                "score_function's baseline leaves one out: `num_particles` must be >= 2; got 1"
            )

    def __call__(
        self,
        key: Array,
        model: Model,
        guide: Guide,
        params: Params,
        *data: Any,
        weight: Any = None,
        step: Any = None,
    ) -> Array:
        problem = self.problem(model, guide, params, data, weight, step)
        if self.gradient == "score_function":
            return score_function.estimate(key, self, problem)
        check_reparameterised(problem)
        log_weight = partial(_LOG_WEIGHTS[self.gradient], problem)
        sticks = self.gradient == "sticking_the_landing"
        stopped_q = problem.stopped_q if sticks else None
        particles = self.particles(key, problem.q, log_weight, stopped_q)  # draw, and weigh
        return particles.mean(particles.values)
