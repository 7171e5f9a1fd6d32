"""Distributions of other libraries in a guide: Distrax, TFP, NumPyro and FlowJAX."""

from dataclasses import replace

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from conftest import RTOL
from flowjax.distributions import Normal as FlowjaxNormal
from jax.scipy.stats import norm
from problems import adam
from tensorflow_probability.substrates import jax as tfp

from minisvi import ELBO, SVI, FullBatch, Minibatches, Model, custom, local, real
from minisvi.guides.base import Distribution
from minisvi.guides.foreign import adapted, member, weighted

pytestmark = pytest.mark.foreign

ADAM = adam(0.1)

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


# z_n ~ N(M, T^2), x_n ~ N(z_n, R^2): the rows are independent, and x_n ~ N(M, T^2 + R^2). Where q
# is the exact posterior, log w is the log evidence of the batch's rows, N/B times, at every draw.
M, T, R = 3.0, 0.7, 1.5
X = 4.0 + 1.7 * np.random.default_rng(1).normal(size=20)
ROWS = Model(
    {"z": local(real())},
    log_likelihood=lambda theta, x: norm.logpdf(x, theta["z"], R),
    prior=lambda theta: {"z": dist.Normal(M, T)},
)
VARIANCE = 1.0 / (1.0 / T**2 + 1.0 / R**2)


def posterior_of(x):
    """Location and scale of z_n given x_n, one for each row."""
    loc = VARIANCE * (M / T**2 + x / R**2)
    return loc, jnp.full(x.shape, VARIANCE**0.5)


def log_evidence(x):
    return norm.logpdf(x, M, (T**2 + R**2) ** 0.5).sum()


class OwnRows(Distribution):
    """A distribution of a user, that has one number for all rows, and so cannot be weighted."""

    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def log_prob(self, u):
        return norm.logpdf(u, self.loc, self.scale).sum()

    def sample_and_log_prob(self, *, seed):
        u = self.loc + self.scale * jax.random.normal(seed, self.loc.shape)
        return u, self.log_prob(u)


class WeightedRows(OwnRows):
    """The same, which says how to weigh."""

    weight = 1.0

    def log_prob(self, u):
        return jnp.sum(self.weight * norm.logpdf(u, self.loc, self.scale))

    def weighted(self, weight, local):
        assert local == "z"
        q = WeightedRows(self.loc, self.scale)
        q.weight = weight
        return q


def over_rows(family):
    """The guide whose member is the exact posterior of each row, as a distribution of `family`."""
    return custom(lambda key: {}, lambda params, x: {"z": family(*posterior_of(x))})


BY_ROW = {
    "distrax": distrax.Normal,
    "tfp": tfp.distributions.Normal,
    "numpyro": dist.Normal,
    "own": WeightedRows,
}
NOT_BY_ROW = {
    "distrax": lambda *q: distrax.MultivariateNormalDiag(*q),
    "tfp": lambda *q: tfp.distributions.MultivariateNormalDiag(*q),
    "numpyro": lambda *q: dist.Normal(*q).to_event(1),
    "flowjax": FlowjaxNormal,
    "own": OwnRows,
}


@pytest.mark.parametrize("gradient", ["reparameterised", "sticking_the_landing"])
@pytest.mark.parametrize("family", BY_ROW)
def test_in_minibatches_each_row_of_a_custom_guide_counts_as_its_likelihood_does(
    family, gradient, key
):
    svi = SVI(ROWS, over_rows(BY_ROW[family]), ADAM, ELBO(1, gradient), Minibatches(4))
    state = svi.init(key, X)
    for step in range(2):
        (rows,), weight = svi.batches(step, (jnp.asarray(X),))
        assert weight == 5.0
        value = svi.evaluate(state._replace(step=step), jnp.asarray(X))
        np.testing.assert_allclose(value, 5.0 * log_evidence(rows), rtol=50 * RTOL)


def test_the_closed_entropy_of_a_custom_guide_counts_n_over_b_times(key):
    q = weighted(member(over_rows(distrax.Normal), {}, jnp.asarray(X)), 5.0, ROWS.latents)
    expected = 5.0 * X.size * 0.5 * np.log(2.0 * np.pi * np.e * VARIANCE)
    np.testing.assert_allclose(q.entropy(), expected, rtol=20 * RTOL)
    by_row = weighted(
        member(over_rows(distrax.Normal), {}, jnp.asarray(X)), jnp.arange(20.0), ROWS.latents
    )
    np.testing.assert_allclose(by_row.entropy(), expected * 190 / 100, rtol=20 * RTOL)


@pytest.mark.parametrize("family", NOT_BY_ROW)
def test_minibatches_are_refused_where_q_has_no_log_density_of_each_row(family, key):
    svi = SVI(ROWS, over_rows(NOT_BY_ROW[family]), ADAM, ELBO(), Minibatches(4))
    with pytest.raises(ValueError, match=r"minibatches with local latents \['z'\]: expected"):
        svi.init(key, X)
    replace(svi, batches=FullBatch()).init(key, X)


def test_a_distribution_over_a_local_latent_and_others_is_refused_in_minibatches(key):
    latents = {"g": real(20), "z": local(real())}
    pair = lambda params, *_: tfp.distributions.JointDistributionNamed(
        {name: tfp.distributions.Normal(jnp.zeros(20), 1.0) for name in latents}
    )
    q = member(custom(lambda key: {}, pair), {}, jnp.asarray(X))
    with pytest.raises(ValueError, match="latents that are all local"):
        weighted(q, 5.0, latents)
    assert weighted(q, None, latents) is q
