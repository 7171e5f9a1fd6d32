"""Yesterday's posterior as today's prior: Bayes' rule in two steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from problems import adam
from scipy.stats import multivariate_normal

import minisvi

LATENTS = {"w": minisvi.real(2)}
PRIOR_MEAN, PRIOR_SD, NOISE = np.array([3.0, -20.0]), np.array([2.0, 10.0]), 0.7
MODEL = minisvi.Model(
    LATENTS,
    log_prior=lambda t: jnp.sum(norm.logpdf(t["w"], PRIOR_MEAN, PRIOR_SD)),
    log_likelihood=lambda t, x, y: norm.logpdf(y, jnp.sum(x * t["w"][None], axis=1), NOISE),
)
GUIDE = minisvi.full_rank(LATENTS)
FLOAT = jnp.result_type(float)


def days():
    """Two lots of rows, not equally many, of the same linear regression."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 2)) * np.array([1.0, 0.2])
    y = x @ np.array([1.0, -8.0]) + NOISE * rng.normal(size=50)
    return (x[:20], y[:20]), (x[20:], y[20:])


def posterior(x, y):
    """Mean, covariance and log evidence of the conjugate model."""
    precision = np.diag(PRIOR_SD**-2) + x.T @ x / NOISE**2
    cov = np.linalg.inv(precision)
    mean = cov @ (PRIOR_MEAN / PRIOR_SD**2 + x.T @ y / NOISE**2)
    marginal = x @ np.diag(PRIOR_SD**2) @ x.T + NOISE**2 * np.eye(len(y))
    return mean, cov, multivariate_normal.logpdf(y, x @ PRIOR_MEAN, marginal)


def exact_params(mean, cov, key):
    loc = {"w": jnp.asarray(mean, FLOAT)}
    return GUIDE.init(key, loc=loc, cov=jnp.asarray(cov, FLOAT))


def floats(data):
    return tuple(jnp.asarray(a, FLOAT) for a in data)


def test_the_exact_posterior_as_prior_gives_the_density_of_all_rows(key, rtol):
    """log p(theta, D2 | D1) = log p(theta, D1, D2) - log p(D1) at any theta."""
    first, second = days()
    mean, cov, log_evidence = posterior(*first)
    updated = minisvi.with_prior(MODEL, GUIDE, exact_params(mean, cov, key))
    both = floats(np.concatenate(pair) for pair in zip(first, second))
    for u in jnp.asarray(mean, FLOAT)[None] + jax.random.normal(key, (4, 2)):
        got = updated.log_density({"w": u}, *floats(second))
        np.testing.assert_allclose(
            got, MODEL.log_density({"w": u}, *both) - log_evidence, rtol=50 * rtol
        )


def test_two_fits_in_a_row_are_the_fit_of_all_rows(key):
    """Each by sticking the landing, which ends without noise; the evidences multiply."""
    optimizer = adam(0.1, 2000)
    model, log_evidence = MODEL, 0.0
    for day in days():
        svi = minisvi.SVI(model, GUIDE, optimizer, minisvi.ELBO(8, "sticking_the_landing"))
        fit = svi.run(key, 2000, *floats(day), progress_bar=False)
        log_evidence += fit.elbo[-1]
        model = minisvi.with_prior(model, GUIDE, fit.params)
    mean, cov, expected = posterior(*(np.concatenate(pair) for pair in zip(*days())))
    draws = minisvi.Posterior(MODEL, GUIDE, fit.params).sample(key, 1)
    assert draws["w"].shape == (1, 2)
    factor = GUIDE.distribution(fit.params)
    np.testing.assert_allclose(fit.params["loc"], mean, atol=2e-3)
    samples = jax.vmap(lambda key: factor.sample_and_log_prob(seed=key)[0]["w"])(
        jax.random.split(key, 20_000)
    )
    np.testing.assert_allclose(
        np.cov(np.asarray(samples).T), cov, rtol=0.05, atol=0.02 * np.sqrt(cov[0, 0] * cov[1, 1])
    )
    assert abs(log_evidence - expected) < 2e-3


@pytest.mark.foreign
def test_a_guide_over_theta_and_one_with_a_jacobian_agree(key, rtol):
    """A log-normal, by a normal over log theta and by TFP's distribution over theta itself."""
    from tensorflow_probability.substrates.jax import distributions as tfd

    latents = {"rate": minisvi.positive()}
    model = minisvi.Model(
        latents, log_prior=lambda t: -t["rate"], log_likelihood=lambda t, x: -t["rate"] * x
    )
    params = {"loc": jnp.full(1, 0.7), "log_scale": jnp.full(1, -0.4)}

    def over_rate(params):
        return {"rate": tfd.LogNormal(params["loc"][0], jnp.exp(params["log_scale"][0]))}

    guides = (
        minisvi.mean_field(latents),
        minisvi.custom(lambda key: params, over_rate, constrained=True),
    )
    theta = {"rate": jnp.asarray(2.3)}
    one, other = (minisvi.with_prior(model, guide, params).log_prior(theta) for guide in guides)
    expected = norm.logpdf(jnp.log(2.3), 0.7, jnp.exp(-0.4)) - jnp.log(2.3)
    np.testing.assert_allclose([one, other], [expected, expected], rtol=10 * rtol)


def test_a_past_that_counts_for_less(key, rtol):
    params = exact_params([1.0, 2.0], np.diag([4.0, 9.0]), key)
    theta = {"w": jnp.array([2.0, -1.0])}
    whole, half = (minisvi.with_prior(MODEL, GUIDE, params, w).log_prior(theta) for w in (1.0, 0.5))
    np.testing.assert_allclose(half, 0.5 * whole, rtol=rtol)
    np.testing.assert_allclose(
        whole, multivariate_normal.logpdf([2.0, -1.0], [1.0, 2.0], [4.0, 9.0]), rtol=10 * rtol
    )


LOCAL = minisvi.Model(
    {"z": minisvi.local(minisvi.real())},
    log_prior=lambda t: 0.0,
    log_likelihood=lambda t, x: norm.logpdf(x, t["z"]),
)
WRONG = {
    "not factored": (
        lambda p: minisvi.with_prior(minisvi.Model(LATENTS, lambda t: 0.0), GUIDE, p),
        "factored",
    ),
    "local": (lambda p: minisvi.with_prior(LOCAL, GUIDE, p), r"latents \['z'\] are local"),
    "weight": (
        lambda p: minisvi.with_prior(MODEL, GUIDE, p, 1.5),
        r"`weight` must be in \(0, 1\]; got 1.5",
    ),
    "another's": (lambda p: minisvi.with_prior(MODEL, minisvi.mean_field(LATENTS), p), "leaves"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_priors_are_named(name, key):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call(GUIDE.init(key))
