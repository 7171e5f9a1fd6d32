"""The guide in which some latents drive the others: its density, and posteriors inside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import minisvi
from minisvi import Model, affine_coupling, mean_field, positive, real
from minisvi.auto.stochastic import stochastic
from minisvi.guides.driven import Response, driven
from minisvi.model import trees

KEY = jax.random.key(0)
LATENTS = {"a": real(2), "scale": positive(), "z": real(2)}
LOC = {"a": jnp.array([3.0, -20.0]), "scale": jnp.array(0.7), "z": jnp.array([0.5, 100.0])}


def covariance():
    root = np.random.default_rng(1).normal(size=(5, 5)) + 2 * np.eye(5)
    units = np.array([0.1, 10.0, 0.5, 2.0, 30.0])
    return units[:, None] * (root @ root.T) * units


def moved(params, size):
    """The parameters somewhere else, but for the frame, of which the units are positive."""
    rng = np.random.default_rng(2)
    others = {name: leaf for name, leaf in params.items() if name != "frame"}
    others = jax.tree.map(lambda leaf: leaf + size * rng.normal(size=leaf.shape), others)
    return {**others, "frame": params["frame"]}


@pytest.mark.parametrize("base", [mean_field(LATENTS, 1.0), affine_coupling(mean_field(LATENTS))])
def test_the_density_is_that_of_the_draws(base):
    guide = driven(base, ["scale", "z"])
    params = moved(guide.init(KEY, loc=LOC, cov=covariance()), 0.2)
    q = guide.distribution(params)
    eps = jnp.asarray(np.random.default_rng(3).normal(size=5))

    def draw(eps):
        return trees.ravel(LATENTS, q.from_noise(eps)[0])

    u, log_q = q.from_noise(eps)
    _, log_det = np.linalg.slogdet(np.asarray(jax.jacobian(draw)(eps), float))
    expected = np.sum(norm.logpdf(eps)) - log_det
    tolerance = 1e-4 if eps.dtype == jnp.float32 else 1e-9
    np.testing.assert_allclose(log_q, expected, rtol=tolerance)
    np.testing.assert_allclose(q.log_prob(u), expected, rtol=10 * tolerance)


@pytest.mark.parametrize("base", [mean_field(LATENTS, 1.0), affine_coupling(mean_field(LATENTS))])
def test_the_score_that_goes_along_with_a_draw_is_that_of_its_density(base):
    guide = driven(base, ["scale", "z"])
    q = guide.distribution(moved(guide.init(KEY, loc=LOC, cov=covariance()), 0.2))
    eps = jnp.asarray(np.random.default_rng(3).normal(size=5))

    u, log_q, score = jax.jit(lambda eps: q.draw_and_score(eps, q))(eps)
    expected = jax.grad(q.log_prob)(u)
    tolerance = 1e-3 if eps.dtype == jnp.float32 else 1e-9
    np.testing.assert_allclose(log_q, q.log_prob(u), rtol=tolerance)
    for leaf, other in zip(jax.tree.leaves(score), jax.tree.leaves(expected), strict=True):
        assert np.max(np.abs(other)) > 0.01
        np.testing.assert_allclose(
            leaf, other, rtol=tolerance, atol=tolerance * np.max(np.abs(other))
        )


def test_it_starts_at_the_gaussian():
    guide = driven(mean_field(LATENTS, 1.0), ["scale"])
    params = guide.init(KEY, loc=LOC, cov=covariance())
    q = guide.distribution(with_gaussian_tails(params))
    loc = np.asarray(trees.ravel(LATENTS, LOC), float)
    rng = np.random.default_rng(4)
    for point in loc + rng.normal(size=(3, 5)) @ np.linalg.cholesky(covariance()).T:
        u = trees.unravel(LATENTS, jnp.asarray(point))
        _, log_det = np.linalg.slogdet(covariance())
        whitened = np.linalg.solve(covariance(), point - loc)
        expected = -0.5 * ((point - loc) @ whitened + log_det + 5 * np.log(2 * np.pi))
        np.testing.assert_allclose(q.log_prob(u), expected, rtol=1e-3)


def test_a_prior_times_a_likelihood_is_a_response():
    # theta ~ N(mu, tau^2) and y ~ N(theta, s^2), driven by w = (mu, log tau).
    y, s = jnp.array([28.0, -3.0]), jnp.array([15.0, 2.0])
    response = Response(
        linear=jnp.zeros((2, 2)),
        slope=jnp.zeros((2, 2)),
        gate=jnp.array([[0.0, -2.0], [0.0, -2.0]]),
        gate_bias=2 * jnp.log(s),
        pull=-y,
        pull_slope=jnp.array([[1.0, 0.0], [1.0, 0.0]]),
        bump=jnp.zeros(2),
    )
    for mu, tau in [(4.0, 0.1), (-7.0, 3.0), (0.0, 40.0)]:
        mean, log_scale = response(jnp.array([mu, np.log(tau)]))
        precision = 1 / tau**2 + 1 / s**2
        np.testing.assert_allclose(y + mean, (mu / tau**2 + y / s**2) / precision, rtol=2e-4)
        at_zero = 0.5 * jnp.log1p(s**2)  # of the scale where w = 0, in units of which it counts
        np.testing.assert_allclose(jnp.exp(log_scale - at_zero) * s, precision**-0.5, rtol=1e-4)


def log_funnel(theta):
    x = norm.logpdf(theta["x"], 0.0, jnp.exp(theta["v"] / 2))
    return norm.logpdf(theta["v"], 0.0, 3.0) + jnp.sum(x)


FUNNEL = Model({"v": real(), "x": real(9)}, log_funnel)


def with_gaussian_tails(params):
    tails = params["tails"]._replace(log_onset=jnp.full((2, 1), 20.0))
    return {**params, "tails": tails}


def test_neals_funnel_is_in_the_family():
    guide = driven(mean_field(FUNNEL.latents, 1.0), ["v"])
    loc = {"v": jnp.array(0.0), "x": jnp.zeros(9)}
    params = with_gaussian_tails(guide.init(KEY, loc=loc, cov=jnp.array([9.0, *np.ones(9)])))
    slope = jnp.full((9, 1), 1.5)  # log sd v / 2, of v = 3 w
    params["response"] = params["response"]._replace(slope=slope)
    q = guide.distribution(params)
    for v in [-5.0, 1.0, 4.0]:
        u = {"v": jnp.array(v), "x": jnp.exp(v / 2) * jnp.linspace(-2, 3, 9)}
        np.testing.assert_allclose(q.log_prob(u), log_funnel(u), rtol=1e-4)


@pytest.mark.slow
def test_neals_funnel_is_found():
    guide = driven(mean_field(FUNNEL.latents, 1.0), ["v"])
    loc = {"v": jnp.array(0.0), "x": jnp.zeros(9)}
    params = with_gaussian_tails(guide.init(KEY, loc=loc, cov=jnp.ones(10)))
    options = {"num_steps": (1500,), "learning_rates": (8e-3,)}
    *_, state = stochastic(KEY, FUNNEL, guide, params=params, **options)
    verdict = minisvi.judge(KEY, FUNNEL, guide, state.params).verdict
    assert abs(verdict.elbo) < 0.01  # the log evidence is zero


@pytest.mark.parametrize("drivers", [["v", "y"], [], ["v", "x"], "v"])
def test_drivers_are_some_of_the_latents(drivers):
    with pytest.raises(ValueError, match="drivers"):
        driven(mean_field(FUNNEL), drivers)


def test_the_base_is_about_standard():
    with pytest.raises(TypeError, match="driven"):
        driven(minisvi.mixture(mean_field(FUNNEL), 2), ["v"])
