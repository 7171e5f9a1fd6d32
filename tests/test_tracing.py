"""Libraries that remember by the identity of an array work in a model, a guide and a prediction."""

import weakref

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from problems import adam

import minisvi

Y = jnp.exp(0.3 + 0.5 * jnp.asarray(np.random.default_rng(2).normal(size=50)))


def remembered_log(x):
    """log x, computed once for each array object, as a bijector of TFP computes its inverse."""
    if isinstance(x, jax.core.Tracer):
        known = _REMEMBERED.get(id(x))
        if known is None or known[0]() is not x:
            known = _REMEMBERED[id(x)] = weakref.ref(x), jnp.log(x)
        return known[1]
    return jnp.log(x)


_REMEMBERED = {}


def rows(theta, y):
    z = remembered_log(y)
    return norm.logpdf(z, theta["m"], theta["s"]) - z


def prior(theta):
    del theta
    return {"m": distrax.Normal(0.0, 1.0), "s": distrax.Gamma(2.0, 2.0)}


LATENTS = {"m": minisvi.real(), "s": minisvi.positive()}
MODEL = minisvi.Model(LATENTS, prior=prior, log_likelihood=rows)
GUIDE = minisvi.mean_field(LATENTS)
ADAM = adam(0.05)


def test_the_log_of_this_file_leaks_where_one_tracer_meets_two_traces():
    def twice(y):
        jax.eval_shape(lambda: remembered_log(y))
        return remembered_log(y)

    with pytest.raises(jax.errors.UnexpectedTracerError):
        jax.jit(twice)(Y)


@pytest.mark.foreign
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"stop": minisvi.Patience(score="elbo", every=20), "held_out": (Y[:20],)}, id="patience"
        ),
        pytest.param({"num_restarts": 2}, id="restarts", marks=pytest.mark.slow),
        pytest.param(
            {"stop": minisvi.Convergence(), "num_steps": 400},
            id="convergence",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_runs(key, options):
    options = {"num_steps": 60, "progress_bar": False} | options
    result = minisvi.SVI(MODEL, GUIDE, ADAM).run(key, options.pop("num_steps"), Y, **options)
    assert np.all(np.isfinite(result.elbo))


@pytest.mark.slow
@pytest.mark.foreign
def test_line_searches_and_minibatches(key):
    lbfgs = minisvi.SVI(MODEL, GUIDE, optax.lbfgs(), minisvi.FixedDraws(minisvi.ELBO(8)))
    batches = minisvi.SVI(MODEL, GUIDE, ADAM, batches=minisvi.Minibatches(10))
    for svi in (lbfgs, batches):
        assert np.all(np.isfinite(svi.run(key, 20, Y, progress_bar=False).elbo))


@pytest.mark.whole
@pytest.mark.foreign
def test_fit_laplace_and_what_follows(key):
    fit = minisvi.fit(key, MODEL, Y, progress_bar=False, num_draws=4000)
    assert fit.verdict.level == "good"
    assert np.isfinite(minisvi.laplace(key, MODEL, Y).log_evidence)
    fit.posterior.reweighted(key, 600)
    prediction = fit.draws.predictive(
        key, lambda key, theta, y: remembered_log(y) * theta["s"], 10, Y, batch_size=3
    )
    assert prediction.shape == (10, 50)


@pytest.mark.foreign
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["custom", "amortised", "per_row"])
def test_guides_that_look_at_the_data(key, kind):
    def around_mean(params, y):
        z = remembered_log(y)
        scale = jnp.exp(params["log_scale"])
        return {
            "m": distrax.Normal(jnp.mean(z) + params["loc"], scale),
            "s": distrax.Normal(params["log_s"], scale),
        }

    if kind == "custom":
        model = MODEL
        guide = minisvi.custom(
            lambda key: {"loc": 0.0, "log_scale": -1.0, "log_s": 0.0}, around_mean
        )
    else:
        model = minisvi.Model(
            {"m": minisvi.local(minisvi.real())},
            prior=lambda theta: {"m": distrax.Normal(0.0, 1.0)},
            log_likelihood=lambda theta, y: norm.logpdf(remembered_log(y), theta["m"], 0.5),
        )
        one = minisvi.mean_field(minisvi.real())
        index = lambda y: (0 * remembered_log(y)).astype(int) + jnp.arange(len(y))
        encode = lambda w, y: {
            "loc": w * remembered_log(y)[:, None],
            "log_scale": jnp.zeros((len(y), 1)),
        }
        made = {
            "per_row": minisvi.per_row(one, len(Y), index),
            "amortised": minisvi.amortised(one, lambda key: 0.5, encode),
        }
        guide = minisvi.product({"m": made[kind]})
    for optimizer, objective in (
        (ADAM, minisvi.ELBO(4)),
        (optax.lbfgs(), minisvi.FixedDraws(minisvi.ELBO(4))),
    ):
        result = minisvi.SVI(model, guide, optimizer, objective).run(
            key, 20, Y, num_restarts=2, progress_bar=False
        )
        assert np.all(np.isfinite(result.elbo))
    minisvi.judge(key, model, guide, result.params, Y, num_draws=200)


@pytest.mark.whole
@pytest.mark.foreign
def test_tfp_log_normal_as_a_likelihood(key):
    from tensorflow_probability.substrates.jax import distributions as tfd

    def log_joint(theta, y):
        log_prior = tfd.Normal(0.0, 1.0).log_prob(theta["m"]) + tfd.HalfNormal(1.0).log_prob(
            theta["s"]
        )
        return log_prior + tfd.LogNormal(theta["m"], theta["s"]).log_prob(y).sum()

    model = minisvi.Model(LATENTS, log_joint)
    assert minisvi.deterministic(key, model, Y, num_restarts=2).converged
    assert np.all(
        np.isfinite(minisvi.SVI(model, GUIDE, ADAM).run(key, 20, Y, progress_bar=False).elbo)
    )


def test_a_function_is_called_as_it_is_and_nothing_of_it_is_remembered():
    """Eager, it sees the very arguments, and each call is a new one: what it reads elsewhere may
    have changed.
    """
    scale = [2.0]

    def log_joint(theta, y, num):
        assert isinstance(y, np.ndarray)
        return jnp.sum(norm.logpdf(y[:num], theta["m"], scale[0]))

    model = minisvi.Model({"m": minisvi.real()}, log_joint)
    u, y = {"m": jnp.array(0.5)}, np.array([1.0, 2.0, 7.0])
    before = model.log_density(u, y, 2)
    assert np.isfinite(jax.grad(model.log_density)(u, y, 2)["m"])
    scale[0] = 5.0
    assert np.allclose(model.log_density(u, y, 2), norm.logpdf(y[:2], 0.5, 5.0).sum(), rtol=1e-5)
    assert model.log_density(u, y, 2) != before
