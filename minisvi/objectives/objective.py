"""What all objectives share: their options, the draws of q, and the weights of these."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from minisvi.guides.base import Distribution, Guide
from minisvi.guides.foreign import member, weighted
from minisvi.model.model import Model
from minisvi.objectives.tempered import TemperedModel, tempered
from minisvi.tools import checks, noise
from minisvi.tools.names import named_leaves
from minisvi.tools.types import Data, Draw, Params

Schedule = Callable[[Any], Any]


class Problem(NamedTuple):
    """What one estimate is made of: log p as a function of u, and q.

    - `model`: the user's, over u in the form that the guide draws it.
    - `log_p(u)`: log p(T(u), D) + log|det J_T(u)| in nats. The likelihood counts N/B times if the
      data are a batch, and beta_l times where it is annealed; the prior with log|det J| counts
      beta_k times.
    - `q`: its log densities of local latents count N/B times too, and all of them beta_k times.
      `stopped_q` is the same with no gradient in phi. `plain_q` has neither N/B nor annealing.
    - `weight`: N/B, or None. `kl_weight`: beta_k at this step, which is one without annealing.
    """

    model: Model
    log_p: Callable[[Draw], Array]
    q: Distribution
    stopped_q: Distribution
    plain_q: Distribution
    weight: Any
    kl_weight: Any


class Particles(NamedTuple):
    """What was computed at S draws of q: an array (S,), or a tree of them, and the log of the
    draws' weights (S,), which sum to one. Each weight is 1/K; of a mixture, pi_c / K.
    """

    values: Any
    log_weight: Array

    def mean(self, values: Array) -> Array:
        """The weighted mean over the draws."""
        return jnp.sum(jnp.exp(self.log_weight) * values)


@dataclass(frozen=True)
class Objective:
    """What all objectives share.

    **Arguments**

    - `num_particles`: draws of the guide per estimate, K >= 1.
    - `gradient`: see each objective.
    - `sampling`: `"independent"`, `"antithetic"` or `"quasi"` draws (see `noise.over_particles`).
    - `kl_weight`, `likelihood_weight`: annealing. Each is a function of the step, such as an optax
      schedule, that returns beta in

          log w = beta_l log p(D | theta) + beta_k (log p(theta) + log|det J| - log q)

      of a factored model (Bowman et al. 2016; Mandt et al. 2016). They are one where no `step` is
      given, so that an objective called by hand is not annealed.

    ValueError or TypeError for other values, and for discrete latents where the gradient goes
    through the draws.
    """

    num_particles: int = 1
    gradient: str = "reparameterised"
    sampling: noise.Sampling = "independent"
    kl_weight: Schedule | None = None
    likelihood_weight: Schedule | None = None

    _gradients: ClassVar[tuple[str, ...]] = ("reparameterised",)
    _independent_only = ("doubly_reparameterised", "score_function")

    def __post_init__(self) -> None:
        checks.positive_integer("num_particles", self.num_particles)
        if self.gradient not in self._gradients:
            raise ValueError(f"`gradient` must be one of {self._gradients}; got {self.gradient!r}")
        noise.check(self.sampling, self.num_particles)
        if self.gradient in self._independent_only and self.sampling != "independent":
            raise ValueError(
                f"gradient={self.gradient!r} is unbiased with independent draws alone; "
                f"got {self.sampling!r}"
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
        """The estimate in nats, whose gradient in `params` is the estimator's.

        `weight` is N/B of a minibatch, or None for all rows. Schedules are asked at `step`. With
        `step=None` they are not asked, and nothing is annealed. ValueError for a `weight` or a
        schedule where the model is not factored.
        """
        raise NotImplementedError

    def problem(
        self, model: Model, guide: Guide, params: Params, data: Data, weight: Any, step: Any
    ) -> Problem:
        model = model.over(guide.constrained)
        log_p = partial(_log_density, model, data, weight)
        plain_q = member(guide, params, *data)
        q = weighted(plain_q, weight, model.latents)
        stopped_q = member(guide, stop_gradient(params), *data)
        stopped_q = weighted(stopped_q, weight, model.latents)
        if self.kl_weight is None and self.likelihood_weight is None:
            return Problem(model, log_p, q, stopped_q, plain_q, weight, 1.0)
        beta_k = _at_step(self.kl_weight, step)
        beta_l = _at_step(self.likelihood_weight, step)
        log_p = partial(_log_density, TemperedModel(model, beta_k, beta_l), data, weight)
        q, stopped_q = tempered(q, beta_k), tempered(stopped_q, beta_k)
        return Problem(model, log_p, q, stopped_q, plain_q, weight, beta_k)

    def particles(
        self,
        key: Array,
        q: Distribution,
        weigh: Callable[[Draw, Array], Any],
        stopped_q: Distribution | None = None,
    ) -> Particles:
        """`weigh(u_k, log q(u_k))` at K draws of q; with `stopped_q` log q has no gradient but that
        through u_k.
        """

        def particle(eps: Array) -> tuple[Any, Array]:
            if stopped_q is None:
                return q.at_draws(weigh, eps)
            return q.at_draws_on_path(weigh, stopped_q, eps)

        values, log_weight = noise.over_particles(
            particle, key, self.num_particles, self.sampling, q.noise_size
        )
        if q.stratified:  # the particles and their strata, as one axis of draws
            values, log_weight = jax.tree.map(_flat, (values, log_weight))
        return Particles(values, log_weight - jnp.log(self.num_particles))


def _log_density(model: Model | TemperedModel, data: Data, weight: Any, u: Draw) -> Array:
    return model.log_density(u, *data, weight=weight)


def _at_step(schedule: Schedule | None, step: Any) -> Any:
    return 1.0 if schedule is None or step is None else schedule(step)


def _flat(leaf: Array) -> Array:
    """The two leading axes as one."""
    return leaf.reshape(-1, *leaf.shape[2:])


def check_reparameterised(problem: Problem) -> None:
    """ValueError unless a gradient passes through the draws."""
    if problem.q.reparameterised:
        return
    latents = named_leaves(problem.model.latents)
    discrete = [name for name, support in latents.items() if support.num_values is not None]
    what = f"latents {discrete} are discrete" if discrete else "a part of the guide says so"
    raise ValueError(
        f"the gradient goes through the draws, which are not reparameterised ({what}): expected "
        "ELBO(K, gradient='score_function'), ForwardKL, or `sum_out` for finite latents"
    )


def check_unstratified(q: Distribution, gradient: str) -> None:
    """ValueError if q is drawn by strata."""
    if q.stratified:
        raise ValueError(
            f"gradient={gradient!r} needs independent draws of q, and a mixture is drawn by strata"
        )


def with_gradient_of(surrogate: Array, value: Array) -> Array:
    """`value`, with the gradient of `surrogate`."""
    return surrogate + stop_gradient(value - surrogate)
