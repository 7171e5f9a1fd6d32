"""Distributions of NumPyro, TFP and Distrax, as priors of latents and inside likelihoods, against
SciPy.

Values of the log density in unconstrained space, and gradients by differences of SciPy's in double
precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from tiers import standing_for

from minisvi import Model, corr_cholesky, finite, positive, real, simplex, unit_interval

pytestmark = pytest.mark.foreign
LIBRARIES = {
    "numpyro": "numpyro.distributions",
    "tfp": "tensorflow_probability.substrates.jax.distributions",
    "distrax": "distrax",
}
U = 0.4  # where the densities are compared
RTOL = 1e-4  # in double precision too, for some numbers of the libraries stay float32 there


# theta and log|det J| at a number u, by hand


def identity(u):
    return u, 0.0


def exponential(u):
    return np.exp(u), u


def logistic(u):
    return special.expit(u), special.log_expit(u) + special.log_expit(-u)


def stick(u):
    z, log_det = logistic(u)
    return np.array([z, 1 - z]), log_det


def correlation(u):
    return np.tanh(u), np.log1p(-(np.tanh(u) ** 2))


REAL, POSITIVE, UNIT = (real(), identity), (positive(), exponential), (unit_interval(), logistic)
# family: (support, its map, the reference's log density of theta, {library: the distribution})
PRIORS = {
    "normal": (
        *REAL,
        stats.norm(1, 2).logpdf,
        {name: lambda d: d.Normal(1.0, 2.0) for name in LIBRARIES},
    ),
    "half-normal": (
        *POSITIVE,
        stats.halfnorm(scale=2).logpdf,
        {name: lambda d: d.HalfNormal(2.0) for name in ("numpyro", "tfp")},
    ),
    "half-cauchy": (
        *POSITIVE,
        stats.halfcauchy(scale=2).logpdf,
        {"numpyro": lambda d: d.HalfCauchy(2.0), "tfp": lambda d: d.HalfCauchy(0.0, 2.0)},
    ),
    "student": (
        *REAL,
        stats.t(3, 1, 2).logpdf,
        # TFP takes Python's numbers for float32, and does not mix dtypes.
        {name: lambda d: d.StudentT(*jnp.array([3.0, 1.0, 2.0])) for name in ("numpyro", "tfp")},
    ),
    "laplace": (
        *REAL,
        stats.laplace(1, 2).logpdf,
        {name: lambda d: d.Laplace(1.0, 2.0) for name in LIBRARIES},
    ),
    "gamma": (
        *POSITIVE,
        stats.gamma(2, scale=1 / 3).logpdf,
        {name: lambda d: d.Gamma(2.0, 3.0) for name in LIBRARIES},
    ),
    "inverse gamma": (
        *POSITIVE,
        stats.invgamma(2, scale=3).logpdf,
        {name: lambda d: d.InverseGamma(2.0, 3.0) for name in ("numpyro", "tfp")},
    ),
    "log-normal": (
        *POSITIVE,
        stats.lognorm(0.5, scale=np.exp(0.3)).logpdf,
        {name: lambda d: d.LogNormal(0.3, 0.5) for name in ("numpyro", "tfp")},
    ),
    "beta": (
        *UNIT,
        stats.beta(2, 3).logpdf,
        {name: lambda d: d.Beta(2.0, 3.0) for name in LIBRARIES},
    ),
    "uniform": (
        *UNIT,
        stats.uniform(0, 1).logpdf,
        {name: lambda d: d.Uniform(0.0, 1.0) for name in LIBRARIES},
    ),
    "truncated normal": (
        *POSITIVE,
        stats.truncnorm(-0.5, np.inf, 1, 2).logpdf,
        {
            "numpyro": lambda d: d.TruncatedNormal(1.0, 2.0, low=0.0),
            "tfp": lambda d: d.TruncatedNormal(1.0, 2.0, 0.0, jnp.inf),
        },
    ),
    "dirichlet": (
        simplex(2),
        stick,
        stats.dirichlet([2, 3]).logpdf,
        {name: lambda d: d.Dirichlet(jnp.array([2.0, 3.0])) for name in LIBRARIES},
    ),
    # Of two latents the correlation r has the density Beta((r + 1) / 2; eta, eta) / 2.
    "lkj": (
        corr_cholesky((2, 2)),
        correlation,
        lambda r: stats.beta(3, 3, -1, 2).logpdf(r),
        {"numpyro": lambda d: d.LKJCholesky(2, 3.0), "tfp": lambda d: d.CholeskyLKJ(2, 3.0)},
    ),
}


def cases(table):
    return [(family, library) for family, row in table.items() for library in row[-1]]


def zero_rows(theta, x):
    return jnp.zeros_like(x)


@pytest.mark.parametrize(
    ("family", "library"),
    standing_for(
        cases(PRIORS),
        ("normal", "numpyro"),
        ("truncated normal", "tfp"),
        ("gamma", "distrax"),
        ("dirichlet", "distrax"),
        ("lkj", "numpyro"),
    ),
)
def test_a_prior_of_a_library_is_scipys_in_unconstrained_space(family, library):
    support, forward, log_p, makers = PRIORS[family]
    module = pytest.importorskip(LIBRARIES[library])
    model = Model(
        {"x": support}, prior=lambda theta: {"x": makers[library](module)}, log_likelihood=zero_rows
    )
    model.check(jnp.ones(2))  # whose warning, of a prior beyond the support, is an error here

    def reference(u):
        theta, log_det = forward(u)
        return log_p(theta) + log_det

    compare(model, jnp.ones(2), reference)


def compare(model, data, reference):
    spec = model.latents["x"].unconstrained
    value, grad = jax.jit(jax.value_and_grad(model.log_density))(
        {"x": jnp.full(spec.shape, U, spec.dtype)}, data
    )
    assert np.allclose(value, reference(U), rtol=RTOL, atol=RTOL)
    slope = (reference(U + 1e-5) - reference(U - 1e-5)) / 2e-5
    assert np.allclose(np.sum(grad["x"]), slope, rtol=1e-3, atol=1e-4)


Y = np.array([0, 3, 1, 0, 7])
# family: (support of the parameter, its map, the data, the reference's terms, {library: the rows'
# terms})
LIKELIHOODS = {
    "poisson": (
        *POSITIVE,
        Y,
        lambda x, y: stats.poisson(x).logpmf(y),
        {name: lambda d, x, y: d.Poisson(x).log_prob(y) for name in ("numpyro", "tfp")},
    ),
    "negative binomial": (
        *POSITIVE,
        Y,
        lambda x, y: stats.nbinom(2, 2 / (2 + x)).logpmf(y),
        {
            "numpyro": lambda d, x, y: d.NegativeBinomial2(x, 2.0).log_prob(y),
            "tfp": lambda d, x, y: d.NegativeBinomial(2.0, logits=jnp.log(x / 2)).log_prob(y),
        },
    ),
    "zero-inflated poisson": (
        *UNIT,
        Y,
        lambda x, y: np.log(x * (y == 0) + (1 - x) * stats.poisson(2.5).pmf(y)),
        {
            "numpyro": lambda d, x, y: d.ZeroInflatedPoisson(x, 2.5).log_prob(y),
            "tfp": lambda d, x, y: d.Inflated(
                d.Poisson(jnp.array(2.5)), inflated_loc_probs=x
            ).log_prob(y),
        },
    ),
    "beta-binomial": (
        *POSITIVE,
        Y,
        lambda x, y: stats.betabinom(9, x, 2).logpmf(y),
        {
            "numpyro": lambda d, x, y: d.BetaBinomial(x, 2.0, 9).log_prob(y),
            "tfp": lambda d, x, y: d.BetaBinomial(9.0, x, 2.0).log_prob(1.0 * y),
        },
    ),
    "bernoulli": (
        *REAL,
        Y % 2,
        lambda x, y: stats.bernoulli(special.expit(x)).logpmf(y),
        {name: lambda d, x, y: d.Bernoulli(logits=x).log_prob(y) for name in LIBRARIES},
    ),
    "categorical": (
        *REAL,
        Y % 3,
        lambda x, y: special.log_softmax([0.0, x, 1.0])[y],
        {
            name: lambda d, x, y: d.Categorical(
                logits=jnp.stack([jnp.zeros(()), x, jnp.ones(())])
            ).log_prob(y)
            for name in LIBRARIES
        },
    ),
    "ordered logistic": (
        *REAL,
        Y % 3,
        lambda x, y: np.log(np.diff(special.expit(np.array([-np.inf, -1.0, 0.5, np.inf]) - x)))[y],
        {
            "numpyro": lambda d, x, y: d.OrderedLogistic(x, jnp.array([-1.0, 0.5])).log_prob(y),
            "tfp": lambda d, x, y: d.OrderedLogistic(jnp.array([-1.0, 0.5]), x).log_prob(y),
        },
    ),
    "right-censored normal": (
        *REAL,
        np.minimum(Y, 3.0),
        lambda x, y: np.where(y < 3, stats.norm(x, 2).logpdf(y), stats.norm(x, 2).logsf(3.0)),
        {
            "numpyro": lambda d, x, y: d.RightCensoredDistribution(
                d.Normal(x, 2.0), censored=y >= 3
            ).log_prob(y)
        },
    ),
    # The same by hand: what is above 3 is known to be no more than that.
    "normal censored above": (
        *REAL,
        np.minimum(Y, 3.0),
        lambda x, y: np.where(y < 3, stats.norm(x, 2).logpdf(y), stats.norm(x, 2).logsf(3.0)),
        {
            "numpyro": lambda d, x, y: jnp.where(
                y < 3, d.Normal(x, 2.0).log_prob(y), jnp.log1p(-d.Normal(x, 2.0).cdf(3.0))
            ),
            **{
                name: lambda d, x, y: jnp.where(
                    y < 3, d.Normal(x, 2.0).log_prob(y), d.Normal(x, 2.0).log_survival_function(3.0)
                )
                for name in ("tfp", "distrax")
            },
        },
    ),
}


@pytest.mark.parametrize(
    ("family", "library"),
    standing_for(
        cases(LIKELIHOODS),
        ("poisson", "numpyro"),
        ("zero-inflated poisson", "tfp"),
        ("bernoulli", "distrax"),
        ("right-censored normal", "numpyro"),
    ),
)
def test_a_likelihood_of_a_library_is_scipys(family, library):
    support, forward, y, terms, makers = LIKELIHOODS[family]
    module = pytest.importorskip(LIBRARIES[library])
    model = Model(
        {"x": support},
        log_prior=lambda theta: jnp.zeros(()),
        log_likelihood=lambda theta, y: makers[library](module, theta["x"], y),
    )
    data = jnp.asarray(y)
    model.check(data)

    def reference(u):
        theta, log_det = forward(u)
        return terms(theta, y).sum() + log_det

    compare(model, data, reference)


@pytest.mark.parametrize("library", standing_for(LIBRARIES, "distrax"))
def test_a_categorical_is_the_prior_of_a_finite_latent(library):
    module = pytest.importorskip(LIBRARIES[library])
    probs = np.array([0.2, 0.3, 0.5])
    prior = lambda theta: {"z": module.Categorical(probs=jnp.asarray(probs))}
    model = Model({"z": finite(3)}, prior=prior, log_likelihood=zero_rows)
    log_p = [model.log_density({"z": jnp.int32(z)}, jnp.ones(2)) for z in range(3)]
    assert np.allclose(log_p, np.log(probs), rtol=RTOL)
