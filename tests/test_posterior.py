"""Draws, summaries and predictions: against closed forms, and the same numbers in chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtri

from minisvi import Model, Posterior, custom, mean_field, positive, real

# theta = (a, exp(b)): N((5, -2), (3, 0.5)^2), a normal and a log-normal away from the origin.
LATENTS = {"a": real(2), "tau": positive()}
MODEL = Model(LATENTS, lambda theta: jnp.zeros(()))
PARAMS = {"loc": jnp.array([5.0, -2.0, 0.7]), "log_scale": jnp.log(jnp.array([3.0, 0.5, 0.2]))}
POSTERIOR = Posterior(MODEL, mean_field(LATENTS), PARAMS)
N = 100_000


def test_summaries_equal_the_closed_forms(key):
    within = lambda got, exact, sd: np.all(np.abs(np.asarray(got) - exact) < 4 * np.asarray(sd) / N**0.5)  # noqa: E731
    tau_mean = np.exp(0.7 + 0.02)
    tau_sd = tau_mean * np.sqrt(np.expm1(0.04))
    mean, sd, median = POSTERIOR.mean(key, N), POSTERIOR.sd(key, N), POSTERIOR.median(key, N)
    assert within(mean["a"], [5.0, -2.0], [3.0, 0.5])
    assert within(mean["tau"], tau_mean, tau_sd)
    assert within(sd["a"], [3.0, 0.5], [3.0, 0.5])
    assert within(sd["tau"], tau_sd, 1.5 * tau_sd)
    assert within(median["a"], [5.0, -2.0], [4.0, 0.7])  # the median's error is sqrt(pi / 2) of the mean's
    assert within(median["tau"], np.exp(0.7), 1.3 * tau_sd)


def test_quantiles(key):
    p = jnp.array([0.05, 0.5, 0.9])
    quantiles = POSTERIOR.quantiles(key, p, N)
    assert quantiles["a"].shape == (3, 2)
    exact = np.array([[5.0, -2.0]]) + np.asarray(ndtri(p))[:, None] * np.array([[3.0, 0.5]])
    assert np.allclose(quantiles["a"], exact, atol=0.05)
    assert np.allclose(quantiles["tau"], np.exp(0.7 + 0.2 * np.asarray(ndtri(p))), atol=0.02)
    assert POSTERIOR.quantiles(key, 0.25, 10)["tau"].shape == ()


def noisy(key, theta, x):
    return {"mean": theta["a"] @ x, "draw": theta["a"] @ x + theta["tau"] * jax.random.normal(key, x.shape[1:])}


def test_predictions_do_not_depend_on_the_batch_size(key):
    x = jnp.arange(10.0).reshape(2, 5)
    whole = POSTERIOR.predictive(key, noisy, 23, x)
    assert whole["draw"].shape == (23, 5)
    for batch_size in (1, 7, 23, 100):
        parts = POSTERIOR.predictive(key, noisy, 23, x, batch_size=batch_size)
        assert isinstance(parts["draw"], np.ndarray)  # on the host
        np.testing.assert_allclose(parts["draw"], whole["draw"], rtol=1e-5, atol=1e-5)


def test_predictions_use_the_draws_of_sample_and_fresh_noise(key):
    draws, x = POSTERIOR.sample(key, 5000), jnp.array([[2.0], [-1.0]])
    predictions = POSTERIOR.predictive(key, noisy, 5000, x)
    np.testing.assert_allclose(predictions["mean"], draws["a"] @ x, rtol=1e-5, atol=1e-5)
    noise = (predictions["draw"] - predictions["mean"])[:, 0] / draws["tau"]
    assert abs(noise.mean()) < 4 / 5000**0.5
    assert abs(noise.std() - 1) < 4 / 10_000**0.5
    assert abs(np.corrcoef(noise, draws["a"][:, 0])[0, 1]) < 4 / 5000**0.5


@pytest.mark.parametrize("num_inputs", [0, 1, 33])
def test_new_inputs_of_any_size(num_inputs, key):
    assert POSTERIOR.predictive(key, noisy, 4, jnp.ones((2, num_inputs)))["draw"].shape == (4, num_inputs)


def test_the_same_shapes_are_compiled_once(key):
    traces = []

    def fn(key, theta, x):
        traces.append(None)
        return theta["tau"] * x

    for i in range(3):
        POSTERIOR.predictive(jax.random.key(i), fn, 12, jnp.full(3, 1.0 + i), batch_size=5)
    assert len(traces) == 1


def test_parts_over_theta_are_not_transformed_again(key):
    class Exponential:  # over theta > 0
        def sample_and_log_prob(self, *, seed):
            x = 4.0 * jax.random.exponential(seed)
            return x, -x / 4 - jnp.log(4.0)

    model = Model({"tau": positive()}, lambda theta: jnp.zeros(()))
    guide = custom(lambda key: {}, lambda params, *_: {"tau": Exponential()}, constrained=True)
    draws = Posterior(model, guide, {}).sample(key, N)["tau"]
    assert abs(draws.mean() - 4.0) < 4 * 4.0 / N**0.5


def test_amortised_guides_see_the_data(key):
    class Shifted:
        def __init__(self, loc):
            self.loc = loc

        def sample_and_log_prob(self, *, seed):
            eps = jax.random.normal(seed, self.loc.shape)
            return self.loc + 0.01 * eps, jnp.sum(-0.5 * eps**2)

    guide = custom(lambda key: {"w": jnp.ones(())}, lambda params, x: {"a": Shifted(params["w"] * x)})
    model = Model({"a": real(3)}, lambda theta, x: jnp.zeros(()))
    x = jnp.array([10.0, -4.0, 2.0])
    assert np.allclose(Posterior(model, guide, {"w": jnp.asarray(2.0)}, (x,)).mean(key, 500)["a"], 2 * x, atol=0.01)
