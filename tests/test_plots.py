"""What is drawn is what was computed: the data on the axes, not the pixels."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minisvi import Draws
from minisvi.posterior import diagnostics, plots
from minisvi.posterior.draws import plain

pytest.importorskip("matplotlib").use("agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def line(ax, label):
    (found,) = (artist for artist in ax.lines if artist.get_label() == label)
    return found.get_xdata(), found.get_ydata()


def test_loss_draws_each_step_and_the_mean_of_the_last_ones():
    elbo = -1600.0 - 50.0 * np.exp(-np.arange(200) / 10) + np.sin(np.arange(200.0))
    elbo[[20, 21, 150]] = np.nan, -np.inf, -np.inf
    ax = plots.loss(elbo, average=4)
    steps, drawn = line(ax, "one step")
    known = np.isfinite(elbo)
    np.testing.assert_array_equal(steps, np.arange(1, 201))
    np.testing.assert_array_equal(drawn, np.where(known, elbo, np.nan))
    steps, mean = line(ax, "mean of 4 steps")
    assert steps[0] == 4
    for at in (0, 18, 100, 148, 196):
        assert mean[at] == pytest.approx(np.mean(elbo[at : at + 4][known[at : at + 4]]), rel=1e-12)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "ELBO (nats)")


def test_loss_shows_the_end_of_the_fit_and_not_its_worst_steps():
    elbo = np.sin(np.arange(1000.0)) - 1600.0
    elbo[:100] -= 1e6
    elbo[700] = -1e9
    low, high = plots.loss(elbo).get_ylim()
    assert -1604 < low < -1601
    assert -1599 < high < -1598
    assert {text.get_text() for text in plots.loss(elbo).get_legend().get_texts()} == {
        "one step",
        "mean of 50 steps",
    }


def test_loss_without_enough_steps_or_a_finite_one():
    with pytest.raises(
        ValueError, match=r"`average` must be in 1\.\.10, the number of steps; got 11"
    ):
        plots.loss(np.zeros(10), average=11)
    with pytest.raises(ValueError, match="`average` must be an integer >= 1; got 0"):
        plots.loss(np.zeros(10), average=0)
    assert np.all(np.isnan(line(plots.loss(np.full(10, np.nan)), "mean of 1 steps")[1]))


def test_restarts_mark_the_best_and_those_far_below():
    elbo, se = np.array([-10.0, -9.0, -400.0, np.nan, -9.5]), np.array([0.1, 0.2, 0.1, 0.1, 0.3])
    _, given = plt.subplots()
    ax = plots.restarts(elbo, se, ax=given)
    assert ax is given
    rest, best = ax.containers
    np.testing.assert_array_equal(rest.lines[0].get_xydata(), [[0, -10.0], [4, -9.5]])
    np.testing.assert_array_equal(best.lines[0].get_xydata(), [[1, -9.0]])
    assert best.get_label() == "best: -9.00 ± 0.2"
    (bar,) = best.lines[2][0].get_segments()
    np.testing.assert_allclose(bar[:, 1], [-9.4, -8.6])
    x, y = line(ax, "far below, or not finite")
    np.testing.assert_array_equal(x, [2, 3])
    np.testing.assert_array_equal(y, ax.get_ylim()[0])
    assert ax.get_ylim()[0] < -10.2
    with pytest.raises(ValueError, match="`restarts`: expected a finite ELBO"):
        plots.restarts([np.nan], [1.0])


@pytest.fixture
def draws(key):
    x = 1000 + jax.random.normal(key, (500, 2, 2))
    theta = {"net": {"w": x}, "tau": jnp.exp(0.3 * x[:, 0, 0] - 300)}
    return plain(theta, 500), Draws(theta, jax.nn.log_softmax(0.5 * (x[:, 0, 0] - 1000)))


def test_marginals_are_histograms_with_the_weights(draws):
    q, reweighted = draws
    panels = plots.marginals(q, reweighted)
    assert [panel.get_xlabel() for panel in panels] == [
        *(f"net.w[{i}, {j}]" for i in (0, 1) for j in (0, 1)),
        "tau",
    ]
    for panel, x in ((panels[0], q.theta["net"]["w"][:, 0, 0]), (panels[4], q.theta["tau"])):
        for patch, weights in zip(panel.patches, (q.log_weights, reweighted.log_weights)):
            values, edges, _ = patch.get_data()
            weights = np.exp(np.asarray(weights, float))
            assert 0.97 < np.sum(values * np.diff(edges)) <= 1 + 1e-6
            at = slice(
                int(np.argmax(values)), int(np.argmax(values)) + 2
            )  # the edges of the fullest bin
            inside = (edges[at][0] <= x) & (x < edges[at][1])
            share = np.sum(weights[inside]) / np.sum(weights) / np.diff(edges[at])[0]
            assert np.max(values) == pytest.approx(share, rel=1e-5)
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["q", "reweighted"]


def test_marginals_of_the_first_few_and_of_a_constant(draws):
    q, reweighted = draws
    assert len(plots.marginals(q, reweighted, num=2)) == 2
    _, (given,) = plt.subplots(1, 1, squeeze=False)
    (panel,) = plots.marginals(*2 * [plain({"c": jnp.full(50, 3.0)}, 50)], ax=given)
    assert panel is given[0]
    assert panel.get_xlabel() == "c"
    assert np.sum(
        panel.patches[0].get_data().values * np.diff(panel.patches[0].get_data().edges)
    ) == pytest.approx(1)


def test_weights_draw_the_tail_and_what_it_was_smoothed_to(key):
    log_w = 1.5 * jax.random.exponential(key, (1000,)) - 1600
    ax, fit = plots.weights(log_w), diagnostics.psis(log_w)
    assert ax.get_title() == f"k-hat = {float(fit.khat):.2f}, above 0.67"
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    raw, above = line(ax, "weights")
    largest = np.sort(np.asarray(log_w, float))[-94:]
    np.testing.assert_allclose(np.log(raw), largest - float(fit.log_evidence), atol=1e-3)
    np.testing.assert_allclose(above, (np.arange(94, 0, -1) - 0.5) / 1000)
    smoothed, _ = line(ax, "Pareto fit, to the largest")
    np.testing.assert_allclose(np.log(smoothed / 1000), np.sort(fit.log_weights)[-94:], atol=1e-5)


def test_weights_that_are_equal_few_or_broken(key):
    assert plots.weights(np.full(100, -5.0)).get_title() == "k-hat = -inf, below 0.50"
    log_w = jax.random.exponential(key, (100,)).at[0].set(jnp.inf).at[1].set(jnp.nan)
    assert plots.weights(log_w).get_title() == "k-hat = inf, above 0.50"
    with pytest.raises(ValueError, match="some are finite; got none"):
        plots.weights(np.full(100, -np.inf))


def test_without_matplotlib_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(
        ImportError, match=r"`minisvi\.posterior\.plots` needs Matplotlib: pip install matplotlib"
    ):
        plots.loss(np.zeros(3))
