"""TFP on JAX: `fit_surrogate_posterior_stateless` with the affine surrogate posteriors that it
builds, in one jitted program.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from accuracy_targets import Target
from field_engines import budgets
from field_engines.figures import NUM_DRAWS, Answer, Fit, Method, constrain, log_density, of_q


def surrogate(operators: str, target: Target, effort: float) -> Fit:
    """`operators` is "diag" for a mean field and "tril" for a full rank."""
    from tensorflow_probability.substrates import jax as tfp

    budget = budgets.of(budgets.GAUSSIAN, target, effort)
    density, to_theta = jax.vmap(log_density(target)), constrain(target)
    init, build = tfp.experimental.vi.build_affine_surrogate_posterior_stateless(
        [target.dim], operators=operators, dtype=jnp.zeros(()).dtype
    )

    @jax.jit
    def fit(key: Any) -> Any:
        init_key, fit_key = jax.random.split(key)
        params, _ = tfp.vi.fit_surrogate_posterior_stateless(
            density,
            build_surrogate_posterior_fn=build,
            initial_parameters=init(seed=init_key),
            optimizer=budgets.adam(budget),
            num_steps=budget.steps,
            sample_size=budget.particles,
            seed=fit_key,
        )
        return params

    @jax.jit
    def sample(key: Any, params: Any) -> Any:
        return build(*params).experimental_sample_and_log_prob(NUM_DRAWS, seed=key)

    def run(seed: int) -> Answer:
        fit_key, draw_key = jax.random.split(jax.random.key(seed))
        u, log_q = sample(draw_key, fit(fit_key))
        draws = jax.device_get(to_theta(u))
        return Answer(draws, figures=budget._asdict(), judge=lambda: of_q(target, u, log_q))

    return run


METHODS: dict[str, Method] = {
    "mean field": partial(surrogate, "diag"),
    "full rank": partial(surrogate, "tril"),
}
