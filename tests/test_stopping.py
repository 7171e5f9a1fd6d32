"""Averaging, stopping rules and restarts: what they return equals what numpy makes of the
iterates.
"""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT, RTOL
from jax.scipy.stats import norm
from problems import (
    NOISE_SD,
    PRIOR_LOC,
    PRIOR_SD,
    adam,
    conjugate_data,
    conjugate_model,
    conjugate_posterior,
    moons,
    moons_deck,
)
from tiers import standing_for

import minisvi
from minisvi import ELBO, SVI, Convergence, Minibatches, Model, Patience, mean_field, real
from minisvi.running.averaging import Tail
from minisvi.running.device import BLOCK_CAPACITY
from minisvi.stopping.chains import split_rhat

X = conjugate_data()
MODEL = conjugate_model()
GUIDE = mean_field(MODEL.latents)
ADAM = SVI(MODEL, GUIDE, adam(0.05))
LOC, SD, LOG_EVIDENCE = conjugate_posterior(X)


@partial(jax.jit, static_argnames=("svi", "num_steps"))
def iterates(svi, key, num_steps, *data, params=None):
    """The parameters after each step, stacked."""

    def step(state, _):
        state, _ = svi.update(state, *data)
        return state, state.params

    return jax.lax.scan(step, svi.init(key, *data, params=params), length=num_steps)[1]


def window_mean(params, step):
    """Over the steps (t0, t], t0 half of the last power of two up to t."""
    first = 2 ** int(np.log2(step)) // 2
    return jax.tree.map(lambda a: np.mean(np.asarray(a, np.float64)[first:step], axis=0), params)


def kl(params, loc=LOC, sd=SD):
    """KL(q || posterior) of the conjugate model."""
    m, s = (
        np.asarray(params["loc"], np.float64),
        np.exp(np.asarray(params["log_scale"], np.float64)),
    )
    return np.sum(np.log(sd / s) + (s**2 + (m - loc) ** 2) / (2 * sd**2) - 0.5)


def at_optimum(key):
    return GUIDE.init(key, loc={"w": jnp.asarray(LOC, FLOAT)})


# --- Averaging. ---


def test_tail_is_the_mean_between_the_last_half_and_three_quarters():
    x = np.random.default_rng(0).normal(size=40)
    tail, add = Tail.start({"a": jnp.zeros((), FLOAT)}), jax.jit(Tail.add)
    for step in range(1, 41):
        tail = add(tail, {"a": jnp.asarray(x[step - 1], FLOAT)})
        first = 2 ** int(np.log2(step)) // 2
        assert step == 1 or 0.5 * step <= step - first <= 0.75 * step + 1
        assert np.allclose(tail.mean()["a"], x[first:step].mean(), atol=10 * RTOL), step


@pytest.mark.parametrize(
    "num_steps", standing_for([1, 300, BLOCK_CAPACITY + 17], BLOCK_CAPACITY + 17)
)
def test_the_average_is_the_mean_of_the_iterates(num_steps, key):
    params = iterates(ADAM, key, num_steps, X)
    result = ADAM.run(key, num_steps, X, average=True, progress_bar=False)
    chex.assert_trees_all_close(result.params, window_mean(params, num_steps), rtol=20 * RTOL)
    chex.assert_trees_all_close(
        result.state.params, jax.tree.map(lambda a: a[-1], params), rtol=RTOL
    )


def test_resume_goes_on_from_the_last_iterate_and_averages_its_own_steps(key):
    half = ADAM.run(key, 120, X, average=True, progress_bar=False)
    rest = ADAM.resume(half.state, 180, X, average=True, progress_bar=False)
    chex.assert_trees_all_equal(rest.state, ADAM.run(key, 300, X, progress_bar=False).state)
    params = jax.tree.map(lambda a: a[120:], iterates(ADAM, key, 300, X))
    chex.assert_trees_all_close(rest.params, window_mean(params, 180), rtol=20 * RTOL)


def test_averaging_cuts_the_kl_by_a_large_factor(key):
    def fit(i):
        return ADAM.run(
            jax.random.key(i), 3000, X, params=at_optimum(key), average=True, progress_bar=False
        )

    fits = [fit(i) for i in range(6)]
    last, average = (
        np.mean([kl(p) for p in ps]) for ps in zip(*[(f.state.params, f.params) for f in fits])
    )
    assert last > 0.05
    assert last / average > 40  # measured: 117


def fails_above(limit, loc=2.0):
    """A density that is NaN beyond a bound, N(loc, 1) below."""
    return Model(
        {"a": real()},
        lambda theta: jnp.where(theta["a"] > limit, jnp.nan, norm.logpdf(theta["a"], loc)),
    )


def test_skipped_steps_do_not_spoil_the_average(key):
    model = fails_above(3.0)
    svi = SVI(model, mean_field(model.latents), adam(0.01))
    start = {"loc": jnp.array([1.0]), "log_scale": jnp.array([0.0])}
    result = svi.run(key, 600, params=start, average=True, progress_bar=False)
    assert result.num_skipped > 5
    chex.assert_trees_all_close(
        result.params, window_mean(iterates(svi, key, 600, params=start), 600), rtol=20 * RTOL
    )


# --- Patience. Held-out rows lie where the fit passes by on its way to the posterior: the score
# rises, then falls. ---

RULE = Patience(patience=150, every=50, num_draws=16)
START = {
    "loc": jnp.asarray(PRIOR_LOC + np.array([20.0, 0.0, 0.0]), FLOAT),
    "log_scale": jnp.full(3, -2.0, FLOAT),
}
HELD_OUT = (
    jnp.asarray(
        np.array([10.0, -20.0, 0.45])
        + 0.1 * NOISE_SD * np.random.default_rng(5).normal(size=(5, 3))
    ),
)


def log_normal(x, loc, sd):
    return -0.5 * ((x - loc) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def numpy_log_predictive(params, key, num_draws):
    loc, sd = (
        np.asarray(params["loc"], np.float64),
        np.exp(np.asarray(params["log_scale"], np.float64)),
    )
    keys = jax.random.split(jax.random.fold_in(key, 2**31 - 1), num_draws)
    w = loc + sd * np.array([jax.random.normal(k, (3,), FLOAT) for k in keys], np.float64)
    rows = log_normal(np.asarray(HELD_OUT[0])[None], w[:, None], NOISE_SD).sum(-1)
    return np.mean(np.log(np.mean(np.exp(rows), axis=0)))


def stops_at(steps, scores, rule):
    """The step at which the rule ends, written out; and the place of the best score."""
    counted, since = scores[0], steps[0]
    for step, score in zip(steps, scores):
        if score > counted + rule.tolerance:
            counted, since = score, step
        if step - since >= max(rule.patience, rule.growth * step):
            return step
    raise AssertionError("never")


@pytest.mark.parametrize("average", standing_for([False, True], True))
def test_patience_returns_the_best_scored_parameters(average, key):
    options = {
        "params": START,
        "average": average,
        "stop": RULE,
        "held_out": HELD_OUT,
        "progress_bar": False,
    }
    result = ADAM.run(key, 5000, X, **options)
    steps, scores = result.checks
    assert result.reason == "patience"
    assert len(result.elbo) == result.state.step == steps[-1] == stops_at(steps, scores, RULE)
    np.testing.assert_array_equal(steps, 50 * np.arange(1, len(steps) + 1))
    best = int(steps[np.argmax(scores)])
    assert 50 < best < steps[-1]
    params = iterates(ADAM, key, 5000, X, params=START)
    candidates = [
        window_mean(params, s) if average else jax.tree.map(lambda a, s=s: a[s - 1], params)
        for s in steps
    ]
    chex.assert_trees_all_close(result.params, candidates[best // 50 - 1], rtol=20 * RTOL)
    run_key, _ = jax.random.split(key)  # that of the first state
    expected = [numpy_log_predictive(p, run_key, 16) for p in candidates]
    np.testing.assert_allclose(scores, expected, rtol=100 * RTOL)


def test_the_validation_elbo_has_the_kl_of_the_training_size(key):
    # (1/M) E_q[log p(D_val)] - (1/N) KL(q || prior), both in closed form; M = 5 and N = 7.
    rule = Patience("elbo", every=20, num_draws=4000)
    result = ADAM.run(key, 20, X, params=START, stop=rule, held_out=HELD_OUT, progress_bar=False)
    loc, sd = (
        np.asarray(result.state.params["loc"]),
        np.exp(np.asarray(result.state.params["log_scale"])),
    )
    likelihood = (
        log_normal(np.asarray(HELD_OUT[0]), loc, NOISE_SD) - 0.5 * (sd / NOISE_SD) ** 2
    ).sum() / 5
    prior_kl = kl(result.state.params, PRIOR_LOC, PRIOR_SD)
    w = loc + sd * np.random.default_rng(0).normal(size=(4000, 3))
    rows = log_normal(np.asarray(HELD_OUT[0])[None], w[:, None], NOISE_SD).sum(-1).mean(-1)
    se = (
        np.std(rows - (log_normal(w, loc, sd) - log_normal(w, PRIOR_LOC, PRIOR_SD)).sum(-1) / 7)
        / 4000**0.5
    )
    assert abs(result.checks.score[0] - (likelihood - prior_kl / 7)) < 4 * se
    assert (
        abs(result.checks.score[0] - (likelihood - prior_kl / 5)) > 20 * se
    )  # the published rule's scale
    chex.assert_trees_all_equal(result.params, result.state.params)


def test_the_last_step_is_scored_and_scores_that_are_not_finite_choose_nothing(key):
    result = ADAM.run(key, 130, X, stop=Patience(every=100), held_out=HELD_OUT, progress_bar=False)
    np.testing.assert_array_equal(result.checks.step, [100, 130])
    nan = (jnp.full_like(HELD_OUT[0], jnp.nan),)
    result = ADAM.run(key, 1500, X, stop=Patience(every=100), held_out=nan, progress_bar=False)
    assert result.reason == "finished"
    assert np.all(result.checks.score == -np.inf)
    chex.assert_trees_all_equal(result.params, result.state.params)


def test_patience_grows_with_the_steps_of_this_run_alone(key):
    rule = Patience(patience=10, growth=0.5, num_draws=2)
    state = ADAM.init(key, X)
    at = lambda step: state._replace(step=jnp.asarray(step, jnp.int32))
    memory = rule.init(ADAM, at(1000), (X,), HELD_OUT)
    ended = []
    for step in (1010, 1019, 1020):
        _, memory = rule.check(ADAM, memory, at(step), state.params, (X,), HELD_OUT)
        ended.append(bool(memory.ended))
    assert ended == [False, False, True]


def test_patience_with_minibatches(key):
    svi = SVI(MODEL, GUIDE, adam(0.05), batches=Minibatches(3))
    rule = Patience("elbo", every=50, patience=200)
    result = svi.run(key, 4000, X, params=START, stop=rule, held_out=HELD_OUT, progress_bar=False)
    assert result.reason == "patience"
    assert result.checks.score.max() > result.checks.score[-1] + 0.01


@pytest.mark.slow
def test_patience_survives_the_plateau_of_two_moons():
    # From this key the deck's recipe leaves the plateau after step 4,000 of 8,000.
    train, validation, _ = moons()
    result = moons_deck().run(
        jax.random.key(1), 6500, *train, stop=Patience(), held_out=validation, progress_bar=False
    )
    steps, scores = result.checks
    score = dict(zip(steps.tolist(), scores.tolist()))
    assert max(score[s] for s in range(1000, 4001, 100)) < -0.25
    assert score[4000] - score[2500] < 0.05  # flat for 1,500 steps
    assert scores.max() > -0.15
    assert len(result.elbo) > 5500


# --- Convergence. ---

HALVING = SVI(MODEL, GUIDE, optax.inject_hyperparams(optax.adam)(0.05), ELBO(2))


def test_convergence_halves_the_rate_and_ends_near_the_optimum(key):
    far = GUIDE.init(key, loc={"w": jnp.asarray(LOC + 10 * SD, FLOAT)})
    result = HALVING.run(key, 100_000, X, params=far, stop=Convergence(), progress_bar=False)
    seen = result.checks
    assert result.reason == "converged"
    assert len(result.elbo) == result.state.step == seen.step[-1] < 40_000
    assert kl(result.params) < 0.01
    assert kl(result.params) < kl(result.state.params)
    # The way there takes 1,000 steps of 0.05 or more: a steady drift is not stationary.
    assert np.max(10 * SD) / 0.05 > 1000
    assert np.all(seen.rhat[:5] > 1.1)
    rounds = np.flatnonzero(np.diff(seen.learning_rate)) + 1
    assert len(rounds) >= 1
    np.testing.assert_allclose(
        seen.learning_rate[rounds], 0.05 * 0.5 ** np.arange(1, len(rounds) + 1)
    )
    assert result.state.opt_state.hyperparams["learning_rate"] == seen.learning_rate[-1]
    # It ends when the latest averages agree, at the bar of that round.
    assert seen.divergence[-1] < 0.01
    assert not np.any(seen.divergence[:-1] < 0.01)
    assert seen.mcse[-1] < 0.1 * 0.5 ** len(rounds)


def test_what_spans_all_steps_at_a_rate_is_not_taken_for_stationary(key):
    rule, state = Convergence(every=40, snapshots=40), ADAM.init(key, X)

    @jax.jit
    def forty_steps(memory):
        memory = jax.lax.fori_loop(0, 40, lambda _, m: rule.observe(m, state), memory)
        return rule.check(ADAM, memory, state, state.params, (X,), None)[1]

    # Half of the snapshots span 40 steps, all that there are at first.
    memory = forty_steps(rule.init(ADAM, state, (X,), None))
    assert memory.rounds == 0
    assert forty_steps(memory).rounds == 1


@pytest.mark.slow
def test_at_a_rate_that_cannot_be_set_the_first_average_ends(key):
    svi = SVI(MODEL, GUIDE, adam(0.05), ELBO(2))
    result = svi.run(
        key, 100_000, X, params=at_optimum(key), stop=Convergence(), progress_bar=False
    )
    assert result.reason == "converged"
    assert np.all(np.isnan(result.checks.learning_rate))
    assert np.all(np.isnan(result.checks.divergence))
    # The snapshots, written out: one in two steps until there are 200, then every second one goes.
    num, stride = 0, 2
    for _ in result.checks.step[:-1]:
        num += 200 // stride
        num, stride = (num // 2, 2 * stride) if num + 200 // stride > 200 else (num, stride)
    end = int(result.checks.step[-1])
    params = iterates(svi, key, end, X, params=at_optimum(key))
    windows = {
        n: jax.tree.map(lambda a, n=n: np.asarray(a)[end - 1 :: -stride][:n], params)
        for n in (100, 50)
    }
    means = {n: jax.tree.map(lambda a: a.mean(0), window) for n, window in windows.items()}
    (size,) = [
        n for n in means if np.allclose(means[n]["loc"], result.params["loc"], rtol=20 * RTOL)
    ]
    assert np.allclose(means[size]["log_scale"], result.params["log_scale"], rtol=20 * RTOL)
    # log sd of q is log_scale and a constant: its R-hat is one of those whose largest was seen.
    rhat = np.max(split_rhat(jnp.asarray(windows[size]["log_scale"][::-1])[None]))
    assert rhat <= result.checks.rhat[-1] * (1 + 1e-4)
    assert result.checks.rhat[-1] <= 1.1


def test_a_schedule_cannot_be_halved(key):
    optimizer = optax.inject_hyperparams(optax.adam)(optax.constant_schedule(0.05))
    svi = SVI(MODEL, GUIDE, optimizer)
    assert np.isnan(svi.run(key, 1, X, stop=Convergence(), progress_bar=False).checks.learning_rate)


@pytest.mark.whole
def test_convergence_does_not_fire_while_a_coordinate_drifts(key):
    # Nothing holds `b`, and q widens along it for ever, while `a` settles at once.
    model = Model({"a": real(), "b": real()}, lambda theta: norm.logpdf(theta["a"]))
    svi = SVI(model, mean_field(model.latents), optax.inject_hyperparams(optax.adam)(0.01))
    result = svi.run(key, 5000, stop=Convergence(), progress_bar=False)
    assert result.reason == "finished"
    assert np.all(result.checks.learning_rate == result.checks.learning_rate[0])
    chex.assert_trees_all_equal(result.params, result.state.params)


@pytest.mark.slow
def test_convergence_does_not_fire_on_the_plateau_of_two_moons():
    train, _, _ = moons()
    deck = moons_deck()
    svi = SVI(deck.model, deck.guide, optax.inject_hyperparams(optax.adam)(0.005))
    result = svi.run(jax.random.key(2), 6000, *train, stop=Convergence(), progress_bar=False)
    assert np.mean(result.elbo[3500:4000]) < -340
    assert np.mean(result.elbo[-500:]) > -250
    assert result.reason == "finished"
    assert np.all(result.checks.learning_rate == result.checks.learning_rate[0])


# --- Restarts. ---


def test_restarts_equal_separate_runs(key, capsys):
    result = ADAM.run(key, 700, X, num_restarts=3, average=True)
    shown = capsys.readouterr().err
    assert "700/700" in shown
    # The mean over the last block, up to a hundred steps: its length follows the clock.
    leading = [result.restarts.trace[-num:].mean(axis=0).max() for num in range(1, 101)]
    assert np.any(np.isclose(float(re.findall(r"ELBO (-[\d.]+)", shown)[-1]), leading, rtol=1e-5))
    restarts = result.restarts
    assert restarts.trace.shape == (700, 3)
    assert restarts.best == np.argmax(restarts.elbo)
    for i, run_key in enumerate(jax.random.split(key, 3)):
        one = ADAM.run(run_key, 700, X, average=True, progress_bar=False)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i], restarts.params), one.params, rtol=100 * RTOL
        )
        np.testing.assert_allclose(restarts.trace[:, i], one.elbo, rtol=100 * RTOL)
        exact = LOG_EVIDENCE - kl(one.params)
        assert restarts.elbo_se[i] > 0
        assert abs(restarts.elbo[i] - exact) < 4 * restarts.elbo_se[i]
        if i == restarts.best:
            chex.assert_trees_all_close(result.params, one.params, rtol=100 * RTOL)
            chex.assert_trees_all_close(result.state.params, one.state.params, rtol=100 * RTOL)
            np.testing.assert_array_equal(result.elbo, restarts.trace[:, i])
    more = ADAM.resume(result.state, 10, X, progress_bar=False)
    assert more.state.step == 710


LOOSE = Convergence(every=40, snapshots=40, rhat=1.5, mcse=1.0, divergence=1.0)


@pytest.mark.parametrize(
    ("svi", "stop", "held_out"),
    [(ADAM, RULE, HELD_OUT), pytest.param(HALVING, LOOSE, None, marks=pytest.mark.slow)],
)
def test_each_restart_stops_by_itself(svi, stop, held_out, key):
    options = {"params": START, "stop": stop, "held_out": held_out, "progress_bar": False}
    result = svi.run(key, 20_000, X, num_restarts=3, **options)
    ones = [svi.run(k, 20_000, X, **options) for k in jax.random.split(key, 3)]
    lengths = [len(one.elbo) for one in ones]
    assert stop is RULE or len(set(lengths)) > 1  # those that are over wait for the others
    np.testing.assert_array_equal(np.isfinite(result.restarts.trace).sum(0), lengths)
    for i, one in enumerate(ones):
        params = jax.tree.map(lambda a, i=i: a[i], result.restarts.params)
        chex.assert_trees_all_close(params, one.params, rtol=3000 * RTOL)
    best = ones[result.restarts.best]
    assert result.reason == best.reason == stop.reason
    assert len(result.elbo) == len(best.elbo)
    np.testing.assert_array_equal(result.checks.step, best.checks.step)


@pytest.mark.whole
def test_the_best_of_16_starts_finds_the_better_mode(key):
    # Two modes, 95 % and 5 % of the mass, 8 nats of depth apart in nothing but weight: log 19.
    def log_joint(theta):
        x = theta["a"]
        return jnp.logaddexp(
            jnp.log(0.95) + norm.logpdf(x, -6.0, 0.5), jnp.log(0.05) + norm.logpdf(x, 6.0, 0.5)
        )

    model = Model({"a": real()}, log_joint)
    svi = SVI(model, mean_field(model.latents), adam(0.05))
    result = svi.run(key, 1500, num_restarts=16, average=True, progress_bar=False)
    loc = np.asarray(result.restarts.params["loc"])[:, 0]
    assert 3 <= np.sum(loc > 5.5) <= 13
    assert np.sum(loc < -5.5) + np.sum(loc > 5.5) == 16
    assert abs(result.params["loc"][0] + 6.0) < 0.1
    assert abs(result.restarts.elbo[result.restarts.best] - np.log(0.95)) < 0.05
    assert np.allclose(result.restarts.elbo[loc > 5.5], np.log(0.05), atol=0.05)


def test_a_start_that_fails_loses_and_does_not_end_the_others(key):
    model = fails_above(0.0, loc=-3.0)
    svi = SVI(model, minisvi.delta(model.latents), adam(0.05))
    result = svi.run(key, 300, num_restarts=6, progress_bar=False)
    failed = np.isnan(result.restarts.elbo)
    assert 0 < failed.sum() < 6
    np.testing.assert_array_equal(
        np.isfinite(result.restarts.trace).sum(0), np.where(failed, 0, 300)
    )
    assert result.reason == "finished"
    assert not failed[result.restarts.best]
    assert len(result.elbo) == 300
    everywhere = fails_above(-100.0)
    svi = SVI(everywhere, minisvi.delta(everywhere.latents), adam(0.05))
    with pytest.raises(minisvi.NonFiniteError, match="10 steps in a row, from the start"):
        svi.run(key, 300, num_restarts=3, progress_bar=False)
    returned = svi.run(key, 300, num_restarts=3, progress_bar=False, on_failure="return")
    assert returned.reason == "non-finite"
    assert len(returned.elbo) == 10


# --- The loop. ---

OPTIONS = {
    "patience": {"stop": Patience(every=20), "average": True},
    "convergence": {"stop": Convergence(every=20, snapshots=40)},
    "restarts": {"num_restarts": 2},
}


@pytest.mark.parametrize("name", standing_for(OPTIONS, "patience"))
def test_second_run_does_not_trace_again(name, key):
    traces, optimizer = [], adam(0.1)

    def rows(theta, x):
        traces.append(None)
        return norm.logpdf(x, theta["a"])

    def prior(theta):
        return norm.logpdf(theta["a"])

    def fit(num_steps, x):
        model = Model({"a": real()}, log_prior=prior, log_likelihood=rows)
        held_out = (x[:3] + 1,) if name == "patience" else None
        svi = SVI(model, mean_field(model.latents), optimizer)
        return svi.run(key, num_steps, x, held_out=held_out, progress_bar=False, **OPTIONS[name])

    first = fit(50, jnp.arange(5.0))
    count = len(traces)
    for num_steps in (50, 7, 333):
        other = fit(num_steps, jnp.arange(5.0) + num_steps)
    assert len(traces) == count
    assert not np.allclose(first.params["loc"], other.params["loc"])


@pytest.mark.whole
def test_ctrl_c_with_restarts_and_a_rule(key, press_ctrl_c):
    stop = Patience(patience=10**9, every=100)
    options = {"num_restarts": 2, "stop": stop, "held_out": HELD_OUT, "progress_bar": False}
    ADAM.run(key, 1, X, **options)  # compiled

    press_ctrl_c()
    result = ADAM.run(key, 5_000_000, X, **options)
    assert result.reason == "interrupted"
    assert 0 < len(result.elbo) == int(result.state.step) == len(result.restarts.trace) < 5_000_000


BAD = {
    "restarts": ({"num_restarts": 0}, ValueError, r"`num_restarts` must be an integer >= 1; got 0"),
    "average": ({"average": 0.5}, TypeError, r"`average` must be True or False; got 0.5"),
    "stop": ({"stop": "patience"}, TypeError, r"`stop` must be a rule, such as .*; got 'patience'"),
    "no rule": (
        {"held_out": HELD_OUT},
        ValueError,
        r"`held_out` is for a stopping rule: expected `stop`.*got None",
    ),
    "no rows": (
        {"stop": Patience()},
        ValueError,
        r"`held_out` must be a tuple of rows like the data.*got a NoneType",
    ),
    "other rows": (
        {"stop": Patience(), "held_out": (jnp.ones((5, 2)),)},
        ValueError,
        r"each row of shape \{'0': \(3,\)\}; got \{'0': \(2,\)\}",
    ),
    "iterates alone": (
        {"stop": Convergence(), "held_out": HELD_OUT},
        ValueError,
        "`held_out` is for Patience",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name, key):
    options, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        ADAM.run(key, 10, X, progress_bar=False, **options)


def test_scores_need_a_factored_model_of_global_latents(key):
    def run(model, guide):
        SVI(model, guide, optax.sgd(0.1)).run(
            key, 10, jnp.ones(5), stop=Patience(), held_out=(jnp.ones(3),)
        )

    model = Model({"a": real()}, lambda theta, x: jnp.sum(norm.logpdf(x, theta["a"])))
    with pytest.raises(
        ValueError, match="needs a factored model: give `log_prior` and `log_likelihood`"
    ):
        run(model, mean_field(model.latents))

    def rows(theta, x):
        return norm.logpdf(theta["z"]) + norm.logpdf(x, theta["z"])

    model = Model(
        {"z": minisvi.local(real())}, log_prior=lambda theta: jnp.zeros(()), log_likelihood=rows
    )
    encode = lambda weight, x: {"loc": weight * x[:, None], "log_scale": jnp.zeros((len(x), 1))}
    guide = minisvi.product(
        {"z": minisvi.amortised(mean_field(real()), lambda key: jnp.ones(()), encode)}
    )
    with pytest.raises(ValueError, match=r"latents \['z'\] are local.*expected score='elbo'"):
        run(model, guide)


BAD_RULES = {
    "score": (
        lambda: Patience("loss"),
        r"`score` must be one of \('log_predictive', 'elbo'\); got 'loss'",
    ),
    "growth": (lambda: Patience(growth=1.0), r"`growth` must be in \[0, 1\); got 1.0"),
    "tolerance": (lambda: Patience(tolerance=-1.0), r"`tolerance` must be >= 0; got -1.0"),
    "patience": (lambda: Patience(patience=0), r"`patience` must be an integer >= 1; got 0"),
    "every": (lambda: Convergence(every=0), r"`every` must be an integer >= 1; got 0"),
    "snapshots": (
        lambda: Convergence(snapshots=30),
        r"`snapshots` must be a multiple of 8; got 30",
    ),
    "rhat": (lambda: Convergence(rhat=0.9), r"`rhat` must be above 1; got 0.9"),
    "mcse": (lambda: Convergence(mcse=0.0), r"`mcse` must be above 0; got 0.0"),
    "divergence": (lambda: Convergence(divergence=0.0), r"`divergence` must be above 0; got 0.0"),
}


@pytest.mark.parametrize("name", BAD_RULES)
def test_bad_rules(name):
    make, message = BAD_RULES[name]
    with pytest.raises(ValueError, match=message):
        make()
