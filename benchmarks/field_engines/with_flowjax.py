"""FlowJAX: an inverse autoregressive flow fitted by `fit_to_key_based_loss` with `ElboLoss`, as in
its example of variational inference. The loop is a Python loop, which waits for the device at every
step, and so it gets fewer steps of more draws.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from accuracy_targets import Target
from field_engines import budgets
from field_engines.figures import (
    NUM_DRAWS,
    Answer,
    Fit,
    Method,
    SkippedError,
    constrain,
    log_density,
    of_q,
)

FEWER_STEPS, MORE_PARTICLES = 10, 5


def autoregressive(target: Target, effort: float) -> Fit:
    import equinox
    from flowjax.distributions import StandardNormal
    from flowjax.flows import masked_autoregressive_flow
    from flowjax.train import fit_to_key_based_loss
    from flowjax.train.losses import ElboLoss

    if target.dim == 1:
        raise SkippedError("an autoregressive flow needs two dimensions")
    budget = budgets.of(budgets.FLOW, target, effort)
    steps, particles = math.ceil(budget.steps / FEWER_STEPS), MORE_PARTICLES * budget.particles
    budget = budget._replace(steps=steps, particles=particles)
    to_theta = constrain(target)
    loss, optimizer = ElboLoss(log_density(target), particles), budgets.adam(budget)
    sample = equinox.filter_jit(lambda flow, key: flow.sample_and_log_prob(key, (NUM_DRAWS,)))

    def run(seed: int) -> Answer:
        flow_key, fit_key, draw_key = jax.random.split(jax.random.key(seed), 3)
        base = StandardNormal((target.dim,))
        flow: Any = masked_autoregressive_flow(flow_key, base_dist=base, invert=False)
        flow, _ = fit_to_key_based_loss(
            fit_key, flow, loss_fn=loss, steps=steps, optimizer=optimizer, show_progress=False
        )
        u, log_q = sample(flow, draw_key)
        draws = jax.device_get(to_theta(jnp.asarray(u)))
        return Answer(draws, figures=budget._asdict(), judge=lambda: of_q(target, u, log_q))

    return run


METHODS: dict[str, Method] = {"autoregressive flow": autoregressive}
