"""What to do next: where the largest weights are, and from where NUTS goes on."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import minisvi
from minisvi import Model, positive, real
from minisvi.auto.advice import advise, where_it_lacks
from minisvi.auto.handover import restart
from minisvi.posterior.moments import Moment

MODEL = Model({"a": real(2), "tau": positive()}, lambda theta: jnp.zeros(()))
U = np.random.default_rng(0).normal(size=(5000, 3)) * [1.0, 10.0, 0.1] + [3.0, -20.0, 1.0]
DRAWS = {"a": U[:, :2], "tau": U[:, 2]}
MOMENTS = [
    Moment("a", 1, 0.01, 0.1, entry="a[0]"),
    Moment("a", 2, 0.02, 0.1, entry="a[1]"),
    Moment("tau", 2, 0.4, 0.1, entry="tau"),
]


def verdict_with(ess=0.9, misses=False):
    """As much of a verdict as the advice looks at."""
    return SimpleNamespace(ess=ess, misses_a_mode=lambda: misses)


def z(place):
    return (U[:, place] - U[:, place].mean()) / U[:, place].std()


WEIGHTS = {
    "a scale that collapses": (-3 * z(2), "the largest weights are where `tau` is low"),
    "one side": (3 * z(1), r"the largest weights are where `a\[1\]` is high"),
    "both tails": (z(0) ** 2, r"far out on both sides of `a\[0\]`"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_it_says_where_the_largest_weights_are(name):
    log_w, said = WEIGHTS[name]
    lines = advise(MODEL, DRAWS, log_w, MOMENTS, verdict_with())
    assert lines[0] == "worst: `tau` (0.4 sd), `a[1]` (0.02 sd)"
    assert re.search(said, lines[1])
    assert ("z ~ N(0, 1)" in " ".join(lines)) == (name == "a scale that collapses")
    assert "to_blackjax" in lines[-1]


def test_equal_weights_lack_nothing_and_a_missed_mode_is_named():
    noise = np.random.default_rng(1).normal(size=5000)
    assert where_it_lacks(DRAWS, noise) is None
    assert where_it_lacks({"tau": U[:50, 2]}, noise[:50]) is None  # too few draws to tell
    assert "several modes" in advise(MODEL, DRAWS, noise, [], verdict_with(misses=True))[0]


def test_heavy_tails_are_named_where_nothing_else_is_wrong():
    noise = np.random.default_rng(1).normal(size=5000)
    heavy = [Moment("tau", 2, 0.1, 0.9, entry="tau")]
    lines = advise(MODEL, DRAWS, noise, heavy, verdict_with())
    assert lines[1].startswith("of `tau` give quantiles")
    for moments, ess in ((MOMENTS, 0.9), (heavy, 0.5)):
        lines = advise(MODEL, DRAWS, noise, moments, verdict_with(ess))
        assert not any("quantiles" in line for line in lines)


FUNNEL = Model(
    {"v": real(), "x": real(3)},
    lambda t: norm.logpdf(t["v"], 1.0, 3.0) + jnp.sum(norm.logpdf(t["x"], 0, jnp.exp(t["v"] / 2))),
)


def test_an_answer_that_is_not_good_says_what_to_do_next(key):
    guide = minisvi.full_rank(FUNNEL.latents)
    params = guide.init(key, loc={"v": jnp.ones(()), "x": jnp.zeros(3)}, cov=jnp.full(4, 4.0))
    verdict = minisvi.judge(key, FUNNEL, guide, params, num_draws=2000).verdict
    assert verdict.level != "good"
    assert "next          worst: " in str(verdict)
    assert "to_blackjax" in verdict.advice[-1]
    exact = Model({"x": real(2)}, lambda t: jnp.sum(norm.logpdf(t["x"], 3.0)))
    good = minisvi.fit(key, exact, progress_bar=False).verdict
    assert good.advice == ()
    assert "next" not in str(good)


def test_nuts_goes_on_from_weighted_draws_in_their_units(key):
    sd = jnp.array([0.1, 10.0])
    model = Model(
        {"x": real(2)}, lambda t: jnp.sum(norm.logpdf(t["x"], jnp.array([3.0, -50.0]), sd))
    )
    fit = minisvi.fit(key, model, progress_bar=False)
    positions, matrix = fit.to_blackjax(jax.random.key(1), 400)
    assert positions["x"].shape == (400, 2)
    mean = positions["x"].mean(0)
    assert np.all(np.abs(mean - [3.0, -50.0]) < 4 * np.array(sd) / 20)
    np.testing.assert_allclose(matrix / np.outer(sd, sd), np.eye(2), atol=0.1)
    with pytest.raises(ValueError, match="`num_chains` must be an integer >= 1; got 0"):
        fit.to_blackjax(key, 0)


def test_the_mass_matrix_is_regular_where_few_draws_count(key):
    model = Model({"x": real(20)}, lambda t: jnp.sum(norm.logpdf(t["x"])))
    guide = minisvi.mean_field(model.latents)
    params = {"loc": jnp.full(20, 2.0), "log_scale": jnp.full(20, jnp.log(0.5))}
    _, matrix = restart(key, minisvi.Posterior(model, guide, params, ()), 2)
    assert np.min(np.linalg.eigvalsh(matrix)) > 0.1  # of q it is 0.25
