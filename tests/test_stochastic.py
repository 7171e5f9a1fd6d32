"""The stochastic fit and whitened guides against Gaussians that are known."""

import itertools
import logging
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT, RTOL
from problems import adam, conjugate_data, conjugate_model, conjugate_posterior
from scipy import stats
from tiers import standing_for

import minisvi
from minisvi import SVI, Model, full_rank, mean_field, real, whitened
from minisvi.auto.stochastic import OneVector, _optimizer, stochastic
from minisvi.tools.programs import BY_DEFAULT, IN_HASTE


def test_a_run_is_yielded_at_its_last_step(key):
    model, x = conjugate_model(), conjugate_data()
    states = stochastic(
        key, model, mean_field(model.latents), x, num_steps=(30, 400), learning_rates=(1e-2, 1e-3)
    )
    first = next(states)
    kept = jax.tree.map(np.asarray, first.params)
    second = next(states)
    assert (int(first.step), int(second.step)) == (30, 430)
    assert not np.array_equal(second.params["loc"], kept["loc"])
    assert np.array_equal(first.params["loc"], kept["loc"])  # the next run does not overwrite it
    assert next(states, None) is None


def test_the_rate_rises_for_a_tenth_of_each_run_and_falls_by_a_cosine():
    # Adam's step under a constant gradient is the rate itself.
    steps, rates = (20, 40), (0.4, 0.2)
    optimizer, g = _optimizer(steps, rates), jnp.ones(())
    state, taken = optimizer.init(g), []
    for _ in range(60):
        update, state = optimizer.update(g, state)
        taken.append(-float(update))
    expected = []
    for num, rate in zip(steps, rates):
        warm = num // 10
        expected += [rate * i / warm for i in range(warm)]
        expected += [rate * 0.5 * (1 + np.cos(np.pi * i / (num - warm))) for i in range(num - warm)]
    assert np.allclose(taken, expected, rtol=1e-4, atol=1e-6)
    assert _optimizer(steps, rates) is optimizer


def test_parameters_as_one_vector_are_the_guides_own(key):
    latents = {"b": real(3), "a": real()}
    guide = whitened(full_rank(latents))
    one_vector = OneVector(guide, jax.eval_shape(guide.init, key))
    params, vector = guide.init(key), one_vector.init(key)
    assert vector.shape == (4 + 16 + 4 + 16,)
    for form in (vector, np.asarray(vector)):
        tree = one_vector.tree(form)
        assert jax.tree.structure(tree) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, tree, params)
    eps = jnp.array([0.3, -1.0, 2.0, 0.7])
    draw = one_vector.distribution(vector).from_noise(eps)
    expected = guide.distribution(params).from_noise(eps)
    jax.tree.map(np.testing.assert_array_equal, draw, expected)


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "in_haste"), [(8, None, True), (4000, None, False), (4000, 8, True)]
)
def test_a_loop_of_few_rows_is_compiled_in_haste(num_rows, batch_size, in_haste, monkeypatch, key):
    options = []

    def resume(svi, state, num_steps, *data, **_):
        options.append(svi.compiler_options)
        return SimpleNamespace(state=state._replace(step=state.step + num_steps))

    monkeypatch.setattr(SVI, "resume", resume)
    model = Model({"x": real()}, log_prior=lambda t: 0.0 * t["x"], log_likelihood=lambda t, x: x)
    guide = mean_field(model.latents)
    states = stochastic(key, model, guide, np.zeros(num_rows), batch_size=batch_size)
    assert len(list(states)) == 2
    assert options == 2 * [IN_HASTE if in_haste else BY_DEFAULT]


def test_it_compiles_its_loop_and_a_copy_of_its_start(caplog, key):
    latents = {"x": real(3)}
    model = Model(latents, lambda theta, x: -jnp.sum((theta["x"] - x) ** 2) / 3)
    params = {"loc": np.ones(3, FLOAT), "log_scale": np.zeros(3, FLOAT)}
    x = jnp.zeros(3)
    with caplog.at_level(logging.WARNING, "jax"), jax.log_compiles():
        states = stochastic(key, model, mean_field(latents), x, params=params, num_steps=(5, 8))
        assert [int(state.step) for state in states] == [5, 13]
    messages = [record.getMessage() for record in caplog.records]
    programs = [message.split()[1] for message in messages if message.startswith("Compiling")]
    # A conversion of one number, which any fit before this one has compiled already.
    assert sorted({*programs} - {"jit(convert_element_type)"}) == ["jit(_block)", "jit(start)"]


def gaussian_kl(loc, cov, true_loc, true_cov):
    precision, shift = np.linalg.inv(true_cov), np.asarray(loc, float) - true_loc
    log_dets = np.linalg.slogdet(true_cov)[1] - np.linalg.slogdet(cov)[1]
    return 0.5 * (np.trace(precision @ cov) + shift @ precision @ shift - len(shift) + log_dets)


def moments(params):
    """Location and covariance of a full-rank guide, or of a whitened one."""
    factor = lambda m: np.tril(m, -1) + np.diag(np.exp(np.diag(m)))
    if "x" not in params:
        tril = factor(np.asarray(params["scale_tril"], float))
        return np.asarray(params["loc"], float), tril @ tril.T
    loc, cov = moments(params["x"])
    outer = factor(np.asarray(params["factor"], float))
    return np.asarray(params["loc"], float) + outer @ loc, outer @ cov @ outer.T


def test_minibatches_reach_the_posterior_of_all_rows(key):
    model, x = conjugate_model(), conjugate_data(40)
    loc, sd, _ = conjugate_posterior(x)
    rough = jnp.asarray(2.0 * sd**2), {"w": jnp.asarray(loc + 2 * sd)}
    guide = whitened(full_rank(model.latents, 1.0))
    params = guide.init(key, loc=rough[1], cov=rough[0])
    options = {
        "params": params,
        "num_steps": (1500, 1500),
        "learning_rates": (2e-2, 5e-3),
        "num_particles": 8,
    }
    assert gaussian_kl(*moments(params), loc, np.diag(sd**2)) > 1
    *_, state = stochastic(key, model, guide, x, batch_size=20, **options)
    kl = gaussian_kl(*moments(state.params), loc, np.diag(sd**2))
    assert kl < 0.02


def test_a_second_call_does_not_trace_again(key):
    traces = []

    def log_joint(theta, x):
        traces.append(None)
        return -jnp.sum((theta["x"] - x) ** 2)

    def run(key, x):
        model = Model({"x": real(2)}, log_joint)
        return list(stochastic(key, model, mean_field(model.latents), x, num_steps=(3, 4)))

    run(key, jnp.zeros(2))
    count = len(traces)
    run(jax.random.key(1), jnp.ones(2))
    # What SVI.init checks, by shapes alone, is not cached.
    assert len(traces) - count <= 1


def test_a_deadline_ends_it_with_what_is_there(key):
    model, x = conjugate_model(), conjugate_data()
    states = list(
        stochastic(key, model, mean_field(model.latents), x, deadline=time.monotonic() - 1)
    )
    assert [int(state.step) for state in states] == [0]


def test_runs_and_rates_come_in_pairs(key):
    model = conjugate_model()
    with pytest.raises(
        ValueError, match=r"one of `learning_rates` for each of `num_steps`; got \(0.1,\), \(5, 6\)"
    ):
        next(
            stochastic(
                key, model, mean_field(model.latents), num_steps=(5, 6), learning_rates=(0.1,)
            )
        )


# ---- whitened

SCALES = np.array([1e-3, 1.0, 30.0, 1e3])
CORRELATION = 0.6 * np.ones((4, 4)) + 0.4 * np.eye(4)
COV = CORRELATION * SCALES[:, None] * SCALES[None]
LOC = SCALES * np.array([2.0, -1.0, 0.5, 3.0])
# Not `low_rank`, whose start has small random columns.
NEUTRAL = {
    "mean_field": lambda latents: mean_field(latents, 1.0),
    "full_rank": lambda latents: full_rank(latents, 1.0),
    "affine_coupling": lambda latents: minisvi.affine_coupling(mean_field(latents, 1.0)),
}


@pytest.mark.foreign
@pytest.mark.parametrize(
    ("name", "diagonal"),
    standing_for(
        itertools.product(NEUTRAL, [False, True]), ("full_rank", False), ("affine_coupling", True)
    ),
)
def test_at_its_start_it_is_the_gaussian_given(name, diagonal, key):
    latents = {"b": real(3), "a": real()}
    guide = whitened(NEUTRAL[name](latents), diagonal)
    u = minisvi.model.trees.unravel(latents, jnp.asarray(LOC, FLOAT))
    params = guide.init(key, loc=u, cov=jnp.asarray(COV, FLOAT))
    q = guide.distribution(params)
    in_units = stats.multivariate_normal(np.zeros(4), np.eye(4) if diagonal else CORRELATION)
    truth = lambda x: in_units.logpdf((x - LOC) / SCALES) - np.log(SCALES).sum()
    for k in jax.random.split(key, 5):
        u, log_q = q.sample_and_log_prob(seed=k)
        vector = np.asarray(minisvi.model.trees.ravel(latents, u), float)
        near = {"abs": 2000 * RTOL}  # in float32 a draw of 2e-3 +- 1e-3 is rounded
        assert float(log_q) == pytest.approx(truth(vector), **near)
        assert float(q.log_prob(u)) == pytest.approx(truth(vector), **near)


@pytest.mark.parametrize(
    "gradient",
    standing_for(
        ["reparameterised", "sticking_the_landing", "closed_form_entropy"], "sticking_the_landing"
    ),
)
def test_no_gradient_reaches_the_gaussian_it_is_whitened_by(gradient, key):
    latents = {"x": real(4)}
    model, guide = (
        Model(latents, lambda theta: -jnp.sum(jnp.cosh(theta["x"]))),
        whitened(full_rank(latents)),
    )
    params, objective = guide.init(key), minisvi.ELBO(4, gradient)
    grad = jax.jit(jax.grad(lambda p: objective(key, model, guide, p)))(params)
    assert np.array_equal(grad["loc"], np.zeros(4))
    assert np.array_equal(grad["factor"], np.zeros((4, 4)))
    assert np.min(np.abs(grad["x"]["loc"])) > 0


def test_whitening_decides_on_a_badly_scaled_gaussian(key):
    latents, precision = {"x": real(4)}, jnp.asarray(np.linalg.inv(CORRELATION), FLOAT)

    def log_joint(theta):
        z = (theta["x"] - jnp.asarray(LOC, FLOAT)) / jnp.asarray(SCALES, FLOAT)
        return -0.5 * z @ precision @ z

    model, optimizer = Model(latents, log_joint), adam(0.01)
    objective = minisvi.ELBO(8, "sticking_the_landing")
    rough = 2.0 * np.diag(SCALES) @ (0.3 * np.ones((4, 4)) + 0.7 * np.eye(4)) @ np.diag(SCALES)
    start = {"x": jnp.asarray(LOC + SCALES, FLOAT)}
    kl = {}
    for guide in (whitened(full_rank(latents, 1.0)), full_rank(latents)):
        params = (
            guide.init(key, loc=start, cov=jnp.asarray(rough, FLOAT))
            if "x" in guide.init(key)
            else None
        )
        result = SVI(model, guide, optimizer, objective).run(
            key, 2000, params=params, progress_bar=False, on_failure="return"
        )
        kl[type(guide).__name__] = gaussian_kl(*moments(result.params), LOC, COV)
    assert kl["Whitened"] < 1e-3
    assert not kl["FullRank"] < 10
