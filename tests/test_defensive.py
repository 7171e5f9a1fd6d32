"""Defensive draws: an exact importance identity, and the tails that q's own draws miss."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from scipy import stats
from scipy.stats import norm as normal
from tiers import standing_for

import minisvi
from minisvi import Model, full_rank, mean_field, mixture, positive, real
from minisvi.auto import defensive, drawing
from minisvi.auto.gaussians import Drawn, of_guide
from minisvi.posterior import diagnostics

S = 200_000


def drawn(size, num=S):
    eps = defensive.noise(np.random.default_rng(0), num, size)
    return eps, -defensive.log_ratio(eps)


@pytest.mark.parametrize("size", standing_for([1, 3, 50], 3))
def test_the_weights_give_back_the_normals_moments(size):
    # E_m[h N/m] = E_N[h] for h = 1, eps^2 and eps^4, and so for a sum over coordinates.
    eps, log_ratio = drawn(size)
    assert eps.shape == (S, size)
    weights = np.exp(log_ratio)
    for power, expected in ((0, 1.0), (2, 1.0), (4, 3.0)):
        values = weights * (eps**power).mean(1)
        assert abs(values.mean() - expected) < 4 * values.std() / S**0.5
        assert values.std() / S**0.5 < 0.02  # it would see an error of a tenth
    assert weights.max() <= 1.25 * (1 + 1e-5)  # 1 / 0.8: no weight is ever large
    # An ESS of about a fifth less, where q is exact.
    assert 0.75 < weights.sum() ** 2 / (weights**2).sum() / S < 0.97


@pytest.mark.parametrize("size", [1, 3])
def test_log_ratio_is_that_of_the_densities(size):
    eps, log_ratio = drawn(size, 500)
    r2 = 1 + 3 * np.sqrt(2 / size)
    normal = lambda cov: stats.multivariate_normal(np.zeros(size), cov).pdf(eps)
    m = 0.8 * normal(np.eye(size)) + 0.1 * normal(r2 * np.eye(size))
    for j in range(size):
        m += 0.1 / size * normal(np.eye(size) + 8 * np.diag(np.eye(size)[j]))
    expected = np.log(normal(np.eye(size)) / m)
    assert np.allclose(log_ratio, expected, rtol=0, atol=1e-12)


def test_of_ten_draws_eight_are_plain_one_wide_and_one_wide_in_a_single_coordinate():
    eps, _ = drawn(4)
    kind, plain = np.arange(S) % 10, np.asarray(defensive.is_plain(S))
    assert plain.mean() == 0.8
    sd = lambda which: eps[which].std()
    assert sd(plain) == pytest.approx(1.0, rel=0.01)
    assert sd(kind == 8) == pytest.approx((1 + 3 * (2 / 4) ** 0.5) ** 0.5, rel=0.01)
    assert sd(kind == 9) == pytest.approx(((9 + 3) / 4) ** 0.5, rel=0.02)


def from_keys():
    return minisvi.custom(
        lambda key: {"loc": jnp.zeros(())}, lambda p: distrax.Normal(p["loc"], 1.0)
    )


@pytest.mark.foreign
def test_guides_that_draw_from_keys_are_drawn_plainly(key):
    guide = from_keys()
    model = Model(real(), lambda theta: norm.logpdf(theta))
    found = drawing.draw(key, model, guide, guide.init(key), (), 30)
    u, log_q = jax.vmap(guide.distribution(guide.init(key)).draw)(jax.random.split(key, 30))
    jax.tree.map(np.testing.assert_array_equal, found.u, u)
    np.testing.assert_allclose(found.log_q, log_q, rtol=1e-6)
    assert np.array_equal(found.log_ratio, np.zeros(30))


@pytest.mark.parametrize("family", [mean_field, full_rank])
@pytest.mark.parametrize("num", [1, 3])
def test_gaussians_on_the_host_are_the_guides(family, num, key):
    latents = {"a": real(2), "b": positive()}
    model = Model(latents, lambda theta: jnp.zeros(()))
    guide = family(latents) if num == 1 else mixture(family(latents), num)
    leaves, treedef = jax.tree.flatten(guide.init(key))
    params = treedef.unflatten([leaf + 0.5 * jax.random.normal(key, leaf.shape) for leaf in leaves])
    drawn = drawing.draw(key, model, guide, params, (), 4000)
    q = guide.distribution(params)
    np.testing.assert_allclose(
        drawn.log_q[:50], jax.vmap(q.log_prob)(drawn.u)[:50], rtol=1e-3, atol=1e-3
    )
    # E_m[q / m] = 1, and q's means are those of its own draws.
    weights = np.exp(drawn.log_ratio)
    assert abs(weights.mean() - 1) < 4 * weights.std() / 4000**0.5
    plain = jax.vmap(lambda key: q.sample_and_log_prob(seed=key)[0])(jax.random.split(key, 4000))
    for name, own in plain.items():
        columns = drawn.u[name].reshape(4000, -1)
        error = 4 * (np.std(columns, axis=0) + np.std(own.reshape(4000, -1), axis=0)) / 4000**0.5
        mean = weights @ columns / weights.sum()
        assert np.all(np.abs(mean - np.mean(own.reshape(4000, -1), axis=0)) < error)


def test_it_finds_the_tails_that_a_narrow_q_misses(key):
    # q = N(0, 1/2 sd) for p = N(0, 1): the plain weights have a k-hat of 3/4 and miss the variance
    # by a tenth.
    latents = {"x": real()}
    guide = full_rank(latents)
    params, num = guide.init(key, loc={"x": jnp.zeros(())}, cov=jnp.array([0.25])), 20_000

    def error(seed, wider):
        rng = np.random.default_rng(seed)
        drawn = of_guide(guide, params).draw(rng, num)
        if not wider:
            eps = rng.standard_normal((num, 1))
            only = of_guide(guide, params).components[0]
            drawn = Drawn(only.push(eps), only.log_prob(eps), np.zeros(num))
        log_p = normal.logpdf(drawn.u[:, 0])
        weights = diagnostics.psis(log_p - drawn.log_q + drawn.log_ratio)
        return diagnostics.weighted_moments(drawn.u, weights.log_weights)[1] - 1

    rms = {
        wider: np.sqrt(np.mean(np.square([error(seed, wider) for seed in range(20)])))
        for wider in (True, False)
    }
    assert rms[True] < 0.03
    assert rms[False] > 2 * rms[True]
