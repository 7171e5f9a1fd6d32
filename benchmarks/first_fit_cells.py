"""One cell of first_fit.py, in a process of its own: an engine on a target, and what it cost.

Three targets are those of `accuracy_targets.py`; the hierarchy is here, and its truth is exact. All
engines get the same density: NumPyro as `field_engines` gives it, BlackJAX as
`model.log_density` of the minisvi model.
"""

import importlib
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from blackjax_chains import nuts_chains

IMPORTS = {
    "minisvi": ["minisvi"],
    "old minisvi": ["minisvi"],
    "NumPyro": ["numpyro.infer", "numpyro.infer.autoguide"],
    "BlackJAX": ["blackjax"],
}
BEST_GUIDE = {
    "gamma": "AutoNormal",
    "eight_schools": "AutoIAFNormal",
    "breast_cancer": "AutoMultivariateNormal",
    "varying_intercepts": "AutoIAFNormal",
}  # of three guides of NumPyro, by accuracy; for the hierarchy what is best on eight schools
NUM_STEPS, NUM_PARTICLES = 20_000, 10  # of NumPyro's guides
FIRST_RATE = {"AutoNormal": 0.02, "AutoMultivariateNormal": 0.02, "AutoIAFNormal": 0.01}
HAS_FIXED_ROWS = ("eight_schools",)  # its latents are as many as its rows
MU_SD = 5.0  # of the hierarchy's prior
NUM_CHAINS, NUM_WARMUP, NUM_DRAWS = 2, 1_000, 2_000  # of NUTS

Figures = dict[str, Any]


class Answer(NamedTuple):
    """Draws of theta on the host, with their weights or None, and what the engine says of them."""

    draws: Any
    weights: Any
    said: Figures


def cell(name: str, engine: str, seed: int, effort: float, root: str) -> Figures:
    """The figures of one engine on one target; of minisvi also those of a second fit and of a new
    N. `root` is where `minisvi` has to come from.
    """
    begin = time.perf_counter()
    for module in IMPORTS[engine]:
        importlib.import_module(module)
    import_seconds = time.perf_counter() - begin
    from field_engines.figures import moments
    from meters import Compilations, metered

    check_root(root)
    target = target_of(name)
    fit = ENGINES[engine]
    jax.clear_caches()  # what making the target has compiled is not to help its fit
    compilations = Compilations()
    fits = {}
    for which, data in data_of(name, engine, target, seed).items():
        with metered(compilations) as figures:
            answer = fit(name, target, data, seed, effort)
        figures |= answer.said
        if which == "first fit":
            figures |= moments(target, answer.draws, answer.weights)
        fits[which] = figures
    backend = jax.default_backend()
    return {"backend": backend, "dim": target.dim, "import_s": import_seconds, "fits": fits}


def check_root(root: str) -> None:
    """Stop if the minisvi of another place was imported."""
    import minisvi

    if not str(minisvi.__file__).startswith(root):
        raise SystemExit(f"expected the minisvi of {root}; got that of {minisvi.__file__}")


def data_of(name: str, engine: str, target: Any, seed: int) -> dict[str, tuple[Any, ...]]:
    """The data of each fit of a process, in turn: other rows, drawn of the same ones, and one row
    less.
    """
    fits = {"first fit": target.data}
    if "minisvi" not in engine:
        return fits
    num_rows = len(target.data[0])
    chosen = generator(seed).integers(num_rows, size=num_rows)
    fits["second fit"] = rows_of(target.data, chosen)
    if name not in HAS_FIXED_ROWS:
        fits["new N"] = rows_of(target.data, range(num_rows - 1))
    return fits


def rows_of(data: tuple[Any, ...], rows: Any) -> tuple[Any, ...]:
    """These rows of each array, chosen on the host, so that nothing is compiled for it."""
    import numpy as np

    return tuple(np.asarray(leaf)[np.asarray(rows)] for leaf in data)


def generator(seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed)


# Engines: from the call to numbers on the host.


def minisvi_fit(name: str, target: Any, data: Any, seed: int, effort: float) -> Answer:
    """`minisvi.fit`, with its weighted draws and their moments."""
    import numpy as np

    import minisvi

    del name, effort  # it has no number of steps to reduce
    fit = minisvi.fit(jax.random.key(seed), target.model, *data, progress_bar=False)
    draws, log_weights = jax.device_get((fit.draws.theta, fit.draws.log_weights))
    jax.device_get((fit.draws.mean(), fit.draws.sd()))
    weights = np.exp(np.asarray(log_weights, np.float64))
    return Answer(draws, weights, {"verdict": fit.verdict.level})


def numpyro_fit(name: str, target: Any, data: Any, seed: int, effort: float) -> Answer:
    """The best guide, fitted by 20,000 steps of 10 particles, and 10,000 draws of it."""
    import optax
    from field_engines import with_numpyro
    from field_engines.figures import NUM_DRAWS
    from numpyro.infer import SVI, Trace_ELBO, autoguide

    guide_name = BEST_GUIDE[name]
    steps = math.ceil(effort * NUM_STEPS)
    model = with_numpyro.model_of(target)
    guide = getattr(autoguide, guide_name)(model, init_loc_fn=with_numpyro.start(target))
    optimizer = optax.adam(optax.exponential_decay(FIRST_RATE[guide_name], steps, 0.01))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=NUM_PARTICLES))
    fit_key, draw_key = jax.random.split(jax.random.PRNGKey(seed))
    result = svi.run(fit_key, steps, *data, progress_bar=False, stable_update=True)
    shape = (NUM_DRAWS,)
    found = guide.sample_posterior(draw_key, params=result.params, sample_shape=shape)
    draws = jax.device_get({latent: found[latent] for latent in target.model.latents})
    return Answer(draws, None, {"guide": guide_name, "steps": steps})


def blackjax_nuts(name: str, target: Any, data: Any, seed: int, effort: float) -> Answer:
    """NUTS with window adaptation from uniform(-2, 2)."""
    import numpy as np

    del name
    num_warmup = max(math.ceil(effort * NUM_WARMUP), 50)
    num_draws = max(math.ceil(effort * NUM_DRAWS), 50)

    def log_density(u: Any) -> Any:
        return target.model.log_density(u, *data)

    all_chains = nuts_chains(log_density, target.model.constrain, num_warmup, num_draws)
    keys = jax.random.split(jax.random.key(seed), NUM_CHAINS)
    chains, is_divergent = jax.device_get(all_chains(keys, starts(target, seed)))
    draws = {latent: np.concatenate(list(leaf)) for latent, leaf in chains.items()}
    return Answer(draws, None, {"divergences": int(np.sum(is_divergent))})


def starts(target: Any, seed: int) -> Any:
    """A start u for each chain, made on the host."""
    random = generator(seed)

    def start(support: Any) -> Any:
        like = support.unconstrained
        return random.uniform(-2.0, 2.0, (NUM_CHAINS, *like.shape)).astype(like.dtype)

    return {latent: start(support) for latent, support in target.model.latents.items()}


ENGINES: dict[str, Callable[..., Answer]] = {
    "minisvi": minisvi_fit,
    "old minisvi": minisvi_fit,
    "NumPyro": numpyro_fit,
    "BlackJAX": blackjax_nuts,
}


# Targets.


def target_of(name: str) -> Any:
    import accuracy_targets

    if name == "varying_intercepts":
        return varying_intercepts()
    return accuracy_targets.TARGETS[name]()


def varying_intercepts(num_groups: int = 20) -> Any:
    """y_i ~ N(mu + tau z_g(i), sigma), z_g ~ N(0, 1), mu ~ N(0, 5), tau and sigma half-normal: a
    hierarchy that is not centred, with 4 to 16 rows a group, D = 23.
    """
    import jax.numpy as jnp
    import numpy as np
    from accuracy_targets import Target
    from jax.scipy.stats import norm

    from minisvi import Model, positive, real

    random = np.random.default_rng(3)
    group = np.repeat(np.arange(num_groups), random.integers(4, 17, num_groups))
    effects = 1.5 + 0.8 * random.normal(size=num_groups)
    y = effects[group] + 0.6 * random.normal(size=group.size)

    def log_prior(theta: Any) -> Any:
        scales = norm.logpdf(theta["tau"]) + norm.logpdf(theta["sigma"]) + 2.0 * jnp.log(2.0)
        return norm.logpdf(theta["mu"], 0.0, MU_SD) + scales + jnp.sum(norm.logpdf(theta["z"]))

    def log_likelihood(theta: Any, group: Any, y: Any) -> Any:
        loc = theta["mu"] + theta["tau"] * theta["z"][group]
        return norm.logpdf(y, loc, theta["sigma"])

    def quantities(theta: Any) -> Any:
        effects = theta["mu"] + theta["tau"] * theta["z"]
        scalars = jnp.stack([theta["mu"], theta["sigma"], theta["tau"]])
        return jnp.concatenate([scalars, effects])

    latents = {"mu": real(), "sigma": positive(), "tau": positive(), "z": real(num_groups)}
    model = Model(latents, log_prior=log_prior, log_likelihood=log_likelihood)
    data = jnp.asarray(group), jnp.asarray(y, float)
    mean, sd, log_evidence = by_quadrature(group, y)
    return Target(model, data, mean, sd, log_evidence, "quadrature", quantities)


class Groups(NamedTuple):
    """What the rows y of all groups say: their number and mean by group (G,), and the sum of
    squares within groups.
    """

    counts: Any
    means: Any
    within: Any


def groups_of(group: Any, y: Any) -> Groups:
    import numpy as np

    counts = np.bincount(group)
    means = np.bincount(group, y) / counts
    within = np.sum((y - means[group]) ** 2)
    return Groups(counts, means, within)


def by_quadrature(group: Any, y: Any) -> tuple[Any, Any, float]:
    """Mean and sd of (mu, sigma, tau, effects) and the log evidence of `varying_intercepts`.

    Given tau and sigma all else is Gaussian: what is left is an integral over a grid of these two.
    """
    import numpy as np

    groups = groups_of(group, y)
    tau, tau_step = np.linspace(0.2, 2.5, 600, retstep=True)
    sigma, sigma_step = np.linspace(0.4, 0.9, 400, retstep=True)
    tau, sigma = (axis.ravel() for axis in np.meshgrid(tau, sigma))
    log_p = log_density_of_scales(groups, tau, sigma)
    top = np.max(log_p)
    weights = np.exp(log_p - top)
    log_evidence = top + np.log(np.sum(weights) * tau_step * sigma_step)
    weights /= np.sum(weights)
    means, variances = given_scales(groups, tau, sigma)
    mean = weights @ means
    variance = weights @ (variances + (means - mean) ** 2)
    return mean, np.sqrt(variance), float(log_evidence)


def mu_given_scales(groups: Groups, tau: Any, sigma: Any) -> tuple[Any, Any, Any]:
    """The variances v_g = tau^2 + sigma^2 / n_g of the groups' means (S, G), and the mean and the
    precision of mu (S,), at S points of the grid.
    """
    import numpy as np

    v = tau[:, None] ** 2 + sigma[:, None] ** 2 / groups.counts
    precision = 1.0 / MU_SD**2 + np.sum(1.0 / v, axis=1)
    loc = np.sum(groups.means / v, axis=1) / precision
    return v, loc, precision


def log_density_of_scales(groups: Groups, tau: Any, sigma: Any) -> Any:
    """log p(tau, sigma, y), (S,): mu and the effects are integrated out."""
    import numpy as np

    v, loc, precision = mu_given_scales(groups, tau, sigma)
    between = -0.5 * np.sum(np.log(2 * np.pi * v) + groups.means**2 / v, axis=1)
    over_mu = 0.5 * precision * loc**2 - 0.5 * np.log(MU_SD**2 * precision)
    freedom = np.sum(groups.counts) - len(groups.counts)
    log_sigma = np.log(sigma * np.sqrt(2 * np.pi))
    within = -freedom * log_sigma - 0.5 * groups.within / sigma**2
    within -= 0.5 * np.sum(np.log(groups.counts))
    log_prior = np.log(2 / np.pi) - 0.5 * (tau**2 + sigma**2)
    return between + over_mu + within + log_prior


def given_scales(groups: Groups, tau: Any, sigma: Any) -> tuple[Any, Any]:
    """Means and variances of (mu, sigma, tau, effects) given tau and sigma, (S, 3 + G)."""
    import numpy as np

    v, loc, precision = mu_given_scales(groups, tau, sigma)
    pull = tau[:, None] ** 2 / v
    effects = pull * groups.means + (1 - pull) * loc[:, None]
    own_variance = pull * sigma[:, None] ** 2 / groups.counts
    effect_variances = own_variance + (1 - pull) ** 2 / precision[:, None]
    nothing = np.zeros_like(tau)
    means = np.column_stack([loc, sigma, tau, effects])
    variances = np.column_stack([1 / precision, nothing, nothing, effect_variances])
    return means, variances
