"""Other means of the log weights than the ELBO's: tighter bounds, an upper bound, and the other KL.

All are in nats, and larger is better; their gradients are in the docstrings.
"""

from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from minisvi.guides.base import Guide
from minisvi.model.model import Model
from minisvi.objectives.elbo import reparameterised, sticking_the_landing
from minisvi.objectives.objective import (
    Objective,
    Particles,
    check_reparameterised,
    check_unstratified,
    with_gradient_of,
)
from minisvi.tools.record import Record
from minisvi.tools.types import Draw, Params


@dataclass(frozen=True)
class Renyi(Objective):
    """The variational Renyi bound, log(mean_k w_k^(1 - alpha)) / (1 - alpha) (Li & Turner 2016, eq.
    5 and 8).

    `alpha`, any finite number: 0 is the importance-weighted bound, 1 the ELBO, to which it is
    continuous. For alpha < 0 the exact bound lies above the evidence; the estimate from K draws is
    below it in the mean. ValueError if not finite.

    `gradient`: `"reparameterised"`, the total derivative; or `"doubly_reparameterised"`, which
    turns the score of q, whose signal to noise falls with K, into a second path derivative, sum_k
    (alpha v_k + (1 - alpha) v_k^2) dlog w_k/du du_k/dphi, v = softmax((1 - alpha) log w) (Tucker et
    al. 2019, eq. 8; any alpha: Bauer & Mnih 2021). It is zero where q is the posterior.
    """

    alpha: float = 0.0

    _gradients: ClassVar[tuple[str, ...]] = ("reparameterised", "doubly_reparameterised")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -float("inf") < self.alpha < float("inf"):
            raise ValueError(f"`alpha` must be a finite number; got {self.alpha}")

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
        check_reparameterised(problem)
        power = 1 - self.alpha
        if self.gradient == "reparameterised":
            particles = self.particles(key, problem.q, partial(reparameterised, problem))
            return log_power_mean(particles, power)
        check_unstratified(problem.q, self.gradient)
        log_weight = partial(sticking_the_landing, problem)
        particles = self.particles(key, problem.q, log_weight, problem.stopped_q)
        log_w = particles.values
        v = jax.nn.softmax(power * log_w)
        surrogate = stop_gradient(self.alpha * v + power * v**2) @ log_w
        return with_gradient_of(surrogate, log_power_mean(particles, power))


@dataclass(frozen=True)
class ImportanceWeighted(Renyi):
    """The importance-weighted bound, log mean_k w_k <= log p(D), which rises with K (Burda et al.
    2016, eq. 8).

    `gradient` as in `Renyi`, of which it is alpha = 0.
    """

    alpha: float = field(default=0.0, init=False)


@dataclass(frozen=True)
class CUBO(Objective):
    """Minus the chi upper bound, -log(mean_k w_k^n) / n with n = `order` > 1 (Dieng et al. 2017,
    eq. 5).

    CUBO >= log p(D) >= ELBO is a sandwich of the evidence, and a fit by it covers the posterior's
    mass. The estimate from few draws is low in the mean, the more so the farther q is from the
    posterior, so that a fit from afar runs away: start it from an ELBO's. It is the Renyi bound at
    alpha = 1 - n, with the same gradients. ValueError unless order > 1.
    """

    order: float = 2.0

    _gradients: ClassVar[tuple[str, ...]] = Renyi._gradients

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.order < float("inf"):
            raise ValueError(f"`order` must be a finite number > 1; got {self.order}")

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
        shared = {f.name: getattr(self, f.name) for f in fields(Objective)}
        renyi = Renyi(**shared, alpha=1 - self.order)
        return -renyi(key, model, guide, params, *data, weight=weight, step=step)


@dataclass(frozen=True)
class ForwardKL(Objective):
    """-KL(p(theta | D) || q), by self-normalised importance weights v = softmax(log w) of q's own
    draws.

    Estimate: log mean_k w_k - sum_k v_k log w_k <= 0. Gradient: sum_k v_k grad log q(u_k), the
    draws stopped, so that discrete latents are welcome (reweighted wake-sleep: Bornschein & Bengio
    2015, eq. 10). Both are biased as 1/K. ValueError unless K >= 2.
    """

    num_particles: int = 10

    _gradients: ClassVar[tuple[str, ...]] = ("score",)
    gradient: str = "score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_particles < 2:
            raise ValueError(
                "self-normalised weights of one draw are 1: `num_particles` must be >= 2; got 1"
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

        def weigh(u: Draw, log_q: Array) -> tuple[Array, Array]:
            u = stop_gradient(u)
            log_q = problem.q.log_prob(u)
            return problem.log_p(u) - log_q, log_q

        particles = self.particles(key, problem.q, weigh)
        log_w, log_q = particles.values
        v = stop_gradient(jax.nn.softmax(log_w + particles.log_weight))
        minus_kl = log_power_mean(particles._replace(values=log_w), 1.0) - v @ log_w
        return with_gradient_of(v @ log_q, minus_kl)


@dataclass(frozen=True)
class FixedDraws(Record):
    """An objective at the same draws in every step, those of `seed`: deterministic, for
    `optax.lbfgs` and true tests of convergence (Giordano, Ingram & Broderick 2024). Only for guides
    of few parameters to a draw, such as `mean_field`: with fewer draws than dimensions the optimum
    of a full-rank guide or a flow does not exist. Score it afresh.
    """

    objective: Objective
    seed: int = 0

    def __call__(self, key: Array, *args: Any, **batch: Any) -> Array:
        del key
        return self.objective(jax.random.key(self.seed), *args, **batch)


def log_power_mean(particles: Particles, power: float) -> Array:
    """log(mean_k w_k^power) / power, in nats, of particles with the values log w_k; at power 0 its
    limit, mean_k log w_k.
    """
    log_w = particles.values
    if power == 0:
        return particles.mean(log_w)
    x = power * log_w
    if abs(power) > 0.01:
        return jax.nn.logsumexp(x + particles.log_weight) / power
    # Near the limit the sum of exponentials is 1 up to rounding, which the division would blow up.
    top = stop_gradient(jnp.max(x))
    excess = particles.mean(jnp.expm1(x - top))
    return (top + jnp.log1p(excess)) / power
