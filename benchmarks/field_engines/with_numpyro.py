"""NumPyro: five autoguides, and NUTS.

NumPyro gets the very density of the minisvi model: its latents are `ImproperUniform` on the same
supports, whose `biject_to` is minisvi's map, and the log joint is one `numpyro.factor`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accuracy_targets import Target
from field_engines import budgets
from field_engines.figures import (
    BATCH,
    NUM_DRAWS,
    Answer,
    Figures,
    Fit,
    Method,
    SkippedError,
    of_weights,
)

FLOWS = ("AutoIAFNormal", "AutoBNAFNormal")
LARGEST_BNAF = 20  # its layers are 8 D x 8 D, and a step costs as their squares


def constraint(support: Any) -> Any:
    """NumPyro's name of a minisvi support."""
    from numpyro.distributions import constraints

    bijector = support.bijector
    kind = type(bijector).__name__
    if kind == "Exp" and bijector.lower:
        return constraints.greater_than(bijector.lower)
    if kind == "Exp":
        return constraints.positive
    if kind == "Sigmoid":
        return constraints.interval(bijector.low, bijector.high)
    if kind == "Identity":
        return constraints.real
    raise ValueError(f"no NumPyro constraint is written here for {kind}")


def model_of(target: Target) -> Callable[..., None]:
    """The same density: flat latents on the same supports, and the log joint as a factor."""
    import numpyro
    from numpyro.distributions import ImproperUniform

    def model(*data: Any) -> None:
        theta = {
            name: numpyro.sample(name, ImproperUniform(constraint(support), (), support.shape))
            for name, support in target.model.latents.items()
        }
        numpyro.factor("log_joint", target.model.joint(theta, *data))

    return model


def potential(target: Target) -> Callable[[dict[str, np.ndarray]], float]:
    """-log density as NumPyro computes it at u, for the check that both engines have the same
    density.
    """
    from numpyro.infer.util import potential_energy

    model = model_of(target)

    def of_point(u: dict[str, np.ndarray]) -> float:
        point = {name: jnp.asarray(value, float) for name, value in u.items()}
        return float(potential_energy(model, target.data, {}, point))

    return of_point


def start(target: Target, near: bool = False) -> Any:
    """NumPyro's start: u = 0, or its default of uniform(-2, 2), or the target's own near the
    truth.
    """
    from numpyro.infer import init_to_uniform, init_to_value

    if near and target.near is not None:
        return init_to_value(values=target.near)
    return init_to_uniform(radius=0.0) if target.neutral else init_to_uniform()


def autoguide(name: str, target: Target, effort: float) -> Fit:
    """`SVI.run` with an autoguide; steps that are not finite are dropped, as minisvi does."""
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    check(name, target)
    budget = budgets.of(budgets.FLOW if name in FLOWS else budgets.GAUSSIAN, target, effort)
    model = model_of(target)
    guide = getattr(autoguide, name)(model, init_loc_fn=start(target), **settings(name, target))
    svi = SVI(model, guide, budgets.adam(budget), Trace_ELBO(num_particles=budget.particles))

    def run(seed: int) -> Answer:
        fit_key, draw_key, judge_key = jax.random.split(jax.random.PRNGKey(seed), 3)
        result = svi.run(
            fit_key, budget.steps, *target.data, progress_bar=False, stable_update=True
        )
        found = guide.sample_posterior(draw_key, result.params, sample_shape=(NUM_DRAWS,))
        draws = jax.device_get({latent: found[latent] for latent in target.model.latents})
        judge = partial(weigh, judge_key, target, model, guide, result.params)
        return Answer(draws, figures=budget._asdict(), judge=judge)

    return run


def check(name: str, target: Target) -> None:
    if name in FLOWS and target.dim == 1:
        raise SkippedError("an autoregressive flow needs two dimensions")
    if name == "AutoBNAFNormal" and target.dim > LARGEST_BNAF:
        raise SkippedError(f"too costly above {LARGEST_BNAF} dimensions")


def settings(name: str, target: Target) -> dict[str, Any]:
    if name == "AutoLowRankMultivariateNormal":
        return {"rank": min(5, target.dim)}
    return {}


def weigh(key: Any, target: Target, model: Any, guide: Any, params: Any) -> Figures:
    """log p - log q of fresh draws of the guide: NumPyro's own loss, one particle at a time."""
    from numpyro.infer import Trace_ELBO

    loss = Trace_ELBO().loss

    def log_weight(key: Any) -> Any:
        return -loss(key, params, model, guide, *target.data)

    batched = jax.jit(lambda keys: jax.lax.map(log_weight, keys, batch_size=BATCH))
    log_w = batched(jax.random.split(key, NUM_DRAWS))
    return of_weights(target, np.asarray(log_w, np.float64))


def nuts(target: Target, effort: float) -> Fit:
    """Two chains, one after the other, and r-hat of the worst latent."""
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
    from numpyro.infer import MCMC, NUTS

    num_warmup, num_samples = budgets.chain(effort)
    kernel = NUTS(model_of(target), init_strategy=start(target, near=True))
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=budgets.NUM_CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )

    def run(seed: int) -> Answer:
        mcmc.run(jax.random.PRNGKey(seed), *target.data)
        found = mcmc.get_samples(group_by_chain=True)
        chains = {latent: np.asarray(found[latent]) for latent in target.model.latents}
        by_chain = side_by_side(chains)
        divergences = int(np.sum(mcmc.get_extra_fields()["diverging"]))
        rhat = float(np.nanmax(split_gelman_rubin(by_chain)))
        ess = float(np.nanmin(effective_sample_size(by_chain)))
        draws = {latent: np.concatenate(list(leaf)) for latent, leaf in chains.items()}
        figures = {"min_ess": ess, "r_hat": rhat, "divergences": divergences}
        return Answer(draws, None, of_chains(rhat, divergences), figures)

    return run


def side_by_side(chains: Any) -> np.ndarray:
    """All latents of all chains, (chains, draws, D)."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(chains)]
    return np.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)


def of_chains(rhat: float, divergences: int) -> str:
    return f"r-hat {rhat:.2f}, {divergences} divergences"


METHODS: dict[str, Method] = {
    "AutoNormal": partial(autoguide, "AutoNormal"),
    "AutoMultivariateNormal": partial(autoguide, "AutoMultivariateNormal"),
    "AutoLowRankMultivariateNormal": partial(autoguide, "AutoLowRankMultivariateNormal"),
    "AutoIAFNormal": partial(autoguide, "AutoIAFNormal"),
    "AutoBNAFNormal": partial(autoguide, "AutoBNAFNormal"),
    "NUTS": nuts,
}
