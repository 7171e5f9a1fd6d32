"""Differences before sums: a likelihood whose sum is too large for its dtype keeps the digits that
a verdict needs.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT
from jax.scipy.stats import norm

import minisvi
from minisvi import Model, positive, real
from minisvi.auto.centred import centred

NUM, PER_ROW = 20_000, 100.0  # nats that each row's term has more than it would need


def log_prior(theta):
    return norm.logpdf(theta["m"], 400.0, 300.0)


def log_likelihood(theta, y):
    return norm.logpdf(y, theta["m"], 2.0) - PER_ROW


MODEL = Model({"m": real()}, log_prior=log_prior, log_likelihood=log_likelihood)
SCALAR = Model({"m": real()}, lambda theta, y: log_prior(theta) + jnp.sum(log_likelihood(theta, y)))
GUIDE = minisvi.mean_field(MODEL.latents)
Y = 500.0 + 2.0 * np.random.default_rng(0).normal(size=NUM)
DATA = (jnp.asarray(Y, FLOAT),)
float32_only = pytest.mark.skipif(
    jnp.finfo(FLOAT).bits == 64, reason="float64 has digits enough, and is not centred"
)


def log_normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))


def log_joint(m):
    y = np.asarray(DATA[0], float)
    return log_normal(m, 400.0, 300.0) + np.sum(log_normal(y, m, 2.0) - PER_ROW)


def exact():
    """Mean and sd of the posterior, and the log evidence, in double precision."""
    y = np.asarray(DATA[0], float)
    precision = 300.0**-2 + len(y) / 4.0
    loc, sd = (400.0 / 300.0**2 + y.sum() / 4.0) / precision, precision**-0.5
    return loc, sd, log_joint(loc) - log_normal(loc, loc, sd)


@float32_only
def test_differences_have_the_digits_that_the_sum_lacks():
    target = centred(MODEL, {"m": jnp.array(500.1)}, DATA)
    near, far = jnp.array(500.0), jnp.array(500.01)
    at = [target.model.log_density({"m": m}, *DATA, *target.reference) for m in (near, far)]
    truth = [log_joint(float(m)) for m in (near, far)]
    assert abs((at[0] - at[1]) - (truth[0] - truth[1])) < 0.01
    assert abs(target.offset + at[0] - truth[0]) < 0.1


def test_equal_models_remain_equal():
    models = [centred(MODEL, {"m": jnp.array(m)}, DATA).model for m in (499.0, 501.0)]
    assert models[0] == models[1]


def test_what_has_no_rows_or_is_not_finite_stays_as_it_is():
    assert centred(SCALAR, {"m": jnp.array(500.0)}, DATA).model == SCALAR
    logs = Model(
        {"m": positive()},
        log_prior=log_prior,
        log_likelihood=lambda t, y: jnp.log(t["m"] - 600) - y,
    )
    assert centred(logs, {"m": jnp.array(1.0)}, DATA).model == logs


@float32_only
def test_a_verdict_on_rows_is_right_where_one_on_their_sum_is_rounding(key):
    loc, sd, log_evidence = exact()
    params = {"loc": jnp.array([loc], FLOAT), "log_scale": jnp.log(jnp.array([1.2 * sd], FLOAT))}
    refused = minisvi.judge(key, SCALAR, GUIDE, params, *DATA, num_draws=2000).verdict
    assert refused.level == "not trusted"
    assert refused.spacing > 0.1
    found = minisvi.judge(key, MODEL, GUIDE, params, *DATA, num_draws=2000)
    assert found.verdict.level == "good"
    assert found.verdict.spacing < 1e-4
    assert abs(found.verdict.log_evidence - log_evidence) < 0.15
    assert abs(found.verdict.elbo - log_evidence) < 0.3
    assert abs(found.draws.mean()["m"] - loc) < 4 * found.verdict.error * sd
    assert abs(found.draws.sd()["m"] / sd - 1) < 4 * found.verdict.error


@pytest.mark.slow
@float32_only
def test_fit_is_good_on_rows_that_add_up_to_too_much(key):
    loc, sd, log_evidence = exact()
    found = minisvi.fit(key, MODEL, *DATA, num_draws=2000, progress_bar=False)
    assert found.verdict.level == "good"
    assert abs(found.verdict.log_evidence - log_evidence) < 0.15
    assert abs(found.draws.mean()["m"] - loc) < 0.2 * sd
    assert abs(found.draws.sd()["m"] / sd - 1) < 0.1
