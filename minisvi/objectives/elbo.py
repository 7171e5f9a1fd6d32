"""E and its gradient: every objective is an expression of the log weights, in nats, larger is
better.

    ELBO(phi) = E_{u ~ q_phi} [ log w(u) ]  <=  log p(D),    log w(u) = log p(T(u), D) + log|det J_T(u)| - log q_phi(u)

`Objective.particles` draws u_k and its log weights; `ELBO` takes their mean; `bounds` has other
means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from minisvi.guides import base
from minisvi.guides.base import Guide
from minisvi.model.model import Model
from minisvi.objectives import closed_kl
from minisvi.tools import checks, noise


class Particles(NamedTuple):
    """S draws: log p and log q (their difference is log w), log of the draws' weights, which sum to
    one, and log q of the parts that are not reparameterised. Each (S,), in nats.
    """

    log_p: Array
    log_q: Array
    log_weight: Array
    score: Array

    @property
    def log_w(self) -> Array:
        return self.log_p - self.log_q

    def mean(self, values: Array) -> Array:
        """Over the draws: equal weights 1/K, or those of the strata of a mixture."""
        return jnp.sum(jnp.exp(self.log_weight) * values)


@dataclass(frozen=True)
class Objective:
    """What all objectives share.

    **Arguments**

    - `num_particles`: draws of the guide per estimate, K >= 1.
    - `gradient`: see each objective.
    - `sampling`: `"independent"`, `"antithetic"` or `"quasi"` (see `noise.over_particles`).
    - `kl_weight`, `likelihood_weight`: annealing, each a function of the step (an optax schedule,
      say) to beta: log w = beta_l log p(D | theta) + beta_k (log p(theta) + log|det J| - log q), of
      a factored model (Bowman et al. 2016; Mandt et al. 2016).

    ValueError or TypeError for other values, and for discrete latents where the gradient goes
    through the draws.
    """

    num_particles: int = 1
    gradient: str = "reparameterised"
    sampling: noise.Sampling = "independent"
    kl_weight: Callable[[Any], Any] | None = None
    likelihood_weight: Callable[[Any], Any] | None = None

    _gradients: ClassVar[tuple[str, ...]] = ("reparameterised",)
    _independent_only = ("doubly_reparameterised", "score_function")

    def __post_init__(self) -> None:
        checks.positive_integer("num_particles", self.num_particles)
        if self.gradient not in self._gradients:
            raise ValueError(f"`gradient` must be one of {self._gradients}; got {self.gradient!r}")
        noise.check(self.sampling, self.num_particles)
        if self.gradient in self._independent_only and self.sampling != "independent":
            raise ValueError(
                f"gradient={self.gradient!r} is unbiased with independent draws alone; got {self.sampling!r}"
            )

    def __call__(
        self, key: Array, model: Model, guide: Guide, params: Any, *data: Any, **batch: Any
    ) -> Array:
        """The estimate in nats, whose gradient in `params` is the estimator's. `batch`: `weight` =
        N/B of a minibatch, and the `step` that schedules are asked at.
        """
        raise NotImplementedError

    def particles(
        self,
        log_q: str,
        key: Array,
        model: Model,
        guide: Guide,
        params: Any,
        *data: Any,
        **batch: Any,
    ) -> tuple[Any, Any, Particles]:
        """q, the draws u_k, and their weights. `log_q` says through what log q_phi(u) passes a
        gradient: `"total"`, both its arguments; `"path"`, u alone, the family being stopped;
        `"score"`, phi alone, the draws being stopped.
        """
        model, weight = model.over(guide.constrained), batch.get("weight")
        unscaled = guide.distribution(params, *data)
        q = base.weighted(unscaled, weight)
        frozen = base.weighted(guide.distribution(stop_gradient(params), *data), weight)
        if log_q != "score" and self.gradient != "score_function":
            _check_reparameterised(q, model)
        kl_weight, likelihood_weight = self._weights(batch.get("step"))
        annealed = self.kl_weight is not None or self.likelihood_weight is not None

        def weigh(u: Any, log_q_u: Array) -> tuple[Any, Array, Array, Array]:
            if log_q == "path":
                log_q_u = frozen.log_prob(u)
            elif log_q == "score":
                u = stop_gradient(u)
                log_q_u = q.log_prob(u)
            score = jnp.zeros(())
            if self.gradient == "score_function":
                # The score is that of the draws, without N/B. In log w the mean of q's own gradient
                # is zero: left out.
                score, own = base.score_log_prob(unscaled, u), base.score_log_prob(q, u)
                log_q_u = log_q_u - (own - stop_gradient(own))
            if not annealed:
                return u, model.log_density(u, *data, weight=weight), log_q_u, score
            log_prior, log_likelihood = model.log_terms(u, *data, weight=weight)
            return (
                u,
                likelihood_weight * log_likelihood + kl_weight * log_prior,
                kl_weight * log_q_u,
                score,
            )

        def particle(piece: Array) -> tuple[Any, Array]:
            if not base.is_stratified(q):
                return weigh(*base.draw(q, piece)), jnp.zeros(())
            u, log_q_u, log_weight = base.strata(q, piece)
            return jax.vmap(weigh)(u, log_q_u), log_weight

        pairs = noise.over_particles(
            particle, key, self.num_particles, self.sampling, base.noise_size(q)
        )
        if base.is_stratified(q):
            pairs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), pairs)
        (u, log_p, log_q_u, score), log_weight = pairs
        return q, u, Particles(log_p, log_q_u, log_weight - jnp.log(self.num_particles), score)

    def _weights(self, step: Any) -> list[Any]:
        schedules = (self.kl_weight, self.likelihood_weight)
        return [
            1.0 if step is None or schedule is None else schedule(step) for schedule in schedules
        ]


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

    _gradients: ClassVar[tuple[str, ...]] = (
        "reparameterised",
        "sticking_the_landing",
        "closed_form_entropy",
        "closed_form_kl",
        "score_function",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient == "score_function" and self.num_particles < 2:
            raise ValueError(
                "score_function's baseline leaves one out: `num_particles` must be >= 2; got 1"
            )

    def __call__(
        self, key: Array, model: Model, guide: Guide, params: Any, *data: Any, **batch: Any
    ) -> Array:
        log_q = "path" if self.gradient == "sticking_the_landing" else "total"
        q, u, particles = self.particles(log_q, key, model, guide, params, *data, **batch)
        model, kl_weight = model.over(guide.constrained), self._weights(batch.get("step"))[0]
        if self.gradient == "closed_form_entropy":
            return particles.mean(particles.log_p) + kl_weight * base.entropy(q)
        if self.gradient == "closed_form_kl":
            sampled_minus_closed = jax.vmap(
                lambda u: closed_kl.sampled_minus_closed(q, model, u, batch.get("weight"))
            )(u)
            return particles.mean(particles.log_w + kl_weight * sampled_minus_closed)
        if self.gradient == "score_function":
            check_unstratified(q, self.gradient)
            log_w, num = particles.log_w, self.num_particles
            signal = log_w - (jnp.sum(log_w) - log_w) / (num - 1)
            return particles.mean(
                log_w + stop_gradient(signal) * (particles.score - stop_gradient(particles.score))
            )
        return particles.mean(particles.log_w)


def check_unstratified(q: Any, gradient: str) -> None:
    if base.is_stratified(q):
        raise ValueError(
            f"gradient={gradient!r} needs independent draws of q, and a mixture is drawn by strata"
        )


def _check_reparameterised(q: Any, model: Model) -> None:
    if not base.is_reparameterised(q):
        discrete = [
            name
            for name, s in checks.named_leaves(model.latents).items()
            if s.num_values is not None
        ]
        what = f"latents {discrete} are discrete" if discrete else "a part of the guide says so"
        raise ValueError(
            f"the gradient goes through the draws, which are not reparameterised ({what}): expected ELBO(K, "
            "gradient='score_function'), ForwardKL, or `sum_out` for finite latents"
        )
