"""NumPyro as the oracle for the catalogue: the families, the Laplace fit, and the other bounds and
estimators.

Values and gradients at equal parameters and draws; outcomes of fits, where the draws differ, within
the seeds' spread.
"""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import FLOAT, RTOL
from jax.scipy.stats import gamma, norm
from numpyro.infer import SVI as NumpyroSVI
from numpyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    autoguide,
    init_to_value,
)
from problems import Normal, NumpyroGuide, NumpyroKeys, adam
from tensorflow_probability.substrates.jax import distributions as tfd
from tiers import standing_for

import minisvi
from minisvi import ELBO, SVI, ImportanceWeighted, Model, Renyi, laplace, positive, real

pytestmark = pytest.mark.foreign

# --- A regression with a correlated posterior: y_n ~ N(x_n w, a^2). Sites in the order of our
# leaves. ---


def regression_data():
    rng = np.random.default_rng(2)
    x = (
        rng.normal(size=(25, 3)) @ np.array([[1.0, 0.8, 0.0], [0.0, 0.5, 0.0], [0.0, 0.3, 2.0]])
        + 0.5
    )
    return jnp.asarray(x, FLOAT), jnp.asarray(
        x @ np.array([2.0, -1.0, 0.5]) + 0.7 * rng.normal(size=25), FLOAT
    )


def numpyro_regression(x, y):
    a = numpyro.sample("a", dist.Gamma(2.0, 1.0))
    w = numpyro.sample("w", dist.Normal(0, 2).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, a).to_event(1), obs=y)


def regression_log_prior(theta):
    return gamma.logpdf(theta["a"], 2.0) + jnp.sum(norm.logpdf(theta["w"], 0.0, 2.0))


def regression_log_likelihood(theta, x, y):
    return norm.logpdf(y, x @ theta["w"], theta["a"])


def regression():
    latents = {"a": positive(), "w": real(3)}
    return Model(latents, log_prior=regression_log_prior, log_likelihood=regression_log_likelihood)


def numpyro_guide(make):
    """A guide of theirs that has seen its model, and starts at a = 1, w = 0."""
    start = init_to_value(values={"a": jnp.array(1.0), "w": jnp.zeros(3)})
    guide = make(numpyro_regression, init_loc_fn=start)
    NumpyroSVI(numpyro_regression, guide, adam(0.1), Trace_ELBO()).init(
        jax.random.key(0), *regression_data()
    )
    return guide


# name: (our guide, theirs, our parameters from theirs)
FAMILIES = {
    "full_rank": (
        minisvi.full_rank(regression().latents),
        autoguide.AutoMultivariateNormal,
        lambda p: {
            "loc": p["auto_loc"],
            "scale_tril": jnp.tril(p["auto_scale_tril"], -1)
            + jnp.diag(jnp.log(jnp.diagonal(p["auto_scale_tril"]))),
        },
    ),
    "low_rank": (
        minisvi.low_rank(regression().latents, 2),
        partial(autoguide.AutoLowRankMultivariateNormal, rank=2),
        lambda p: {
            "loc": p["auto_loc"],
            "log_scale": jnp.log(p["auto_scale"]),
            "factor": p["auto_cov_factor"],
        },
    ),
}


def numpyro_params(name, key):
    keys = jax.random.split(key, 3)
    loc, square = 3 + 2 * jax.random.normal(keys[0], (4,)), jax.random.normal(keys[1], (4, 4))
    if name == "full_rank":
        return {
            "auto_loc": loc,
            "auto_scale_tril": jnp.tril(square, -1) + jnp.diag(jnp.array([0.1, 1.0, 3.0, 20.0])),
        }
    return {
        "auto_loc": loc,
        "auto_cov_factor": square[:, :2],
        "auto_scale": jnp.array([0.1, 1.0, 3.0, 20.0]),
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_log_q_and_entropy(name, key):
    guide, make, convert = FAMILIES[name]
    params = numpyro_params(name, key)
    q, theirs = guide.distribution(convert(params)), make(numpyro_regression).get_posterior(params)
    assert np.allclose(q.entropy(), theirs.entropy(), rtol=3 * RTOL)
    for k in jax.random.split(key, 5):
        flat = theirs.sample(k)
        log_q = q.log_prob({"a": flat[0], "w": flat[1:]})
        assert np.allclose(log_q, theirs.log_prob(flat), rtol=10 * RTOL, atol=10 * RTOL)
        u, log_q = q.sample_and_log_prob(seed=k)
        flat = jnp.concatenate([u["a"][None], u["w"]])
        assert np.allclose(log_q, theirs.log_prob(flat), rtol=10 * RTOL, atol=10 * RTOL)


@pytest.mark.whole
@pytest.mark.parametrize("name", FAMILIES)
def test_fits_reach_the_same_elbo(name, key):
    # From the same start, and both scored with the same draws, so that only the fits' draws differ.
    guide, make, convert = FAMILIES[name]
    model, data, n = regression(), regression_data(), 1000
    optimizer = adam(0.1, n)
    svi, theirs = SVI(model, guide, optimizer, ELBO(8)), numpyro_guide(make)
    their_svi = NumpyroSVI(numpyro_regression, theirs, optimizer, Trace_ELBO(8))
    start = guide.init(key, loc={"a": jnp.zeros(()), "w": jnp.zeros(3)})

    @jax.jit
    @jax.vmap
    def fit(key):
        ours, _ = svi.scan(svi.init(key, *data, params=start), n, *data)
        last, _ = jax.lax.scan(
            lambda s, _: their_svi.update(s, *data), their_svi.init(key, *data), length=n
        )
        both = ours.params, convert(their_svi.get_params(last))
        return [ELBO(20_000)(jax.random.key(5), model, guide, params, *data) for params in both]

    ours, expected = (np.asarray(scores, np.float64) for scores in fit(jax.random.split(key, 3)))
    spread = np.sqrt((np.var(ours, ddof=1) + np.var(expected, ddof=1)) / 3)
    assert abs(np.mean(ours) - np.mean(expected)) < 4 * spread
    assert spread < 0.01


@pytest.mark.whole
def test_delta_is_autodelta(key):
    model, data, n = regression(), regression_data(), 1000
    optimizer = adam(0.1, n)
    guide, theirs = minisvi.delta(model.latents), numpyro_guide(autoguide.AutoDelta)
    fitted = NumpyroSVI(numpyro_regression, theirs, optimizer, Trace_ELBO()).run(
        key, n, *data, progress_bar=False
    )
    expected = theirs.median(fitted.params)
    result = SVI(model, guide, optimizer).run(key, n, *data, progress_bar=False)
    found = guide.distribution(result.params).theta
    assert np.allclose(found["a"], expected["a"], rtol=1e-3)
    assert np.allclose(found["w"], expected["w"], atol=1e-3)
    assert np.allclose(result.elbo[-1], -fitted.losses[-1], rtol=10 * RTOL)


@pytest.mark.whole
def test_laplace_is_autolaplace(key):
    model, data, n = regression(), regression_data(), 1000
    theirs = numpyro_guide(autoguide.AutoLaplaceApproximation)
    optimizer = adam(0.1, n)
    fitted = NumpyroSVI(numpyro_regression, theirs, optimizer, Trace_ELBO()).run(
        key, n, *data, progress_bar=False
    )
    found = laplace(key, model, *data)
    mode = minisvi.model.trees.ravel(model.latents, found.loc)
    sd = np.sqrt(np.diag(found.cov))

    @jax.jit
    def posterior(params):
        q = theirs.get_posterior(params)
        return q.mean, q.covariance_matrix

    mean, cov = posterior(fitted.params)
    assert np.max(np.abs(mean - mode) / sd) < 1e-2
    assert np.allclose(cov / sd[:, None] / sd, found.cov / sd[:, None] / sd, atol=1e-2)
    mean, cov = posterior({"auto_loc": mode})
    assert np.allclose(mean, mode)
    assert np.allclose(cov / sd[:, None] / sd, found.cov / sd[:, None] / sd, atol=100 * RTOL)


# --- Estimators at the same parameters and draws. ---


def close(ours, expected, scale=1):
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.allclose(one, two, rtol=50 * RTOL, atol=scale * 50 * RTOL)


def natural(params):
    """Our parameters {site: {loc, log_scale}} under NumPyro's names."""
    named = {f"{n}_loc": p["loc"] for n, p in params.items() if "loc" in p}
    return named | {
        f"{n}_scale": jnp.exp(p["log_scale"]) for n, p in params.items() if "log_scale" in p
    }


def scaled_site(name, family, shape=()):
    loc = numpyro.param(f"{name}_loc", jnp.zeros(shape))
    scale = numpyro.param(f"{name}_scale", jnp.ones(shape), constraint=dist.constraints.positive)
    return numpyro.sample(name, family(loc, scale).to_event(len(shape)))


# A hierarchy: tau ~ Gamma(2, 1), b ~ Laplace(1, 2), w_i ~ N(b, tau^2), y ~ N(x w, 1). Only the KL
# of w is closed: tau is not its own u, and there is no formula for a normal and a Laplace.


def numpyro_hierarchy(x, y):
    b = numpyro.sample("b", dist.Laplace(1.0, 2.0))
    tau = numpyro.sample("tau", dist.Gamma(2.0, 1.0))
    w = numpyro.sample("w", dist.Normal(b, tau).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)


def numpyro_hierarchy_guide(x, y):
    scaled_site("b", dist.Normal)
    scaled_site("tau", dist.LogNormal)
    scaled_site("w", dist.Normal, (3,))


def hierarchy_prior(theta):
    return {
        "b": tfd.Laplace(jnp.asarray(1.0, FLOAT), 2.0),
        "tau": tfd.Gamma(jnp.asarray(2.0, FLOAT), 1.0),
        "w": distrax.Normal(jnp.full(3, theta["b"]), jnp.full(3, theta["tau"])),
    }


def hierarchy_log_likelihood(theta, x, y):
    return norm.logpdf(y, x @ theta["w"])


def hierarchy():
    latents = {"b": real(), "tau": positive(), "w": real(3)}
    return Model(latents, prior=hierarchy_prior, log_likelihood=hierarchy_log_likelihood)


HIERARCHY_PARAMS = {
    "b": {"loc": 0.7, "log_scale": -0.5},
    "tau": {"loc": 0.3, "log_scale": -1.0},
    "w": {"loc": np.array([1.5, -1.0, 0.2]), "log_scale": np.array([-1.0, 0.1, -2.0])},
}


def hierarchy_params():
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, FLOAT), HIERARCHY_PARAMS)


def hierarchy_guide(family=distrax.Normal):
    return NumpyroGuide(hierarchy_params(), dict.fromkeys(HIERARCHY_PARAMS, family))


def their_elbo(key, *losses):
    """(value, gradient) by each, in one program."""
    args = numpyro_hierarchy, numpyro_hierarchy_guide, *regression_data()
    elbos = [
        jax.value_and_grad(lambda p, loss=loss: -loss.loss(key, natural(p), *args))
        for loss in losses
    ]
    return jax.jit(lambda p: [elbo(p) for elbo in elbos])(hierarchy_params())


def our_elbo(key, *objectives):
    """(value, gradient) of each, in one program."""
    model, guide, data = hierarchy(), hierarchy_guide(), regression_data()
    elbos = [jax.value_and_grad(lambda p, o=o: o(key, model, guide, p, *data)) for o in objectives]
    return jax.jit(lambda p: [elbo(p) for elbo in elbos])(hierarchy_params())


@pytest.mark.parametrize("num_particles", standing_for([1, 4], 4))
def test_closed_form_kl_is_tracemeanfield(num_particles, key):
    ours, sampled = our_elbo(key, ELBO(num_particles, "closed_form_kl"), ELBO(num_particles))
    close([ours], their_elbo(key, TraceMeanField_ELBO(num_particles)))
    # The KL of w was closed, and that it was shows.
    assert abs(ours[0] - sampled[0]) > 0.01


@pytest.mark.whole
def test_renyi_is_renyielbo(key):
    # Theirs keeps half of the key for subsampling.
    alphas = 0.0, 0.5, 2.0, -1.0
    ours = our_elbo(
        jax.random.split(key)[1],
        *(Renyi(5, alpha=alpha) for alpha in alphas),
        ImportanceWeighted(5),
    )
    for one, two in zip(
        ours, their_elbo(key, *(RenyiELBO(alpha, 5) for alpha in (*alphas, 0.0))), strict=True
    ):
        close(one, two)


# --- Discrete latents: z_i ~ Bernoulli(p_i), w ~ N(0, 1), y_n ~ N(x_n (z + w), 2^2) up to a
# constant. ---


def log_switches(z, w, x, y):
    # The constant brings log w near zero: it scales the noise of their estimator, which has no
    # baseline.
    return 26 - jnp.sum((y - x @ (z + w)) ** 2) / 8


def numpyro_switches(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0))
    z = numpyro.sample("z", dist.Bernoulli(jnp.array([0.2, 0.5, 0.9])).to_event(1))
    numpyro.factor("y", log_switches(z, w, x, y))


def numpyro_switches_guide(x, y):
    scaled_site("w", dist.Normal)
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("z_loc", jnp.zeros(3))).to_event(1))


class Bernoulli:
    """Drawn as NumPyro draws it."""

    reparameterised = False

    def __init__(self, logits):
        self.logits = logits

    def sample_and_log_prob(self, *, seed):
        z = jax.random.bernoulli(seed, jax.nn.sigmoid(self.logits)).astype(jnp.int32)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return jnp.sum(z * self.logits - jax.nn.softplus(self.logits))


class SwitchesGuide:
    constrained = False

    def distribution(self, params, *_):
        w = Normal(params["w"]["loc"], jnp.exp(params["w"]["log_scale"]))
        return NumpyroKeys({"w": w, "z": Bernoulli(params["z"]["loc"])})


def switches():
    def log_joint(theta, x, y):
        z = theta["z"].astype(FLOAT)
        log_prior = norm.logpdf(theta["w"]) + jnp.sum(jnp.log(jnp.where(z == 1, p, 1 - p)))
        return log_prior + log_switches(z, theta["w"], x, y)

    p = jnp.array([0.2, 0.5, 0.9])
    return Model({"w": real(), "z": minisvi.finite(2, (3,))}, log_joint)


@pytest.mark.whole
def test_score_function_is_tracegraph(key):
    x, y = regression_data()
    params = {
        "w": {"loc": jnp.array(0.3), "log_scale": jnp.array(-1.0)},
        "z": {"loc": jnp.array([0.5, -1.0, 1.5])},
    }
    model, guide, objective, theirs = (
        switches(),
        SwitchesGuide(),
        ELBO(4, "score_function"),
        TraceGraph_ELBO(4),
    )

    def ours_of(p, k):
        return objective(k, model, guide, p, x, y)

    def theirs_of(p, k):
        return -theirs.loss(k, natural(p), numpyro_switches, numpyro_switches_guide, x, y)

    n = 20_000
    both = [
        jax.jit(jax.vmap(jax.value_and_grad(function), (None, 0)))(params, jax.random.split(key, n))
        for function in (ours_of, theirs_of)
    ]
    (values, grads), (expected, expected_grads) = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), both
    )
    assert np.allclose(
        values, expected, rtol=10 * RTOL, atol=100 * RTOL
    )  # terms of the size of the constant
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        error = np.sqrt((np.var(one, axis=0) + np.var(two, axis=0)) / n)
        assert np.all(np.abs(np.mean(one, axis=0) - np.mean(two, axis=0)) < 4 * error)
