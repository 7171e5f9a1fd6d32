"""The engine: one scan equals many blocks, nothing is traced twice, and any optax optimiser
works.
"""

import dataclasses
import os
import signal
import sys
import threading
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT, RTOL
from jax.scipy.stats import norm
from problems import adam, conjugate_data, conjugate_model, conjugate_posterior
from tiers import standing_for

import minisvi
from minisvi import ELBO, SVI, Model, Posterior, mean_field, positive, real
from minisvi.running.device import BLOCK_CAPACITY
from minisvi.tools.interrupts import deferred_interrupt


def small_svi(optimizer=None, model=None, objective=ELBO(2)):
    model = conjugate_model() if model is None else model
    return SVI(model, mean_field(model.latents), optimizer or adam(0.05), objective)


def test_blocks_equal_one_scan_bit_for_bit(key):
    svi, x, n = small_svi(), conjugate_data(), BLOCK_CAPACITY + 903
    result = svi.run(key, n, x, progress_bar=False)
    state, info = jax.jit(lambda s, x: svi.scan(s, n, x))(jax.jit(svi.init)(key, x), x)
    chex.assert_trees_all_equal(result.params, state.params)
    np.testing.assert_array_equal(result.elbo, info.elbo)
    assert result.state.step == state.step == n
    assert result.reason == "finished"
    assert result.elbo.shape == (n,)


def test_resume_continues_the_same_fit(key):
    svi, x = small_svi(), conjugate_data()
    whole = svi.run(key, 300, x, progress_bar=False)
    half = svi.run(key, 120, x, progress_bar=False)
    rest = svi.resume(half.state, 180, x, progress_bar=False)
    chex.assert_trees_all_equal(whole.state, rest.state)
    np.testing.assert_array_equal(whole.elbo, np.concatenate([half.elbo, rest.elbo]))
    again = svi.resume(
        half.state, 180, x, progress_bar=False
    )  # the former result was not overwritten
    chex.assert_trees_all_equal(again.state, rest.state)


def test_warm_start_from_params_keeps_them(key):
    svi, x = small_svi(), conjugate_data()
    first = svi.run(key, 500, x, progress_bar=False)
    kept = jax.tree.map(np.array, first.params)
    second = svi.run(jax.random.key(1), 5, x, params=first.params, progress_bar=False)
    chex.assert_trees_all_equal(first.params, kept)
    assert second.elbo[0] > first.elbo[0] + 100  # far above a fresh start


def test_a_given_start_costs_no_start_of_the_guides_own(key):
    inner, computed = mean_field(conjugate_model().latents), []

    def init(key):
        computed.append(not isinstance(key, jax.core.Tracer))
        return inner.init(key)

    svi = SVI(conjugate_model(), minisvi.custom(init, inner.distribution), adam(0.05))
    svi.init(key, conjugate_data(), params=inner.init(key))
    assert not any(computed)
    svi.init(key, conjugate_data())
    assert any(computed)


@pytest.mark.parametrize("legacy", [False, True])
def test_legacy_and_typed_keys_work_and_agree(legacy):
    svi, x = small_svi(), conjugate_data()
    key = jax.random.PRNGKey(7) if legacy else jax.random.key(7)
    other = svi.run(jax.random.key(7), 20, x, progress_bar=False)
    chex.assert_trees_all_equal(svi.run(key, 20, x, progress_bar=False).params, other.params)


def test_second_run_does_not_trace_again(key):
    traces = []

    def log_joint(theta, x):
        traces.append(None)
        return norm.logpdf(theta["a"]) + jnp.sum(norm.logpdf(x, theta["a"]))

    optimizer = adam(0.1)

    def fit(num_steps, x):
        # Model, guide, objective and engine are built anew each time: equal records share the
        # compilation.
        model = Model({"a": real()}, log_joint)
        svi = SVI(model, mean_field(model.latents), optimizer, ELBO(3))
        return svi.run(key, num_steps, x, progress_bar=False)

    fit(50, jnp.arange(5.0))
    count = len(traces)
    assert count > 0
    for num_steps in (50, 7, 1, 333, BLOCK_CAPACITY + 1):
        fit(num_steps, jnp.arange(5.0) + num_steps)
    assert len(traces) == count
    fit(50, jnp.arange(6.0))
    assert len(traces) > count


@pytest.mark.x64
@pytest.mark.parametrize("make", [lambda: adam(0.1), optax.lbfgs], ids=["adam", "lbfgs"])
def test_a_users_loop_compiles_its_step_once(make, key):
    # L-BFGS starts from Python numbers, whose weak types would turn strong in the first step.
    model = Model({"a": real()}, lambda theta: norm.logpdf(theta["a"], 3.0))
    svi = SVI(model, minisvi.delta(model.latents), make())
    update, state = jax.jit(svi.update), svi.init(key)
    for _ in range(3):
        state, _ = update(state)
    assert update._cache_size() == 1


def test_data_are_arguments_and_not_constants(key):
    svi, x = small_svi(), conjugate_data(num_rows=10_000)
    text = jax.jit(svi.update).lower(jax.jit(svi.init)(key, x), x).as_text()
    assert len(text) < 200_000  # 30,000 numbers would not fit


def test_update_and_evaluate_see_the_same_estimate(key):
    svi, x = small_svi(), conjugate_data()
    state = svi.init(key, x)
    elbo = jax.jit(svi.evaluate)(state, x)
    state, info = jax.jit(svi.update)(state, x)
    assert jnp.allclose(elbo, info.elbo, rtol=RTOL)
    assert svi.evaluate(state, x) != elbo


def test_vmap_over_keys_and_data_inside_the_users_jit(key):
    svi, n = small_svi(), 40
    keys, data = jax.random.split(key, 3), jnp.stack([conjugate_data() + i for i in range(3)])

    @jax.jit
    def fits(keys, data):
        return jax.vmap(lambda k, x: svi.scan(svi.init(k, x), n, x))(keys, data)

    states, infos = fits(keys, data)
    for i in range(3):
        one = svi.run(keys[i], n, data[i], progress_bar=False)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i], states.params), one.params, rtol=100 * RTOL
        )
        np.testing.assert_allclose(infos.elbo[i], one.elbo, rtol=100 * RTOL)


class Pair(NamedTuple):
    first: object
    second: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
    first: object
    second: object


TREES = {
    "dict": lambda a, b: {"first": a, "second": b},
    "tuple": lambda a, b: (a, b),
    "NamedTuple": Pair,
    "dataclass": Record,
    "nested": lambda a, b: {"outer": [Pair(a, ()), {"inner": Record(b, None)}]},
    "bare": None,
}


@pytest.mark.parametrize("name", standing_for(TREES, "nested"))
def test_any_tree_of_latents(name, key):
    # x ~ N(3 + sum of latents, 1) with N(0, 1) priors; also a zero-size latent, a scalar and one
    # row of data.
    latents = real() if name == "bare" else TREES[name](real((2, 0)), positive())

    def log_joint(theta, x):
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(theta))
        return jnp.sum(norm.logpdf(x, total)) - 0.5 * total**2

    model = Model(latents, log_joint)
    for guide in (mean_field(latents), minisvi.full_rank(latents), minisvi.delta(latents)):
        result = SVI(model, guide, adam(0.05)).run(key, 400, jnp.array([4.0]), progress_bar=False)
        draws = Posterior(model, guide, result.params).sample(key, 5)
        assert jax.tree.structure(draws) == jax.tree.structure(latents)
        for leaf, support in zip(jax.tree.leaves(draws), jax.tree.leaves(latents), strict=True):
            assert leaf.shape == (5, *support.shape)
        total = sum(
            jnp.sum(leaf, axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(draws)
        )
        assert 0.5 < jnp.mean(total) < 4.0


@pytest.mark.parametrize("num_rows", standing_for([0, 1], 0))
def test_no_data_and_one_row(num_rows, key):
    # With no rows the posterior is the prior and the ELBO at the optimum is log 1 = 0.
    x = conjugate_data()[:num_rows]
    loc, sd, log_evidence = conjugate_posterior(x)
    svi = small_svi(
        adam(0.3, 3000),
        objective=ELBO(4, "sticking_the_landing"),
    )
    start = svi.guide.init(key, loc={"w": jnp.asarray([3.0, -20.0, 0.5], FLOAT)})
    result = svi.run(key, 3000, x, params=start, progress_bar=False)
    assert np.allclose((result.params["loc"] - loc) / sd, 0, atol=1e-2)
    assert np.allclose(result.elbo[-1], log_evidence, atol=1e-2)


@pytest.mark.x64
def test_float32_latents_under_float64(key):
    model = Model({"a": real((), jnp.float32)}, lambda theta: norm.logpdf(theta["a"], 3.0))
    result = SVI(model, mean_field(model.latents), adam(0.1)).run(key, 500, progress_bar=False)
    assert result.params["loc"].dtype == jnp.float32
    assert abs(result.params["loc"][0] - 3.0) < 0.3


# --- Optimisers. One target for all: w ~ N(prior), conjugate, at unit scales, so that none needs
# tuning. ---


def unit_model():
    prior = lambda theta: jnp.sum(norm.logpdf(theta["w"], 1.0))
    return Model(
        {"w": real(3)},
        log_prior=prior,
        log_likelihood=lambda theta, x: norm.logpdf(x, jnp.sum(theta["w"])),
    )


UNIT_DATA = jnp.array([4.0, 5.0, 3.5])
UNIT_MEAN = 1 + (12.5 - 9.0) / (1 + 9.0)  # w_i = 1 + sum(x - 3) / (1 + 3 N), N = 3

OPTIMIZERS = {
    "one-cycle": lambda: optax.adam(optax.linear_onecycle_schedule(1500, 0.05)),
    "plateau": lambda: optax.chain(
        adam(0.02),
        optax.contrib.reduce_on_plateau(factor=0.5, patience=5, accumulation_size=50),
    ),
    "schedule-free": lambda: optax.contrib.schedule_free_adamw(0.05, warmup_steps=50),
    "dog": lambda: optax.contrib.dog(1.0),
    "prodigy": lambda: optax.contrib.prodigy(optax.cosine_decay_schedule(1.0, 1500)),
}


@pytest.mark.parametrize("name", standing_for(OPTIMIZERS, "schedule-free"))
def test_optimisers(name, key):
    model = unit_model()
    guide = mean_field(model.latents)
    svi = SVI(model, guide, OPTIMIZERS[name](), ELBO(16, "sticking_the_landing"))
    result = svi.run(key, 1500, UNIT_DATA, progress_bar=False)
    params = result.params
    if name == "schedule-free":
        params = optax.contrib.schedule_free_eval_params(result.state.opt_state, params)
    assert result.num_skipped == 0
    assert np.allclose(params["loc"], UNIT_MEAN, atol=0.05)


def test_lbfgs_with_its_line_search_gets_value_and_value_fn(key):
    model = unit_model()
    svi = SVI(model, minisvi.delta(model.latents), optax.lbfgs())
    result = svi.run(key, 15, UNIT_DATA, progress_bar=False)
    assert np.allclose(result.params["w"], UNIT_MEAN, atol=1e-5)


def test_the_plateau_rule_sees_the_loss(key):
    # A loss that cannot improve must shrink the steps: `value` has arrived.
    model = Model({"a": real()}, lambda theta: -1e-6 * theta["a"] ** 2)
    optimizer = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=3))
    result = SVI(model, minisvi.delta(model.latents), optimizer).run(key, 200, progress_bar=False)
    assert result.state.opt_state[1].scale < 0.01


def test_chosen_parts_stay_frozen(key):
    labels = {"loc": "fit", "log_scale": "frozen"}
    optimizer = optax.multi_transform({"fit": adam(0.1), "frozen": optax.set_to_zero()}, labels)
    result = small_svi(optimizer).run(key, 200, conjugate_data(), progress_bar=False)
    assert np.array_equal(result.params["log_scale"], small_svi().guide.init(key)["log_scale"])
    masked = optax.masked(optax.set_to_zero(), {"loc": False, "log_scale": True})
    both = small_svi(optax.chain(adam(0.1), masked)).run(
        key, 200, conjugate_data(), progress_bar=False
    )
    assert np.array_equal(both.params["log_scale"], result.params["log_scale"])
    assert np.array_equal(both.params["loc"], result.params["loc"])
    assert np.all(np.abs(result.params["loc"]) > 1e-3)


# --- Steps that are not finite. ---


def fails_above(limit):
    """A density that is NaN beyond a bound; the optimum lies at 2."""
    return Model(
        {"a": real()},
        lambda theta: jnp.where(theta["a"] > limit, jnp.nan, norm.logpdf(theta["a"], 2.0)),
    )


def test_a_step_that_is_not_finite_changes_nothing_but_the_key(key):
    model = fails_above(-100.0)
    svi = SVI(model, mean_field(model.latents), adam(0.1))
    before = svi.init(key)
    after, info = jax.jit(svi.update)(before)
    assert bool(info.skipped)
    assert not np.isfinite(info.elbo)
    chex.assert_trees_all_equal((after.params, after.opt_state), (before.params, before.opt_state))
    assert (int(after.step), int(after.num_skipped), int(after.num_failed)) == (1, 1, 1)
    assert np.any(jax.random.key_data(after.key) != jax.random.key_data(before.key))


def test_skipped_steps_are_counted_and_the_fit_goes_on(key):
    model = fails_above(3.0)  # about one draw in six of the optimum
    svi = SVI(model, mean_field(model.latents), adam(0.01))
    result = svi.run(
        key,
        1000,
        params={"loc": jnp.array([1.0]), "log_scale": jnp.array([0.0])},
        progress_bar=False,
    )
    assert result.reason == "finished"
    assert 5 < result.num_skipped < 500
    assert result.num_skipped == np.sum(~np.isfinite(result.elbo))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.params))


def test_ten_failures_in_a_row_end_the_fit_with_the_last_good_state(key):
    # The gradient drives `a` beyond the bound, where nothing is finite any more.
    model = Model({"a": real()}, lambda theta: jnp.where(theta["a"] > 5.0, jnp.nan, theta["a"]))
    svi = SVI(model, minisvi.delta(model.latents), optax.sgd(0.3))
    start = {"a": jnp.zeros(())}
    with pytest.raises(
        minisvi.NonFiniteError, match=r"10 steps in a row, up to step 27.*latent|log_joint: 1 of 1"
    ) as error:
        svi.run(key, 5000, params=start, progress_bar=False)
    result = error.value.result
    assert result.reason == "non-finite"
    assert result.num_skipped == 10
    assert len(result.elbo) == 27
    assert np.isclose(result.params["a"], 5.1)  # 17 steps of 0.3
    again = svi.resume(result.state, 5000, progress_bar=False, on_failure="return")
    assert len(again.elbo) == 10  # it tried again
    returned = svi.run(key, 5000, params=start, progress_bar=False, on_failure="return")
    chex.assert_trees_all_equal(returned.params, result.params)
    assert returned.reason == "non-finite"


# --- What a person sees. ---


def test_progress_bar_shows_the_elbo_and_can_be_turned_off(key, capsys):
    small_svi().run(key, 100, conjugate_data())
    shown = capsys.readouterr().err
    assert "100/100" in shown
    assert "ELBO -" in shown
    small_svi().run(key, 100, conjugate_data(), progress_bar=False)
    assert capsys.readouterr().err == ""


def test_without_tqdm_there_is_no_bar(key, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert small_svi().run(key, 10, conjugate_data()).reason == "finished"
    assert capsys.readouterr().err == ""


def test_ctrl_c_returns_what_is_done(key, press_ctrl_c):
    svi, x = small_svi(), conjugate_data()
    svi.run(key, 1, x, progress_bar=False)  # compiled

    previous = signal.getsignal(signal.SIGINT)
    press_ctrl_c()
    result = svi.run(key, 2_000_000, x, progress_bar=False)
    assert result.reason == "interrupted"
    assert 0 < len(result.elbo) == int(result.state.step) < 2_000_000
    assert signal.getsignal(signal.SIGINT) is previous
    whole = svi.run(key, len(result.elbo), x, progress_bar=False)
    chex.assert_trees_all_equal(whole.state, result.state)


def test_an_interrupt_that_is_ignored_stays_so():
    # As of a shell's job in the background.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert not interrupted.is_set()


def test_a_budget_that_is_no_number_is_refused(key):
    with pytest.raises(ValueError, match="`seconds` must be a number; got nan"):
        small_svi().run(key, 10, conjugate_data(), seconds=float("nan"), progress_bar=False)


def test_the_average_of_no_steps_is_the_start(key):
    svi, x = small_svi(), conjugate_data()
    result = svi.run(key, 10, x, seconds=0.0, average=True, progress_bar=False)
    assert (result.reason, len(result.elbo)) == ("budget", 0)
    chex.assert_trees_all_equal(result.params, result.state.params)
    assert np.all(np.isfinite(result.params["loc"]))


def test_runs_outside_the_main_thread(key):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(
            small_svi().run(key, 10, conjugate_data(), progress_bar=False)
        )
    )
    thread.start()
    thread.join()
    assert results[0].reason == "finished"


def test_early_stopping_in_a_loop_of_the_users_own(key):
    # The loop of the README: patience on a held-out ELBO.
    svi, x = small_svi(adam(0.1)), conjugate_data()
    update, evaluate = jax.jit(svi.update), jax.jit(svi.evaluate)
    state, best, waited = svi.init(key, x), -jnp.inf, 0
    for _ in range(2000):
        state, _ = update(state, x)
        held_out = evaluate(state, x)
        best, waited = max(best, held_out), 0 if held_out > best else waited + 1
        if waited == 50:
            break
    assert waited == 50
    assert 50 < int(state.step) < 2000
