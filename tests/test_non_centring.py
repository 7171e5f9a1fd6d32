"""Which latents drive the scales of others, and the guide that starts from there."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import minisvi
from minisvi import Model, positive, real
from minisvi.auto import last_stage
from minisvi.auto.non_centring import Effects, drivers, effects, gates, non_centred, over_a_flow
from minisvi.auto.stochastic import stochastic

KEY = jax.random.key(0)
SDS = np.array([0.8, 3.0, 0.1, 7.0])
Y = np.array([2.0, -1.0, 4.0, 0.5])
NOISE_SDS = np.array([1.0, 3.0, 0.5, 2.0])


def log_funnel(theta):
    x = norm.logpdf(theta["x"], 5.0, jnp.exp(2 * theta["v"]))
    return norm.logpdf(theta["v"], -1.0, 0.5) + jnp.sum(x)


def log_flat_funnel(theta):
    return log_funnel({"v": theta[1], "x": theta[jnp.array([0, 2, 3])]})


def log_hierarchy(theta):
    prior = norm.logpdf(theta["a"], theta["mu"], theta["tau"])
    likelihood = norm.logpdf(jnp.asarray(Y), theta["a"], jnp.asarray(NOISE_SDS))
    of_scale = norm.logpdf(jnp.log(theta["tau"]), 0.0, 1.0) - jnp.log(theta["tau"])
    return jnp.sum(prior + likelihood) + norm.logpdf(theta["mu"], 1.0, 2.0) + of_scale


def log_gaussian(theta):
    return jnp.sum(norm.logpdf(theta["x"], theta["v"], 0.3)) + norm.logpdf(theta["v"], 2.0, 0.1)


LATENTS = {"v": real(), "x": real(3)}
FUNNEL = Model(LATENTS, log_funnel)
HIERARCHY = Model({"a": real(4), "mu": real(), "tau": positive()}, log_hierarchy)


def test_the_slope_of_a_funnel():
    found = effects(KEY, FUNNEL, (), np.array([-1.0, 4.0, 5.0, 6.0]), SDS, 64)
    # The curvature of x is exp(-4 v), whatever x is.
    np.testing.assert_allclose(found.slope[1:, 0], -4 * SDS[0], rtol=1e-3)
    np.testing.assert_allclose(found.slope[1:, 1:], 0.0, atol=1e-3)
    assert list(drivers(LATENTS, found.slope)) == [0]


def test_drivers_among_the_entries_of_one_leaf():
    flat = Model(real(4), log_flat_funnel)
    found = effects(KEY, flat, (), np.array([4.0, -1.0, 5.0, 6.0]), np.full(4, 0.5), 64)
    assert list(drivers(flat.latents, found.slope)) == [1]


def test_a_mean_comes_before_those_that_it_is_the_mean_of():
    # The curvature of mu depends on tau as much as that of `a` does.
    loc = np.array([*Y, 1.0, 0.0])
    found = effects(KEY, HIERARCHY, (), loc, np.full(6, 0.5), 64)
    assert found.slope[4, 5] < -0.5
    assert list(drivers(HIERARCHY.latents, found.slope)) == [4, 5]


def test_many_small_effects_do_not_drive_their_scale():
    # The 20 bend the curvature of tau by more in sum, 20 * 0.05^2, than tau bends theirs, 0.2^2.
    slope = np.zeros((21, 21))
    slope[:20, 20] = 0.2
    slope[20, :20] = 0.05
    assert list(drivers({"a": real(20), "tau": positive()}, slope)) == [20]


def test_each_has_its_own_driver():
    # The mean square over all pairs, 1 / 200, is small, as it is in a horseshoe.
    slope = np.zeros((400, 400))
    slope[np.arange(200), 200 + np.arange(200)] = 1.0
    assert list(drivers({"a": real(200), "tau": positive(200)}, slope)) == [*range(200, 400)]


def test_gates_of_a_prior_and_a_likelihood():
    # The curvature of one is 3 + exp(h_1 - h_2), and that of the other 4 exp(-h_1) + 1e-3.
    eps = np.random.default_rng(1).normal(size=(4000, 2))
    first = np.log(3.0 + np.exp(eps[:, 0] - eps[:, 1]))
    second = np.log(4.0 * np.exp(-eps[:, 0]) + 1e-3)
    log_curvature = np.stack([np.zeros(4000), np.zeros(4000), first, second], axis=1)
    slope = np.zeros((4, 4))
    slope[2:, :2] = (log_curvature - np.mean(log_curvature, axis=0)).T[2:] @ eps / 4000
    found = gates(Effects(log_curvature, eps, slope), np.array([0, 1]), np.array([2, 3]))
    np.testing.assert_allclose(found.gate[0], [1.0, -1.0], rtol=0.15)
    np.testing.assert_allclose(found.bias[0], -np.log(3.0), atol=0.3)
    np.testing.assert_allclose(found.gate[1], [-1.0, 0.0], atol=0.1)
    assert found.bias[1] > 2.5
    assert np.all(found.explained > 0.95)


def test_of_a_curvature_that_never_changes_nothing_is_left_to_explain():
    eps = np.random.default_rng(1).normal(size=(100, 2))
    log_curvature = np.stack([np.zeros(100), np.full(100, 2.0)], axis=1)
    found = gates(Effects(log_curvature, eps, np.zeros((2, 2))), np.array([0]), np.array([1]))
    np.testing.assert_array_equal(found.explained, [1.0])


def test_nothing_drives_a_gaussian():
    loc = {"v": np.array(2.0), "x": np.full(3, 2.0)}
    assert non_centred(KEY, Model(LATENTS, log_gaussian), (), loc, np.full(4, 0.1)) is None


BANANA = Model(
    {"x": real(2)},
    lambda t: -0.5 * (t["x"][0] ** 2 / 100 + (t["x"][1] + 0.03 * (t["x"][0] ** 2 - 100)) ** 2),
)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_drives_where_gates_do_not_explain_the_curvatures(seed):
    loc = {"x": np.zeros(2)}
    assert non_centred(jax.random.key(seed), BANANA, (), loc, np.array([30.0, 3.0])) is None


def log_evidence_of_the_hierarchy():
    """By quadrature over log tau, for given that all else is Gaussian."""
    h = np.linspace(-12, 8, 4001)
    log_p = []
    for tau in np.exp(h):
        cov = np.diag(NOISE_SDS**2 + tau**2) + 4.0
        _, log_det = np.linalg.slogdet(cov)
        square = (Y - 1) @ np.linalg.solve(cov, Y - 1)
        log_p.append(-0.5 * (square + log_det + 4 * np.log(2 * np.pi)))
    return np.log(np.trapezoid(np.exp(log_p - 0.5 * h**2) / np.sqrt(2 * np.pi), h))


@pytest.mark.slow
def test_the_evidence_of_a_centred_hierarchy():
    loc = {"a": np.array(Y), "mu": np.array(1.0), "tau": np.array(0.0)}
    guide, params = non_centred(KEY, HIERARCHY, (), loc, np.full(6, 0.25))
    options = {"num_steps": (2000,), "learning_rates": (8e-3,)}
    (alone,) = stochastic(KEY, HIERARCHY, guide, params=params, **options)
    verdict = minisvi.judge(KEY, HIERARCHY, guide, alone.params).verdict
    exact = log_evidence_of_the_hierarchy()
    assert verdict.level == "good"
    assert abs(verdict.log_evidence - exact) < 5 * verdict.log_evidence_se

    flow, params = over_a_flow(KEY, guide, params)
    (state,) = stochastic(KEY, HIERARCHY, flow, params=params, **options)
    verdict = minisvi.judge(KEY, HIERARCHY, flow, state.params).verdict
    assert exact - 0.01 < verdict.elbo < exact + 0.003
    assert abs(verdict.log_evidence - exact) < 5 * verdict.log_evidence_se
    assert verdict.ess > 0.75  # 0.8 of exact q, for the draws from wider versions of it


@pytest.mark.parametrize(("ess", "expected"), [(0.4, 3), (0.6, 4)])
def test_driven_goes_on_only_where_it_is_near(ess, expected, monkeypatch, key):
    # Neither it nor the flow ever becomes good.
    poor = SimpleNamespace(
        level="not trusted", of_weights="not trusted", unseen=1.0, ess=ess, spacing=0.0, kl=1.0
    )
    monkeypatch.setattr(last_stage, "_non_centred", lambda *_: ("guide", "params"))
    monkeypatch.setattr(last_stage, "over_a_flow", lambda *_: ("flow", "params"))
    monkeypatch.setattr(
        last_stage, "_run", lambda *given: iter([(given[5], 2000), (given[5], 8000)])
    )
    verdicts, stages = [], []
    for stage in last_stage.last_stage(key, None, (), None, verdicts, None, None):
        stages.append(stage)
        verdicts.append(poor)
    driven = [("driven", 2000), ("driven", 8000)]
    flow = [("driven flow", 2000), ("driven flow", 8000)]
    assert stages == driven[: expected - 2] + flow
