"""What is particular to a guide: starts, points, custom guides over theta. What all share is in
`test_families.py`.
"""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT
from jax.scipy.stats import beta as beta_pdf
from jax.scipy.stats import gamma as gamma_pdf
from problems import adam, conjugate_data, conjugate_model, conjugate_posterior
from tensorflow_probability.substrates.jax import distributions as tfd

import minisvi
from minisvi import ELBO, SVI, Model, Posterior, mean_field, positive, real, unit_interval

LATENTS = {"a": real(2), "b": {"c": positive(), "d": minisvi.simplex(3)}}  # D = 5


@pytest.mark.parametrize("make", [mean_field, minisvi.full_rank, minisvi.delta])
def test_equal_arguments_give_equal_guides(make):
    one, two = make({"a": real(2), "b": positive()}), make({"b": positive(), "a": real(2)})
    assert one == two
    assert hash(one) == hash(two)
    assert one != make({"a": real(3), "b": positive()})


def test_equal_fields_of_another_class_are_another_guide():
    guide = minisvi.full_rank(LATENTS)
    one, two = minisvi.mixture(guide, 1), minisvi.whitened(guide, diagonal=True)
    assert [*vars(one).values()] == [*vars(two).values()]  # True is 1
    assert one != two


def test_mean_field_starts_as_numpyros_autonormal(key):
    params = mean_field({"a": real(5000)}).init(key)
    assert jnp.allclose(jnp.exp(params["log_scale"]), 0.1)
    assert -2 <= jnp.min(params["loc"]) < -1.99
    assert 1.99 < jnp.max(params["loc"]) <= 2


@pytest.mark.parametrize("make", [mean_field, minisvi.full_rank])
def test_given_start(make, key):
    model = Model(LATENTS, lambda theta: jnp.zeros(()))
    theta = {
        "a": jnp.array([3.0, -4.0]),
        "b": {"c": jnp.array(0.2), "d": jnp.array([0.2, 0.5, 0.3])},
    }
    guide = make(model.latents)
    q = guide.distribution(guide.init(key, loc=model.unconstrain(theta)))
    centre = model.constrain(minisvi.model.trees.unravel(model.latents, q.loc))
    for got, expected in zip(jax.tree.leaves(centre), jax.tree.leaves(theta), strict=True):
        assert jnp.allclose(got, expected, rtol=1e-5)


@pytest.mark.whole
@pytest.mark.parametrize("make", [mean_field, minisvi.full_rank])
def test_recovers_a_gaussian_off_the_origin(make, key):
    x, model = conjugate_data(), conjugate_model()
    loc, sd, log_evidence = conjugate_posterior(x)
    guide = make(model.latents)
    objective = ELBO(8, "sticking_the_landing")
    schedule = optax.cosine_decay_schedule(0.3, 4000)
    # Scales of 0.04 to 8: each step is of the size of its scale.
    start = guide.init(key, loc={"w": jnp.asarray([3.0, -20.0, 0.5], FLOAT)})
    result = SVI(model, guide, optax.adam(schedule), objective).run(
        key, 4000, x, params=start, progress_bar=False
    )
    q = guide.distribution(result.params)
    assert np.allclose((q.loc - loc) / sd, 0, atol=5e-3)
    elbo = jax.vmap(lambda k: ELBO()(k, model, guide, result.params, x))(
        jax.random.split(key, 2000)
    )
    assert abs(jnp.mean(elbo) - log_evidence) < 1e-3


@pytest.mark.whole
@pytest.mark.foreign
def test_full_rank_recovers_a_correlated_gaussian(key):
    loc = np.array([5.0, -3.0])
    cov = np.array([[4.0, 1.9 * 0.5], [1.9 * 0.5, 0.25]])
    log_density = tfd.MultivariateNormalTriL(
        jnp.asarray(loc, FLOAT), jnp.asarray(np.linalg.cholesky(cov), FLOAT)
    )
    model = Model({"a": real(2)}, lambda theta: log_density.log_prob(theta["a"]))
    guide = minisvi.full_rank(model.latents)
    svi = SVI(
        model,
        guide,
        adam(0.05, 6000),
        ELBO(4, "sticking_the_landing"),
    )
    q = guide.distribution(svi.run(key, 6000, progress_bar=False).params)
    dense = q.factor.dense()
    assert np.allclose(q.loc, loc, atol=5e-3)
    assert np.allclose(dense @ dense.T, cov, rtol=5e-3)


def test_delta_is_a_point_without_entropy(key):
    guide = minisvi.delta(LATENTS)
    q = guide.distribution(guide.init(key))
    theta, log_q = q.sample_and_log_prob(seed=key)
    assert jnp.sum(theta["b"]["d"]) == pytest.approx(1.0)
    assert log_q == q.log_prob(theta) == q.entropy() == 0


def test_delta_finds_the_map_in_the_constrained_space(key):
    # Gamma(3, 2): the mode is 1.0 over theta; with the log-determinant it would be 1.5.
    model = Model({"a": positive()}, lambda theta: gamma_pdf.logpdf(theta["a"], 3.0, scale=0.5))
    guide = minisvi.delta(model.latents)
    result = SVI(model, guide, adam(0.05)).run(key, 1000, progress_bar=False)
    assert jnp.allclose(Posterior(model, guide, result.params).median(key)["a"], 1.0, atol=1e-4)
    assert jnp.allclose(result.elbo[-1], gamma_pdf.logpdf(1.0, 3.0, scale=0.5), atol=1e-5)


@pytest.mark.foreign
def test_delta_beside_a_distribution_learns_a_constant(key):
    # Empirical Bayes: x ~ N(w, 1), w ~ N(0, tau^2), tau learnt; its maximum likelihood is sqrt(x^2
    # - 1).
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
    svi = SVI(
        Model(latents, log_joint),
        guide,
        adam(0.05, 3000),
        ELBO(10),
    )
    result = svi.run(key, 3000, x, progress_bar=False)
    assert jnp.allclose(jnp.exp(result.params["tau"]), 8**0.5, rtol=1e-2)
    assert jnp.allclose(result.params["w"]["loc"], 3 * 8 / 9, rtol=1e-2)


@pytest.mark.whole
@pytest.mark.foreign
def test_gamma_and_beta_guides_recover_their_own_family(key):
    # Implicit reparameterisation: targets Gamma(3, 2) and Beta(2, 5), guides over theta of the same
    # families.
    def log_joint(theta):
        return gamma_pdf.logpdf(theta["rate"], 3.0, scale=0.5) + beta_pdf.logpdf(
            theta["share"], 2.0, 5.0
        )

    def distribution(params, *_):
        p = jax.tree.map(jnp.exp, params)
        return {
            "rate": tfd.Gamma(p["rate"][0], p["rate"][1]),
            "share": distrax.Beta(p["share"][0], p["share"][1]),
        }

    model = Model({"rate": positive(), "share": unit_interval()}, log_joint)
    guide = minisvi.custom(
        lambda key: {"rate": jnp.zeros(2), "share": jnp.zeros(2)}, distribution, constrained=True
    )
    svi = SVI(
        model,
        guide,
        adam(0.05, 3000),
        ELBO(8, "sticking_the_landing"),
    )
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
    assert np.allclose(
        result.params["w"], np.linalg.lstsq(np.asarray(x), np.asarray(y), rcond=None)[0], atol=1e-4
    )


def test_no_latents(key):
    model = Model({}, lambda theta, x: jnp.sum(x))
    for make in (mean_field, minisvi.full_rank, minisvi.delta):
        result = SVI(model, make({}), adam(0.1)).run(key, 3, jnp.arange(4.0), progress_bar=False)
        assert np.allclose(result.elbo, 6.0)
        assert Posterior(model, make({}), result.params).sample(key, 2) == {}
