"""The deterministic fit and its linear response against posteriors that are known."""

import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT, RTOL
from jax.scipy.stats import norm
from problems import conjugate_data, conjugate_model
from scipy.stats import norm as normal
from tiers import standing_for

from minisvi import Model, deterministic, linear_response, positive, real
from minisvi.second_order.fixed_draws import fixed_draws
from minisvi.tools.batching import batched

TWO = {"num_draws": 2, "restart_draws": 2, "max_draws": 2, "num_restarts": 2}


def gaussian(size):
    """A model, location and covariance: off the origin, unequal scales, correlated, of condition
    100.
    """
    rng = np.random.default_rng(size)
    q = np.linalg.qr(rng.normal(size=(size, size)))[0]
    cov = q @ np.diag(np.geomspace(0.1, 10.0, size)) @ q.T
    loc, precision = 3.0 * rng.normal(size=size), np.linalg.inv(cov)

    def log_joint(theta, loc, precision):
        z = theta["x"] - loc
        return -0.5 * z @ precision @ z

    return (
        Model({"x": real(size)}, log_joint),
        loc,
        cov,
        (jnp.asarray(loc, FLOAT), jnp.asarray(precision, FLOAT)),
    )


@pytest.mark.parametrize("size", standing_for([1, 16, 17, 50], 16, 17))
def test_any_gaussian_is_exact_at_two_draws(size, key):
    model, loc, cov, data = gaussian(size)
    fit = deterministic(key, model, *data, **TWO)
    sd = np.sqrt(np.diag(cov))
    assert fit.converged
    assert fit.fixed.eps.shape == (2, size)
    assert np.max(np.abs(fit.params["loc"] - loc) / sd) < RTOL
    # Stationary in log_scale: s_i sum_j P_ij E_ij s_j = 1, E the draws' second moments, of which
    # only E_ii is one.
    s, eps = np.exp(np.asarray(fit.params["log_scale"], float)), np.asarray(fit.fixed.eps, float)
    assert np.allclose(
        s * ((np.linalg.inv(cov) * (eps.T @ eps / 2)) @ s), 1.0, rtol=0, atol=100 * RTOL
    )
    error = np.abs(linear_response(fit) - cov) / np.outer(sd, sd)
    assert np.max(error) < RTOL
    vectors = np.random.default_rng(0).normal(size=(3, size))
    products = linear_response(fit, jnp.asarray(vectors, FLOAT))
    expected = vectors @ cov
    assert np.max(np.abs(products - expected)) < 100 * RTOL * np.max(np.abs(expected))


@pytest.mark.slow
def test_with_many_draws_the_variances_are_those_given_all_other_coordinates(key):
    model, _, cov, data = gaussian(4)
    fit = deterministic(key, model, *data, num_draws=512, num_restarts=1)
    variances = np.exp(2 * np.asarray(fit.params["log_scale"], float))
    assert np.allclose(variances * np.diag(np.linalg.inv(cov)), 1.0, rtol=0, atol=0.1)


def test_fixed_draws_are_antithetic_of_mean_square_one_and_normal():
    for num, size in ((2, 3), (8, 5), (512, 4)):
        eps = fixed_draws(np.random.default_rng(1), num, size)
        assert eps.shape == (num, size)
        assert np.array_equal(eps[: num // 2], -eps[num // 2 :])
        assert np.allclose((eps**2).mean(0), 1.0, rtol=1e-12)
    assert np.allclose((eps**4).mean(0), 3.0, atol=0.2)  # i.i.d.: an error of sqrt(96 / 256) = 0.6
    # There are enough of them for it: no two coordinates are correlated.
    assert np.allclose(eps.T @ eps / num, np.eye(4), rtol=0, atol=1e-12)


def test_fixed_draws_come_one_from_each_interval_of_equal_probability():
    eps = fixed_draws(np.random.default_rng(1), 64, 40)  # too many coordinates to uncorrelate
    scale = np.sqrt(np.mean(normal.ppf((np.arange(32) + 0.5) / 32) ** 2))
    places = normal.cdf(scale * np.sort(eps[:32], axis=0))
    assert np.max(np.abs(places - (np.arange(32)[:, None] + 0.5) / 32)) < 1.5 / 32


def logistic(num_rows=60, size=20):
    rng = np.random.default_rng(5)
    x = 2.0 * rng.normal(size=(num_rows, size))
    y = rng.random(num_rows) < 1 / (1 + np.exp(-x[:, 0]))
    rows = lambda w, x, y: y * (x @ w["w"]) - jax.nn.softplus(x @ w["w"])
    prior = lambda w: jnp.sum(norm.logpdf(w["w"]))
    return Model({"w": real(size)}, log_prior=prior, log_likelihood=rows), (
        jnp.asarray(x),
        jnp.asarray(y, float),
    )


@pytest.mark.slow
def test_optimism_grows_with_few_draws_and_buys_more(key):
    model, data = logistic()
    one = {"num_restarts": 1, "restart_draws": 2}
    few = deterministic(key, model, *data, num_draws=2, max_draws=2, **one)
    many = deterministic(key, model, *data, num_draws=128, max_draws=128, **one)
    assert few.optimism > 1.0 > many.optimism > -0.3
    more = deterministic(
        key, model, *data, num_draws=2, max_draws=8, max_optimism=0.5 * float(few.optimism), **one
    )
    assert more.fixed.eps.shape == (8, 20)
    assert more.optimism < few.optimism
    assert deterministic(
        key, model, *data, num_draws=2, max_draws=8, max_optimism=1e3, **one
    ).fixed.eps.shape == (
        2,
        20,
    )
    # What it reports is the ELBO at fresh draws.
    q = few.guide.distribution(few.params)

    def log_w(key):
        u, log_q = q.sample_and_log_prob(seed=key)
        return model.log_density(u, *data) - log_q

    values = jax.lax.map(log_w, jax.random.split(jax.random.key(99), 20_000), batch_size=500)
    error = jnp.hypot(few.elbo_se, jnp.std(values) / 20_000**0.5)
    assert abs(few.elbo - jnp.mean(values)) < 4 * error
    assert few.elbo_se == pytest.approx(float(jnp.std(values)) / 1024**0.5, rel=0.2)


def two_modes(theta):
    left, right = (norm.logpdf(theta["x"], m, s) for m, s in ((-1.5, 0.1), (1.0, 0.2)))
    return jnp.logaddexp(jnp.log(0.2) + left, jnp.log(0.8) + right)


def test_restarts_find_both_modes_and_the_better_one_wins(key):
    fit = deterministic(key, Model({"x": real()}, two_modes), num_restarts=8)
    at_left = np.asarray(fit.optima.loc[:, 0] < 0)
    assert np.allclose(fit.optima.loc[:, 0], np.where(at_left, -1.5, 1.0), atol=1e-3)
    assert np.allclose(fit.optima.elbo, np.log(np.where(at_left, 0.2, 0.8)), atol=1e-3)
    assert 0 < at_left.sum() < 8
    assert np.allclose(fit.params["loc"], 1.0, atol=1e-3)
    assert fit.elbo == pytest.approx(np.log(0.8), abs=1e-3)
    leaders = fit.optima.optimum
    assert len(np.unique(leaders)) == 2
    assert np.array_equal(at_left[leaders], at_left)
    assert np.all(fit.optima.converged)


def test_start_is_the_first_starts(key):
    fit = deterministic(
        key, Model({"x": real()}, two_modes), start={"x": jnp.array(-1.2)}, num_restarts=1
    )
    assert np.allclose(fit.params["loc"], -1.5, atol=1e-3)


@pytest.mark.parametrize("bad", standing_for([np.nan, -np.inf], -np.inf))
def test_starts_avoid_where_the_density_is_not_finite(bad, key):
    # A gamma in u itself, nothing below 0.4: neither the default start, 0, nor half of the others
    # will do.
    def log_joint(theta):
        x = jnp.where(theta["x"] > 0, theta["x"], 1.0)
        return jnp.where(theta["x"] > 0, 400.0 * jnp.log(x) - 400.0 * x, bad)

    fit = deterministic(key, Model({"x": real()}, log_joint), num_restarts=4)
    assert fit.converged
    assert np.all(fit.optima.converged)
    assert np.allclose(fit.optima.loc, 1.0, atol=5e-3)
    assert np.exp(fit.params["log_scale"]) == pytest.approx(0.05, rel=1e-2)


def test_a_density_that_is_finite_nowhere_is_an_error(key):
    with pytest.raises(
        ValueError, match=r"expected a finite log density at one of 64 starts, uniform\(-2, 2\)"
    ):
        deterministic(key, Model({"x": real()}, lambda t: jnp.nan * t["x"]), num_restarts=2)


def test_an_improper_posterior_does_not_converge(key):
    fit = deterministic(
        key, Model({"x": real()}, lambda t: 0.0 * t["x"]), num_restarts=1, max_steps=30
    )
    assert not fit.converged
    assert fit.params["log_scale"][0] > 5


@pytest.mark.slow
def test_a_scaled_likelihood_is_that_of_repeated_rows(key):
    model, x = conjugate_model(), conjugate_data()
    half = deterministic(key, model, x, weight=3.0, num_restarts=1)
    full = deterministic(key, model, jnp.concatenate([x, x, x]), num_restarts=1)
    for name in ("loc", "log_scale"):
        assert np.allclose(half.params[name], full.params[name], rtol=0, atol=1e-4)
    assert half.elbo == pytest.approx(float(full.elbo), rel=1e-4)


def test_a_deadline_that_is_past_still_gives_a_fit(key):
    model, data = logistic()
    fit = deterministic(key, model, *data, deadline=time.monotonic() - 1)
    assert not fit.converged
    assert fit.fixed.eps.shape == (8, 20)  # no second number of draws was begun
    assert np.isfinite(fit.elbo)


def test_no_latents(key):
    fit = deterministic(key, Model({}, lambda t: jnp.asarray(-3.0)), num_restarts=2)
    assert fit.converged
    assert fit.elbo == pytest.approx(-3.0)
    assert linear_response(fit).shape == (0, 0)


def test_no_maximum_no_linear_response(key):
    model, _, _, data = gaussian(2)
    fit = deterministic(key, model, *data, **TWO)
    fit = fit._replace(fixed=fit.fixed._replace(data=(data[0], -data[1])))
    assert np.all(np.isnan(linear_response(fit)))


def test_equal_keys_give_equal_fits_and_a_second_one_traces_nothing(key):
    traces = []

    def log_joint(theta, x):
        traces.append(None)
        return -0.5 * jnp.sum((theta["x"] - x) ** 2) - jnp.sum(jnp.exp(0.1 * theta["x"]))

    model, x = Model({"x": real(2)}, log_joint), jnp.array([1.0, 4.0])
    one = deterministic(key, model, x)
    linear_response(one)
    # One more, of shapes alone, is `Model.check`.
    count = len(traces)
    two = deterministic(key, Model({"x": real(2)}, log_joint), x)
    other = deterministic(jax.random.key(1), model, x + 1)
    linear_response(other)
    assert len(traces) - count <= 2
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params))
    )
    assert not np.array_equal(one.params["loc"], other.params["loc"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_restarts": 0}, ValueError, "`num_restarts` must be an integer >= 1; got 0"),
        ({"max_steps": 1.5}, TypeError, "`max_steps` must be an integer >= 1; got 1.5"),
        ({"num_draws": 3}, ValueError, "must be even; got 3"),
        ({"start": {"y": 0.0}}, ValueError, "expected a tree with leaves"),
        ({"weight": 2.0}, ValueError, "a minibatch needs a factored model"),
    ],
)
def test_bad_arguments(options, error, message, key):
    with pytest.raises(error, match=message):
        deterministic(key, Model({"x": real()}, two_modes), **options)


# ---- a small Gaussian process, whose triangular solves hang XLA's thread pool in a batch of second
# derivatives


def gp_model(num_rows=10):
    def log_joint(theta, x, y):
        k = theta["amplitude"] ** 2 * jnp.exp(
            -0.5 * ((x[:, None] - x[None]) / theta["length"]) ** 2
        )
        factor = jnp.linalg.cholesky(k + 1e-2 * jnp.eye(num_rows))
        white = jax.scipy.linalg.solve_triangular(factor, theta["f"], lower=True)
        log_prior = -0.5 * white @ white - jnp.sum(jnp.log(jnp.diagonal(factor)))
        hyper = norm.logpdf(jnp.log(theta["amplitude"])) + norm.logpdf(jnp.log(theta["length"]))
        return log_prior + hyper + jnp.sum(norm.logpdf(y, theta["f"], 0.3))

    x = jnp.linspace(-2.0, 2.0, num_rows)
    return Model({"amplitude": positive(), "f": real(num_rows), "length": positive()}, log_joint), (
        x,
        jnp.sin(2 * x),
    )


def primitives(fun, *args):
    return {equation.primitive.name for equation in jax.make_jaxpr(fun)(*args).eqns}


def test_batches_are_one_by_one_only_where_there_are_triangular_solves():
    solve = lambda x: jax.scipy.linalg.solve_triangular(x, x[0], lower=True)
    matrices = 2.0 * jnp.eye(3)[None] + 0.1 * jnp.arange(1.0, 5.0)[:, None, None]
    inside = lambda x: jax.lax.cond(x[0, 0] > 0, jax.jit(solve), lambda x: x[0], x)
    for fun in (
        solve,
        inside,
        jnp.linalg.cholesky,
        lambda x: jnp.linalg.slogdet(x)[1],
        jnp.linalg.inv,
    ):
        assert "scan" in primitives(batched(fun), matrices)
        assert np.allclose(batched(fun)(matrices), jax.vmap(fun)(matrices), rtol=1e-5)
    assert "scan" not in primitives(batched(lambda x: jnp.tanh(x) @ x), matrices)


GP_PARTS = {
    "deterministic": """
        for dense in (0, 100):
            minisvi.second_order.fixed_draws.MAX_DENSE = dense
            jax.clear_caches()
            fit = minisvi.deterministic(key, model, *data, num_restarts=8)
            assert fit.converged, fit.optima.converged
            locs = [*locals().get("locs", []), fit.params["loc"]]
        assert np.allclose(*locs, atol=2e-2), locs
        cov = minisvi.linear_response(fit)
        assert np.all(np.linalg.eigvalsh(cov) > 0)
        vectors = jnp.eye(12)[:2]
        assert np.allclose(minisvi.linear_response(fit, vectors), cov[:2], atol=1e-3)
    """,
    "stochastic": """
        guide = minisvi.full_rank(model.latents)
        svi = minisvi.SVI(model, guide, optax.adam(0.01), minisvi.ELBO(64))
        states = jax.vmap(lambda k: svi.init(k, *data))(jax.random.split(key, 8))
        states, info = jax.jit(jax.vmap(lambda s: svi.scan(s, 3, *data)))(states)
        assert info.elbo.shape == (8, 3)
        assert not np.any(info.skipped)
        (state,) = minisvi.auto.stochastic.stochastic(
            key, model, guide, *data, num_steps=(5,), learning_rates=(1e-3,), num_particles=16
        )
        assert state.step == 5
        judged = minisvi.judge(
            key, model, guide, state.params, *data, num_draws=1000, max_draws=1000
        )
        verdict = judged.verdict
        assert verdict.num_draws == 1000
        assert verdict.broken == 0
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("part", GP_PARTS)
def test_a_gaussian_process_does_not_hang(part):
    # In a process of its own, for a hang cannot be interrupted from inside.
    head = """
        import sys
        sys.path.insert(0, "tests")
        import jax, jax.numpy as jnp, numpy as np, optax
        import minisvi, minisvi.auto.stochastic
        from test_deterministic import gp_model
        (model, data), key = gp_model(), jax.random.key(0)
    """
    code = textwrap.dedent(head) + textwrap.dedent(GP_PARTS[part])
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=240, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
