"""The ELBO against closed forms on a conjugate Gaussian away from the origin, and its gradient
estimators.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT, RTOL
from problems import (
    NOISE_SD,
    NUM_ROWS,
    PRIOR_LOC,
    PRIOR_SD,
    conjugate_data,
    conjugate_model,
    conjugate_posterior,
)
from tiers import standing_for

import minisvi
from minisvi import ELBO

GRADIENTS = ["reparameterised", "sticking_the_landing"]


def families():
    latents = conjugate_model().latents
    return {"mean_field": minisvi.mean_field(latents), "full_rank": minisvi.full_rank(latents)}


def params_at(name, loc, sd):
    """Parameters of the Gaussian N(loc, diag(sd^2)) in either family."""
    loc, log_sd = jnp.asarray(loc, FLOAT), jnp.log(jnp.asarray(sd, FLOAT))
    scale = {"log_scale": log_sd} if name == "mean_field" else {"scale_tril": jnp.diag(log_sd)}
    return {"loc": loc} | scale


def exact_elbo(x, loc, sd):
    """log p(x) - KL(q || p), for q = N(loc, diag(sd^2)); numpy, float64."""
    post_loc, post_sd, log_evidence = conjugate_posterior(x)
    kl = np.log(post_sd / sd) + (sd**2 + (loc - post_loc) ** 2) / (2 * post_sd**2) - 0.5
    return log_evidence - kl.sum()


def exact_gradient(x, loc, sd):
    """The ELBO's gradient in loc and log sd."""
    post_loc, post_sd, _ = conjugate_posterior(x)
    return (post_loc - loc) / post_sd**2, 1 - sd**2 / post_sd**2


OFF_LOC, OFF_SD = np.array([3.5, -30.0, 0.35]), np.array([0.3, 8.0, 0.2])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", families())
def test_every_estimate_is_the_log_evidence_at_the_exact_posterior(name, gradient, key):
    x = conjugate_data()
    loc, sd, log_evidence = conjugate_posterior(x)
    elbo = lambda k: ELBO(gradient=gradient)(
        k, conjugate_model(), families()[name], params_at(name, loc, sd), x
    )
    estimates = jax.jit(jax.vmap(elbo))(jax.random.split(key, 50))
    assert jnp.allclose(estimates, log_evidence, rtol=2 * RTOL)


@pytest.mark.parametrize("name", families())
def test_sticking_the_landing_has_no_variance_at_the_exact_posterior(name, key):
    x = conjugate_data()
    loc, sd, _ = conjugate_posterior(x)
    params = params_at(name, loc, sd)

    def gradients(gradient):
        elbo = lambda p, k: ELBO(gradient=gradient)(k, conjugate_model(), families()[name], p, x)
        gradients = jax.jit(jax.vmap(jax.grad(elbo), (None, 0)))
        stacked = gradients(params, jax.random.split(key, 400))
        # In units of the posterior sd, so that the three scales weigh the same.
        return stacked["loc"] * jnp.asarray(sd)[None], stacked["loc"].shape[0]

    landed, _ = gradients("sticking_the_landing")
    plain, n = gradients("reparameterised")
    tolerance = 2000 * jnp.finfo(FLOAT).eps
    assert jnp.max(jnp.abs(landed)) < tolerance
    assert jnp.all(jnp.std(plain, axis=0) > 0.5)
    assert jnp.all(jnp.abs(jnp.mean(plain, axis=0)) < 4 * jnp.std(plain, axis=0) / n**0.5)


@pytest.mark.parametrize(
    ("name", "gradient", "num_particles"),
    standing_for(
        itertools.product(families(), GRADIENTS, [1, 4]),
        ("mean_field", "reparameterised", 1),
        ("full_rank", "sticking_the_landing", 4),
    ),
)
def test_value_and_gradient_are_unbiased(name, gradient, num_particles, key):
    x, n = conjugate_data(), 20_000
    params = params_at(name, OFF_LOC, OFF_SD)
    objective = ELBO(num_particles, gradient)
    elbo = lambda p, k: objective(k, conjugate_model(), families()[name], p, x)
    value, grads = jax.jit(jax.vmap(jax.value_and_grad(elbo), (None, 0)))(
        params, jax.random.split(key, n)
    )
    d_loc, d_log_sd = exact_gradient(x, OFF_LOC, OFF_SD)
    scale = (
        grads["log_scale"]
        if name == "mean_field"
        else jnp.diagonal(grads["scale_tril"], axis1=1, axis2=2)
    )
    close = lambda draws, exact: np.all(
        np.abs(np.mean(draws, 0, np.float64) - exact) < 4 * np.std(draws, 0, np.float64) / n**0.5
    )
    assert close(np.asarray(value), exact_elbo(x, OFF_LOC, OFF_SD))
    assert close(np.asarray(grads["loc"]), d_loc)
    assert close(np.asarray(scale), d_log_sd)


def test_particles_average_the_single_estimates(key):
    x, guide = conjugate_data(), families()["mean_field"]
    params = params_at("mean_field", OFF_LOC, OFF_SD)
    one = lambda k: ELBO()(k, conjugate_model(), guide, params, x)
    singles = jnp.stack([one(k) for k in jax.random.split(key, 5)])
    assert jnp.allclose(
        ELBO(5)(key, conjugate_model(), guide, params, x), jnp.mean(singles), rtol=RTOL
    )


def test_minibatch_scale_is_unbiased_for_the_full_likelihood():
    # Every batch of B = 2 of the N = 7 rows once: the mean of the scaled densities is the full
    # density.
    x, model = conjugate_data(), conjugate_model()
    u = {"w": jnp.asarray(OFF_LOC, FLOAT)}
    pairs = [jnp.array([i, j]) for i in range(NUM_ROWS) for j in range(i)]
    batches = jnp.stack([model.log_density(u, x[rows], weight=NUM_ROWS / 2) for rows in pairs])
    assert jnp.allclose(jnp.mean(batches), model.log_density(u, x), rtol=RTOL)
    assert jnp.std(batches) > 1.0


def test_log_density_is_the_sum_of_the_gaussians():
    x, u = np.asarray(conjugate_data(), np.float64), OFF_LOC
    log_normal = lambda value, mean, sd: np.sum(
        -0.5 * ((value - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))
    )
    expected = log_normal(u, PRIOR_LOC, PRIOR_SD) + sum(log_normal(row, u, NOISE_SD) for row in x)
    assert jnp.allclose(
        conjugate_model().log_density({"w": jnp.asarray(u, FLOAT)}, jnp.asarray(x)),
        expected,
        rtol=RTOL,
    )
