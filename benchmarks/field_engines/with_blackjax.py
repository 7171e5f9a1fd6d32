"""BlackJAX: multi-path Pathfinder, two Gaussian guides, and NUTS with window adaptation. Each is
one jitted program over the flat log density, as BlackJAX's documentation has them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accuracy_targets import Target
from blackjax_chains import nuts_chains
from field_engines import budgets
from field_engines.figures import (
    NUM_DRAWS,
    Answer,
    Fit,
    Method,
    constrain,
    log_density,
    of_q,
    starts,
)
from field_engines.with_numpyro import of_chains, side_by_side

from minisvi.model import trees

NUM_PATHS = 4  # as in Stan


def pathfinder(target: Target, effort: float) -> Fit:
    """Four paths, 200 draws for each ELBO on a path (the default), and 10,000 draws with PSIS
    weights. k-hat is the library's own figure.
    """
    from blackjax.vi import multipathfinder
    from blackjax.vi import pathfinder as single

    del effort  # L-BFGS ends by itself
    density, to_theta = log_density(target), constrain(target)
    each = NUM_DRAWS // NUM_PATHS

    def draw(key: Any, state: Any) -> Any:
        u, log_q = single.sample(key, state, each)
        return u, jax.lax.map(density, u, batch_size=100), log_q

    @jax.jit
    def paths(key: Any, positions: Any) -> Any:
        path_key, draw_key = jax.random.split(key)
        found, _ = multipathfinder.multi_approximate(path_key, density, positions)
        keys = jax.random.split(draw_key, NUM_PATHS)
        u, log_p, log_q = jax.vmap(draw)(keys, found.path_states)
        state = found._replace(samples=u, logp=log_p, logq=log_q)
        log_weights, k_hat = multipathfinder.psis_weights(state)
        return u.reshape(NUM_DRAWS, -1), log_weights, k_hat, found.path_states.elbo

    def run(seed: int) -> Answer:
        positions = jnp.asarray(starts(target, seed, NUM_PATHS), float)
        u, log_weights, k_hat, elbos = paths(jax.random.key(seed), positions)
        weights = np.exp(np.asarray(log_weights, np.float64))
        figures = {"k_hat": float(k_hat), "path_elbos": np.asarray(elbos).tolist()}
        draws = jax.device_get(to_theta(u))
        return Answer(draws, weights, f"k-hat {float(k_hat):.2f}", figures)

    return run


def gaussian(name: str, target: Target, effort: float) -> Fit:
    """`meanfield_vi` or `fullrank_vi`, whose default gradient is sticking the landing."""
    import blackjax
    from blackjax.vi import fullrank_vi, meanfield_vi

    budget = budgets.of(budgets.GAUSSIAN, target, effort)
    density, to_theta = log_density(target), constrain(target)
    algorithm = getattr(blackjax, name)(density, budgets.adam(budget), num_samples=budget.particles)

    @jax.jit
    def fit(key: Any) -> Any:
        state = algorithm.init(jnp.zeros(target.dim))
        keys = jax.random.split(key, budget.steps)
        return jax.lax.scan(lambda state, key: (algorithm.step(key, state)[0], None), state, keys)[
            0
        ]

    def log_q(state: Any) -> Any:
        if name == "meanfield_vi":
            return meanfield_vi.generate_meanfield_logdensity(state.mu, state.rho)
        return fullrank_vi.generate_fullrank_logdensity(state.mu, state.chol_params)

    def run(seed: int) -> Answer:
        fit_key, draw_key = jax.random.split(jax.random.key(seed))
        state = fit(fit_key)
        u = algorithm.sample(draw_key, state, NUM_DRAWS)
        draws = jax.device_get(to_theta(u))
        judge = lambda: of_q(target, u, jax.vmap(log_q(state))(u))
        return Answer(draws, figures=budget._asdict(), judge=judge)

    return run


def nuts(target: Target, effort: float) -> Fit:
    """Two chains of `nuts_chains`."""
    from numpyro.diagnostics import split_gelman_rubin

    num_warmup, num_samples = budgets.chain(effort)
    latents = target.model.latents

    def to_theta(u: Any) -> Any:
        return target.model.constrain(trees.unravel(latents, u))

    all_chains = nuts_chains(log_density(target), to_theta, num_warmup, num_samples)

    def run(seed: int) -> Answer:
        keys = jax.random.split(jax.random.key(seed), budgets.NUM_CHAINS)
        chains, is_divergent = jax.device_get(all_chains(keys, near(target, seed)))
        draws = {latent: np.concatenate(list(leaf)) for latent, leaf in chains.items()}
        rhat = float(np.nanmax(split_gelman_rubin(side_by_side(chains))))
        divergences = int(np.sum(is_divergent))
        figures = {"r_hat": rhat, "divergences": divergences}
        return Answer(draws, None, of_chains(rhat, divergences), figures)

    return run


def near(target: Target, seed: int) -> Any:
    """A start for each chain: uniform, or near the truth where NUTS needs that."""
    if target.near is None:
        return jnp.asarray(starts(target, seed, budgets.NUM_CHAINS), float)
    u = trees.ravel(target.model.latents, target.model.unconstrain(target.near))
    return jnp.tile(u, (budgets.NUM_CHAINS, 1))


METHODS: dict[str, Method] = {
    "Pathfinder": pathfinder,
    "mean field": partial(gaussian, "meanfield_vi"),
    "full rank": partial(gaussian, "fullrank_vi"),
    "NUTS": nuts,
}
