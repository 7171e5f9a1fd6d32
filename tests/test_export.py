"""Export to ArviZ, read back by ArviZ itself."""

import importlib
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from minisvi import Draws, Model, Posterior, full_rank, positive, real, to_arviz
from minisvi.posterior.draws import plain

NUM, S = 12, 400
Y = 3.0 + jnp.sin(5.0 * jnp.arange(NUM))  # spread, away from the origin
LATENTS = {"net": {"loc": real(2)}, "sd": positive()}


def log_likelihood(theta, data):
    z = (data["y"] - theta["net"]["loc"][0]) / theta["sd"]
    return -0.5 * z**2 - jnp.log(theta["sd"]) - 0.5 * jnp.log(2 * jnp.pi)


def log_prior(theta):
    return -0.5 * jnp.sum(theta["net"]["loc"] ** 2) / 100 - theta["sd"]


MODEL = Model(LATENTS, log_prior=log_prior, log_likelihood=log_likelihood)
GUIDE = full_rank(LATENTS)
PARAMS = {
    "loc": jnp.array([3.0, 1.0, -0.3]),
    "scale_tril": jnp.diag(jnp.log(jnp.array([0.12, 10.0, 0.12]))),
}
DATA = ({"y": Y},)


@pytest.fixture
def draws():
    return Posterior(MODEL, GUIDE, PARAMS, DATA).draws(jax.random.key(3), S)


def test_groups_and_their_values(draws, rtol):
    tree = to_arviz(draws, MODEL, *DATA)
    assert set(tree.children) == {"posterior", "sample_stats", "log_likelihood", "observed_data"}
    assert tree.attrs["inference_library"] == "minisvi"
    assert dict(tree["posterior"].sizes) == {"chain": 1, "draw": S, "net.loc_dim_0": 2}
    np.testing.assert_array_equal(tree["posterior"]["net.loc"][0], draws.theta["net"]["loc"])
    np.testing.assert_array_equal(tree["posterior"]["sd"][0], draws.theta["sd"])
    np.testing.assert_array_equal(tree["observed_data"]["data_0.y"], Y)
    rows = jax.vmap(lambda theta: log_likelihood(theta, *DATA))(draws.theta)
    np.testing.assert_allclose(tree["log_likelihood"]["log_likelihood"][0], rows, rtol=10 * rtol)
    lp = jax.vmap(log_prior)(draws.theta) + rows.sum(axis=1)
    np.testing.assert_allclose(tree["sample_stats"]["lp"][0], lp, rtol=10 * rtol)


def test_a_log_joint_has_no_pointwise_terms_and_no_model_only_draws(draws, rtol):
    joint = Model(LATENTS, lambda theta: log_prior(theta))
    tree = to_arviz(draws, joint)
    assert set(tree.children) == {"posterior", "sample_stats"}
    np.testing.assert_allclose(
        tree["sample_stats"]["lp"][0], jax.vmap(log_prior)(draws.theta), rtol=10 * rtol
    )
    assert set(to_arviz(draws).children) == {"posterior"}


def test_no_latents(key):
    """Draws of nothing: there are as many as were asked for, and each has a density."""
    model = Model({}, lambda theta: jnp.array(-3.5))
    posterior = Posterior(model, full_rank({}), full_rank({}).init(key))
    assert posterior.mean(key) == {}
    tree = to_arviz(posterior.draws(key, 9).resample(key, 4), model)
    np.testing.assert_array_equal(tree["sample_stats"]["lp"], np.full((1, 4), -3.5))


def test_weighted_draws_are_resampled_first(draws, key):
    uneven = Draws(draws.theta, jax.nn.log_softmax(jnp.linspace(0.0, 1.0, S)))
    for weights in (uneven.log_weights, uneven.log_weights.at[3].set(jnp.nan)):
        with pytest.raises(
            ValueError, match=r"expected draws of equal weight; .* take draws\.resample\(key, n\)"
        ):
            to_arviz(Draws(draws.theta, weights))
    assert to_arviz(uneven.resample(key, 50))["posterior"].sizes["draw"] == 50


def test_a_slash_in_a_name_is_a_dot():
    theta = {"linear/w": jnp.arange(4.0), "sd": jnp.ones(4)}
    model = Model(
        {"linear/w": real(), "sd": real()}, lambda theta, data: theta["sd"] + data["y/z"][0]
    )
    tree = to_arviz(plain(theta, 4), model, {"y/z": Y})
    np.testing.assert_array_equal(tree["posterior"]["linear.w"][0], theta["linear/w"])
    np.testing.assert_array_equal(tree["observed_data"]["data_0.y.z"], Y)


SHARED = [{"a": {"b": 1.0}, "a.b": 2.0}, {"a/b": 1.0, "a.b": 2.0}]


@pytest.mark.parametrize("tree", SHARED)
def test_two_arrays_of_one_name_are_refused(tree, draws):
    model = Model(LATENTS, lambda theta, data: theta["sd"])
    with pytest.raises(ValueError, match=r"^data: expected .*names"):
        to_arviz(draws, model, tree)
    with pytest.raises(ValueError, match=r"^latents: expected .*names"):
        to_arviz(plain(jax.tree.map(lambda leaf: jnp.full(4, leaf), tree), 4))


def test_without_arviz_it_says_what_is_missing(draws, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match="`to_arviz` needs arviz-base: pip install arviz-base"):
        to_arviz(draws)


@pytest.mark.foreign
def test_summary_and_loo(draws):
    stats = pytest.importorskip("arviz_stats")
    tree = to_arviz(draws, MODEL, *DATA)
    summary = stats.summary(tree, round_to="none")
    expected = np.append(draws.mean()["net"]["loc"], draws.mean()["sd"])
    np.testing.assert_allclose(summary["mean"].astype(float), expected, rtol=1e-5)
    assert list(summary.index) == ["net.loc[0]", "net.loc[1]", "sd"]
    # Direct: log p(y_i | y_-i) = -log E[1 / p(y_i | theta)], whose weights need no smoothing for
    # data so mild.
    rows = jax.vmap(lambda theta: log_likelihood(theta, *DATA))(draws.theta)
    direct = float(jnp.sum(jnp.log(S) - logsumexp(-rows, axis=0)))
    loo = stats.loo(tree)
    assert loo.elpd == pytest.approx(direct, abs=0.05)
    assert (
        loo.elpd < float(jnp.sum(logsumexp(rows, axis=0) - jnp.log(S))) - 0.3
    )  # and not the fit to the data seen


@pytest.mark.foreign
def test_arviz_draws_it(draws):
    pytest.importorskip("matplotlib").use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # arviz-plots 0.8 asks for this module, which Matplotlib 3.11 no longer loads by itself
        # (arviz-plots #500).
        importlib.import_module("matplotlib.style.core")
        plots = pytest.importorskip("arviz_plots")
        panels = plots.plot_dist(
            to_arviz(draws), var_names=["sd"], kind="kde", backend="matplotlib"
        )
    x = panels.viz["dist"]["sd"].item().get_xdata()
    assert np.min(draws.theta["sd"]) <= np.min(x) + 0.05
    assert np.max(x) <= np.max(draws.theta["sd"]) + 0.05
