"""minisvi: `fit`, which has no budget, and `SVI` with four guides."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accuracy_targets import Target
from field_engines import budgets
from field_engines.figures import NUM_DRAWS, Answer, Figures, Fit, Method, gap, of_weights, starts

import minisvi
from minisvi.model import trees
from minisvi.posterior.posterior import log_weights


def fit(target: Target, effort: float) -> Fit:
    """`minisvi.fit`: its weighted draws and its verdict."""
    del effort  # it has no number of steps to reduce

    def run(seed: int) -> Answer:
        key = jax.random.key(seed)
        result = minisvi.fit(key, target.model, *target.data, progress_bar=False)
        draws, log_weights = jax.device_get((result.draws.theta, result.draws.log_weights))
        weights = np.exp(np.asarray(log_weights, np.float64))
        judge = partial(verdict, target, result)
        return Answer(draws, weights, result.verdict.level, judge=judge)

    return run


def verdict(target: Target, result: Any) -> Figures:
    """What the verdict says, and the evidence."""
    said = result.verdict
    figures = {
        "k_hat": said.khat,
        "verdict": said.level,
        "reason": said.reason,
        "verdict_table": str(said),
        "log_evidence": said.log_evidence,
        "log_evidence_se": said.log_evidence_se,
        "stages": {stage.name: float(stage.seconds) for stage in result.stages},
    }
    if target.log_evidence is not None:
        figures["log_evidence_error"] = said.log_evidence - target.log_evidence
    return gap(target, said.elbo) | figures


def svi(guide_of: Callable[[Any], Any], kind: budgets.Budget, target: Target, effort: float) -> Fit:
    """`SVI` with the guide of these latents, and 10,000 draws of it."""
    budget = budgets.of(kind, target, effort)
    guide = guide_of(target.model.latents)
    objective = minisvi.ELBO(budget.particles)
    engine = minisvi.SVI(target.model, guide, budgets.adam(budget), objective)

    def run(seed: int) -> Answer:
        init_key, fit_key, draw_key, judge_key = jax.random.split(jax.random.key(seed), 4)
        params = None if target.neutral else guide.init(init_key, loc=start(target, seed))
        result = engine.run(fit_key, budget.steps, *target.data, params=params, progress_bar=False)
        posterior = minisvi.Posterior(target.model, guide, result.params)
        draws = jax.device_get(posterior.sample(draw_key, NUM_DRAWS))
        judge = partial(weigh, judge_key, target, guide, result.params)
        return Answer(draws, figures=budget._asdict(), judge=judge)

    return run


def start(target: Target, seed: int) -> Any:
    return trees.unravel(target.model.latents, jnp.asarray(starts(target, seed, 1)[0], float))


def weigh(key: Any, target: Target, guide: Any, params: Any) -> Figures:
    _, log_w = log_weights(key, target.model, guide, params, *target.data, num_samples=NUM_DRAWS)
    return of_weights(target, np.asarray(log_w, np.float64))


def low_rank(latents: Any) -> Any:
    """Rank 5, or D if that is less."""
    size = sum(int(np.prod(s.unconstrained.shape)) for s in jax.tree.leaves(latents))
    return minisvi.low_rank(latents, min(5, size))


def flow(latents: Any) -> Any:
    """A RealNVP over a mean field, in minisvi's default size."""
    return minisvi.affine_coupling(minisvi.mean_field(latents))


METHODS: dict[str, Method] = {
    "fit": fit,
    "mean field": partial(svi, minisvi.mean_field, budgets.GAUSSIAN),
    "full rank": partial(svi, minisvi.full_rank, budgets.GAUSSIAN),
    "low rank": partial(svi, low_rank, budgets.GAUSSIAN),
    "coupling flow": partial(svi, flow, budgets.FLOW),
}
