"""Any NumPyro model, fitted and judged by minisvi, whose draws go back to NumPyro's `Predictive`.

The example is NumPyro's: admissions to Berkeley by department and sex (Bickel et al. 1975), with
varying slopes and an LKJ prior. `python examples/from_numpyro.py`; `--quick` leaves NUTS out.
"""

# %% The bridge: supports are read off a trace, and log densities come from NumPyro's own handlers.
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from beside_nuts import compare, timed
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer.util import compute_log_probs

import minisvi

SUPPORTS = [
    (constraints.real, minisvi.real),
    (constraints.positive, minisvi.positive),
    (constraints.unit_interval, minisvi.unit_interval),
    (constraints.simplex, minisvi.simplex),
    (constraints.ordered_vector, minisvi.ordered),
    (constraints.corr_cholesky, minisvi.corr_cholesky),
]


@dataclass(frozen=True, eq=False)
class Bijection:
    """NumPyro's bijection onto a constraint that has no entry in the table."""

    transform: Any

    def forward_and_log_det(self, u):
        theta = self.transform(u)
        return theta, self.transform.log_abs_det_jacobian(u, theta)

    def inverse(self, theta):
        return self.transform.inv(theta)


def support(name, site, other):
    """The support of a latent; ValueError if another trace has another one."""
    constraint = site["fn"].support
    if constraint != other["fn"].support:
        raise ValueError(f"the support of `{name}` depends on latents: use `TransformReparam`")
    if isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    for known, make in SUPPORTS:
        if constraint == known:
            return make(jnp.shape(site["value"]))
    return minisvi.transformed(Bijection(biject_to(constraint)), jnp.shape(site["value"]))


def from_numpyro(numpyro_model, *data):
    """The model for minisvi. Its priors see these data, and its likelihood those of the fit.

    What is no array, or decides on shapes, is bound before by `functools.partial`. A plate takes
    all of its rows, and a `numpyro.param` stays at its initial value.
    """
    seeded, reseeded = handlers.seed(numpyro_model, 0), handlers.seed(numpyro_model, 1)
    sites = handlers.trace(seeded).get_trace(*data)
    again = handlers.trace(reseeded).get_trace(*data)
    latents = {}
    for name, site in sites.items():
        if site["type"] == "sample" and not site["is_observed"]:
            latents[name] = support(name, site, again[name])

    def log_prior(theta):
        terms, _ = compute_log_probs(seeded, data, {}, theta)
        return sum((terms[name] for name in latents), 0.0)

    def observed(theta, data):
        terms, _ = compute_log_probs(seeded, data, {}, theta, sum_log_prob=False)
        return [term for name, term in terms.items() if name not in latents]

    def log_likelihood(theta, *data):
        terms = observed(theta, data)
        if not per_row:
            return sum(map(jnp.sum, terms), 0.0)
        return sum(term.reshape(len(term), -1).sum(axis=1) for term in terms)

    values = {name: sites[name]["value"] for name in latents}
    sizes = {jnp.shape(term)[:1] for term in observed(values, data)}
    rows = [jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)]
    per_row = rows != [] and rows[0] != () and sizes == {rows[0]}
    terms = {"log_prior": log_prior, "log_likelihood": log_likelihood}
    return minisvi.Model(latents, **terms, per_row=per_row)


# %% NumPyro's model, as its example has it, and the data of the departments A to F.
def admissions(dept, male, applications, admit=None):
    v_mu = numpyro.sample("v_mu", dist.Normal(0, jnp.array([4.0, 1.0])))
    sigma = numpyro.sample("sigma", dist.HalfNormal(jnp.ones(2)))
    L_Rho = numpyro.sample("L_Rho", dist.LKJCholesky(2, concentration=2))
    z = numpyro.sample("z", dist.Normal(jnp.zeros((len(np.unique(dept)), 2)), 1))
    v = (sigma[:, None] * L_Rho @ z.T).T
    logits = v_mu[0] + v[dept, 0] + (v_mu[1] + v[dept, 1]) * male
    numpyro.sample("admit", dist.Binomial(applications, logits=logits), obs=admit)


DEPT, MALE = np.repeat(np.arange(6), 2), np.tile([1, 0], 6)
APPLICATIONS = np.array([825, 108, 560, 25, 325, 593, 417, 375, 191, 393, 373, 341])
ADMIT = np.array([512, 89, 353, 17, 120, 202, 138, 131, 53, 94, 22, 24])

# %% The fit, its verdict, NUTS beside it, and a check by NumPyro's `Predictive`.
if __name__ == "__main__":
    rows = DEPT, MALE, APPLICATIONS
    model = from_numpyro(partial(admissions, *rows), ADMIT)
    fit, seconds = timed(lambda: minisvi.fit(jax.random.key(0), model, ADMIT, progress_bar=False))
    compare(fit, seconds, jax.random.key(1), lambda t: {**t, "L_Rho": t["L_Rho"][1, 0]})
    draws = fit.draws.resample(jax.random.key(2), 2000)
    predictive = numpyro.infer.Predictive(admissions, draws.theta)
    replicated = predictive(jax.random.key(3), *rows)["admit"]
    low, high = np.quantile(replicated, [0.05, 0.95], axis=0)
    print(f"{np.mean((ADMIT >= low) & (ADMIT <= high)):.0%} of the cells within 90 % intervals")
