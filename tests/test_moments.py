"""Moments of weighted draws on the host: errors against `diagnostics`, tails against known
shapes.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from minisvi.posterior import diagnostics
from minisvi.posterior.moments import MAX_KHAT, MAX_UNSEEN, Moment, moments, tail_shape

SIZE = 20_000
EQUAL = np.zeros(SIZE)
NONE = np.zeros(SIZE)  # is added to the weights


def normalised(log_w):
    return log_w - np.logaddexp.reduce(log_w)


def of(x, log_w=EQUAL):
    """The mean and the sd of one latent."""
    return moments({"x": x}, log_w, normalised(log_w), NONE)


def test_errors_are_those_of_the_diagnostics():
    rng = np.random.default_rng(0)
    theta = {
        "a": jnp.asarray(3.0 + 0.1 * rng.normal(size=500)),
        "b": jnp.asarray(-20.0 * rng.gamma(2.0, size=(500, 2, 3))),
    }
    log_w = rng.normal(size=500)
    log_weights = jnp.asarray(normalised(log_w))
    found = moments(theta, log_w, log_weights, np.zeros(500))
    assert [(moment.latent, moment.power) for moment in found] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("b", 2),
    ]
    for mean, sd in (found[:2], found[2:]):
        x = theta[mean.latent]
        assert np.allclose(mean.error, np.max(diagnostics.weighted_mcse(x, log_weights)), rtol=1e-4)
        assert np.allclose(
            sd.error, np.max(diagnostics.weighted_sd_mcse(x, log_weights)), rtol=1e-4
        )
        place = np.unravel_index(np.argmax(diagnostics.weighted_mcse(x, log_weights)), x.shape[1:])
        assert mean.entry == mean.latent + (f"[{place[0]}, {place[1]}]" if place else "")
    assert str(found[3]) == "the sd of `b`"


# Draws, and what is known of them: does the mean exist and is reached, does the sd?
TAILS = {
    "normal": (lambda rng: rng.normal(size=SIZE), True, True),
    "exponential": (lambda rng: rng.exponential(size=SIZE), True, True),
    "t with 6": (lambda rng: rng.standard_t(6, size=SIZE), True, True),
    "log-normal, sd 0.5": (lambda rng: np.exp(0.5 * rng.normal(size=SIZE)), True, True),
    "log-normal, sd 2": (lambda rng: np.exp(2.0 * rng.normal(size=SIZE)), True, False),
    "inverse gamma with 1.9": (lambda rng: 1 / rng.gamma(1.9, size=SIZE), True, False),
    "Neal's funnel": (
        lambda rng: np.exp(1.5 * rng.normal(size=SIZE)) * rng.normal(size=SIZE),
        True,
        False,
    ),
    "half Cauchy": (lambda rng: np.abs(rng.standard_cauchy(SIZE)), False, False),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TAILS)
def test_a_moment_holds_where_it_exists_and_is_reached(name, seed):
    draw, mean_holds, sd_holds = TAILS[name]
    mean, sd = of(draw(np.random.default_rng(seed)))
    assert mean.holds(0.03) == mean_holds
    assert sd.holds(0.03) == sd_holds


def test_what_is_unseen_is_how_far_added_weights_move_a_moment():
    rng = np.random.default_rng(8)
    x = rng.gamma(2.0, size=(SIZE, 2)) * [1.0, 50.0]
    log_w = rng.normal(size=SIZE)
    added = 1e-6 * rng.random(SIZE) * (x[:, 1] > 150.0)
    mean, sd = moments({"x": x}, log_w, normalised(log_w), added)
    before, spread = diagnostics.weighted_moments(x, log_w)
    after, spread_after = diagnostics.weighted_moments(x, np.log(np.exp(normalised(log_w)) + added))
    # To first order, of the entry that moves the most.
    np.testing.assert_allclose(mean.unseen, np.max(np.abs(after - before) / spread), rtol=0.01)
    np.testing.assert_allclose(sd.unseen, np.max(np.abs(spread_after / spread - 1)), rtol=0.01)


def test_a_moment_that_the_unseen_may_move_does_not_hold():
    moment = Moment("a", 2, 0.01, -np.inf, MAX_UNSEEN)
    assert moment.holds(0.03)
    assert not moment._replace(unseen=1.01 * MAX_UNSEEN).holds(0.03)
    assert not moment._replace(unseen=np.nan).holds(0.03)


@pytest.mark.parametrize("shape", [0.2, 0.5, 1.0, 2.0])
def test_the_shape_of_a_pareto_tail(shape):
    uniform = np.random.default_rng(1).random(SIZE)
    num = diagnostics.tail_size(SIZE)
    assert abs(tail_shape(-shape * np.log(uniform)) - shape) < 4 * (1 + shape) / np.sqrt(num)


def test_weights_count():
    """Draws of a wider normal, weighted to a normal: the terms of its sd have a light tail, as w
    makes up for z.
    """
    x = 3.0 * np.random.default_rng(2).normal(size=SIZE)
    _, sd = of(x, -0.5 * x**2 + 0.5 * (x / 3.0) ** 2)
    assert sd.khat < 0.3
    narrow = x / 6.0
    assert of(narrow, -0.5 * narrow**2 + 0.5 * (2 * narrow) ** 2)[1].khat > MAX_KHAT


def test_draws_of_weight_zero_never_count():
    x = np.random.default_rng(3).normal(size=SIZE)
    spoiled, log_w = x.copy(), EQUAL.copy()
    spoiled[::7], log_w[::7] = np.inf, -np.inf
    kept = np.delete(x, slice(None, None, 7))
    none = np.zeros(kept.size)
    without = moments({"x": kept}, none, none, none)
    for found, expected in zip(of(spoiled, log_w), without, strict=True):
        assert np.allclose(found[2:5], expected[2:5])


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_draw_that_is_not_finite_leaves_no_moment(value):
    x = np.random.default_rng(4).normal(size=(SIZE, 2))
    x[5, 1] = value
    assert not any(moment.holds(1.0) for moment in of(x))


@pytest.mark.parametrize(
    "x", [np.full(SIZE, 7.0), np.zeros((SIZE, 0)), np.tile([0.0, 1.0], SIZE // 2)]
)
def test_constants_nothing_and_integers_hold(x):
    assert all(moment.holds(0.03) for moment in of(x))


def test_a_constant_under_heavy_weights_holds():
    # 0.1 is no sum of powers of two, and neither are its weighted sums that constant.
    log_w = 1.5 * np.random.default_rng(6).exponential(size=SIZE)
    mean, sd = of(np.full(SIZE, 0.1), log_w)
    assert mean[2:5] == sd[2:5] == (0.0, -np.inf, 0.0)
    added = np.full(SIZE, 1e-6)
    of_constant = moments({"x": np.full(SIZE, 7.0)}, log_w, normalised(log_w), added)
    assert [moment.unseen for moment in of_constant] == [0.0, 0.0]


def test_an_infinite_draw_of_the_least_weight_leaves_no_moment():
    """What Draws.mean leaves out, as theta may have left the floats there, may have been large."""
    x = np.random.default_rng(7).normal(size=SIZE)
    x[0] = np.inf
    log_w = EQUAL.copy()
    log_w[0] = -600.0
    assert not any(moment.holds(1.0) for moment in of(x, log_w))


def test_few_draws_have_no_tail_to_see():
    assert tail_shape(np.log(np.arange(1.0, 200.0))) == -np.inf


@pytest.mark.parametrize("largest", [np.inf, np.nan])
def test_no_tail_can_be_seen_where_the_largest_term_is_not_finite(largest):
    log_terms = np.append(np.linspace(0.0, 1.0, 999), largest)
    assert tail_shape(log_terms) == np.inf


def test_a_spread_beyond_the_floats_leaves_no_moment():
    draws = {"a": np.linspace(-1.0, 1.0, 1000) * 1e200}
    even = np.full(1000, -np.log(1000))
    for moment in moments(draws, np.zeros(1000), even, np.zeros(1000)):
        assert moment.error == np.inf
