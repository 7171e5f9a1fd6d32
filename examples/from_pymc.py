"""Any PyMC model with continuous latents, fitted and judged by minisvi.

    pip install pymc

`from_pymc` is the bridge: PyMC compiles its log densities to JAX, over unconstrained values that
it has transformed itself. The example is of ten pumps that failed y_i times in t_i thousand hours
(Gaver and O'Muircheartaigh 1987), as the BUGS manual has it:

    y_i ~ Poisson(rate_i t_i),   rate_i ~ Gamma(shape, speed)
    shape ~ Exponential(1),   speed ~ Gamma(0.1, 1)

Run `python examples/from_pymc.py`; `--quick` leaves NUTS out.
"""

# %% The bridge.
import sys

import arviz as az
import jax
import numpy as np
import pymc as pm
from pymc.sampling.jax import get_jaxified_graph

import minisvi


def jaxified(pymc_model, outputs):
    """The outputs of PyMC's graph as a JAX function of a dict of its unconstrained values."""
    names = [variable.name for variable in pymc_model.value_vars]
    function = get_jaxified_graph(pymc_model.value_vars, outputs)

    def of_values(values):
        return function(*[values[name] for name in names])

    return of_values


def from_pymc(pymc_model):
    """The model for minisvi, whose latents are PyMC's unconstrained values, all of them real.

    The data are inside PyMC's graph, so that a fit takes none. ValueError for discrete latents.
    """
    discrete = [variable.name for variable in pymc_model.discrete_value_vars]
    if discrete:
        raise ValueError(f"{discrete} are discrete: sum them out, as by `pm.Mixture`")
    start = pymc_model.initial_point()
    latents = {v.name: minisvi.real(start[v.name].shape) for v in pymc_model.value_vars}
    # PyMC counts the Jacobians of its transforms with the prior.
    prior = jaxified(pymc_model, [pymc_model.varlogp, pymc_model.potentiallogp])
    likelihood = jaxified(pymc_model, [pymc_model.observedlogp])

    def log_prior(values):
        return sum(prior(values))

    def log_likelihood(values):
        return likelihood(values)[0]

    return minisvi.Model(latents, None, log_prior, log_likelihood, per_row=False)


def in_pymcs_terms(pymc_model, draws):
    """The draws of all latents and deterministics under PyMC's names, as its own functions map
    them.
    """
    variables = pymc_model.free_RVs + pymc_model.deterministics
    function = jaxified(pymc_model, pymc_model.replace_rvs_by_values(variables))
    names = [variable.name for variable in variables]
    return draws.map(lambda values: dict(zip(names, function(values))))


# %% The data, and the model as PyMC has it.
FAILURES = np.array([5, 1, 5, 14, 3, 19, 1, 1, 4, 22])
HOURS = np.array([94.3, 15.7, 62.9, 125.8, 5.24, 31.4, 1.048, 1.048, 2.096, 10.48])

with pm.Model() as pumps:
    shape = pm.Exponential("shape", 1.0)
    speed = pm.Gamma("speed", 0.1, 1.0)
    rate = pm.Gamma("rate", shape, speed, shape=len(HOURS))
    pm.Deterministic("mean_rate", shape / speed)
    pm.Poisson("failures", rate * HOURS, observed=FAILURES)

# %% The fit, its verdict, and the way back: PyMC's posterior predictive check.
if __name__ == "__main__":
    fit = minisvi.fit(jax.random.key(0), from_pymc(pumps), progress_bar=False)
    print(f"{fit}\n")
    draws = in_pymcs_terms(pumps, fit.draws.resample(jax.random.key(1), 2000))
    one_chain = {name: np.asarray(values)[None] for name, values in draws.theta.items()}
    posterior = az.from_dict(posterior=one_chain)
    replicated = pm.sample_posterior_predictive(posterior, pumps, progressbar=False, random_seed=2)
    counts = replicated.posterior_predictive["failures"].values[0]
    low, high = np.quantile(counts, [0.05, 0.95], axis=0)
    print(f"{np.mean((low <= FAILURES) & (high >= FAILURES)):.0%} of the pumps in 90 % intervals")
    print(az.summary(posterior, kind="stats"))
    if "--quick" not in sys.argv:
        nuts = pm.sample(2000, chains=2, cores=1, progressbar=False, random_seed=3, model=pumps)
        print(f"NUTS\n{az.summary(nuts, kind='stats')}")
