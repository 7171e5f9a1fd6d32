"""The score-function estimator, for the parts of a guide that are not reparameterised.

    grad ELBO = E[ (log w - b) grad log q(u) ]

The baseline b of a draw is the mean of log w at the others, which does not depend on it (Kool, van
Hoof & Welling 2019, eq. 8).
"""

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from minisvi.objectives.objective import Objective, Problem, check_unstratified
from minisvi.tools.types import Draw


def estimate(key: Array, objective: Objective, problem: Problem) -> Array:
    """mean_k log w_k, with the score's gradient for the parts that are not reparameterised and the
    total derivative for the rest.
    """
    check_unstratified(problem.q, "score_function")

    def weigh(u: Draw, log_q: Array) -> tuple[Array, Array]:
        # In log w the mean of q's own gradient is zero: it is left out.
        own = _gradient_alone(problem.q.score_log_prob(u))
        log_w = problem.log_p(u) - (log_q - own)
        # The score is that of the draws, without N/B.
        return log_w, problem.plain_q.score_log_prob(u)

    particles = objective.particles(key, problem.q, weigh)
    log_w, score = particles.values
    mean_of_others = (jnp.sum(log_w) - log_w) / (objective.num_particles - 1)
    signal = stop_gradient(log_w - mean_of_others)
    return particles.mean(log_w + signal * _gradient_alone(score))


def _gradient_alone(value: Array) -> Array:
    """Zero, with the gradient of `value`."""
    return value - stop_gradient(value)
