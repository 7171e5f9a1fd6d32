"""Draws from a model's prior: in the order of what depends on what, from all three libraries, and
by exact moments.
"""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from tensorflow_probability.substrates.jax import distributions as tfd
from tiers import standing_for

import minisvi
from minisvi import Model, positive, real

pytestmark = pytest.mark.foreign
NUM = 4000


def factored(latents, prior):
    return Model(latents, prior=prior, log_likelihood=lambda theta, x: x)


# Eight schools, with the dependent latents first: effects | mu, tau, and tau ~ Gamma(4, 2),
# E[tau^2] = 5.
PRIORS = {
    "distrax": lambda t: {
        "a": distrax.Normal(t["mu"] * jnp.ones(8), t["tau"]),
        "mu": distrax.Normal(3.0, 2.0),
        "tau": distrax.Gamma(4.0, 2.0),
    },
    "tfp": lambda t: {
        "a": tfd.Sample(tfd.Normal(t["mu"], t["tau"]), 8),
        "mu": tfd.Normal(3.0, 2.0),
        "tau": tfd.Gamma(4.0, 2.0),
    },
    "numpyro": lambda t: {
        "a": dist.Normal(t["mu"], t["tau"]).expand([8]).to_event(1),
        "mu": dist.Normal(3.0, 2.0),
        "tau": dist.Gamma(4.0, 2.0),
    },
}
SCHOOLS = {"a": real(8), "mu": real(), "tau": positive()}


@pytest.mark.parametrize("library", standing_for(PRIORS, "numpyro"))
def test_eight_schools_has_its_exact_moments(library, key):
    draws = factored(SCHOOLS, PRIORS[library]).sample_prior(key, NUM)
    assert {name: leaf.shape for name, leaf in draws.items()} == {
        "a": (NUM, 8),
        "mu": (NUM,),
        "tau": (NUM,),
    }
    se = NUM**-0.5
    assert abs(np.mean(draws["mu"]) - 3) < 5 * 2 * se
    assert abs(np.var(draws["mu"]) - 4) < 5 * 4 * 2**0.5 * se
    assert abs(np.mean(draws["tau"]) - 2) < 5 * 1 * se
    # Var a = Var mu + E tau^2 = 9, Cov(a_i, a_j) = Cov(a_i, mu) = Var mu = 4.
    covariance = np.cov(np.column_stack([draws["a"], draws["mu"]]).T)
    expected = 4 + 5 * np.diag([1.0] * 8 + [0.0])
    assert np.allclose(covariance, expected, atol=5 * 20 * se)
    assert np.all(np.abs(draws["a"].mean(0) - 3) < 5 * 3 * se)
    standard = (draws["a"] - draws["mu"][:, None]) / draws["tau"][:, None]
    assert abs(np.var(standard) - 1) < 5 * (2 / 8) ** 0.5 * se


def test_equal_keys_give_equal_draws_and_others_do_not(key):
    model = factored(SCHOOLS, PRIORS["numpyro"])
    one, two = model.sample_prior(key, 3), model.sample_prior(key, 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))
    assert not np.array_equal(one["a"], model.sample_prior(jax.random.key(1), 3)["a"])


def test_trees_discrete_latents_and_scalar_priors_of_arrays(key):
    latents = {
        "p": {"z": minisvi.finite(2), "w": minisvi.simplex(3)},
        "x": real((2, 3), jnp.float32),
    }

    def prior(theta):
        w = jnp.take(jnp.array([1.0, 50.0]), theta["p"]["z"]) * jnp.ones(3)
        return {
            "p": {"z": dist.Bernoulli(0.5), "w": tfd.Dirichlet(w)},
            "x": distrax.Normal(10.0, 1.0),
        }

    draws = factored(latents, prior).sample_prior(key, 200)
    assert draws["p"]["z"].dtype == jnp.int32
    assert draws["x"].shape == (200, 2, 3)
    assert len(np.unique(draws["x"])) > 1000  # not one draw repeated
    spread = [np.std(draws["p"]["w"][draws["p"]["z"] == z, 0]) for z in (0, 1)]
    assert spread[1] < 0.1 < spread[0]


def test_local_latents_are_drawn_for_each_row(key):
    model = factored(
        {"g": real(), "z": minisvi.local(real(2))},
        lambda theta: {"g": distrax.Normal(5.0, 1.0), "z": distrax.Normal(theta["g"], 0.1)},
    )
    draws = model.sample_prior(key, 10, [1.0, 2.0, 3.0])
    assert draws["z"].shape == (10, 3, 2)
    assert np.allclose(draws["z"].mean((1, 2)), draws["g"], atol=0.3)
    with pytest.raises(ValueError, match=r"latents \['z'\] are local: expected data"):
        model.sample_prior(key, 10)


AB = {"a": real(), "b": real()}
REFUSED = {
    "a circle": (
        AB,
        lambda t: {"a": distrax.Normal(t["b"], 1.0), "b": distrax.Normal(t["a"], 1.0)},
        r"expected no circle; got .*\{'a': \['b'\], 'b': \['a'\]\}",
    ),
    "a latent of its own": (
        AB,
        lambda t: {"a": distrax.Normal(t["a"], 1.0), "b": distrax.Normal(0.0, 1.0)},
        "circle",
    ),
    "a flat prior": (
        AB,
        lambda t: {"a": None, "b": distrax.Normal(0.0, 1.0)},
        r"priors of latents \['a'\] are flat",
    ),
    "an improper prior": (
        {"a": real()},
        lambda t: {"a": dist.ImproperUniform(dist.constraints.real, (), ())},
        r"prior of latent `a`: ImproperUniform cannot be drawn from",
    ),
    "a prior of another shape": (
        {"a": real(3)},
        lambda t: {"a": distrax.Normal(jnp.zeros(1), 1.0)},
        r"prior of latent `a`: expected a prior whose shape is the end of \(3,\); got \(1,\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_priors_without_draws_are_refused(case, key):
    latents, prior, pattern = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=pattern):
        factored(latents, prior).sample_prior(key, 3)


def test_a_log_prior_has_no_draws(key):
    model = Model({"a": real()}, log_prior=lambda t: -t["a"], log_likelihood=lambda t, x: x)
    with pytest.raises(ValueError, match="expected a model with `prior`"):
        model.sample_prior(key, 3)
