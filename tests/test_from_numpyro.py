"""`examples/from_numpyro.py`: models of NumPyro's own examples, as they are written there.

The density of each equals NumPyro's potential at random positions. That is exact, and the fits are
checked beyond it: their verdicts, their way back to NumPyro's `Predictive`, and two of them against
NUTS. Data that NumPyro's examples download are simulated here.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import RTOL
from jax.scipy.special import expit
from numpyro.distributions import constraints, transforms
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.reparam import TransformReparam
from numpyro.infer.util import potential_energy
from scipy.special import betaln
from tiers import standing_for

import minisvi
from minisvi.model import trees

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from from_numpyro import ADMIT, APPLICATIONS, DEPT, MALE, admissions, from_numpyro

pytestmark = pytest.mark.foreign

QUIET = {"progress_bar": False}
RNG = np.random.default_rng(0)
HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def baseball(at_bats, hits=None):
    """`partially_pooled` of examples/baseball.py."""
    m = numpyro.sample("m", dist.Uniform(0, 1))
    kappa = numpyro.sample("kappa", dist.Pareto(1, 1.5))
    with numpyro.plate("num_players", at_bats.shape[0]):
        phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        return numpyro.sample("obs", dist.Binomial(at_bats, probs=phi), obs=hits)


def eight_schools(num_schools, sigma, y=None):
    """The non-centred one of NumPyro's README."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    shift = dist.transforms.AffineTransform(mu, tau)
    with numpyro.plate("J", num_schools):
        with numpyro.handlers.reparam(config={"theta": TransformReparam()}):
            effect = dist.TransformedDistribution(dist.Normal(0.0, 1.0), shift)
            theta = numpyro.sample("theta", effect)
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def divorce(marriage=None, age=None, divorce=None):
    """The notebook bayesian_regression, whose arguments may be missing."""
    a = numpyro.sample("a", dist.Normal(0.0, 0.2))
    by_marriage, by_age = 0.0, 0.0
    if marriage is not None:
        by_marriage = numpyro.sample("bM", dist.Normal(0.0, 0.5)) * marriage
    if age is not None:
        by_age = numpyro.sample("bA", dist.Normal(0.0, 0.5)) * age
    sigma = numpyro.sample("sigma", dist.Exponential(1.0))
    numpyro.sample("obs", dist.Normal(a + by_marriage + by_age, sigma), obs=divorce)


def horseshoe(x, y=None):
    """`model_normal_likelihood` of examples/horseshoe_regression.py."""
    size = x.shape[1]
    lambdas = numpyro.sample("lambdas", dist.HalfCauchy(jnp.ones(size)))
    tau = numpyro.sample("tau", dist.HalfCauchy(jnp.ones(1)))
    unscaled = numpyro.sample("unscaled_betas", dist.Normal(0.0, jnp.ones(size)))
    betas = numpyro.deterministic("betas", tau * lambdas * unscaled)
    precision = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
    numpyro.sample("Y", dist.Normal(jnp.dot(x, betas), 1.0 / jnp.sqrt(precision)), obs=y)


def gaussian_process(x, y=None):
    """examples/gp.py."""
    var = numpyro.sample("kernel_var", dist.LogNormal(0.0, 10.0))
    noise = numpyro.sample("kernel_noise", dist.LogNormal(0.0, 10.0))
    length = numpyro.sample("kernel_length", dist.LogNormal(0.0, 10.0))
    squared = jnp.power((x[:, None] - x) / length, 2.0)
    k = var * jnp.exp(-0.5 * squared) + (noise + 1.0e-6) * jnp.eye(x.shape[0])
    loc = jnp.zeros(x.shape[0])
    numpyro.sample("Y", dist.MultivariateNormal(loc, covariance_matrix=k), obs=y)


def ordinal(x, y=None, nclasses=3):
    """`model3` of the notebook ordinal_regression."""
    slope = numpyro.sample("b_X_eta", dist.Normal(0, 5))
    base = dist.Normal(0, 1).expand([nclasses - 1])
    cuts = numpyro.sample("c_y", dist.TransformedDistribution(base, transforms.OrderedTransform()))
    with numpyro.plate("obs", x.shape[0]):
        numpyro.sample("Y", dist.OrderedLogistic(x * slope, cuts), obs=y)


def ordinal_by_simplex(concentration, x, y=None):
    """`model4` of the same notebook."""
    slope = numpyro.sample("b_X_eta", dist.Normal(0, 5))
    to_cuts = transforms.SimplexToOrderedTransform(0.0)
    with numpyro.handlers.reparam(config={"c_y": TransformReparam()}):
        induced = dist.TransformedDistribution(dist.Dirichlet(concentration), to_cuts)
        cuts = numpyro.sample("c_y", induced)
    with numpyro.plate("obs", x.shape[0]):
        numpyro.sample("Y", dist.OrderedLogistic(x * slope, cuts), obs=y)


def zero_inflated(x, y=None):
    """examples/zero_inflated_poisson.py."""
    size = x.shape[1]
    b1 = numpyro.sample("b1", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    b2 = numpyro.sample("b2", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    gate = expit(jnp.dot(x, b1[:, None])).reshape(-1)
    rate = jnp.exp(jnp.dot(x, b2[:, None]).reshape(-1))
    with numpyro.plate("obs", x.shape[0]):
        numpyro.sample("Y", dist.ZeroInflatedPoisson(gate=gate, rate=rate), obs=y)


def volatility(num_steps, returns=None):
    """examples/stochastic_volatility.py."""
    step_size = numpyro.sample("sigma", dist.Exponential(50.0))
    walk = dist.GaussianRandomWalk(scale=step_size, num_steps=num_steps)
    s = numpyro.sample("s", walk)
    nu = numpyro.sample("nu", dist.Exponential(0.1))
    numpyro.sample("r", dist.StudentT(df=nu, loc=0.0, scale=jnp.exp(s)), obs=returns)


def divorce_data():
    marriage, age = RNG.standard_normal((2, 50))
    return marriage, age, 0.1 * marriage - 0.6 * age + 0.8 * RNG.standard_normal(50)


def horseshoe_data():
    x = RNG.standard_normal((50, 3))
    return x, x @ [2.0, -1.0, 0.5] + 0.05 * RNG.standard_normal(50)


def process_data():
    x = np.linspace(-1, 1, 30)
    y = x + 0.2 * x**3 + 0.5 * (0.5 + x) ** 2 * np.sin(4 * x) + 0.15 * RNG.standard_normal(30)
    return x, (y - y.mean()) / y.std()


def ordinal_data():
    y = RNG.integers(3, size=50)
    return RNG.standard_normal(50) + y, y


def inflated_data():
    x = np.column_stack([np.ones(200), RNG.standard_normal(200)])
    counts = RNG.poisson(np.exp(x @ [1.0, 0.5]))
    is_zero = RNG.random(200) < expit(x @ [-1.0, 0.7])
    return x, np.where(is_zero, 0, counts)


def returns_data():
    log_scale = -4.5 + np.cumsum(0.15 * RNG.standard_normal(60))
    return (np.exp(log_scale) * RNG.standard_normal(60),)


class Case(NamedTuple):
    """A model; the arguments that are bound; the data, of which the last is observed at `site`."""

    numpyro_model: Any
    bound: tuple
    data: tuple
    site: str
    per_row: bool
    level: str  # the verdict's, of the fit below when this was written

    @property
    def function(self):
        return partial(self.numpyro_model, *self.bound)


LEVELS = NOT, BULK, GOOD = "not trusted", "bulk good, tails unverified", "good"
ADMISSIONS = DEPT, MALE, APPLICATIONS
CASES = {
    "baseball": Case(baseball, (), (np.full(18, 45), HITS), "obs", True, BULK),
    "eight schools": Case(eight_schools, (8,), (ERRORS, EFFECTS), "obs", True, GOOD),
    "admissions": Case(admissions, ADMISSIONS, (ADMIT,), "admit", True, GOOD),
    "divorce": Case(divorce, (), divorce_data(), "obs", True, GOOD),
    "horseshoe": Case(horseshoe, (), horseshoe_data(), "Y", True, NOT),
    "gaussian process": Case(gaussian_process, (), process_data(), "Y", False, BULK),
    "ordinal": Case(ordinal, (), ordinal_data(), "Y", True, GOOD),
    "ordinal by a simplex": Case(
        ordinal_by_simplex, (np.full(3, 10.0),), ordinal_data(), "Y", True, GOOD
    ),
    "zero-inflated": Case(zero_inflated, (), inflated_data(), "Y", True, GOOD),
    "stochastic volatility": Case(volatility, (60,), returns_data(), "r", True, GOOD),
}


def positions(key, model, num):
    """Random u, in a tree with a leading axis."""
    like = trees.unconstrained_like(model.latents)
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    draws = [0.7 * jax.random.normal(k, (num, *leaf.shape)) for k, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(structure, draws)


def densities(key, model, function, data):
    """minisvi's and NumPyro's log density over u, at five positions."""
    u = positions(key, model, 5)
    ours = jax.vmap(lambda u: model.log_density(u, *data))
    theirs = jax.vmap(lambda u: -potential_energy(function, data, {}, u))
    return jax.jit(lambda u: (ours(u), theirs(u)))(u)


@pytest.mark.parametrize("name", standing_for(CASES, "baseball"))
def test_the_density_is_numpyros(name, key):
    case = CASES[name]
    data = jax.tree.map(jnp.asarray, case.data)
    model = from_numpyro(case.function, *data)
    ours, theirs = densities(key, model, case.function, data)
    assert np.allclose(ours, theirs, rtol=20 * RTOL)
    assert model.per_row == case.per_row
    model.check(*data)


def every_constraint(y):
    """A latent for each of NumPyro's constraints that a bijection leads to."""
    sites = {
        "above": dist.TruncatedNormal(0.0, 1.0, low=-1.5),
        "below": dist.TruncatedNormal(0.0, 1.0, high=0.5),
        "between": dist.Uniform(-2.0, jnp.array([1.0, 3.0])),
        "circle": dist.VonMises(0.3, 2.0),
        "correlations": dist.LKJ(3, 2.0),
        "correlation factor": dist.LKJCholesky(3, 2.0).expand([2]),
        "increasing": dist.ImproperUniform(constraints.ordered_vector, (), (3,)),
        "increasing from zero": dist.ImproperUniform(constraints.positive_ordered_vector, (), (3,)),
        "matrix": dist.MatrixNormal(jnp.zeros((2, 3)), jnp.eye(2), jnp.eye(3)),
        "no sum": dist.ZeroSumNormal(1.0, (4,)),
        "of a plate": dist.HalfNormal(jnp.ones((2, 3))),
        "positive definite": dist.Wishart(5.0, jnp.eye(2)),
        "positive definite factor": dist.WishartCholesky(5.0, jnp.eye(2)),
        "shares": dist.Dirichlet(jnp.ones((2, 3))),
        "softplus": dist.ImproperUniform(constraints.softplus_positive, (2,), ()),
        "unit": dist.Beta(2.0, 3.0).expand([2]).to_event(1),
    }
    total = sum(jnp.sum(numpyro.sample(name, prior)) for name, prior in sites.items())
    numpyro.sample("y", dist.Normal(total, 1.0), obs=y)


@pytest.mark.whole
def test_every_constraint_has_its_support(key):
    y = jnp.array(1.0)
    model = from_numpyro(every_constraint, y)
    ours, theirs = densities(key, model, every_constraint, (y,))
    assert np.allclose(ours, theirs, rtol=20 * RTOL)


@pytest.mark.whole
def test_a_theta_goes_back_to_where_it_came_from(key):
    model = from_numpyro(every_constraint, jnp.array(1.0))
    u = jax.tree.map(lambda leaf: leaf[0], positions(key, model, 1))
    found = model.unconstrain(model.constrain(u))
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(u), strict=True):
        assert np.allclose(one, two, atol=1e-3)


def test_a_support_that_depends_on_another_latent_is_refused():
    def nested():
        top = numpyro.sample("top", dist.HalfNormal(1.0))
        numpyro.sample("x", dist.Uniform(0.0, top))

    with pytest.raises(ValueError, match="the support of `x` depends on latents"):
        from_numpyro(nested)


def test_rows_follow_new_data_and_the_prior_does_not():
    model = from_numpyro(divorce, *CASES["divorce"].data)
    few = [jnp.asarray(column[:7]) for column in CASES["divorce"].data]
    theta = {"a": 0.1, "bM": 0.2, "bA": -0.3, "sigma": 0.9}
    rows = model.rows(theta, *few)
    assert rows.shape == (7,)
    assert np.allclose(rows, dist.Normal(0.1 + 0.2 * few[0] - 0.3 * few[1], 0.9).log_prob(few[2]))
    prior = model.prior_term(theta)
    expected = dist.Normal(0, 0.2).log_prob(0.1) + dist.Exponential(1.0).log_prob(0.9)
    expected += dist.Normal(0, 0.5).log_prob(0.2) + dist.Normal(0, 0.5).log_prob(-0.3)
    assert np.allclose(prior, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_fit_is_judged_and_goes_back_to_predictive(name, key):
    case = CASES[name]
    model = from_numpyro(case.function, *case.data)
    # What is not trusted anyway may as well end early.
    budget = 5.0 if case.level == NOT else np.inf
    fit = minisvi.fit(key, model, *case.data, seconds=budget, **QUIET)
    assert LEVELS.index(fit.verdict.level) >= LEVELS.index(case.level), str(fit)
    draws = fit.draws.resample(key, 500)
    predictive = Predictive(case.function, draws.theta)
    replicated = predictive(key, *case.data[:-1])[case.site]
    observed = case.data[-1]
    assert replicated.shape == (500, *observed.shape)
    low, high = np.quantile(replicated, [0.005, 0.995], axis=0)
    assert np.mean((low <= observed) & (high >= observed)) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["divorce", "zero-inflated"])
def test_the_moments_are_those_of_nuts(name, key):
    """Over u. Baseball is left to quadrature: a chain of NUTS is a tenth of an sd off there."""
    case = CASES[name]
    model = from_numpyro(case.function, *case.data)
    draws = minisvi.fit(key, model, *case.data, **QUIET).draws.map(model.unconstrain)
    sampler = MCMC(NUTS(case.function), num_warmup=1000, num_samples=10_000, **QUIET)
    sampler.run(key, *case.data)
    theirs = sampler.get_samples()
    samples = jax.vmap(model.unconstrain)({name: theirs[name] for name in model.latents})
    for site, expected in samples.items():
        sd = expected.std(axis=0)
        assert np.all(np.abs(draws.mean()[site] - expected.mean(axis=0)) < 0.1 * sd)
        assert np.all(np.abs(draws.sd()[site] / sd - 1) < 0.1)


@pytest.mark.slow
def test_the_concentration_of_the_batters_is_that_of_quadrature(key):
    """Hits are BetaBinomial given (m, kappa), which leaves two dimensions; u = log(kappa - 1)."""
    u, m = np.linspace(-8, 25, 3301)[:, None], np.linspace(0.001, 0.999, 499)
    kappa = 1 + np.exp(u)
    a, b = m * kappa, (1 - m) * kappa
    rows = [betaln(a + hits, b + 45 - hits) - betaln(a, b) for hits in HITS]
    log_p = sum(rows) - 2.5 * np.log(kappa) + u  # a Pareto of shape 1.5, and the Jacobian
    p = np.exp(log_p - log_p.max())
    p = p.sum(axis=1) / p.sum()
    mean = p @ u[:, 0]
    sd = np.sqrt(p @ (u[:, 0] - mean) ** 2)
    case = CASES["baseball"]
    model = from_numpyro(case.function, *case.data)
    draws = minisvi.fit(key, model, *case.data, **QUIET).draws.map(model.unconstrain)
    assert abs(draws.mean()["kappa"] - mean) < 0.03 * sd
    assert abs(draws.sd()["kappa"] / sd - 1) < 0.03
