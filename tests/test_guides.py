"""One table of guides against one list of properties: a new family costs a line."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT
from jax.scipy.stats import beta as beta_pdf
from jax.scipy.stats import gamma as gamma_pdf
from problems import conjugate_data, conjugate_model, conjugate_posterior
from tensorflow_probability.substrates.jax import distributions as tfd

import minisvi
from minisvi import ELBO, SVI, Model, Posterior, mean_field, positive, real, unit_interval

LATENTS = {"a": real(2), "b": {"c": positive(), "d": minisvi.simplex(3)}}  # D = 5
VECTOR = {"a": real(2)}


def normal_params(key, n=2):
    return {"loc": 1.0 + jax.random.normal(key, (n,)), "log_scale": jnp.array([-0.7, 0.4])}


def two_gammas(p, *_):
    return {"a": tfd.Gamma(jnp.exp(p["log_shape"]), jnp.exp(p["log_rate"]))}


# name: (guide, latents)
GUIDES = {
    "mean_field": (mean_field(LATENTS), LATENTS),
    "full_rank": (minisvi.full_rank(LATENTS), LATENTS),
    "mean_field in two dimensions": (mean_field(VECTOR), VECTOR),
    "full_rank in two dimensions": (minisvi.full_rank(VECTOR), VECTOR),
    "delta": (minisvi.delta(LATENTS), LATENTS),
    "custom distrax": (
        minisvi.custom(normal_params, lambda p, *_: {"a": distrax.Normal(p["loc"], jnp.exp(p["log_scale"]))}),
        VECTOR,
    ),
    "custom distrax multivariate": (
        minisvi.custom(
            normal_params, lambda p, *_: {"a": distrax.MultivariateNormalDiag(p["loc"], jnp.exp(p["log_scale"]))}
        ),
        VECTOR,
    ),
    "custom tfp": (
        minisvi.custom(normal_params, lambda p, *_: {"a": tfd.Normal(p["loc"], jnp.exp(p["log_scale"]))}),
        VECTOR,
    ),
    "custom over theta": (
        minisvi.custom(
            lambda key: {"log_shape": jnp.array([0.3, 1.0]), "log_rate": jnp.array([0.5, -1.0])}, two_gammas, True
        ),
        {"a": positive(2)},
    ),
}
NAMES = [pytest.param(name, marks=pytest.mark.foreign) if name.startswith("custom") else name for name in GUIDES]
DENSITIES = [name for name in NAMES if name != "delta"]


def fresh(name, key):
    """A member of the family away from its start."""
    guide, latents = GUIDES[name]
    init_key, noise_key = jax.random.split(key)
    params = guide.init(init_key)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(noise_key, len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys)]
    return guide, latents, jax.tree.unflatten(treedef, moved)


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_tree_of_the_latents(name, key):
    guide, latents, params = fresh(name, key)
    u, log_q = guide.distribution(params).sample_and_log_prob(seed=key)
    target = Model(latents, lambda theta: jnp.zeros(())).over(guide.constrained)
    theta = target.constrain(u)
    assert log_q.shape == ()
    for leaf, support in zip(jax.tree.leaves(theta), jax.tree.leaves(latents), strict=True):
        assert leaf.shape == support.shape
    assert jax.tree.structure(theta) == jax.tree.structure(latents)


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_equals_sample_and_log_prob(name, key):
    guide, _, params = fresh(name, key)
    q = guide.distribution(params)
    u, log_q = q.sample_and_log_prob(seed=key)
    assert jnp.allclose(q.log_prob(u), log_q, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_entropy_is_the_mean_of_minus_log_q(name, key):
    guide, _, params = fresh(name, key)
    q, n = guide.distribution(params), 20_000
    log_q = jax.vmap(lambda k: q.sample_and_log_prob(seed=k)[1])(jax.random.split(key, n))
    error = jnp.abs(q.entropy() + jnp.mean(log_q))
    assert error <= 4 * jnp.std(log_q) / n**0.5


@pytest.mark.parametrize(
    "name", [name for name in DENSITIES if GUIDES[getattr(name, "values", [name])[0]][1] != LATENTS]
)
def test_integrates_to_one_and_has_the_moments_of_its_draws(name, key):
    # By quadrature over a fine grid in two dimensions; over theta > 0 the grid is in log theta.
    guide, _, params = fresh(name, key)
    q = guide.distribution(params)
    warp, jacobian = (jnp.exp, jnp.sum) if guide.constrained else (lambda x: x, lambda x: jnp.zeros(()))
    draws = jax.vmap(lambda k: q.sample_and_log_prob(seed=k)[0]["a"])(jax.random.split(key, 50_000))
    x = jnp.log(draws) if guide.constrained else draws
    mean, sd = jnp.mean(x, 0), jnp.std(x, 0)
    grid = jnp.stack(jnp.meshgrid(*(mean[i] + sd[i] * jnp.linspace(-12, 12, 401) for i in (0, 1))), -1).reshape(-1, 2)
    mass = jnp.prod(24 * sd / 400) * jnp.exp(jax.vmap(lambda x: q.log_prob({"a": warp(x)}) + jacobian(x))(grid))
    assert jnp.allclose(jnp.sum(mass), 1.0, atol=2e-3)
    assert jnp.all(jnp.abs(mass @ grid - mean) < 4 * sd / 50_000**0.5 + 2e-3 * sd)


@pytest.mark.parametrize("name", DENSITIES)
def test_gradient_through_the_draws_is_that_of_the_expectation(name, key):
    # d/dphi E_q[f(u)] through the draws equals the score estimator E_q[f(u) dlog q/dphi], f smooth.
    guide, _, params = fresh(name, key)
    n = 200_000
    f = lambda u: sum(jnp.sum(jnp.tanh(0.3 * leaf)) for leaf in jax.tree.leaves(u))  # noqa: E731

    def draw(p, k):
        return guide.distribution(p).sample_and_log_prob(seed=k)[0]

    def score(p, k):
        u = jax.lax.stop_gradient(draw(p, k))
        return (f(u) - baseline) * guide.distribution(p).log_prob(u)

    keys = jax.random.split(key, n)
    baseline = jnp.mean(jax.vmap(lambda k: f(draw(params, k)))(jax.random.split(keys[0], 5_000)))
    paths = jax.jit(jax.vmap(jax.grad(lambda p, k: f(draw(p, k))), (None, 0)))(params, keys)
    scores = jax.jit(jax.vmap(jax.grad(score), (None, 0)))(params, keys)
    for path, other in zip(jax.tree.leaves(paths), jax.tree.leaves(scores), strict=True):
        error = np.sqrt((np.var(path, 0) + np.var(other, 0)) / n)
        assert np.all(np.abs(np.mean(path, 0) - np.mean(other, 0)) <= 4.5 * error)


@pytest.mark.parametrize("name", NAMES)
def test_jit_vmap_and_stopped_family(name, key):
    guide, _, params = fresh(name, key)
    draw = lambda p, k: guide.distribution(p).sample_and_log_prob(seed=k)  # noqa: E731
    u, log_q = jax.jit(jax.vmap(draw, (None, 0)))(params, jax.random.split(key, 3))
    one, one_log_q = draw(params, jax.random.split(key, 3)[2])
    assert all(jnp.allclose(a[2], b, atol=1e-5) for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(one)))
    assert jnp.allclose(log_q[2], one_log_q, atol=1e-4)
    stopped = jax.grad(lambda p: draw(jax.lax.stop_gradient(p), key)[1])(params)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(stopped))


@pytest.mark.parametrize("make", [mean_field, minisvi.full_rank, minisvi.delta])
def test_equal_arguments_give_equal_guides(make):
    one, two = make({"a": real(2), "b": positive()}), make({"b": positive(), "a": real(2)})
    assert one == two
    assert hash(one) == hash(two)
    assert one != make({"a": real(3), "b": positive()})


def test_mean_field_starts_as_numpyros_autonormal(key):
    params = mean_field({"a": real(5000)}).init(key)
    assert jnp.allclose(jnp.exp(params["log_scale"]), 0.1)
    assert -2 <= jnp.min(params["loc"]) < -1.99
    assert 1.99 < jnp.max(params["loc"]) <= 2


@pytest.mark.parametrize("make", [mean_field, minisvi.full_rank])
def test_given_start(make, key):
    model = Model(LATENTS, lambda theta: jnp.zeros(()))
    theta = {"a": jnp.array([3.0, -4.0]), "b": {"c": jnp.array(0.2), "d": jnp.array([0.2, 0.5, 0.3])}}
    guide = make(model.latents)
    q = guide.distribution(guide.init(key, loc=model.unconstrain(theta)))
    centre = model.constrain(minisvi.trees.unravel(model.latents, q.loc))
    for got, expected in zip(jax.tree.leaves(centre), jax.tree.leaves(theta), strict=True):
        assert jnp.allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("make", [mean_field, minisvi.full_rank])
def test_recovers_a_gaussian_off_the_origin(make, key):
    x, model = conjugate_data(), conjugate_model()
    loc, sd, log_evidence = conjugate_posterior(x)
    guide = make(model.latents)
    objective = ELBO(8, "sticking_the_landing")
    schedule = optax.cosine_decay_schedule(0.3, 4000)
    # Scales of 0.04 to 8: each step is of the size of its scale.
    start = guide.init(key, loc={"w": jnp.asarray([3.0, -20.0, 0.5], FLOAT)})
    result = SVI(model, guide, optax.adam(schedule), objective).run(key, 4000, x, params=start, progress_bar=False)
    q = guide.distribution(result.params)
    assert np.allclose((q.loc - loc) / sd, 0, atol=5e-3)
    elbo = jax.vmap(lambda k: ELBO()(k, model, guide, result.params, x))(jax.random.split(key, 2000))
    assert abs(jnp.mean(elbo) - log_evidence) < 1e-3


@pytest.mark.foreign
def test_full_rank_recovers_a_correlated_gaussian(key):
    loc = np.array([5.0, -3.0])
    cov = np.array([[4.0, 1.9 * 0.5], [1.9 * 0.5, 0.25]])
    log_density = tfd.MultivariateNormalTriL(jnp.asarray(loc, FLOAT), jnp.asarray(np.linalg.cholesky(cov), FLOAT))
    model = Model({"a": real(2)}, lambda theta: log_density.log_prob(theta["a"]))
    guide = minisvi.full_rank(model.latents)
    svi = SVI(model, guide, optax.adam(optax.cosine_decay_schedule(0.05, 6000)), ELBO(4, "sticking_the_landing"))
    q = guide.distribution(svi.run(key, 6000, progress_bar=False).params)
    dense = q.factor.dense()
    assert np.allclose(q.loc, loc, atol=5e-3)
    assert np.allclose(dense @ dense.T, cov, rtol=5e-3)


def test_delta_finds_the_map_in_the_constrained_space(key):
    # Gamma(3, 2): the mode is 1.0 over theta; with the log-determinant it would be 1.5.
    model = Model({"a": positive()}, lambda theta: gamma_pdf.logpdf(theta["a"], 3.0, scale=0.5))
    guide = minisvi.delta(model.latents)
    result = SVI(model, guide, optax.adam(0.05)).run(key, 1000, progress_bar=False)
    assert jnp.allclose(Posterior(model, guide, result.params).median(key)["a"], 1.0, atol=1e-4)
    assert jnp.allclose(result.elbo[-1], gamma_pdf.logpdf(1.0, 3.0, scale=0.5), atol=1e-5)


@pytest.mark.foreign
def test_delta_beside_a_distribution_learns_a_constant(key):
    # Empirical Bayes: x ~ N(w, 1), w ~ N(0, tau^2), tau learnt; its maximum likelihood is sqrt(x^2 - 1).
    x = jnp.array(3.0)
    latents = {"tau": positive(), "w": real()}

    def log_joint(theta, x):
        prior = tfd.Normal(jnp.zeros(()), theta["tau"]).log_prob(theta["w"])
        return prior + tfd.Normal(theta["w"], jnp.ones(())).log_prob(x)

    def distribution(params, *_):
        w = params["w"]
        return {
            "tau": minisvi.delta(positive()).distribution(params["tau"]),
            "w": distrax.Normal(w["loc"], jnp.exp(w["log_scale"])),
        }

    def init(key):
        return {"tau": jnp.zeros(()), "w": {"loc": jnp.zeros(()), "log_scale": jnp.zeros(())}}

    guide = minisvi.custom(init, distribution, constrained={"tau": True, "w": False})
    svi = SVI(Model(latents, log_joint), guide, optax.adam(optax.cosine_decay_schedule(0.05, 3000)), ELBO(10))
    result = svi.run(key, 3000, x, progress_bar=False)
    assert jnp.allclose(jnp.exp(result.params["tau"]), 8**0.5, rtol=1e-2)
    assert jnp.allclose(result.params["w"]["loc"], 3 * 8 / 9, rtol=1e-2)


@pytest.mark.foreign
def test_gamma_and_beta_guides_recover_their_own_family(key):
    # Implicit reparameterisation: targets Gamma(3, 2) and Beta(2, 5), guides over theta of the same families.
    def log_joint(theta):
        return gamma_pdf.logpdf(theta["rate"], 3.0, scale=0.5) + beta_pdf.logpdf(theta["share"], 2.0, 5.0)

    def distribution(params, *_):
        p = jax.tree.map(jnp.exp, params)
        return {"rate": tfd.Gamma(p["rate"][0], p["rate"][1]), "share": distrax.Beta(p["share"][0], p["share"][1])}

    model = Model({"rate": positive(), "share": unit_interval()}, log_joint)
    guide = minisvi.custom(lambda key: {"rate": jnp.zeros(2), "share": jnp.zeros(2)}, distribution, constrained=True)
    svi = SVI(model, guide, optax.adam(optax.cosine_decay_schedule(0.05, 3000)), ELBO(8, "sticking_the_landing"))
    result = svi.run(key, 3000, progress_bar=False)
    assert np.allclose(np.exp(result.params["rate"]), [3.0, 2.0], rtol=2e-2)
    assert np.allclose(np.exp(result.params["share"]), [2.0, 5.0], rtol=2e-2)
    assert np.allclose(result.elbo[-200:].mean(), 0.0, atol=2e-3)


def test_plain_network_weights_by_delta(key):
    # Maximum likelihood: no prior in the log joint. Least squares has a closed form.
    x = jax.random.normal(key, (50, 3)) + 1.0
    y = x @ jnp.array([2.0, -1.0, 0.5]) + 0.1 * jax.random.normal(jax.random.key(1), (50,))
    model = Model({"w": real(3)}, lambda theta, x, y: -jnp.sum((y - x @ theta["w"]) ** 2))
    guide = minisvi.delta(model.latents)
    result = SVI(model, guide, optax.lbfgs()).run(key, 50, x, y, progress_bar=False)
    assert np.allclose(result.params["w"], np.linalg.lstsq(np.asarray(x), np.asarray(y), rcond=None)[0], atol=1e-4)


def test_no_latents(key):
    model = Model({}, lambda theta, x: jnp.sum(x))
    for make in (mean_field, minisvi.full_rank, minisvi.delta):
        result = SVI(model, make({}), optax.adam(0.1)).run(key, 3, jnp.arange(4.0), progress_bar=False)
        assert np.allclose(result.elbo, 6.0)
        assert Posterior(model, make({}), result.params).sample(key, 2) == {}
