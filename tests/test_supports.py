"""T and log|det J_T| of every support: against autodiff, NumPyro and their own inverse."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.distributions.constraints as npc
import pytest
from numpyro.distributions.transforms import biject_to
from tensorflow_probability.substrates.jax import bijectors as tfb
from tiers import standing_for

import minisvi

# name: (support, NumPyro's constraint or None, where T's image has fewer coordinates: which of them
# autodiff takes)
SUPPORTS = {
    "real": (minisvi.real((2, 3)), npc.real, jnp.ravel),
    "scalar": (minisvi.real(), npc.real, jnp.ravel),
    "positive": (minisvi.positive(4), npc.positive, jnp.ravel),
    "greater_than": (minisvi.greater_than(-3.5, 4), npc.greater_than(-3.5), jnp.ravel),
    "unit_interval": (minisvi.unit_interval((2, 2)), npc.unit_interval, jnp.ravel),
    "interval": (minisvi.interval(-1.0, 7.0, 3), npc.interval(-1.0, 7.0), jnp.ravel),
    "simplex": (minisvi.simplex(5), npc.simplex, lambda t: t[:-1]),
    "simplex of one": (minisvi.simplex(1), npc.simplex, lambda t: t[:-1]),
    "simplexes": (minisvi.simplex((3, 4)), npc.simplex, lambda t: t[:, :-1].ravel()),
    "ordered": (minisvi.ordered(4), npc.ordered_vector, jnp.ravel),
    "lower_cholesky": (
        minisvi.lower_cholesky((4, 4)),
        npc.lower_cholesky,
        lambda t: t[jnp.tril_indices(4)],
    ),
    "lower_choleskys": (
        minisvi.lower_cholesky((2, 3, 3)),
        npc.lower_cholesky,
        lambda t: t[:, *jnp.tril_indices(3)].ravel(),
    ),
    "corr_cholesky": (
        minisvi.corr_cholesky((4, 4)),
        npc.corr_cholesky,
        lambda t: t[jnp.tril_indices(4, -1)],
    ),
    "corr_choleskys": (
        minisvi.corr_cholesky((2, 3, 3)),
        npc.corr_cholesky,
        lambda t: t[:, *jnp.tril_indices(3, -1)].ravel(),
    ),
    "distrax": (minisvi.transformed(distrax.ScalarAffine(2.0, 3.0), 3), None, jnp.ravel),
    "tfp": (minisvi.transformed(tfb.Softplus(), 3), None, jnp.ravel),
    "empty": (minisvi.positive(0), npc.positive, jnp.ravel),
}
# One of each map.
MAPS = [
    "real",
    "positive",
    "interval",
    "simplex",
    "ordered",
    "lower_choleskys",
    "corr_cholesky",
    "tfp",
    "empty",
]
pytestmark = pytest.mark.parametrize("name", standing_for(SUPPORTS, *MAPS))


@partial(jax.jit, static_argnames="name")
def point(name, key, scale=1.5):
    """An unconstrained point off the origin."""
    spec = SUPPORTS[name][0].unconstrained
    return 0.3 + scale * jax.random.normal(key, spec.shape, spec.dtype)


@pytest.mark.x64
def test_shape_and_dtype(name, key):
    support = SUPPORTS[name][0]
    theta, log_det = jax.jit(support.forward_and_log_det)(point(name, key))
    assert theta.shape == support.shape
    assert theta.dtype == support.value_dtype
    assert log_det.shape == ()


def test_log_det_equals_autodiff(name, key, rtol):
    support, _, free = SUPPORTS[name]
    u = point(name, key)

    @jax.jit
    def both(u):
        jacobian = jax.jacobian(lambda x: free(support.forward_and_log_det(x.reshape(u.shape))[0]))(
            u.ravel()
        )
        expected = jnp.linalg.slogdet(jacobian)[1] if u.size else 0.0
        return support.forward_and_log_det(u)[1], expected

    assert np.allclose(*both(u), rtol=20 * rtol, atol=20 * rtol)


def test_equals_numpyro(name, key, rtol):
    support, constraint, _ = SUPPORTS[name]
    if constraint is None:
        pytest.skip("a bijector of the user's own")
    transform, u = biject_to(constraint), point(name, key)

    @jax.jit
    def theirs(u):
        theta = transform(u)
        return theta, jnp.sum(transform.log_abs_det_jacobian(u, theta))

    with jax.numpy_rank_promotion("allow"):  # NumPyro promotes
        theta, log_det = theirs(u)
    our_theta, our_log_det = jax.jit(support.forward_and_log_det)(u)
    assert np.allclose(our_theta, theta, rtol=20 * rtol, atol=rtol)
    assert np.allclose(our_log_det, log_det, rtol=20 * rtol, atol=20 * rtol)


def test_inverse(name, key, rtol):
    support, u = SUPPORTS[name][0], point(name, key)
    again = jax.jit(lambda u: support.inverse(support.forward_and_log_det(u)[0]))(u)
    assert np.allclose(again, u, rtol=100 * rtol, atol=100 * rtol)


def test_far_out_stays_finite(name, key):
    u = point(name, key, scale=25.0)
    log_det, gradient = jax.jit(
        jax.value_and_grad(lambda x: SUPPORTS[name][0].forward_and_log_det(x)[1])
    )(u)
    assert np.isfinite(log_det)
    assert np.all(np.isfinite(gradient))


def test_vmap_and_jit(name, key):
    support = SUPPORTS[name][0]
    batch = jnp.stack([point(name, k) for k in jax.random.split(key, 3)])
    theta, log_det = jax.jit(jax.vmap(support.forward_and_log_det))(batch)
    one_theta, one_log_det = support.forward_and_log_det(batch[1])
    assert jnp.allclose(theta[1], one_theta)
    assert jnp.allclose(log_det[1], one_log_det, rtol=1e-5, atol=1e-5)


def test_prior_of_numpyro_agrees_in_unconstrained_space(name, key, rtol):
    # log p(T(u)) + log|det J| of a distribution on the support, by both engines, at a random point.
    priors = {
        "positive": dist.Gamma(2.0, 3.0),
        "unit_interval": dist.Beta(2.0, 3.0),
        "simplex": dist.Dirichlet(jnp.arange(1.0, 6.0)),
        "corr_cholesky": dist.LKJCholesky(4, 2.0),
    }
    if name not in priors:
        pytest.skip("no prior for it here")
    support, u = SUPPORTS[name][0], point(name, key)
    with jax.numpy_rank_promotion("allow"):  # NumPyro's Beta promotes
        model = minisvi.Model(support, lambda theta: jnp.sum(priors[name].log_prob(theta)))
        transform = biject_to(priors[name].support)

        @jax.jit
        def both(u):
            theta = transform(u)
            log_det = jnp.sum(transform.log_abs_det_jacobian(u, theta))
            return model.log_density(u), jnp.sum(priors[name].log_prob(theta)) + log_det

        ours, expected = both(u)
        assert jnp.allclose(ours, expected, rtol=20 * rtol)
