"""NumPyro as the oracle, at four depths: log densities, the ELBO and its gradient, whole
trajectories, and outcomes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from conftest import RTOL
from numpyro.infer import SVI as NumpyroSVI
from numpyro.infer import Trace_ELBO, autoguide
from numpyro.infer.util import log_density
from problems import (
    MOONS_SHAPES,
    Normal,
    NumpyroGuide,
    SoftLaplace,
    adam,
    gamma_data,
    gamma_model,
    moons,
    moons_deck,
    moons_deck_optimizer,
    moons_logits,
    moons_model,
    moons_start,
    reference_keys,
)
from sklearn.metrics import roc_auc_score

import minisvi
from minisvi import ELBO, SVI, Posterior

pytestmark = pytest.mark.foreign


def numpyro_gamma(z):
    c = numpyro.sample("concentration", dist.HalfNormal(1.0))
    with numpyro.plate("data", len(z)):
        numpyro.sample("z", dist.Gamma(c, 1.0), obs=z)


def numpyro_gamma_guide(z):
    loc = numpyro.param("loc", 0.5)
    scale = numpyro.param("scale", 0.1, constraint=dist.constraints.positive)
    numpyro.sample("concentration", dist.LogNormal(loc, scale))


def numpyro_moons(x, y):
    priors = {n: dist.Normal if n[0] == "b" else dist.SoftLaplace for n in MOONS_SHAPES}
    w = {
        n: numpyro.sample(n, priors[n](0, 1).expand(shape).to_event())
        for n, shape in MOONS_SHAPES.items()
    }
    numpyro.sample("y", dist.Bernoulli(logits=moons_logits(w, x)).to_event(1), obs=y)


def numpyro_moons_guide(x, y):
    families = {n: dist.Normal if n[0] == "b" else dist.SoftLaplace for n in MOONS_SHAPES}
    for name, (loc, scale) in moons_start().items():
        loc = numpyro.param(f"{name}_loc", loc)
        scale = numpyro.param(f"{name}_scale", scale, constraint=dist.constraints.positive)
        numpyro.sample(name, families[name](loc, scale).to_event())


def gamma_deck(num_particles=10):
    """The deck's log-normal guide in NumPyro's key order."""
    guide = NumpyroGuide(
        {"concentration": {"loc": 0.5, "log_scale": jnp.log(0.1)}}, {"concentration": Normal}
    )
    return SVI(gamma_model(), guide, adam(0.005), ELBO(num_particles))


# name: (our engine, NumPyro's model, guide and engine, data)
EXAMPLES = {
    "gamma": (
        gamma_deck(),
        NumpyroSVI(numpyro_gamma, numpyro_gamma_guide, adam(0.005), Trace_ELBO(10)),
        (gamma_data(),),
    ),
    "moons": (
        moons_deck(),
        NumpyroSVI(numpyro_moons, numpyro_moons_guide, adam(0.005), Trace_ELBO()),
        moons()[0],
    ),
}


# --- Log densities at random points. ---


@pytest.mark.x64
@pytest.mark.parametrize("name", EXAMPLES)
def test_log_joint(name, key):
    svi, theirs, data = EXAMPLES[name]

    @jax.jit
    def both(k):
        u = jax.tree.map(lambda s: jax.random.normal(k, s.shape, s.dtype), svi.model.latents)
        theta = svi.model.constrain(u)
        log_det = sum(jnp.sum(u[n]) for n in u if n == "concentration")
        return svi.model.log_density(u, *data), log_density(theirs.model, data, {}, theta)[
            0
        ] + log_det

    for k in jax.random.split(key, 5):
        ours, expected = both(k)
        assert np.allclose(ours, expected, rtol=RTOL)


@pytest.mark.x64
@pytest.mark.parametrize("make", ["mean_field", "full_rank"])
def test_log_q(make, key):
    latents = {"a": minisvi.real(3), "b": minisvi.real()}
    guide = getattr(minisvi, make)(latents)
    params = jax.tree.map(
        lambda leaf: leaf + 0.5 * jax.random.normal(key, leaf.shape), guide.init(key)
    )
    q = guide.distribution(params)
    if make == "mean_field":
        theirs = dist.Normal(params["loc"], jnp.exp(params["log_scale"])).to_event(1)
    else:
        theirs = dist.MultivariateNormal(params["loc"], scale_tril=q.factor.dense())
    for k in jax.random.split(key, 5):
        flat = 2 + 3 * jax.random.normal(k, (4,))
        u = {"a": flat[:3], "b": flat[3]}
        assert jnp.allclose(q.log_prob(u), theirs.log_prob(flat), rtol=3 * RTOL)


# --- The ELBO and its gradient with the same draws. ---


@pytest.mark.x64
@pytest.mark.parametrize("name", EXAMPLES)
def test_elbo_and_gradient_with_the_same_draws(name, key):
    svi, theirs, data = EXAMPLES[name]
    params = svi.init(key, *data).params
    elbo = lambda p: svi.objective(key, svi.model, svi.guide, p, *data)
    value, grad = jax.jit(jax.value_and_grad(elbo))(params)

    def numpyro_params(p):
        if name == "gamma":
            return {
                "loc": p["concentration"]["loc"],
                "scale": jnp.exp(p["concentration"]["log_scale"]),
            }
        return {f"{n}_loc": q["loc"] for n, q in p.items()} | {
            f"{n}_scale": jnp.exp(q["log_scale"]) for n, q in p.items()
        }

    def numpyro_elbo(p):
        return -theirs.loss.loss(key, numpyro_params(p), theirs.model, theirs.guide, *data)

    expected, expected_grad = jax.jit(jax.value_and_grad(numpyro_elbo))(params)
    assert jnp.allclose(value, expected, rtol=RTOL)
    for one, two in zip(jax.tree.leaves(grad), jax.tree.leaves(expected_grad), strict=True):
        assert jnp.allclose(one, two, rtol=50 * RTOL, atol=50 * RTOL)


# --- Whole trajectories with the same keys. ---


@pytest.mark.skipif(
    jnp.result_type(float) == jnp.float64, reason="published in float32, whose draws are others"
)
def test_gamma_trajectory_is_the_published_one():
    z, key = gamma_data(), reference_keys()[2]
    assert np.allclose(
        [z.mean(), z.std(), z.sum(), jnp.log(z).sum()],
        [2.009466, 1.40450, 2009.466, 423.3467],
        rtol=1e-5,
    )
    result = gamma_deck().run(key, 1000, z, progress_bar=False)
    _, theirs, _ = EXAMPLES["gamma"]
    expected = theirs.run(key, 1000, z, progress_bar=False)
    np.testing.assert_allclose(-result.elbo, expected.losses, rtol=1e-5)
    params = result.params["concentration"]
    assert abs(params["loc"] - 0.686321) < 1e-5
    assert abs(jnp.exp(params["log_scale"]) - 0.023044) < 1e-5
    assert abs(-result.elbo[0] - 1647.7776) < 2e-3
    assert abs(-result.elbo[-50:].mean() - 1590.681) < 1e-3
    assert np.allclose(params["loc"], expected.params["loc"], atol=1e-5)
    assert np.allclose(jnp.exp(params["log_scale"]), expected.params["scale"], rtol=1e-4)


@pytest.mark.x64
@pytest.mark.whole
def test_moons_trajectory_equals_numpyros():
    (x, y), key, n = moons()[0], reference_keys()[9], 300
    theirs = NumpyroSVI(numpyro_moons, numpyro_moons_guide, moons_deck_optimizer(), Trace_ELBO())
    expected = jax.jit(lambda s: jax.lax.scan(lambda s, _: theirs.update(s, x, y), s, length=n)[1])(
        theirs.init(key, x, y)
    )
    result = moons_deck().run(key, n, x, y, progress_bar=False)
    np.testing.assert_allclose(-result.elbo, expected, rtol=1e-4)


@pytest.mark.whole
@pytest.mark.skipif(
    jnp.result_type(float) == jnp.float64, reason="published in float32, whose draws are others"
)
def test_moons_deck_ends_where_it_was_published():
    train, validation, _ = moons()
    svi = moons_deck()

    @jax.jit
    def losses(state, train, validation):
        def step(state, _):
            state, info = svi.update(state, *train)
            return state, (-info.elbo, -svi.evaluate(state, *validation))

        return jax.lax.scan(step, state, length=3400)[1]

    train_loss, validation_loss = losses(svi.init(reference_keys()[9], *train), train, validation)
    assert abs(train_loss[0] - 941.616) < 0.05
    # The published rule: stop once the validation loss per row is the larger one on 200 consecutive
    # steps.
    worse = np.asarray(validation_loss) / 420 > np.asarray(train_loss) / 980
    runs = np.convolve(worse, np.ones(200), "valid") == 200
    stop = int(np.argmax(runs)) + 200
    assert stop == 3309
    assert abs(train_loss[stop - 1] - 238.5730) < 0.05
    assert abs(validation_loss[stop - 1] - 124.7022) < 0.05
    assert abs(train_loss[2800:3200].mean() - 234.1985) < 0.05
    assert abs(validation_loss[2800:3200].mean() - 124.3964) < 0.05


# --- Outcomes, where the draws differ. ---


@pytest.mark.whole
def test_moons_simple_recipe_is_within_the_reference_spread():
    # The reference's spread over ten seeds of AutoNormal, Adam 0.01, 10,000 steps, held to by the
    # best of four starts (two optima exist) and in the mean.
    train, _, (x_test, y_test) = moons()
    model = moons_model()
    guide = minisvi.mean_field(model.latents)
    svi = SVI(model, guide, adam(0.01))
    fits = [svi.run(jax.random.key(i), 10_000, *train, progress_bar=False) for i in range(4)]
    best = max(fits, key=lambda fit: fit.elbo[-500:].mean())
    p = Posterior(model, guide, best.params).predictive(
        jax.random.key(9),
        lambda key, w, x: jax.nn.sigmoid(moons_logits(w, x)),
        2000,
        x_test,
        batch_size=500,
    )
    p = p.mean(axis=0)
    nll = -np.mean(np.where(y_test, np.log(p), np.log1p(-p)))
    assert 213.0 < -best.elbo[-500:].mean() < 214.8
    assert 0.985 < roc_auc_score(y_test, p) < 0.988
    assert 0.93 <= np.mean((p > 0.5) == y_test) <= 0.94
    assert 0.150 < nll < 0.168


@pytest.mark.slow
def test_moons_simple_recipe_over_many_starts():
    # NumPyro's AutoNormal had 213.1 to 215.0 over twelve starts; a few starts in thirty end 10 to
    # 30 nats below.
    train, _, _ = moons()
    model = moons_model()
    svi = SVI(model, minisvi.mean_field(model.latents), adam(0.01))

    @jax.jit
    @jax.vmap
    def loss(key):
        _, info = svi.scan(svi.init(key, *train), 10_000, *train)
        return -info.elbo[-500:].mean()

    losses = np.sort(loss(jax.random.split(jax.random.key(5), 32)))
    assert 213.0 < losses[0] < 213.8
    assert 213.8 < np.median(losses) < 214.8
    assert losses[27] < 215.5


def test_gamma_posterior_with_a_decaying_schedule_is_exact():
    # Exact by quadrature: posterior sd 0.03932, log evidence -1590.66069.
    z, model = gamma_data(), gamma_model()
    guide = minisvi.mean_field(model.latents)
    svi = SVI(model, guide, adam(0.05, 3000), ELBO(10))
    result = svi.run(reference_keys()[2], 3000, z, progress_bar=False)
    draws = Posterior(model, guide, result.params).sample(jax.random.key(0), 100_000)[
        "concentration"
    ]
    assert abs(draws.std() / 0.03932 - 1) < 0.02
    assert abs(draws.mean() - 1.99826) < 0.1 * 0.03932
    elbo = jax.vmap(lambda k: ELBO()(k, model, guide, result.params, z))(
        jax.random.split(jax.random.key(1), 4000)
    )
    assert abs(elbo.mean() + 1590.66069) < 5e-3


@pytest.mark.whole
def test_mean_field_fits_what_autonormal_fits(key):
    # A correlated Gaussian: both must reach the same factorised optimum, of sd 1 / sqrt(precision
    # diagonal).
    cov = np.array([[2.0, 0.9], [0.9, 0.5]])
    loc, precision = np.array([4.0, -1.0]), np.linalg.inv(cov)

    def log_joint(theta):
        d = theta["w"] - jnp.asarray(loc)
        return -0.5 * d @ jnp.asarray(precision) @ d

    def model():
        numpyro.sample("w", dist.MultivariateNormal(jnp.asarray(loc), jnp.asarray(cov)))

    schedule = optax.cosine_decay_schedule(0.05, 4000)
    theirs = autoguide.AutoNormal(model)
    fitted = (
        NumpyroSVI(model, theirs, optax.adam(schedule), Trace_ELBO(8))
        .run(key, 4000, progress_bar=False)
        .params
    )
    ours = minisvi.Model({"w": minisvi.real(2)}, log_joint)
    svi = SVI(ours, minisvi.mean_field(ours.latents), optax.adam(schedule), ELBO(8))
    params = svi.run(key, 4000, progress_bar=False).params
    exact = 1 / np.sqrt(np.diag(precision))
    assert np.allclose(np.exp(params["log_scale"]), exact, rtol=0.02)
    assert np.allclose(fitted["w_auto_scale"], exact, rtol=0.02)
    assert np.allclose(params["loc"], loc, atol=0.02)


@pytest.mark.x64
def test_numpyros_softlaplace_is_the_examples(key):
    x = 3 * jax.random.normal(key, (7,))
    assert jnp.allclose(
        SoftLaplace(0.5, 2.0).log_prob(x), dist.SoftLaplace(0.5, 2.0).log_prob(x), rtol=2 * RTOL
    )
