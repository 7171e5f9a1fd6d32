"""What NumPyro's own tests of SVI and of its autoguides assert, asked of minisvi.

Each row is a test of NumPyro's `test/infer/test_svi.py`, `test/infer/test_autoguide.py` or
`test/contrib/test_enum_elbo.py`, and where minisvi's answer is.

| NumPyro's test | minisvi's |
|---|---|
| test_renyi_elbo | here |
| test_renyi_local, test_renyi_create_plates | here: the weight of a minibatch goes into the bound |
| test_renyi_nonnested_plates | does not apply: there are no plates, and a density is a scalar |
| test_assign_vectorize_particles_fn, test_vectorized_particle | in test_elbo.py |
| svi: test_beta_bernoulli, test_run | here, with its Beta guide and two objectives |
| test_jitted_update_fn | here |
| svi, autoguide: test_param | here: the first estimate is log p - log q at the given start |
| test_shared_param_init, test_shared_param | in test_guides.py: `delta` learns it |
| test_init_params, test_init_to_scalar_value | in test_guides.py and test_svi.py: given starts |
| test_elbo_dynamic_support | here |
| test_run_with_small_num_steps | in test_guides.py: no latents |
| test_stable_run | in test_svi.py: skipped steps are counted |
| test_svi_discrete_latent, test_discrete_helpful_error | in test_discrete.py: static mistakes |
| test_elbo_by_site | does not apply: a model has two terms, and no sites |
| test_mutable_state | does not apply: densities are pure functions without a state |
| test_tracegraph_normal_normal, _beta_bernoulli, _gamma_exponential | here |
| test_tracegraph_gaussian_chain | here: reparameterised and other latents side by side |
| test_multi_sample_guide | does not apply: draws are the objective's particles |
| test_forward_mode_differentiation, test_autoguide_forward_mode_differentiation | does not apply: \
gradients are by reverse mode alone |
| autoguide: test_beta_bernoulli | here |
| test_logistic_regression | here |
| test_mvn_quantile | here |
| test_iaf | in test_flows.py and test_parity_catalogue.py: draws, inverses and log q |
| test_uniform_normal, test_dynamic_supports | here |
| test_laplace_approximation_warning | here: it is an error |
| test_laplace_approximation_custom_hessian | in test_laplace.py: three kinds of a Hessian |
| test_improper | here |
| test_module | in test_bnn.py |
| test_subsample_guide | in test_rows.py: local latents in minibatches |
| test_subsample | here: one state takes data of other sizes |
| test_autoguide_deterministic, test_subsample_model_with_deterministic, \
test_autodelta_capture_deterministic_variables | in test_posterior.py: functions of theta |
| test_plate_inconsistent | does not apply: there are no plates |
| test_sphere_helpful_error | does not apply: no support is a sphere |
| test_autocontinuous_local_error | here |
| test_autodelta_sample_posterior_with_sample_shape, \
test_autoguidelist_sample_posterior_with_sample_shape | here |
| test_autoguidelist | here |
| test_autoguidelist_deterministic, test_autoguide_with_delta_site | does not apply: no sites |
| test_autodais_subsampling_error, test_autosemidais and its like, test_autosldais, \
test_dais_vae | does not apply: no guide makes transitions of HMC |
| test_auto_batched, test_auto_batched_shapes, test_auto_batched_median | in test_families.py: \
`block` recovers a target of its own family |
| test_elbo_enumerate_1 to _plate_13, test_model_enum_subsample_1 to _3 | here in one example, and \
in test_discrete.py: sums by brute force, by row, and in minibatches |
| those of them that enumerate a guide, test_guide_plate_contraction, \
test_trace_enum_elbo_with_auxiliary_site | does not apply: sums are over the model's latents alone |
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from conftest import RTOL
from jax.scipy.stats import norm
from numpyro.distributions import transforms
from numpyro.infer import Trace_ELBO
from tiers import standing_for

import minisvi
from minisvi import ELBO, SVI, Model, Posterior, Renyi
from minisvi.second_order.newton import Expansion
from minisvi.second_order.response import covariance, is_sound

pytestmark = pytest.mark.foreign

QUIET = {"progress_bar": False}


def adam(rate, num_steps):
    return optax.adam(optax.cosine_decay_schedule(rate, num_steps))


# --- Bounds. ---


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_without_latents_renyi_is_the_elbo(alpha, key):
    model = Model({}, lambda theta, x: norm.logpdf(x))
    guide = minisvi.mean_field({})
    params = guide.init(key)

    def value_and_gradient(objective):
        return jax.jit(jax.value_and_grad(lambda x: objective(key, model, guide, params, x)))(2.0)

    value, gradient = value_and_gradient(Renyi(10, alpha=alpha))
    assert np.allclose(value, norm.logpdf(2.0), rtol=RTOL)
    assert np.allclose(gradient, -2.0, rtol=RTOL)
    assert np.allclose([value, gradient], value_and_gradient(ELBO(1)), rtol=RTOL)


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_renyi_counts_a_local_latent_as_often_as_its_row(alpha, key):
    """q is the prior, so that each row weighs log 0.6 whatever the draw."""
    rows = jnp.arange(100)
    latents = {"x": minisvi.local(minisvi.real())}
    model = Model(
        latents,
        prior=lambda theta: {"x": dist.Normal(0.0, 1.0)},
        log_likelihood=lambda theta, rows: jnp.full(rows.shape, jnp.log(0.6)),
    )
    member = minisvi.mean_field({"x": minisvi.real()}, scale=1.0)
    guide = minisvi.per_row(member, 100, lambda rows: rows)
    params = jax.tree.map(jnp.zeros_like, guide.init(key))
    objective = Renyi(10, alpha=alpha)

    @jax.jit
    def whole_and_part(params):
        whole = objective(key, model, guide, params, rows)
        return whole, objective(key, model, guide, params, rows[:2], weight=50.0)

    whole, part = whole_and_part(params)
    assert np.allclose(whole, 100 * np.log(0.6), rtol=10 * RTOL)
    assert np.allclose(part, whole, rtol=10 * RTOL)


def test_the_density_of_q_is_over_theta_whatever_the_map_of_the_prior(key):
    """A prior made by a chain of transforms, and a uniform guide on the same interval."""
    chain = [transforms.AffineTransform(0, 2), transforms.SigmoidTransform()]
    prior = dist.TransformedDistribution(dist.Normal(), [*chain, transforms.AffineTransform(0, 3)])
    q = dist.Uniform(0.0, 3.0)
    model = Model({"x": minisvi.interval(0.0, 3.0)}, lambda theta: prior.log_prob(theta["x"]))
    guide = minisvi.custom(lambda key: {}, lambda params: {"x": q}, constrained=True)
    x = 3.0 * (jnp.arange(100_000) + 0.5) / 100_000
    expected = jnp.mean(prior.log_prob(x) - q.log_prob(x))
    estimate = jax.jit(jax.vmap(lambda k: ELBO(1)(k, model, guide, {})))
    values = estimate(jax.random.split(key, 20_000))
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(20_000)


# --- One coin, two coins: the posterior is a Beta. ---

FLIPS = jnp.array([1.0] * 8 + [0.0] * 2)


def coin():
    return Model(
        {"p": minisvi.unit_interval()},
        log_prior=lambda theta: jnp.zeros(()),
        log_likelihood=lambda theta, x: dist.Bernoulli(theta["p"]).log_prob(x),
    )


def beta_guide(family):
    def q(params, *_):
        return {"p": family(jnp.exp(params["log_a"]), jnp.exp(params["log_b"]))}

    start = {"log_a": 0.0, "log_b": 0.0}
    return minisvi.custom(lambda key: start, q, constrained=True)


@pytest.mark.parametrize("name", standing_for(["elbo", "renyi"], "elbo"))
def test_a_beta_guide_finds_the_posterior(name, key):
    objective = {"elbo": ELBO(10), "renyi": Renyi(10, alpha=0.5)}[name]
    svi = SVI(coin(), beta_guide(dist.Beta), adam(0.05, 1000), objective)
    result = svi.run(key, 1000, FLIPS, **QUIET)
    a, b = jnp.exp(result.params["log_a"]), jnp.exp(result.params["log_b"])
    assert result.elbo.shape == (1000,)
    assert np.allclose(a / (a + b), 9 / 12, atol=0.01)
    assert np.allclose([a, b], [9.0, 3.0], rtol=0.15)


def test_the_first_estimate_is_log_p_minus_log_q_at_the_given_start(key):
    model, guide = coin(), beta_guide(dist.Beta)
    params = SVI(model, guide, optax.adam(0.1)).init(key, FLIPS).params
    assert params == {"log_a": 0.0, "log_b": 0.0}
    keys = jax.random.split(key, 20_000)
    estimate = jax.jit(jax.vmap(lambda k: ELBO(1)(k, model, guide, params, FLIPS)))
    ratio = np.exp(estimate(keys))
    evidence = 1 / 495  # 8! 2! / 11!
    assert abs(np.mean(ratio) - evidence) < 4 * np.std(ratio) / np.sqrt(20_000)


@pytest.mark.slow
def test_a_compiled_update_is_the_update(key):
    model = coin()
    svi = SVI(model, minisvi.mean_field(model), optax.adam(0.1))
    state = svi.init(key, FLIPS)
    plain, _ = svi.update(state, FLIPS)
    compiled, _ = jax.jit(svi.update)(state, FLIPS)
    before, one, two = (each.params["loc"] for each in (state, plain, compiled))
    assert np.allclose(one, two, atol=1e-5)
    assert abs(one - before) > 0.05  # of Adam's first step, which is 0.1


# --- Conjugate posteriors through draws that no gradient goes through. ---


class FakeNormal(dist.Normal):
    reparametrized_params = ()


class FakeBeta(dist.Beta):
    reparametrized_params = ()


class FakeGamma(dist.Gamma):
    reparametrized_params = ()


def test_no_gradient_goes_through_a_draw_that_is_not_reparameterised(key):
    def draw(loc, family):
        guide = minisvi.custom(lambda key: {}, lambda loc: {"x": family(loc, 1.0)})
        u, log_q = guide.distribution(loc).sample_and_log_prob(seed=key)
        return u["x"], log_q

    for family, gradient in ((dist.Normal, 1.0), (FakeNormal, 0.0)):
        of_draw, of_log_q = jax.jacobian(draw)(0.3, family)
        x, _ = draw(0.3, family)
        assert of_draw == gradient
        assert np.allclose(of_log_q, (1 - gradient) * (x - 0.3), atol=1e-6)


def by_score_function(key, model, guide, params, num_steps, *data):
    """The parameters that a fit by score functions reaches from these."""
    svi = SVI(model, guide, adam(0.02, num_steps), ELBO(20, "score_function"))
    return svi.run(key, num_steps, *data, params=params, **QUIET).params


@pytest.mark.slow
def test_score_functions_find_a_normal_posterior(key):
    precision, noise_precision = jnp.array([0.1, 0.1]), jnp.array([6.0, 4.0])
    prior_mean = jnp.array([0.0, 0.5])
    data = jnp.array([[-0.1, 0.3], [0.0, 0.4], [0.2, 0.5], [0.1, 0.7]])
    total = precision + 4 * noise_precision
    mean = (data.sum(0) * noise_precision + prior_mean * precision) / total

    def log_joint(theta, x):
        log_prior = norm.logpdf(theta["loc"], prior_mean, precision**-0.5)
        log_rows = norm.logpdf(x, theta["loc"][None], noise_precision[None] ** -0.5)
        return log_prior.sum() + log_rows.sum()

    def q(params, *_):
        return {"loc": FakeNormal(params["loc"], jnp.exp(params["log_sd"]))}

    start = {"loc": mean + 0.334, "log_sd": -0.5 * jnp.log(total) - 0.29}
    model = Model({"loc": minisvi.real(2)}, log_joint)
    found = by_score_function(key, model, minisvi.custom(lambda k: start, q), start, 3000, data)
    assert np.allclose(found["loc"], mean, atol=0.02)
    assert np.allclose(found["log_sd"], -0.5 * np.log(total), atol=0.05)


@pytest.mark.slow
def test_score_functions_find_a_beta_posterior(key):
    flips = jnp.array([0.0, 1.0, 1.0, 1.0])
    start = {"log_a": jnp.log(4.0) + 0.17, "log_b": jnp.log(2.0) - 0.143}
    found = by_score_function(key, coin(), beta_guide(FakeBeta), start, 3000, flips)
    assert np.allclose(found["log_a"], np.log(4.0), atol=0.08)
    assert np.allclose(found["log_b"], np.log(2.0), atol=0.08)


@pytest.mark.slow
def test_score_functions_find_a_gamma_posterior(key):
    def log_joint(theta, x):
        rate = theta["rate"]
        return dist.Gamma(1.0, 1.0).log_prob(rate) + dist.Exponential(rate).log_prob(x).sum()

    def q(params, *_):
        return {"rate": FakeGamma(jnp.exp(params["log_a"]), jnp.exp(params["log_b"]))}

    start = {"log_a": jnp.log(3.0) + 0.17, "log_b": jnp.log(6.0) - 0.143}
    guide = minisvi.custom(lambda k: start, q, constrained=True)
    model = Model({"rate": minisvi.positive()}, log_joint)
    found = by_score_function(key, model, guide, start, 3000, jnp.array([3.0, 2.0]))
    assert np.allclose(found["log_a"], np.log(3.0), atol=0.08)
    assert np.allclose(found["log_b"], np.log(6.0), atol=0.08)


@pytest.mark.slow
def test_both_kinds_of_draws_in_one_guide_find_the_same_normal(key):
    """x ~ N(0.2, 1), y ~ N(x, 1), four rows of N(y, 1), of which E[y | rows] and its sd are known;
    y is drawn by the score function and x, which is independent of it in q, by its own gradient.
    """
    rows = jnp.array([-0.1, 0.03, 0.2, 0.1])
    precision = np.array([[2.0, -1.0], [-1.0, 5.0]])
    mean = np.linalg.solve(precision, [0.2, float(rows.sum())])

    def log_joint(theta, rows):
        log_x, log_y = norm.logpdf(theta["x"], 0.2), norm.logpdf(theta["y"], theta["x"])
        return log_x + log_y + norm.logpdf(rows, theta["y"]).sum()

    def q(params, *_):
        x, y = params["x"], params["y"]
        return {
            "x": dist.Normal(x["loc"], jnp.exp(x["log_sd"])),
            "y": FakeNormal(y["loc"], jnp.exp(y["log_sd"])),
        }

    part = {"loc": jnp.array(0.6), "log_sd": jnp.array(-1.0)}
    start = {"x": part, "y": part}
    guide = minisvi.custom(lambda k: start, q)
    model = Model({"x": minisvi.real(), "y": minisvi.real()}, log_joint)
    found = by_score_function(key, model, guide, start, 3000, rows)
    locs = [found[name]["loc"] for name in "xy"]
    log_sds = [found[name]["log_sd"] for name in "xy"]
    assert np.allclose(locs, mean, atol=0.05)
    assert np.allclose(log_sds, -0.5 * np.log(np.diag(precision)), atol=0.05)


# --- Every family. ---

FAMILIES = {
    "mean_field": minisvi.mean_field,
    "full_rank": minisvi.full_rank,
    "low_rank": lambda latents: minisvi.low_rank(latents, 1),
    "delta": minisvi.delta,
    "autoregressive": lambda latents: minisvi.inverse_autoregressive(minisvi.mean_field(latents)),
    "spline": lambda latents: minisvi.spline_coupling(minisvi.mean_field(latents)),
    "affine": lambda latents: minisvi.affine_coupling(minisvi.mean_field(latents)),
    "mixture": lambda latents: minisvi.mixture(minisvi.mean_field(latents), 2),
}
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "mean_field"]
ALL = ["mean_field", *OTHERS]


@pytest.mark.parametrize("name", ALL)
def test_two_coins(name, key):
    """The means of two Betas, quantiles in order, and predictions of both columns."""
    flips = jnp.array([[1.0] * 8 + [0.0] * 2, [1.0] * 4 + [0.0] * 6]).T
    model = Model(
        {"p": minisvi.unit_interval(2)},
        log_prior=lambda theta: jnp.zeros(()),
        log_likelihood=lambda theta, x: dist.Bernoulli(theta["p"]).log_prob(x).sum(-1),
    )
    guide = FAMILIES[name](model.latents)
    result = SVI(model, guide, adam(0.05, 2000), ELBO(5)).run(key, 2000, flips, **QUIET)
    posterior = Posterior(model, guide, result.params)
    # The mode of p is the share of heads, and its mean is drawn towards a half.
    expected = flips.mean(0) if name == "delta" else (flips.sum(0) + 1) / 12
    assert np.allclose(posterior.mean(key)["p"], expected, atol=0.02)
    quantiles = posterior.quantiles(key, jnp.array([0.2, 0.5, 0.8]))["p"]
    assert quantiles.shape == (3, 2)
    assert np.all(np.diff(quantiles, axis=0) >= 0)

    def replicate(key, theta):
        return jax.random.bernoulli(key, theta["p"], flips.shape)

    assert posterior.predictive(key, replicate, 100).shape == (100, 10, 2)


@pytest.mark.parametrize("gradient", ["reparameterised", "closed_form_kl"])
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_logistic_regression(name, gradient, key):
    """Coefficients 1, 2, 3 of 3,000 rows, where the posterior's mean is known by NumPyro's NUTS."""
    if gradient == "closed_form_kl" and name not in ("mean_field", "full_rank"):
        pytest.skip("there is no closed form for it")
    x = jax.random.normal(jax.random.key(0), (3000, 3))
    y = dist.Bernoulli(logits=x @ jnp.arange(1.0, 4.0)).sample(jax.random.key(1))
    model = Model(
        {"coefs": minisvi.real(3)},
        prior=lambda theta: {"coefs": dist.Normal(jnp.zeros(3), 1.0)},
        log_likelihood=lambda theta, x, y: dist.Bernoulli(logits=x @ theta["coefs"]).log_prob(y),
    )
    guide = FAMILIES[name](model.latents)
    result = SVI(model, guide, adam(0.05, 1000), ELBO(1, gradient)).run(key, 1000, x, y, **QUIET)
    exact = minisvi.laplace(key, model, x, y)
    sd = np.sqrt(np.diag(exact.cov))
    median = Posterior(model, guide, result.params).median(key)["coefs"]
    assert np.allclose(median, jnp.arange(1.0, 4.0), rtol=0.1)
    # So many rows make the posterior a Gaussian.
    assert np.all(np.abs(median - exact.loc["coefs"]) < 0.5 * sd)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
@pytest.mark.parametrize("name", ["mean_field", "delta"])
def test_draws_have_the_shape_of_their_latent(name, shape, key):
    model = Model({"x": minisvi.real(shape)}, lambda theta: norm.logpdf(theta["x"]).sum())
    guide = FAMILIES[name](model.latents)
    draws = Posterior(model, guide, guide.init(key)).draws(key, 4)
    squares = draws.map(lambda theta: theta["x"] ** 2)
    assert draws.theta["x"].shape == (4, *shape)
    assert squares.theta.shape == (4, *shape)


def test_quantiles_of_a_full_rank_guide_are_its_marginals(key):
    latents = {"x": minisvi.real(2)}
    scale_tril = jnp.array([[1.0, 0.0], [0.5, 0.5]])
    guide = minisvi.full_rank(latents)
    params = guide.init(key, loc={"x": jnp.zeros(2)}, cov=scale_tril @ scale_tril.T)
    model = Model(latents, lambda theta: jnp.zeros(()))
    found = Posterior(model, guide, params).quantiles(key, 0.3, 100_000)["x"]
    expected = dist.Normal(0.0, jnp.array([1.0, np.sqrt(0.5)])).icdf(0.3)
    assert np.allclose(found, expected, atol=0.015)


PAIRS = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "full_rank"]


@pytest.mark.parametrize("name", ["full_rank", *PAIRS])
def test_a_guide_for_each_part(name, key):
    """y = 1 - x_0 / 2 - x_1, by a mean field over the intercept and another guide over slopes."""
    x = jax.random.normal(jax.random.key(0), (500, 2))
    slopes = jnp.array([-0.5, -1.0])
    y = 1 + x @ slopes + 0.05 * jax.random.normal(jax.random.key(1), (500,))
    latents = {"a": minisvi.real(), "b": minisvi.real(2)}
    model = Model(
        latents,
        prior=lambda theta: {"a": dist.Normal(0.0, 1.0), "b": dist.Normal(jnp.ones(2), 1.0)},
        log_likelihood=lambda theta, x, y: norm.logpdf(y, theta["a"] + x @ theta["b"], 0.05),
    )
    parts = {"a": minisvi.mean_field(latents["a"]), "b": FAMILIES[name](latents["b"])}
    guide = minisvi.product(parts)
    result = SVI(model, guide, adam(0.1, 1000)).run(key, 1000, x, y, **QUIET)
    mean = Posterior(model, guide, result.params).mean(key)
    assert np.allclose(mean["a"], 1.0, atol=0.02)
    assert np.allclose(mean["b"], slopes, atol=0.02)


# --- Supports, priors and Hessians that are awkward. ---


@pytest.mark.slow
def test_a_range_that_is_a_latent_is_written_by_a_unit_interval(key):
    """loc ~ Uniform(0, alpha) as alpha times a uniform number: both are near 0.9 in the end."""
    y = 0.9 + 0.1 * jax.random.normal(key, (1000,))
    latents = {"alpha": minisvi.unit_interval(), "share": minisvi.unit_interval()}

    def loc(theta):
        return theta["alpha"] * theta["share"]

    model = Model(
        latents,
        log_prior=lambda theta: jnp.zeros(()),
        log_likelihood=lambda theta, y: norm.logpdf(y, loc(theta), 0.1),
    )
    guide = minisvi.mean_field(latents)
    result = SVI(model, guide, adam(0.05, 1000), ELBO(5)).run(key, 1000, y, **QUIET)
    found = Posterior(model, guide, result.params).draws(key, 2000).map(loc)
    assert np.allclose(found.mean(), 0.9, atol=0.02)


def cubic(theta, x, y):
    mean = theta["a"] + theta["b"] @ jnp.stack([x, x**2, x**3])
    return norm.logpdf(y, mean, 1e-5)


def test_laplace_refuses_a_hessian_that_three_rows_leave_singular(key):
    """Four coefficients, three rows and hardly any noise: NumPyro warns of it."""
    x = jax.random.normal(jax.random.key(0), (3,))
    y = 1 + 2 * x + 3 * x**2 + 4 * x**3
    latents = {"a": minisvi.real(), "b": minisvi.real(3)}
    model = Model(latents, log_prior=lambda theta: jnp.zeros(()), log_likelihood=cubic)
    with pytest.raises(ValueError, match="Hessian"):
        minisvi.laplace(key, model, x, y)


@pytest.mark.slow
def test_flat_priors_of_which_the_data_know_the_sum_alone(key):
    y = jax.random.normal(key, (100,))
    latents = {"l": minisvi.real(2), "sigma": minisvi.positive()}
    model = Model(
        latents,
        log_prior=lambda theta: jnp.zeros(()),
        log_likelihood=lambda theta, y: norm.logpdf(y, theta["l"].sum(), theta["sigma"]),
    )
    guide = minisvi.mean_field(latents)
    result = SVI(model, guide, adam(0.02, 3000), ELBO(5)).run(key, 3000, y, **QUIET)
    assert np.all(np.isfinite(result.elbo))
    draws = Posterior(model, guide, result.params).draws(key, 4000)
    assert np.allclose(draws.map(lambda theta: theta["l"].sum()).mean(), y.mean(), atol=0.05)
    assert np.allclose(draws.mean()["sigma"], y.std(), rtol=0.1)


def test_a_flat_direction_has_no_linear_response():
    """The Hessian is positive definite, by rounding alone: its Schur complement is singular."""
    mixed = np.array([[0.25, 0.25], [0.0, 0.0]])
    of_scale = np.diag([11 / 7, 1.0])
    of_loc = 3 + mixed.T @ np.linalg.solve(of_scale, mixed)
    hessian = np.block([[of_loc, mixed.T], [mixed, of_scale]])
    np.linalg.cholesky(hessian)  # which raises if it is not positive definite
    expansion = Expansion(0.0, np.zeros(4), np.ones(4), lambda v: hessian @ v, hessian)
    assert not is_sound(covariance(expansion), np.ones(2))


@pytest.mark.slow
def test_an_improper_posterior_is_not_trusted(key):
    y = jax.random.normal(key, (100,))
    model = Model(
        {"l": minisvi.real(2)}, lambda theta, y: norm.logpdf(y, theta["l"].sum(), 1.0).sum()
    )
    fit = minisvi.fit(key, model, y, **QUIET)
    assert fit.verdict.level == "not trusted"


@pytest.mark.whole
def test_one_state_takes_data_of_other_sizes(key):
    """NumPyro starts from all rows and updates by half of them; so does this, as a fit of half."""
    x = 5 + jax.random.normal(key, (20,))
    latents = {"mu": minisvi.real(), "sigma": minisvi.positive()}
    model = Model(
        latents,
        log_prior=lambda theta: norm.logpdf(theta["mu"]) - theta["sigma"],
        log_likelihood=lambda theta, x: norm.logpdf(x, theta["mu"], theta["sigma"]),
    )
    svi = SVI(model, minisvi.mean_field(latents), optax.adam(0.1))
    of_all, of_half = svi.init(key, x), svi.init(key, x[:10])
    updated, expected = svi.update(of_all, x[:10])[0], svi.update(of_half, x[:10])[0]
    for one, two in zip(jax.tree.leaves(updated.params), jax.tree.leaves(expected.params)):
        assert np.allclose(one, two, rtol=RTOL)


def test_a_guide_without_rows_is_refused_for_local_latents(key):
    latents = {"x": minisvi.local(minisvi.real())}
    model = Model(
        latents,
        log_prior=lambda theta: jnp.zeros(()),
        log_likelihood=lambda theta, y: norm.logpdf(y, theta["x"]),
    )
    svi = SVI(model, minisvi.mean_field(latents), optax.adam(0.1))
    with pytest.raises(ValueError, match="latent `x` is local: expected a guide such as `per_row`"):
        svi.init(key, jnp.ones(10))


# --- A finite latent, summed out. ---


def mixture(x):
    loc = numpyro.sample("loc", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    parts = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.3, 0.7])), dist.Normal(loc, 1.0))
    with numpyro.plate("rows", x.size):
        numpyro.sample("x", parts, obs=x)


def point(x):
    numpyro.sample("loc", dist.Delta(numpyro.param("at"), event_dim=1))


def test_the_elbo_of_a_summed_model_is_that_of_numpyros_mixture(key):
    x = jnp.array([-2.1, -1.6, 1.2, 2.3, 1.9])
    latents = {"loc": minisvi.real(2), "group": minisvi.local(minisvi.finite(2))}

    def prior(theta):
        shares = dist.Categorical(jnp.array([0.3, 0.7]))
        return {"loc": dist.Normal(jnp.zeros(2), 5.0), "group": shares}

    def log_likelihood(theta, x):
        return norm.logpdf(x, theta["loc"][theta["group"]])

    model = Model(latents, prior=prior, log_likelihood=log_likelihood)
    summed = minisvi.sum_out(model, "group")
    guide = minisvi.delta(summed.latents)
    at = jnp.array([-1.0, 2.0])
    params = guide.init(key, loc={"loc": at})
    ours = jax.value_and_grad(lambda p: ELBO()(key, summed, guide, p, x))
    theirs = jax.value_and_grad(lambda at: -Trace_ELBO().loss(key, {"at": at}, mixture, point, x))
    found, expected = jax.jit(lambda p, at: (ours(p), theirs(at)))(params, at)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.allclose(one, two, rtol=10 * RTOL)
