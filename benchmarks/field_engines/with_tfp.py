"""TFP on JAX: `fit_surrogate_posterior_stateless` with a trainable multivariate normal, in one
jitted program. The affine surrogates that TFP builds itself cannot be drawn from under `jax.jit`
with the JAX of today.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from accuracy_targets import Target
from field_engines import budgets
from field_engines.figures import NUM_DRAWS, Answer, Fit, Method, constrain, log_density, of_q


def surrogate(family: str, target: Target, effort: float) -> Fit:
    """A trainable distribution of TFP, by its name."""
    from tensorflow_probability.substrates import jax as tfp

    budget = budgets.of(budgets.GAUSSIAN, target, effort)
    density, to_theta = jax.vmap(log_density(target)), constrain(target)
    init, build = tfp.experimental.util.make_trainable_stateless(
        getattr(tfp.distributions, family),
        batch_and_event_shape=[target.dim],
        parameter_dtype=jnp.zeros(()).dtype,
    )

    @jax.jit
    def fit(key: Any, start: Any) -> Any:
        params, _ = tfp.vi.fit_surrogate_posterior_stateless(
            density,
            build_surrogate_posterior_fn=build,
            initial_parameters=start,
            optimizer=budgets.adam(budget),
            num_steps=budget.steps,
            sample_size=budget.particles,
            seed=key,
        )
        return params

    @jax.jit
    def sample(key: Any, params: Any) -> Any:
        return build(*params).experimental_sample_and_log_prob(NUM_DRAWS, seed=key)

    def run(seed: int) -> Answer:
        init_key, fit_key, draw_key = jax.random.split(jax.random.PRNGKey(seed), 3)
        u, log_q = sample(draw_key, fit(fit_key, init(seed=init_key)))
        draws = jax.device_get(to_theta(u))
        return Answer(draws, figures=budget._asdict(), judge=lambda: of_q(target, u, log_q))

    return run


METHODS: dict[str, Method] = {
    "mean field": partial(surrogate, "MultivariateNormalDiag"),
    "full rank": partial(surrogate, "MultivariateNormalTriL"),
}
