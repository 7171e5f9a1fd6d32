"""Distributions of other libraries in a guide: Distrax, TFP, NumPyro and FlowJAX."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import RTOL
from flowjax.distributions import Normal as FlowjaxNormal
from jax.scipy.stats import norm
from tensorflow_probability.substrates import jax as tfp

from minisvi import Model, custom, real
from minisvi.guides.foreign import adapted, member

pytestmark = pytest.mark.foreign

LOC = jnp.array([1.0, -2.0, 30.0])
SCALE = jnp.array([0.1, 3.0, 20.0])
NORMALS = {
    "distrax": distrax.Normal,
    "tfp": tfp.distributions.Normal,
    "numpyro": dist.Normal,
    "flowjax": FlowjaxNormal,
}
DISCRETE = {
    "distrax": distrax.Bernoulli(probs=0.3),
    "tfp": tfp.distributions.Bernoulli(probs=0.3),
    "numpyro": dist.Bernoulli(probs=0.3),
}


@pytest.mark.parametrize("library", NORMALS)
def test_a_draw_comes_with_its_log_density_summed(library, key):
    q = adapted(NORMALS[library](LOC, SCALE))
    u, log_q = q.draw(key)
    expected = jnp.sum(norm.logpdf(u, LOC, SCALE))
    assert u.shape == (3,)
    np.testing.assert_allclose([log_q, q.log_prob(u)], [expected, expected], rtol=20 * RTOL)


@pytest.mark.parametrize("library", NORMALS)
def test_the_gradient_goes_through_the_draw(library, key):
    def draw(loc):
        return adapted(NORMALS[library](loc, SCALE)).draw(key)[0]

    assert adapted(NORMALS[library](LOC, SCALE)).reparameterised
    np.testing.assert_allclose(jax.jacobian(draw)(LOC), np.eye(3), atol=RTOL)


@pytest.mark.parametrize("library", DISCRETE)
def test_discrete_distributions_are_not_reparameterised(library):
    assert not adapted(DISCRETE[library]).reparameterised


@pytest.mark.parametrize("library", NORMALS)
def test_a_custom_guide_of_it_is_a_joint_over_the_latents(library, key):
    latents = {"a": real(3), "b": real()}
    guide = custom(
        lambda key: {"a": LOC, "b": jnp.zeros(())},
        lambda p, *_: {"a": NORMALS[library](p["a"], SCALE), "b": NORMALS[library](p["b"], 2.0)},
    )
    q = member(guide, guide.init(key))
    u, log_q = q.draw(key)
    expected = jnp.sum(norm.logpdf(u["a"], LOC, SCALE)) + norm.logpdf(u["b"], 0.0, 2.0)
    np.testing.assert_allclose(log_q, expected, rtol=20 * RTOL)
    model = Model(latents, lambda theta: -jnp.sum(theta["a"] ** 2) - theta["b"] ** 2)
    assert model.log_density(u).shape == ()
