"""Any NumPyro model, fitted and judged by minisvi, whose draws go back to NumPyro's `Predictive`.

The example is NumPyro's: admissions to Berkeley by department and sex (Bickel et al. 1975), with
varying slopes and an LKJ prior. `python examples/from_numpyro.py`; `--quick` leaves NUTS out.
"""

# %% The bridge: supports are read off a trace, and log densities come from NumPyro's own handlers.
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from beside_nuts import EFFORT, compare, timed
from numpyro import handlers
from numpyro.infer import init_to_uniform
from numpyro.infer.util import compute_log_probs

import minisvi

# In both libraries these have the same names and the same maps.
SHARED = "real", "positive", "unit_interval", "simplex", "lower_cholesky", "corr_cholesky"


@dataclass(frozen=True, eq=False)
class Bijection:
    """NumPyro's bijection onto a constraint that minisvi has no support for."""

    transform: dist.transforms.Transform

    def forward_and_log_det(self, u):
        theta = self.transform(u)
        return theta, self.transform.log_abs_det_jacobian(u, theta)

    def inverse(self, theta):
        return self.transform.inv(theta)


def support(name, site, other):
    """The support of a latent site; ValueError if it is another one in another trace."""
    shape, constraint = jnp.shape(site["value"]), site["fn"].support
    bijections = dist.biject_to(constraint), dist.biject_to(other["fn"].support)
    at_zero = [each(jnp.zeros(each.inverse_shape(shape))) for each in bijections]
    if not np.array_equal(*at_zero):
        raise ValueError(f"the support of `{name}` depends on latents: use `TransformReparam`")
    base = getattr(constraint, "base_constraint", constraint)  # of each coordinate or matrix
    for known in SHARED:
        if base == getattr(dist.constraints, known):
            return getattr(minisvi, known)(shape)
    return minisvi.transformed(Bijection(bijections[0]), shape)


def trace_of(numpyro_model, seed, data):
    started = handlers.substitute(handlers.seed(numpyro_model, seed), substitute_fn=init_to_uniform)
    return handlers.trace(started).get_trace(*data)


def from_numpyro(numpyro_model, *data):
    """The model for minisvi. Its priors see these data, and its likelihood those of the fit.

    What is no array, or decides on shapes, is bound before by `partial`. Plates take all of their
    rows, and each `numpyro.param` stays at its initial value.
    """
    sites, others = (trace_of(numpyro_model, seed, data) for seed in (0, 1))
    latents = {}
    for name, site in sites.items():
        if site["type"] == "sample" and not site["is_observed"]:
            latents[name] = support(name, site, others[name])

    @jax.numpy_rank_promotion("allow")
    def log_probs(theta, data):
        seeded = handlers.seed(numpyro_model, 0)
        terms, _ = compute_log_probs(seeded, data, {}, theta, sum_log_prob=False)
        prior = [terms.pop(name) for name in latents]
        return prior, list(terms.values())

    def log_prior(theta):
        prior, _ = log_probs(theta, data)
        return sum(map(jnp.sum, prior), 0.0)

    def log_likelihood(theta, *data):
        _, terms = log_probs(theta, data)
        if not per_row:
            return sum(map(jnp.sum, terms), 0.0)
        return sum(term.reshape(len(term), -1).sum(axis=1) for term in terms)

    _, terms = log_probs({name: sites[name]["value"] for name in latents}, data)
    sizes = {jnp.shape(term)[:1] for term in terms}
    per_row = sizes != {()} and sizes == {jnp.shape(x)[:1] for x in jax.tree.leaves(data)[:1]}
    return minisvi.Model(latents, None, log_prior, log_likelihood, per_row=per_row)


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
    rows = DEPT, MALE, APPLICATIONS  # these are bound, as the model counts the departments
    model = from_numpyro(partial(admissions, *rows), ADMIT)
    fit, seconds = timed(
        lambda: minisvi.fit(jax.random.key(0), model, ADMIT, progress_bar=False, **EFFORT)
    )
    compare(fit, seconds, jax.random.key(1))
    draws = fit.draws.resample(jax.random.key(2), 2000)
    predictive = numpyro.infer.Predictive(admissions, draws.theta)
    replicated = predictive(jax.random.key(3), *rows)["admit"]
    low, high = np.quantile(replicated, [0.05, 0.95], axis=0)
    print(f"{np.mean((low <= ADMIT) & (high >= ADMIT)):.0%} of the cells in 90 % intervals")
