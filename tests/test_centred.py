"""Differences before sums: a float32 likelihood of many rows keeps the digits that a fit looks at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT
from jax.scipy.stats import norm

from minisvi import Minibatches, Model, fit, real
from minisvi.centred import MIN_ROWS, centred

NUM = 2 * MIN_ROWS


def log_prior(theta):
    return norm.logpdf(theta["m"], 1.0, 3.0)


def log_likelihood(theta, y):
    return norm.logpdf(y, theta["m"], 2.0)


MODEL = Model({"m": real()}, log_prior=log_prior, log_likelihood=log_likelihood)
float32_only = pytest.mark.skipif(jnp.finfo(FLOAT).bits == 64, reason="float64 has digits enough, and is not centred")


def rows(num=NUM):
    return jnp.asarray(5.0 + 2.0 * np.random.default_rng(0).normal(size=num), FLOAT)


def exact(theta, y):
    """In double precision: log p(theta, y), and the log evidence."""
    y, m = np.asarray(y, float), np.asarray(theta, float)
    normal = lambda x, mean, sd: -0.5 * ((x - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))  # noqa: E731
    precision = 1 / 9 + len(y) / 4
    loc = (1 / 9 + y.sum() / 4) / precision
    joint = lambda m: normal(m, 1.0, 3.0) + normal(y, m, 2.0).sum()  # noqa: E731
    return joint(m), joint(loc) - normal(loc, loc, precision**-0.5), loc, precision**-0.5


@float32_only
def test_differences_have_the_digits_that_the_sum_lacks():
    y = rows()
    model, data, offset = centred(MODEL, {"m": jnp.array(4.9)}, (y,))
    near, far = jnp.array(5.0), jnp.array(5.004)
    truth = exact(near, y)[0] - exact(far, y)[0]
    difference = model.log_density({"m": near}, *data) - model.log_density({"m": far}, *data)
    assert abs(difference - truth) < 2e-3
    assert abs(offset + model.log_density({"m": near}, *data) - exact(near, y)[0]) < 0.02
    assert Minibatches(100)(jnp.array(3), data)[0][1].shape == (100,)


def test_equal_models_remain_equal():
    y = rows()
    assert centred(MODEL, None, (y,)).model == centred(MODEL, None, (y + 1,)).model


@float32_only
@pytest.mark.parametrize(
    ("model", "num"),
    [(MODEL, MIN_ROWS - 1), (Model({"m": real()}, lambda t, y: jnp.sum(norm.logpdf(y, t["m"]))), NUM)],
    ids=["few rows", "not factored"],
)
def test_others_stay_as_they_are(model, num):
    data = (rows(num),)
    assert centred(model, None, data) == (model, data, 0.0)


@float32_only
def test_a_reference_that_is_not_finite_is_none():
    model = Model({"m": real()}, log_prior=log_prior, log_likelihood=lambda t, y: jnp.log(t["m"] - 1) - y)
    data = (rows(),)
    assert centred(model, None, data).offset == 0.0
    assert centred(model, {"m": jnp.array(3.0)}, data).offset != 0.0


@pytest.mark.slow
@float32_only
def test_fit_gives_the_evidence_with_the_offset_put_back(key):
    y = rows()
    found = fit(key, MODEL, y, num_draws=400, progress_bar=False)
    _, log_evidence, loc, sd = exact(0.0, y)
    assert found.verdict.of_weights == "good"
    assert abs(found.verdict.log_evidence - log_evidence) < 0.05
    assert abs(found.verdict.elbo - log_evidence) < 0.05
    assert abs(found.deterministic.elbo - log_evidence) < 0.1
    assert abs(found.draws.mean()["m"] - loc) < 0.3 * sd
    assert abs(found.draws.sd()["m"] / sd - 1) < 0.2
    assert found.model == MODEL
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, found.data, (y,)))
