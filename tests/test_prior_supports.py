"""Priors with mass outside of their latent's support give a warning, and no others do."""

import warnings

import distrax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints, transforms
from tensorflow_probability.substrates.jax import bijectors as tfb
from tensorflow_probability.substrates.jax import distributions as tfd

import minisvi
from minisvi import (
    Model,
    PriorSupportWarning,
    greater_than,
    interval,
    positive,
    real,
    simplex,
    unit_interval,
)

pytestmark = pytest.mark.foreign
ZEROS, ONES = jnp.zeros(3), jnp.ones(3)

# name: (the latent's support, its prior, made where JAX traces)
WIDE = {
    "distrax normal on positive": (positive(), lambda: distrax.Normal(0.0, 1.0)),
    "distrax laplace on an interval": (interval(0, 2), lambda: distrax.Laplace(0.0, 1.0)),
    "distrax normals on positive": (
        positive(3),
        lambda: distrax.Independent(distrax.Normal(ZEROS, 1.0), 1),
    ),
    "distrax multivariate normal on positive": (
        positive(3),
        lambda: distrax.MultivariateNormalDiag(ZEROS, ONES),
    ),
    "distrax gamma on the unit interval": (unit_interval(), lambda: distrax.Gamma(1.0, 1.0)),
    "tfp normal on positive": (positive(), lambda: tfd.Normal(0.0, 1.0)),
    "tfp normals on positive": (positive(3), lambda: tfd.Sample(tfd.Normal(0.0, 1.0), 3)),
    "tfp student above one": (greater_than(1.0), lambda: tfd.StudentT(*jnp.array([3.0, 0.0, 1.0]))),
    "tfp gamma above one": (greater_than(1.0), lambda: tfd.Gamma(1.0, 1.0)),
    "numpyro normal on positive": (positive(), lambda: dist.Normal(0.0, 1.0)),
    "numpyro normals on positive": (
        positive(3),
        lambda: dist.Normal(0.0, 1.0).expand([3]).to_event(1),
    ),
    "numpyro cauchy on positive": (positive(), lambda: dist.Cauchy(0.0, 1.0)),
    "numpyro uniform on a part of it": (interval(0.0, 0.5), lambda: dist.Uniform(0.0, 1.0)),
    "numpyro truncated too late": (positive(), lambda: dist.TruncatedNormal(0.0, 1.0, low=-1.0)),
    "numpyro truncated on one side": (
        unit_interval(),
        lambda: dist.TruncatedNormal(0.0, 1.0, low=0.0),
    ),
    "numpyro affine of a normal": (
        positive(),
        lambda: dist.TransformedDistribution(
            dist.Normal(0.0, 1.0), transforms.AffineTransform(1.0, 2.0)
        ),
    ),
    "numpyro gammas on the simplex": (simplex(3), lambda: dist.Gamma(ONES, 1.0)),
    "distrax normals in order": (minisvi.ordered(3), lambda: distrax.Normal(ZEROS, 1.0)),
}
NARROW = {
    "no prior": (positive(), lambda: None),
    "distrax normal on real": (real(), lambda: distrax.Normal(0.0, 1.0)),
    "distrax multivariate normal": (real(3), lambda: distrax.MultivariateNormalDiag(ZEROS, ONES)),
    "distrax gamma on positive": (positive(), lambda: distrax.Gamma(1.0, 1.0)),
    "distrax gamma on real": (real(), lambda: distrax.Gamma(1.0, 1.0)),
    "distrax beta": (unit_interval(), lambda: distrax.Beta(1.0, 1.0)),
    "distrax uniform": (unit_interval(), lambda: distrax.Uniform(0.0, 1.0)),
    "distrax dirichlet": (simplex(3), lambda: distrax.Dirichlet(ONES)),
    "distrax exp of a normal": (
        positive(),
        lambda: distrax.Transformed(distrax.Normal(0.0, 1.0), distrax.Lambda(jnp.exp)),
    ),
    "tfp half-normal": (positive(), lambda: tfd.HalfNormal(1.0)),
    "tfp half-cauchy": (positive(), lambda: tfd.HalfCauchy(0.0, 1.0)),
    "tfp inverse gamma": (positive(), lambda: tfd.InverseGamma(1.0, 1.0)),
    "tfp log-normal": (positive(), lambda: tfd.LogNormal(0.0, 1.0)),
    "tfp exp of a normal": (
        positive(),
        lambda: tfd.TransformedDistribution(tfd.Normal(0.0, 1.0), tfb.Exp()),
    ),
    "tfp gammas": (positive(3), lambda: tfd.Independent(tfd.Gamma(ONES, 1.0), 1)),
    "tfp beta": (unit_interval(), lambda: tfd.Beta(1.0, 1.0)),
    "tfp uniform": (interval(0.3, 0.7), lambda: tfd.Uniform(0.3, 0.7)),
    "tfp truncated normal": (positive(), lambda: tfd.TruncatedNormal(0.0, 1.0, 0.0, jnp.inf)),
    "tfp dirichlet": (simplex(3), lambda: tfd.Dirichlet(ONES)),
    "tfp lkj": (minisvi.corr_cholesky((3, 3)), lambda: tfd.CholeskyLKJ(3, 1.0)),
    "numpyro half-normal": (positive(), lambda: dist.HalfNormal(1.0)),
    "numpyro half-normals": (positive(3), lambda: dist.HalfNormal(1.0).expand([3]).to_event(1)),
    "numpyro gamma": (positive(), lambda: dist.Gamma(1.0, 1.0)),
    "numpyro beta": (unit_interval(), lambda: dist.Beta(1.0, 1.0)),
    "numpyro uniform": (unit_interval(), lambda: dist.Uniform(0.0, 1.0)),
    "numpyro uniform in float32": (
        interval(0.3, 0.7),
        lambda: dist.Uniform(jnp.array(0.3), jnp.array(0.7)),
    ),
    "numpyro pareto": (greater_than(1.0), lambda: dist.Pareto(1.0, 1.0)),
    "numpyro truncated normal": (positive(), lambda: dist.TruncatedNormal(0.0, 1.0, low=0.0)),
    "numpyro doubly truncated": (
        interval(0, 5),
        lambda: dist.TruncatedNormal(0.0, 1.0, low=0.0, high=5.0),
    ),
    "numpyro improper uniform": (
        positive(),
        lambda: dist.ImproperUniform(constraints.positive, (), ()),
    ),
    "numpyro dirichlet": (simplex(3), lambda: dist.Dirichlet(ONES)),
    "numpyro lkj": (minisvi.corr_cholesky((3, 3)), lambda: dist.LKJCholesky(3, 1.0)),
    "numpyro normals in order": (
        minisvi.ordered(3),
        lambda: dist.TransformedDistribution(
            dist.Normal(ZEROS, 1.0).to_event(1), transforms.OrderedTransform()
        ),
    ),
    "numpyro exp of a normal": (
        positive(),
        lambda: dist.TransformedDistribution(dist.Normal(0.0, 1.0), transforms.ExpTransform()),
    ),
    "numpyro multivariate normal": (real(3), lambda: dist.MultivariateNormal(ZEROS, jnp.eye(3))),
    "numpyro point": (positive(), lambda: dist.Delta(1.0)),
    "numpyro bernoulli": (minisvi.finite(2), lambda: dist.Bernoulli(0.5)),
}


def checked(support, prior):
    model = Model(
        {"tau": support},
        prior=lambda theta: {"tau": prior()},
        log_likelihood=lambda theta, x: jnp.zeros_like(x),
    )
    model.check(jnp.ones(3))
    return model


@pytest.mark.parametrize("name", WIDE)
def test_mass_outside_is_warned_of(name):
    with pytest.warns(
        PriorSupportWarning,
        match=r"`tau`: the prior \w+ has the support of .*the log evidence is off",
    ):
        checked(*WIDE[name])


@pytest.mark.parametrize("name", NARROW)
def test_other_priors_raise_no_alarm(name):
    checked(*NARROW[name])  # where a warning is an error


def test_the_warning_names_the_latent_its_support_and_the_prior():
    pattern = (
        "`tau`: the prior Normal has the support of all real numbers, "
        "and the latent is positive: its density is"
    )
    with pytest.warns(PriorSupportWarning, match=pattern):
        checked(*WIDE["numpyro normals on positive"])


def test_bounds_that_depend_on_other_latents_are_not_known():
    latents = {"a": positive(), "b": unit_interval()}
    for uniform in (tfd.Uniform, distrax.Uniform, dist.Uniform):
        prior = lambda theta, uniform=uniform: {"a": None, "b": uniform(0.0, theta["a"])}
        Model(latents, prior=prior, log_likelihood=lambda theta, x: jnp.zeros_like(x)).check(
            jnp.ones(3)
        )


def test_a_model_is_warned_of_once():
    with pytest.warns(PriorSupportWarning):
        model = checked(*WIDE["distrax normal on positive"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.check(jnp.ones(3))
