"""Diagnostics against ArviZ, closed forms, and their own standard errors over many repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from conftest import FLOAT
from jax.scipy.stats import norm
from tiers import standing_for

from minisvi.posterior import diagnostics as d

TOLERANCE = {"float32": 1e-3, "float64": 1e-10}
DTYPES = ["float32", "float64"] if jnp.float64 == FLOAT else ["float32"]
BATCHES = 200


def pareto(key, k, *shape):
    """Weights whose k-hat is k: log w = k Exponential(1)."""
    return k * jax.random.exponential(key, shape)


def gaussian_weights(key, sd, *shape):
    """log w of q = N(0, sd^2) for p = N(0, 1)."""
    x = sd * jax.random.normal(key, shape)
    return x, norm.logpdf(x) - norm.logpdf(x, 0.0, sd)


def khats(log_w):
    return np.array([d.psis(row).khat for row in np.asarray(log_w)])


# Importance weights.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", standing_for([30, 200, 1000, 20_000], 30, 1000))
def test_psis_equals_arviz(size, dtype, key):
    for k in (0.1, 0.5, 0.9):
        log_w = (pareto(key, k, size) - 1600.0).astype(dtype)
        log_weights, khat = array_stats.psislw(-np.asarray(log_w, float))
        got = d.psis(log_w)
        assert got.log_weights.dtype == np.float64
        assert got.khat == pytest.approx(khat, abs=5 * TOLERANCE[dtype])
        # In order of size: 1,600 nats in float32 are known to 1e-4, so that some weights are tied.
        order = np.argsort(log_w, stable=True)
        np.testing.assert_allclose(
            got.log_weights[order], np.sort(log_weights), atol=TOLERANCE[dtype]
        )
        # The evidence is the mean of smoothed weights that have not been normalised: draws below
        # the tail keep theirs.
        low = np.argmin(log_w)
        evidence = float(log_w[low] - got.log_weights[low]) - np.log(size)
        assert got.log_evidence == pytest.approx(evidence, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sd", [5, 30, 100])
def test_khat_of_a_tail_over_hundreds_of_nats(sd, dtype):
    # The weights of the tail are many powers of ten apart: one that is lifted to the spacing of the
    # numbers at the largest would be as large as the next.
    log_w = sd * np.random.default_rng(0).normal(size=2000)
    log_w = log_w.astype(dtype)
    _, khat = array_stats.psislw(-log_w.astype(float))
    assert khat > 1
    assert d.psis(log_w).khat == pytest.approx(khat, rel=1e-6)


def test_khat_of_integers_is_that_of_their_floats():
    log_w = np.arange(100) // 10
    assert d.psis(log_w)[1:] == d.psis(log_w.astype(float))[1:]


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_khat_of_pareto_weights(k, key):
    size, tail = 2000, 134
    khat = khats(pareto(key, k, BATCHES, size))
    # The prior of ten draws at 1/2, then the standard error (1 + k) / sqrt(T) of a Pareto shape.
    centre, se = (tail * k + 5) / (tail + 10), (1 + k) / (tail + 10) * tail**0.5
    assert abs(np.mean(khat) - centre) < 3 * se / BATCHES**0.5 + 0.01
    assert np.std(khat) == pytest.approx(se, rel=4 / (2 * BATCHES) ** 0.5)


@pytest.mark.parametrize("sd", [0.4, 0.6, 0.8])
def test_khat_of_a_gaussian_that_is_too_narrow(sd, key):
    # w = exp(c x^2) with 2 c = 1/sd^2 - 1, so that P(w > t) falls as t^(-1/k), k = 2 c sd^2 = 1 -
    # sd^2, but for a factor (log t)^(-1/2), which lowers the shape seen at finite S, and the prior.
    _, log_w = gaussian_weights(key, sd, BATCHES, 2000)
    khat = khats(log_w)
    assert -0.12 < np.mean(khat) - (1 - sd**2) < 0.02


def test_weights_of_the_exact_posterior(key):
    got = d.psis(jnp.full(1000, -1600.0))
    assert got.khat == -jnp.inf
    np.testing.assert_allclose(got.log_weights, -np.log(1000), rtol=1e-6)
    assert got.log_evidence == pytest.approx(-1600.0, rel=1e-6)
    # and what rounding makes of them
    noise = jnp.finfo(FLOAT).eps * 1600 * jax.random.normal(key, (1000,))
    for size in (0.3, 1.0, 3.0, 30.0):
        assert d.psis(size * noise - 1600.0).khat < 0.2


@pytest.mark.parametrize("k", [-2.0, -0.5, 0.0, 1e-7, 0.3, 0.7, 0.95])
def test_the_excess_beyond_the_draws_is_that_of_a_pareto_tail(k):
    """Of the excess, whose quantile function is Q, beyond its level at 1 - 1/T."""
    num = 424
    # Midpoints in log(1 - p) resolve the end, where Q is infinite.
    edges = np.linspace(np.log(1e-200), 0.0, 200_001)
    log_rest = (edges[1:] + edges[:-1]) / 2
    quantile = -log_rest if k == 0 else np.expm1(-k * log_rest) / k
    parts = np.diff(np.exp(edges)) * quantile
    expected = np.sum(parts[log_rest < -np.log(num)]) / np.sum(parts)
    assert d.excess_beyond(k, num) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("k", [1.0, 1.3, np.inf])
def test_a_tail_without_an_end_is_taken_to_hold_as_much_again(k):
    assert d.excess_beyond(k, 100) == 1.0


@pytest.mark.parametrize("k", [0.3, 0.5, 0.6])
def test_the_excess_of_the_tail_is_that_of_the_density_ratio(k, key):
    # P(w > x) = x^(-1/k), so that E[w] = 1 / (1 - k), and E[(w - c)+] is k times the mass above c,
    # which is (T / S)^(1 - k) of all where T of S draws exceed c.
    size = 4000
    share = d.tail_size(size) / size
    expected = k * share ** (1 - k)
    found = [np.sum(d.tail_excess(log_w)) for log_w in pareto(key, k, BATCHES, size)]
    se = np.std(found) / BATCHES**0.5
    # A sum of few heavy weights is too low on average, and most of all that of the tail.
    assert -0.05 * expected - 3 * se < np.mean(found) - expected < 3 * se


def test_the_excess_is_that_of_the_tail_alone_and_of_raw_weights():
    log_w = np.log(np.concatenate([np.linspace(1.0, 2.0, 999), [150.0]]))
    found = d.tail_excess(log_w - 1600.0)
    num = d.tail_size(1000)
    weights = np.exp(log_w) / np.sum(np.exp(log_w))
    expected = np.maximum(weights - np.sort(weights)[-num - 1], 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.sum(found > 0) == num
    assert found[-1] > 0.08  # smoothing leaves less of the largest weight
    assert np.exp(d.psis(log_w).log_weights[-1]) < 0.04


@pytest.mark.parametrize("bad", [-np.inf, np.inf, np.nan])
def test_a_weight_that_is_not_finite_has_no_excess(bad):
    got = np.linspace(-1.0, 1.0, 1000)
    rest = got.copy()
    got[17], rest[17] = bad, -1e4
    np.testing.assert_array_equal(d.tail_excess(got), d.tail_excess(rest))
    nothing = d.tail_excess(np.full(1000, bad))
    assert np.sum(nothing) == pytest.approx(1.0)  # all is unseen


def test_what_counts_as_a_constant_tail_depends_on_the_dtype_that_the_weights_come_in():
    # A spread of two spacings of float32 is rounding there; in float64 it is a tail of its own.
    spread = 2 * np.finfo("float32").eps * np.linspace(-1.0, 0.0, 1000)
    assert d.psis(spread.astype("float32")).khat == -np.inf
    assert np.isfinite(d.psis(spread).khat)


@pytest.mark.parametrize("bad", [-jnp.inf, jnp.inf, jnp.nan])
def test_one_weight_that_is_not_finite(bad, key, rtol):
    log_w = pareto(key, 0.3, 1000)
    got, rest = d.psis(log_w.at[17].set(bad)), d.psis(log_w.at[17].set(-1e4))  # e^-1e4 is zero
    assert got.log_weights[17] == -jnp.inf
    others = np.arange(1000) != 17
    np.testing.assert_allclose(got.log_weights[others], rest.log_weights[others], rtol=10 * rtol)
    assert got.log_evidence == pytest.approx(float(rest.log_evidence), rel=10 * rtol)
    assert got.khat == (
        pytest.approx(float(rest.khat), rel=10 * rtol) if bad == -jnp.inf else jnp.inf
    )


@pytest.mark.parametrize("bad", [-jnp.inf, jnp.nan])
def test_no_weight_is_finite(bad):
    got = d.psis(jnp.full(1000, bad))
    assert got.khat == jnp.inf
    assert got.log_evidence == -jnp.inf
    np.testing.assert_allclose(got.log_weights, -np.log(1000), rtol=1e-6)


def test_few_positive_weights(key):
    got = d.psis(jnp.full(1000, -jnp.inf).at[:7].set(pareto(key, 0.1, 7)))
    assert got.khat == jnp.inf
    np.testing.assert_array_equal(np.isfinite(got.log_weights), np.arange(1000) < 7)
    # 95 of them are just enough for a tail of 94; the others stay at zero.
    got = d.psis(jnp.full(1000, -jnp.inf).at[:95].set(pareto(key, 0.1, 95)))
    assert got.khat < 0.7
    np.testing.assert_array_equal(np.isfinite(got.log_weights), np.arange(1000) < 95)


def test_a_tail_cannot_be_seen_in_fewer_than_25_draws(key, rtol):
    log_w = pareto(key, 0.3, 24)
    got = d.psis(log_w)
    assert got.khat == jnp.inf
    np.testing.assert_allclose(got.log_weights, jax.nn.log_softmax(log_w), rtol=rtol)
    assert np.isfinite(d.psis(pareto(key, 0.3, 25)).khat)


def test_thresholds():
    assert d.khat_threshold(100) == pytest.approx(0.5)
    assert d.khat_threshold(1000) == pytest.approx(2 / 3)
    assert d.khat_threshold(10**6) == 0.7


def test_generalised_pareto_quantiles(key, rtol):
    p, sigma = jnp.array([0.1, 0.5, 0.99]), jnp.asarray(2.0)
    for k in (0.7, -0.4, 1e-3, 0.0):
        exact = sigma * (-jnp.log1p(-p) if k == 0 else ((1 - p) ** -k - 1) / k)
        np.testing.assert_allclose(
            d.pareto_quantile(p, jnp.asarray(k), sigma), exact, rtol=1000 * rtol
        )
    x = jnp.sort(d.pareto_quantile(jax.random.uniform(key, (5000,)), jnp.asarray(0.4), sigma))
    k, scale = d.pareto_fit(x)
    assert k == pytest.approx(0.4, abs=3 * 1.4 / 5000**0.5)
    assert scale == pytest.approx(2.0, abs=3 * 2.0 * (2 * 1.4 / 5000) ** 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_point_of_the_grid_that_is_the_exponential_distribution(dtype):
    # The lower quartile is a third of the largest times a factor of the grid, which puts one of its
    # points at zero.
    x = jnp.repeat(
        jnp.arange(1, 4, dtype=dtype), jnp.array([200, 100, 124]), total_repeat_length=424
    )
    k, scale = d.pareto_fit(x)
    near = d.pareto_fit(x.at[-1].add(10 * jnp.finfo(dtype).eps))
    np.testing.assert_allclose([k, scale], near, rtol=TOLERANCE[dtype])
    assert np.isfinite(k)


def test_a_prediction_has_weights_of_its_own(key):
    # q = p = N(0, 1) for theta, and a new y ~ N(theta, tau^2): the weights of E[p(y | theta)] are w
    # p(y | theta).
    x, log_w = gaussian_weights(key, 1.0, 1000)
    near, far = norm.logpdf(0.3, x, 1.0), norm.logpdf(5.0, x, 0.1)
    assert d.psis(log_w).khat < 0.5
    predictive = d.psis(log_w + near)
    assert predictive.khat < 0.5
    sd = float(np.std(np.exp(near)) / np.mean(np.exp(near)))
    log_mean = predictive.log_evidence - d.psis(log_w).log_evidence
    assert log_mean == pytest.approx(
        -0.5 * 0.09 / 2 - 0.5 * np.log(4 * np.pi), abs=4 * sd / 1000**0.5
    )
    assert d.psis(log_w + far).khat > d.khat_threshold(
        1000
    )  # no draw of q has seen where the new y is likely


# The evidence and the ELBO. log w ~ N(mu, s^2): the ELBO is mu, the log evidence mu + s^2 / 2.


def test_elbo_and_evidence_are_within_their_errors_as_often_as_they_say(key):
    mu, s, size, repeats = -1600.0, 0.6, 500, 2000
    rows = np.asarray(mu + s * jax.random.normal(key, (repeats, size)))
    for estimate, exact, se in (
        (d.elbo, mu, s / size**0.5),
        (d.log_evidence, mu + s**2 / 2, (np.expm1(s**2) / size) ** 0.5),
    ):
        value, error = np.transpose([estimate(row) for row in rows])
        assert np.mean(error) == pytest.approx(se, rel=0.05)
        assert np.std(value - mu) == pytest.approx(se, rel=0.06)
        z = (np.asarray(value, float) - exact) / np.asarray(error)
        assert abs(np.mean(np.abs(z) < 2) - 0.9545) < 4 * (0.9545 * 0.0455 / repeats) ** 0.5 + 0.01
        assert abs(np.mean(z)) < 0.2


def test_one_draw_has_no_standard_error_and_none_no_mean():
    assert d.elbo([-3.0])[0] == d.log_evidence([-3.0])[0] == -3.0
    assert np.isnan([d.elbo([-3.0])[1], d.log_evidence([-3.0])[1]]).all()
    assert np.isnan(d.elbo(np.zeros(4), where=np.zeros(4, bool))).all()


def test_the_elbo_counts_the_draws_for_which_it_is_told_to(rtol):
    log_w = jnp.array([1.0, 100.0, 3.0, -jnp.inf])
    value, error = d.elbo(log_w, where=jnp.array([True, False, True, False]))
    # The mean of 1 and 3; their sd is sqrt(2), and its root-n is sqrt(2) again.
    assert value == pytest.approx(2.0, rel=rtol)
    assert error == pytest.approx(1.0, rel=rtol)
    assert d.elbo(log_w)[0] == -np.inf


def test_effective_sample_size_of_weights(rtol):
    assert d.importance_ess(jnp.full(50, -np.log(50))) == pytest.approx(50, rel=10 * rtol)
    assert d.importance_ess(jnp.array([-jnp.inf, 0.0, -jnp.inf])) == 1
    assert d.importance_ess(jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))) == pytest.approx(
        1 / 0.3, rel=rtol
    )


def test_shift_of_the_means(rtol):
    x, weights = jnp.array([[10.0, 1.0], [12.0, 1.0], [17.0, 1.0]]), jnp.array([0.5, 0.25, 0.25])
    mean = 0.5 * 10 + 0.25 * 12 + 0.25 * 17
    sd = np.sqrt(0.5 * (10 - mean) ** 2 + 0.25 * (12 - mean) ** 2 + 0.25 * (17 - mean) ** 2)
    np.testing.assert_allclose(d.weighted_moments(x, jnp.log(weights))[0], [mean, 1.0], rtol=rtol)
    np.testing.assert_allclose(d.weighted_moments(x, jnp.log(weights))[1], [sd, 0.0], rtol=rtol)
    np.testing.assert_allclose(
        d.mean_shift(x, jnp.log(weights)), [(13 - mean) / sd, 0.0], rtol=10 * rtol
    )


def test_error_of_a_weighted_mean_is_its_spread_over_batches(key):
    x, log_w = gaussian_weights(key, 1.5, 1000, 400)
    log_weights = jax.nn.log_softmax(log_w, axis=1)
    batches = list(zip(np.asarray(x), np.asarray(log_weights)))
    errors = [d.weighted_mcse(*batch) for batch in batches]
    means = [d.weighted_moments(*batch)[0] for batch in batches]
    assert np.std(means) == pytest.approx(float(np.mean(errors)), rel=4 / 2000**0.5)
    # Plain draws: 1 / sqrt(S), and NaN that has no weight does not count.
    assert d.weighted_mcse(x[0], jnp.full(400, -np.log(400))) == pytest.approx(1 / 20, rel=1e-5)
    log_weights = log_weights[0].at[5].set(-jnp.inf)
    got = [d.weighted_mcse(x[0].at[5].set(value), log_weights) for value in (0.0, jnp.nan)]
    assert got[0] == got[1]


def test_a_constant_coordinate_has_neither_spread_nor_shift(key):
    x, log_weights = jnp.full((400, 2), 0.1), jax.nn.log_softmax(jax.random.normal(key, (400,)))
    for figure in (
        d.weighted_moments(x, log_weights)[1],
        d.weighted_mcse(x, log_weights),
        d.mean_shift(x, log_weights),
    ):
        np.testing.assert_array_equal(figure, [0.0, 0.0])


# Restarts.


def test_restarts_at_the_same_optimum():
    elbo = jnp.array([-12.0, -10.0, jnp.nan, -10.1, -15.0])
    loc = jnp.array([[5.0, 1.0], [0.0, 1.0], [5.04, 1.0], [0.04, 1.2], [5.0, 2.0]])
    sd = jnp.array([[0.1, 1.0], [0.05, 0.4], [0.05, 1.0], [0.1, 1.0], [0.1, 1.0]])
    np.testing.assert_array_equal(d.distinct_optima(elbo, loc, sd), [0, 1, 0, 1, 4])
    np.testing.assert_array_equal(d.distinct_optima(elbo, loc, sd, 1.0), [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(d.distinct_optima(elbo, loc, sd, 0.1), [0, 1, 2, 3, 4])
    nowhere = loc.at[0].set(jnp.nan)  # is near nobody, least of all the best
    np.testing.assert_array_equal(d.distinct_optima(elbo, nowhere, sd), [0, 1, 2, 1, 4])
