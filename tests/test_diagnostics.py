"""Diagnostics against ArviZ, closed forms, and their own standard errors over many repeats."""

import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from scipy.stats import norm
from tiers import standing_for

from minisvi.posterior import diagnostics as d

BATCHES = 200


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def pareto(rng, k, *shape):
    """Weights whose k-hat is k: log w = k Exponential(1)."""
    return k * rng.exponential(size=shape)


def gaussian_weights(rng, sd, *shape):
    """log w of q = N(0, sd^2) for p = N(0, 1)."""
    x = sd * rng.normal(size=shape)
    return x, norm.logpdf(x) - norm.logpdf(x, 0.0, sd)


def khats(log_w):
    return np.array([d.psis(batch).khat for batch in log_w])


def log_softmax(x):
    return x - np.logaddexp.reduce(x)


def changed(x, row, value):
    """x with another value in one row."""
    x = x.copy()
    x[row] = value
    return x


# Importance weights.


# 1,600 nats in float32 are known to 1e-4: weights that tie with the cutoff are spread a little.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-10)])
@pytest.mark.parametrize("size", standing_for([30, 200, 1000, 20_000], 30, 1000))
def test_psis_equals_arviz(size, dtype, tolerance, rng):
    for k in (0.1, 0.5, 0.9):
        log_w = (pareto(rng, k, size) - 1600.0).astype(dtype)
        log_weights, khat = array_stats.psislw(-np.asarray(log_w, float))
        got = d.psis(log_w)
        assert got.log_weights.dtype == float
        assert got.khat == pytest.approx(khat, abs=5 * tolerance)
        # In order of size, for some weights are tied.
        order = np.argsort(log_w, stable=True)
        np.testing.assert_allclose(got.log_weights[order], np.sort(log_weights), atol=tolerance)
        # The evidence is the mean of smoothed weights that have not been normalised: draws below
        # the tail keep theirs.
        low = np.argmin(log_w)
        evidence = log_w[low] - got.log_weights[low] - np.log(size)
        assert got.log_evidence == pytest.approx(evidence, abs=1e-10)


def test_an_array_of_jax_has_the_figures_of_one_of_numpy(rng):
    log_w = pareto(rng, 0.5, 1000).astype("float32")
    of_jax, of_numpy = d.psis(jnp.asarray(log_w)), d.psis(log_w)
    np.testing.assert_array_equal(of_jax.log_weights, of_numpy.log_weights)
    assert of_jax[1:] == of_numpy[1:]


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_khat_of_pareto_weights(k, rng):
    size, tail = 2000, 134
    khat = khats(pareto(rng, k, BATCHES, size))
    # The prior of ten draws at 1/2, then the standard error (1 + k) / sqrt(T) of a Pareto shape.
    centre, se = (tail * k + 5) / (tail + 10), (1 + k) / (tail + 10) * tail**0.5
    assert abs(np.mean(khat) - centre) < 3 * se / BATCHES**0.5 + 0.01
    assert np.std(khat) == pytest.approx(se, rel=4 / (2 * BATCHES) ** 0.5)


@pytest.mark.parametrize("sd", [0.4, 0.6, 0.8])
def test_khat_of_a_gaussian_that_is_too_narrow(sd, rng):
    # w = exp(c x^2) with 2 c = 1/sd^2 - 1, so that P(w > t) falls as t^(-1/k), k = 2 c sd^2 = 1 -
    # sd^2, but for a factor (log t)^(-1/2), which lowers the shape seen at finite S, and the prior.
    _, log_w = gaussian_weights(rng, sd, BATCHES, 2000)
    assert -0.12 < np.mean(khats(log_w)) - (1 - sd**2) < 0.02


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_weights_of_the_exact_posterior(dtype):
    # 1,600 has few digits: bfloat16 has it as it is.
    got = d.psis(np.full(1000, -1600.0, jnp.dtype(dtype)))
    assert got.khat == -np.inf
    np.testing.assert_allclose(got.log_weights, -np.log(1000), rtol=1e-14)
    assert got.log_evidence == pytest.approx(-1600.0, rel=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_of_the_exact_posterior_is_no_tail(dtype, rng):
    noise = np.finfo(dtype).eps * 1600 * rng.normal(size=1000)
    for size in (0.3, 1.0, 3.0, 30.0):
        assert d.psis((size * noise - 1600.0).astype(dtype)).khat < 0.2


@pytest.mark.parametrize("bad", [-np.inf, np.inf, np.nan])
def test_one_weight_that_is_not_finite(bad, rng):
    log_w = pareto(rng, 0.3, 1000)
    got, rest = d.psis(changed(log_w, 17, bad)), d.psis(changed(log_w, 17, -1e4))  # e^-1e4 is zero
    assert got.log_weights[17] == -np.inf
    np.testing.assert_array_equal(np.delete(got.log_weights, 17), np.delete(rest.log_weights, 17))
    assert got.log_evidence == rest.log_evidence
    assert got.khat == (rest.khat if bad == -np.inf else np.inf)


@pytest.mark.parametrize("bad", [-np.inf, np.nan])
def test_no_weight_is_finite(bad):
    got = d.psis(np.full(1000, bad))
    assert got.khat == np.inf
    assert got.log_evidence == -np.inf
    np.testing.assert_allclose(got.log_weights, -np.log(1000), rtol=1e-14)


@pytest.mark.parametrize("k", [0.0, 0.1])
@pytest.mark.parametrize(("num", "largest"), [(7, None), (94, None), (95, 0.7)])
def test_few_positive_weights(num, largest, k, rng):
    # 95 of them are just enough for a tail of 94; the others stay at zero. Equal ones are no fewer.
    log_w = np.full(1000, -np.inf)
    log_w[:num] = pareto(rng, k, num)
    got = d.psis(log_w)
    assert got.khat == np.inf if largest is None else got.khat < largest
    np.testing.assert_array_equal(np.isfinite(got.log_weights), np.arange(1000) < num)


def test_a_tail_cannot_be_seen_in_fewer_than_25_draws(rng):
    log_w = pareto(rng, 0.3, 24)
    got = d.psis(log_w)
    assert got.khat == np.inf
    np.testing.assert_allclose(got.log_weights, log_softmax(log_w), rtol=1e-13)
    assert np.isfinite(d.psis(pareto(rng, 0.3, 25)).khat)


def test_thresholds():
    assert d.khat_threshold(100) == pytest.approx(0.5)
    assert d.khat_threshold(1000) == pytest.approx(2 / 3)
    assert d.khat_threshold(10**6) == 0.7


@pytest.mark.parametrize("k", [0.7, -0.4, 1e-3, 0.0])
def test_generalised_pareto_quantiles(k):
    p, sigma = np.array([0.1, 0.5, 0.99]), 2.0
    exact = sigma * (-np.log1p(-p) if k == 0 else ((1 - p) ** -k - 1) / k)
    np.testing.assert_allclose(d.pareto_quantile(p, k, sigma), exact, rtol=1e-12)


def test_the_fit_finds_the_generalised_pareto_distribution(rng):
    k, scale = d.pareto_fit(np.sort(d.pareto_quantile(rng.random(5000), 0.4, 2.0)))
    assert k == pytest.approx(0.4, abs=3 * 1.4 / 5000**0.5)
    assert scale == pytest.approx(2.0, abs=3 * 2.0 * (2 * 1.4 / 5000) ** 0.5)


def test_a_point_of_the_grid_that_is_the_exponential_distribution():
    # The lower quartile is a third of the largest times a factor of the grid, which puts one of its
    # points at zero.
    x = np.repeat([1.0, 2.0, 3.0], [200, 100, 124])
    near = changed(x, -1, x[-1] * (1 + 1e-14))
    np.testing.assert_allclose(d.pareto_fit(x), d.pareto_fit(near), rtol=1e-10)


def test_a_prediction_has_weights_of_its_own(rng):
    # q = p = N(0, 1) for theta, and a new y ~ N(theta, tau^2): the weights of E[p(y | theta)] are w
    # p(y | theta).
    x, log_w = gaussian_weights(rng, 1.0, 1000)
    near, far = norm.logpdf(0.3, x, 1.0), norm.logpdf(5.0, x, 0.1)
    assert d.psis(log_w).khat < 0.5
    predictive = d.psis(log_w + near)
    assert predictive.khat < 0.5
    sd = np.std(np.exp(near)) / np.mean(np.exp(near))
    log_mean = predictive.log_evidence - d.psis(log_w).log_evidence
    exact = -0.5 * 0.09 / 2 - 0.5 * np.log(4 * np.pi)
    assert log_mean == pytest.approx(exact, abs=4 * sd / 1000**0.5)
    # no draw of q has seen where the new y is likely
    assert d.psis(log_w + far).khat > d.khat_threshold(1000)


# The evidence and the ELBO. log w ~ N(mu, s^2): the ELBO is mu, the log evidence mu + s^2 / 2.


def test_elbo_and_evidence_are_within_their_errors_as_often_as_they_say(rng):
    mu, s, size, repeats = -1600.0, 0.6, 500, 2000
    log_w = mu + s * rng.normal(size=(repeats, size))
    for estimate, exact, se in (
        (d.elbo, mu, s / size**0.5),
        (d.log_evidence, mu + s**2 / 2, (np.expm1(s**2) / size) ** 0.5),
    ):
        value, error = np.transpose([estimate(row) for row in log_w])
        assert np.mean(error) == pytest.approx(se, rel=0.05)
        assert np.std(value) == pytest.approx(se, rel=0.06)
        z = (value - exact) / error
        assert abs(np.mean(np.abs(z) < 2) - 0.9545) < 4 * (0.9545 * 0.0455 / repeats) ** 0.5 + 0.01
        assert abs(np.mean(z)) < 0.2


def test_the_elbo_of_some_of_the_draws(rng):
    log_w, some = rng.normal(-1600.0, 3.0, 100), np.arange(100) % 3 == 1
    log_w[0] = np.nan
    assert d.elbo(log_w, where=some) == d.elbo(log_w[some])


def test_effective_sample_size_of_weights():
    assert d.importance_ess(np.full(50, -np.log(50))) == pytest.approx(50, rel=1e-13)
    assert d.importance_ess(np.array([-np.inf, 0.0, -np.inf])) == 1
    assert d.importance_ess(np.log([0.1, 0.2, 0.3, 0.4])) == pytest.approx(1 / 0.3, rel=1e-14)


def test_shift_of_the_means():
    x, weights = np.array([[10.0, 1.0], [12.0, 1.0], [17.0, 1.0]]), np.array([0.5, 0.25, 0.25])
    mean = 0.5 * 10 + 0.25 * 12 + 0.25 * 17
    sd = np.sqrt(0.5 * (10 - mean) ** 2 + 0.25 * (12 - mean) ** 2 + 0.25 * (17 - mean) ** 2)
    got_mean, got_sd = d.weighted_moments(x, np.log(weights))
    np.testing.assert_allclose(got_mean, [mean, 1.0], rtol=1e-14)
    np.testing.assert_allclose(got_sd, [sd, 0.0], rtol=1e-14)
    shift = d.mean_shift(x, np.log(weights))
    np.testing.assert_allclose(shift, [(13 - mean) / sd, 0.0], rtol=1e-13)


def test_error_of_a_weighted_mean_is_its_spread_over_batches(rng):
    x, log_w = gaussian_weights(rng, 1.5, 1000, 400)
    errors = [d.weighted_mcse(*batch) for batch in zip(x, log_w)]
    means = [d.weighted_moments(*batch)[0] for batch in zip(x, log_w)]
    assert np.std(means) == pytest.approx(np.mean(errors), rel=4 / 2000**0.5)
    # Plain draws: 1 / sqrt(S), and NaN that has no weight does not count.
    assert d.weighted_mcse(x[0], np.full(400, -np.log(400))) == pytest.approx(1 / 20, rel=1e-12)
    without = changed(log_softmax(log_w[0]), 5, -np.inf)
    got = [d.weighted_mcse(changed(x[0], 5, value), without) for value in (0.0, np.nan)]
    assert got[0] == got[1]


def test_error_of_a_weighted_sd_is_its_spread_over_batches(rng):
    x, log_w = gaussian_weights(rng, 1.5, 1000, 400)
    errors = [d.weighted_sd_mcse(*batch) for batch in zip(x, log_w)]
    sds = [d.weighted_moments(*batch)[1] for batch in zip(x, log_w)]
    assert np.std(sds) == pytest.approx(np.mean(errors), rel=4 / 2000**0.5)


FIGURES = {
    "sd": lambda x, log_weights: d.weighted_moments(x, log_weights)[1],
    "shift": d.mean_shift,
    "error of the mean": d.weighted_mcse,
    "error of the sd": d.weighted_sd_mcse,
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_constant_coordinate_has_neither_spread_nor_shift(name, rng):
    x, log_weights = np.full((400, 2), 0.1), log_softmax(rng.normal(size=400))
    np.testing.assert_array_equal(FIGURES[name](x, log_weights), [0.0, 0.0])


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e200])
@pytest.mark.parametrize("name", FIGURES)
def test_a_draw_that_is_not_finite_or_has_no_square_leaves_no_figure(name, bad, rng):
    x = changed(rng.normal(5.0, 3.0, (400, 2)), 7, [bad, -4.0])
    log_weights = log_softmax(rng.normal(size=400))
    figure = FIGURES[name](x, log_weights)
    assert not (np.isfinite(figure[0]) and figure[0] > 0)
    assert figure[1] == pytest.approx(FIGURES[name](x[:, 1], log_weights), rel=1e-12)


# Restarts.


def test_restarts_at_the_same_optimum():
    elbo = np.array([-12.0, -10.0, np.nan, -10.1, -15.0])
    loc = np.array([[5.0, 1.0], [0.0, 1.0], [5.04, 1.0], [0.04, 1.2], [5.0, 2.0]])
    sd = np.array([[0.1, 1.0], [0.05, 0.4], [0.05, 1.0], [0.1, 1.0], [0.1, 1.0]])
    np.testing.assert_array_equal(d.distinct_optima(elbo, loc, sd), [0, 1, 0, 1, 4])
    np.testing.assert_array_equal(d.distinct_optima(elbo, loc, sd, 1.0), [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(d.distinct_optima(elbo, loc, sd, 0.1), [0, 1, 2, 3, 4])
    nowhere = changed(loc, 0, np.nan)  # is near nobody, least of all the best
    np.testing.assert_array_equal(d.distinct_optima(elbo, nowhere, sd), [0, 1, 2, 1, 4])
    # Without any spread only equal ones are the same.
    alike, none = np.array([[1.0], [2.0], [1.0]]), np.zeros((3, 1))
    np.testing.assert_array_equal(d.distinct_optima(elbo[[0, 1, 4]], alike, none), [0, 1, 0])
