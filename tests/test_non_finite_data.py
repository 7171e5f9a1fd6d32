"""Numbers of the data that are not finite: named, by leaf and row, where the density is not finite
because of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from problems import adam

import minisvi
from minisvi import SVI, Minibatches, Model, NonFiniteError, mean_field, positive, real
from minisvi.tools import finite_data

X = jnp.linspace(-1.0, 1.0, 50)
Y = np.linspace(0.0, 2.0, 50)
Y[[17, 20, 33]] = np.nan, np.inf, np.nan
PLACE = r"data `\[1\].y`: NaN at row 17 \(3 of 50 rows\)"
ADAM = adam(0.1)


def joint(theta, x, other):
    return norm.logpdf(theta["a"]) + jnp.sum(norm.logpdf(other["y"], theta["a"] * x))


def rows(theta, x, other):
    return norm.logpdf(other["y"], theta["a"] * x)


def masked(theta, x, other):
    missing = ~jnp.isfinite(other["y"])
    return jnp.where(missing, 0.0, norm.logpdf(jnp.where(missing, 0.0, other["y"]), theta["a"] * x))


def factored(log_likelihood, latents=None):
    latents = {"a": real()} if latents is None else latents
    return Model(
        latents, log_prior=lambda theta: norm.logpdf(theta["a"]), log_likelihood=log_likelihood
    )


DATA = X, {"y": Y, "n": np.arange(50)}


def test_check_names_the_row_of_the_likelihood_and_of_the_data():
    with pytest.raises(
        ValueError, match=rf"`log_likelihood` is not finite at row 17, because of the data: {PLACE}"
    ):
        factored(rows).check(*DATA)
    with pytest.raises(
        ValueError, match=rf"`log_joint` is not finite, because of the data: {PLACE}"
    ):
        Model({"a": real()}, joint).check(*DATA)


def test_check_is_the_same_inside_of_a_trace_that_knows_the_data(key):
    svi = SVI(factored(rows), mean_field({"a": real()}), ADAM)
    with pytest.raises(ValueError, match=PLACE):
        jax.jit(lambda key: svi.init(key, *DATA))(key)


def test_missing_values_that_the_likelihood_masks_are_no_mistake():
    factored(masked).check(*DATA)


def test_a_density_that_is_nowhere_finite_does_not_blame_the_data():
    factored(
        lambda theta, x, other: masked(theta, x, other) + jnp.log(-theta["a"]), {"a": positive()}
    ).check(*DATA)


def test_finite_data_cost_no_computation():
    calls = []

    def log_likelihood(theta, x, other):
        calls.append(isinstance(theta["a"], jax.core.Tracer))
        return rows(theta, x, other)

    factored(log_likelihood).check(X, {"y": X})
    assert calls == [True]  # by its shapes


def test_leaves_that_are_found():
    data = (
        X,
        [jnp.ones((3, 2)).at[1, 1].set(-jnp.inf), jnp.asarray(jnp.nan)],
        jnp.arange(3),
        jax.random.key(0),
        True,
    )
    assert finite_data.non_finite_data(data) == [
        "data `[1].0`: infinity at row 1 (1 of 3 rows)",
        "data `[1].1`: NaN",
    ]
    assert (
        jax.jit(lambda x: len(finite_data.non_finite_data((x,))))(data[1][1]) == 0
    )  # which a trace cannot know


def test_the_deterministic_fit_and_laplace_blame_them(key):
    with pytest.raises(ValueError, match=PLACE):
        minisvi.deterministic(key, factored(rows), *DATA, num_restarts=1, num_draws=8)
    with pytest.raises(
        ValueError,
        match=rf"give another `start`. The data hold numbers that are not finite: {PLACE}",
    ):
        minisvi.laplace(key, factored(rows), *DATA)


def test_starts_that_all_fail_name_the_data_where_the_check_could_not(key):
    # At T(0) = 1 the density is not finite with any data.
    model = factored(
        lambda theta, x, other: rows(theta, x, other) + jnp.log(jnp.abs(theta["a"] - 1)),
        {"a": positive()},
    )
    with pytest.raises(
        ValueError, match=rf"give a `start` where it is finite. The data hold .*{PLACE}"
    ):
        minisvi.deterministic(key, model, *DATA, num_restarts=1, num_draws=8)


def test_a_failed_run_names_the_row_of_all_the_data_and_not_that_of_the_batch(key):
    svi = SVI(factored(rows), mean_field({"a": real()}), ADAM, batches=Minibatches(25))
    with pytest.raises(NonFiniteError, match=PLACE):
        svi.run(key, 20, *DATA, progress_bar=False)


def test_a_model_made_inside_a_trace_is_not_looked_at(key):
    """Its terms are traced, though the data are known."""

    def elbo(scale):
        svi = SVI(factored(lambda *args: scale * masked(*args)), mean_field({"a": real()}), ADAM)
        return svi.evaluate(svi.init(key, *DATA), *DATA)

    assert np.isfinite(jax.jit(elbo)(2.0))
