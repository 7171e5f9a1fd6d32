"""Several optima as one answer: their weights, modes near and far, and labels to exchange."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import minisvi
from minisvi import Model, ordered, positive, real, simplex
from minisvi.auto.labels import with_relabelled
from minisvi.auto.optima import mixture_of_optima

LOCS = np.array([[-3.0, 0.0], [3.0, 1.0]])
SDS, SHARES = np.array([0.6, 0.8]), np.array([0.6, 0.4])


def two_modes(theta):
    parts = [
        jnp.log(share) + jnp.sum(norm.logpdf(theta["x"], loc, sd))
        for share, loc, sd in zip(SHARES, LOCS, SDS)
    ]
    return jax.nn.logsumexp(jnp.stack(parts))


def far_apart(theta):
    near, far = (jnp.sum(norm.logpdf(theta["x"], loc)) for loc in (0.0, 4.0))
    return jnp.logaddexp(near, far) + jnp.log(0.5)


TWO_MODES = Model({"x": real(2)}, two_modes)
FAR_APART = Model({"x": real(10)}, far_apart)
Y = np.concatenate([np.linspace(-4.0, -2.0, 12), np.linspace(2.0, 3.0, 8)])


def labelled(theta, y):
    """Two Gaussians of free shares, whose labels nothing tells apart."""
    prior = jnp.sum(norm.logpdf(theta["m"], 0.0, 5.0)) + jnp.sum(norm.logpdf(jnp.log(theta["s"])))
    of_rows = norm.logpdf(y[:, None], theta["m"][None], theta["s"][None])
    parts = jnp.log(theta["w"])[None] + of_rows
    return prior + jnp.sum(jax.nn.logsumexp(parts, axis=1)) + 0.0 * theta["other"]


def named(theta, y):
    """The same, where the first component has a prior of its own."""
    return labelled(theta, y) + norm.logpdf(theta["m"][0], -3.0, 0.5)


LATENTS = {"m": real(2), "other": real(), "s": positive(2), "w": simplex(2)}


def test_two_modes_are_one_answer_with_the_weights_of_their_masses(key):
    found = mixture_of_optima(key, minisvi.deterministic(key, TWO_MODES))
    # A wide optimum over both modes may have a small share too.
    main = np.argsort(-found.log_weights)[:2]
    for place, loc, sd, share in zip(main, LOCS, SDS, SHARES):
        np.testing.assert_allclose(found.components[place].loc, loc, atol=1e-3)
        np.testing.assert_allclose(found.components[place].factor, sd * np.eye(2), atol=1e-3)
        assert abs(np.exp(found.log_weights[place]) - share) < 0.03


def test_one_optimum_is_no_mixture(key):
    one = Model({"x": real(2)}, lambda theta: jnp.sum(norm.logpdf(theta["x"], 3.0)))
    assert mixture_of_optima(key, minisvi.deterministic(key, one)) is None


@pytest.mark.parametrize(
    ("model", "mean", "sd"),
    [
        (
            TWO_MODES,
            SHARES @ LOCS,
            np.sqrt(SHARES @ (LOCS**2 + SDS[:, None] ** 2) - (SHARES @ LOCS) ** 2),
        ),
        (FAR_APART, np.full(10, 2.0), np.full(10, np.sqrt(5.0))),
    ],
    ids=["near", "outside the box of most starts"],
)
def test_the_fit_is_good_where_the_mixture_is(model, mean, sd, key):
    fit = minisvi.fit(key, model, progress_bar=False)
    first, last = [stage.name for stage in fit.stages]
    assert first == "linear response"
    assert last in ("mixture of 2", "mixture of 3")  # a wide optimum over both may be there too
    assert fit.verdict.level == "good"
    assert fit.verdict.optima >= 2
    assert abs(fit.verdict.log_evidence) < 0.02
    assert np.all(np.abs(fit.draws.mean()["x"] - mean) < 0.03 * sd)
    assert np.all(np.abs(fit.draws.sd()["x"] / sd - 1) < 0.03)
    assert fit.verdict.exchangeable == ()
    # The guide is the mixture, as anybody may draw from it.
    plain = fit.posterior.draws(jax.random.key(1), 4000)
    assert np.all(np.abs(plain.mean()["x"] - mean) < 0.1 * sd)


def test_the_optima_are_tried_where_a_few_draws_come_near_another():
    # Their weights are above those at the other optimum, so that no mode is missed.
    fit = minisvi.fit(jax.random.key(301), TWO_MODES, progress_bar=False)
    first = fit.stages[0].judged.verdict
    assert not first.misses_a_mode()
    assert first.unseen > 1
    assert fit.best.name.startswith("mixture")
    assert fit.verdict.level == "good"
    assert np.all(np.abs(fit.draws.mean()["x"] - SHARES @ LOCS) < 0.1)


def test_labels_that_may_be_exchanged_are_named_and_all_their_orders_found(key):
    y = jnp.asarray(Y, jnp.float32)
    model = Model(LATENTS, lambda theta, y: labelled(theta, y) + norm.logpdf(theta["other"]))
    det = minisvi.deterministic(key, model, y, num_restarts=2)
    extended, names = with_relabelled(key, det)
    assert names == ("m", "s", "w")
    loc = np.asarray(det.params["loc"], float)
    added = extended.optima.loc[-1]
    # In the order of the leaves: m, other, s, and the one coordinate of w, which changes its sign.
    np.testing.assert_allclose(added, [*loc[[1, 0, 2, 4, 3]], -loc[5]], atol=1e-5)
    fit = minisvi.fit(key, model, y, progress_bar=False)
    assert fit.verdict.exchangeable == ("m", "s", "w")
    assert "labels        of `m`, `s`, `w` are exchangeable" in str(fit.verdict)
    assert fit.best.name == "mixture of 2"
    m, w = fit.draws.mean()["m"], fit.draws.mean()["w"]
    assert abs(m[0] - m[1]) < 0.1 * fit.draws.sd()["m"][0]
    np.testing.assert_allclose(w, 0.5, atol=0.02)


def test_labels_that_a_prior_tells_apart_are_left_alone(key):
    y = jnp.asarray(Y, jnp.float32)
    model = Model(LATENTS, lambda theta, y: named(theta, y) + norm.logpdf(theta["other"]))
    det = minisvi.deterministic(key, model, y, num_restarts=2)
    same, names = with_relabelled(key, det)
    assert names == ()
    assert same.optima is det.optima
    symmetric = Model({"x": real(3)}, lambda theta: jnp.sum(norm.logpdf(theta["x"], 2.0)))
    det = minisvi.deterministic(key, symmetric, num_restarts=2)
    assert with_relabelled(key, det) == (det, ())  # one optimum, whose labels are all alike


def of_three(theta, y):
    """Three Gaussians of free shares."""
    prior = jnp.sum(norm.logpdf(theta["m"], 0.0, 5.0)) + jnp.sum(norm.logpdf(jnp.log(theta["s"])))
    of_rows = norm.logpdf(y[:, None], theta["m"][None], theta["s"][None])
    parts = jnp.log(theta["w"])[None] + of_rows
    return prior + jnp.sum(jax.nn.logsumexp(parts, axis=1))


@pytest.mark.slow
def test_three_free_labels_are_good_and_their_evidence_is_that_of_every_order(key):
    rng = np.random.default_rng(5)
    y = np.concatenate([rng.normal(-4, 1, 30), rng.normal(0.5, 0.6, 25), rng.normal(5, 1.2, 40)])
    others = {"s": positive(3), "w": simplex(3)}
    free = minisvi.fit(key, Model({"m": real(3), **others}, of_three), y, progress_bar=False)
    told_apart = Model({"m": ordered(3), **others}, of_three)
    in_order = minisvi.fit(key, told_apart, y, progress_bar=False)
    assert (free.verdict.level, in_order.verdict.level) == ("good", "good")
    assert free.best.name == "mixture of 6"
    assert free.verdict.exchangeable == ("m", "s", "w")
    expected = in_order.verdict.log_evidence + np.log(6)
    assert abs(free.verdict.log_evidence - expected) < 0.03
    m, w = free.draws.mean()["m"], free.draws.mean()["w"]
    assert np.all(np.abs(w - 1 / 3) < 0.01)
    assert np.all(np.abs(m - np.mean(m)) < 0.03 * free.draws.sd()["m"])
