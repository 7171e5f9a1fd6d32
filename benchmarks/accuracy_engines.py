"""The engines of accuracy.py: each takes a target and a seed, and gives figures of its answer.

NumPyro gets the very density of the minisvi model: its latents are `ImproperUniform` on the same
supports, whose `biject_to` is minisvi's map, and the log joint is one `numpyro.factor`.

The clock runs from the call to numbers on the host: compilation, fit, 10,000 draws and their
moments; imports, the target and what judges an answer afterwards (the ELBO and k-hat of NumPyro's
guides) are outside of it. minisvi's own checks are inside, because they are part of its answer.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accuracy_targets import Target, Theta

NUM_DRAWS = 10_000
GUIDES = ("AutoNormal", "AutoMultivariateNormal", "AutoIAFNormal")
GUIDE = {"steps": 20_000, "particles": 10, "rate": 0.02}  # the rate decays to a hundredth
SMALLER_RATE = {"AutoIAFNormal": {"rate": 0.01}}

Figures = dict[str, Any]


# What is said of draws.


def moments(target: Target, draws: Theta, weights: np.ndarray | None = None) -> Figures:
    """Errors of the (weighted) moments of the target's quantities, and its own score."""
    size = len(jax.tree.leaves(draws)[0])
    weights = np.full(size, 1 / size) if weights is None else weights / np.sum(weights)
    figures = target.score(draws, weights) if target.score else {}
    if target.mean is None:
        return figures
    values = np.asarray(jax.jit(jax.vmap(target.quantities))(draws), np.float64)
    return figures | errors(target, *weighted(values, weights))


def weighted(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of each column; draws of zero weight count for nothing, even where they
    overflow.
    """
    values = np.where(weights[:, None] > 0, values, 0.0)
    mean = weights @ values
    return mean, np.sqrt(weights @ (values - mean) ** 2)


def errors(target: Target, mean: np.ndarray, sd: np.ndarray) -> Figures:
    """RMS and largest of (mean - reference) / reference sd, and of the relative error of the sd."""
    assert target.mean is not None
    assert target.sd is not None
    shift, ratio = (mean - target.mean) / target.sd, sd / target.sd
    return {
        "mean_err": float(np.sqrt(np.mean(shift**2))),
        "mean_err_max": float(np.max(np.abs(shift))),
        "sd_err": float(np.sqrt(np.mean((ratio - 1) ** 2))),
        "sd_err_max": float(np.max(np.abs(ratio - 1))),
        "sd_ratio": [float(np.min(ratio)), float(np.max(ratio))],
    }


def gap(target: Target, elbo: float) -> Figures:
    """log evidence - ELBO, the KL to the posterior in nats, where the evidence is known."""
    return {"elbo": elbo} | (
        {} if target.log_evidence is None else {"gap": target.log_evidence - elbo}
    )


# minisvi.


def minisvi_fit(target: Target, seed: int, effort: float = 1.0) -> Figures:
    del effort  # it has no number of steps to reduce
    import minisvi

    key = jax.random.key(seed)
    begin = time.perf_counter()
    result = minisvi.fit(key, target.model, *target.data, progress_bar=False)
    draws, log_weights = jax.device_get((result.draws.theta, result.draws.log_weights))
    jax.device_get((result.draws.mean(), result.draws.sd()))
    seconds = time.perf_counter() - begin
    figures = gap(target, result.verdict.elbo) | {
        "seconds": seconds,
        "log_evidence": result.verdict.log_evidence,
    }
    figures |= {"log_evidence_se": result.verdict.log_evidence_se}
    if target.log_evidence is not None:
        figures["log_evidence_error"] = result.verdict.log_evidence - target.log_evidence
    figures |= moments(target, draws, np.exp(np.asarray(log_weights, np.float64)))
    return figures | verdict(result) | {"stages": {s.name: float(s.seconds) for s in result.stages}}


def verdict(result: Any) -> Figures:
    """What the verdict says."""
    said = result.verdict
    return {
        "verdict": said.level,
        "reason": said.reason,
        "verdict_table": str(said),
        "k_hat": said.khat,
    }


# NumPyro.


def constraint(support: Any) -> Any:
    """NumPyro's name of a minisvi support."""
    from numpyro.distributions import constraints

    kind = type(support.bijector).__name__
    if kind == "Exp":
        return (
            constraints.greater_than(support.bijector.lower)
            if support.bijector.lower
            else constraints.positive
        )
    if kind == "Sigmoid":
        return constraints.interval(support.bijector.low, support.bijector.high)
    if kind == "Identity":
        return constraints.real
    raise ValueError(f"no NumPyro constraint is written here for {kind}")


def numpyro_model(target: Target) -> Callable[..., None]:
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


def numpyro_potential(target: Target) -> Callable[[dict[str, np.ndarray]], float]:
    """-log density as NumPyro computes it at u, for the check that both engines have the same
    density.
    """
    from numpyro.infer.util import potential_energy

    model = numpyro_model(target)

    def potential(u: dict[str, np.ndarray]) -> float:
        point = {name: jnp.asarray(value, float) for name, value in u.items()}
        return float(potential_energy(model, target.data, {}, point))

    return potential


def start(target: Target, near: bool = False) -> Any:
    """NumPyro's start: u = 0, or its default of uniform(-2, 2), or the target's own near the
    truth.
    """
    from numpyro.infer import init_to_uniform, init_to_value

    if near and target.near is not None:
        return init_to_value(values=target.near)
    return init_to_uniform(radius=0.0) if target.neutral else init_to_uniform()


def numpyro_guide(name: str, target: Target, seed: int, effort: float = 1.0) -> Figures:
    """Adam from 0.02 to 0.0002, 10 particles, 20,000 steps; steps that are not finite are dropped,
    as minisvi does.
    """
    import optax
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    if name == "AutoIAFNormal" and target.dim == 1:
        return {"status": "not available", "reason": "an autoregressive flow needs two dimensions"}
    settings = GUIDE | SMALLER_RATE.get(name, {}) | (target.guides or {}).get(name, {})
    steps, rate = math.ceil(effort * settings["steps"]), settings["rate"]
    model = numpyro_model(target)
    guide = getattr(autoguide, name)(model, init_loc_fn=start(target))
    objective = Trace_ELBO(num_particles=settings["particles"])
    svi = SVI(model, guide, optax.adam(optax.exponential_decay(rate, steps, 0.01)), objective)
    fit_key, draw_key, judge_key = jax.random.split(jax.random.PRNGKey(seed), 3)
    begin = time.perf_counter()
    result = svi.run(fit_key, steps, *target.data, progress_bar=False, stable_update=True)
    posterior = partial(guide.sample_posterior, params=result.params, sample_shape=(NUM_DRAWS,))
    draws = jax.device_get({n: posterior(draw_key)[n] for n in target.model.latents})
    jax.tree.map(lambda leaf: (np.mean(leaf, 0), np.std(leaf, 0)), draws)
    seconds = time.perf_counter() - begin
    log_w = log_weights(judge_key, result.params, model, guide, target.data)
    elbo, se = float(np.mean(log_w)), float(np.std(log_w) / np.sqrt(len(log_w)))
    figures = gap(target, elbo) | {"elbo_se": se, "k_hat": k_hat(log_w), "seconds": seconds}
    return figures | settings | {"steps": steps} | moments(target, draws)


def log_weights(key: Any, params: Any, model: Any, guide: Any, data: tuple[Any, ...]) -> np.ndarray:
    """log p - log q of fresh draws of the guide: NumPyro's own loss, one particle at a time."""
    from numpyro.infer import Trace_ELBO

    loss = Trace_ELBO().loss
    one = jax.jit(
        lambda keys: jax.lax.map(
            lambda k: -loss(k, params, model, guide, *data), keys, batch_size=100
        )
    )
    return np.asarray(one(jax.random.split(key, NUM_DRAWS)), np.float64)


def k_hat(log_w: np.ndarray) -> float:
    """The Pareto shape of the weights' tail, by minisvi: equal to arviz-stats, which fails if a
    tail underflows.
    """
    from minisvi.posterior import diagnostics

    return float(diagnostics.psis(jnp.asarray(log_w)).khat)


def nuts(target: Target, seed: int, effort: float = 1.0) -> Figures:
    """One chain: 1,000 + 1,000, or 2,000 + 2,000 of a target of at most 31 dimensions."""
    from numpyro.diagnostics import effective_sample_size
    from numpyro.infer import MCMC, NUTS

    size = max(math.ceil(effort * (2_000 if target.dim <= 31 else 1_000)), 50)
    kernel = NUTS(numpyro_model(target), init_strategy=start(target, near=True))
    mcmc = MCMC(kernel, num_warmup=size, num_samples=size, progress_bar=False)
    begin = time.perf_counter()
    mcmc.run(jax.random.PRNGKey(seed), *target.data)
    draws = jax.device_get({n: mcmc.get_samples()[n] for n in target.model.latents})
    seconds = time.perf_counter() - begin
    values = np.concatenate([v.reshape(size, -1) for v in jax.tree.leaves(draws)], axis=1)
    ess = float(np.nanmin(effective_sample_size(values[None])))
    divergences = int(np.sum(mcmc.get_extra_fields()["diverging"]))
    return {
        "seconds": seconds,
        "draws": size,
        "min_ess": ess,
        "divergences": divergences,
    } | moments(target, draws)


ENGINES: dict[str, Callable[..., Figures]] = {
    "minisvi.fit": minisvi_fit,
    **{name: partial(numpyro_guide, name) for name in GUIDES},
    "NUTS": nuts,
}
