"""Objectives x properties on the conjugate Gaussian, whose every bound and gradient has a closed
form.
"""

from functools import lru_cache

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT, RTOL
from problems import (
    NOISE_SD,
    PRIOR_LOC,
    PRIOR_SD,
    adam,
    conjugate_data,
    conjugate_model,
    conjugate_posterior,
)
from tiers import standing_for

import minisvi
from minisvi import (
    CUBO,
    ELBO,
    SVI,
    FixedDraws,
    ForwardKL,
    ImportanceWeighted,
    Model,
    Renyi,
    mean_field,
)
from minisvi.tools import noise

pytestmark = pytest.mark.foreign  # the priors are Distrax's

DATA = conjugate_data()
POST_LOC, POST_SD, LOG_EVIDENCE = conjugate_posterior(DATA)
# q off the posterior, in location by half an sd and in scale by a tenth either way, so that every
# bound is finite.
LOC, SD = POST_LOC + np.array([0.4, -0.6, 0.3]) * POST_SD, POST_SD * np.array([1.1, 0.9, 1.15])


def model():
    prior = {"w": distrax.Normal(jnp.asarray(PRIOR_LOC, FLOAT), jnp.asarray(PRIOR_SD, FLOAT))}
    return Model(
        conjugate_model().latents,
        prior=lambda theta: prior,
        log_likelihood=conjugate_model().log_likelihood,
    )


MODEL = model()
GUIDE = mean_field(MODEL.latents)


class Stopped:
    """The same distribution, with draws that carry no gradient."""

    reparameterised = False

    def __init__(self, q):
        self.q = q

    def sample_and_log_prob(self, *, seed):
        u = jax.lax.stop_gradient(self.q.sample_and_log_prob(seed=seed)[0])
        return u, self.q.log_prob(u)

    def log_prob(self, u):
        return self.q.log_prob(u)


SCORED = minisvi.custom(GUIDE.init, lambda params, *_: Stopped(GUIDE.distribution(params)))


def params(loc=LOC, sd=SD):
    return {"loc": jnp.asarray(loc, FLOAT), "log_scale": jnp.asarray(np.log(sd), FLOAT)}


def together(objectives, key, num, p=None, guide=GUIDE, **batch):
    """The `estimates` of several objectives at the same draws, in one program."""
    elbos = [lambda p, k, o=o: o(k, MODEL, guide, p, DATA, **batch) for o in objectives]
    run = jax.jit(
        jax.vmap(lambda p, k: [jax.value_and_grad(elbo)(p, k) for elbo in elbos], (None, 0))
    )
    pairs = run(params() if p is None else p, jax.random.split(key, num))
    return [(np.asarray(value, np.float64), in_sds(grad)) for value, grad in pairs]


def in_sds(grad):
    grad = np.concatenate(
        [np.asarray(grad["loc"]) * POST_SD, np.asarray(grad["log_scale"])], axis=1
    )
    return grad.astype(np.float64)


def estimates(objective, key, num, p=None, guide=GUIDE, **batch):
    """Values (num,) and gradients (num, 6), in units of the posterior's sd."""
    return together([objective], key, num, p, guide, **batch)[0]


def values(objective, key, num):
    """The values (num,) alone."""
    run = jax.jit(jax.vmap(lambda k: objective(k, MODEL, GUIDE, params(), DATA)))
    return np.asarray(run(jax.random.split(key, num)), np.float64)


def within(draws, exact):
    """Four standard errors, and rounding: antithetic gradients of the location are exact, with no
    spread at all.
    """
    return np.all(np.abs(draws.mean(0) - exact) < 4 * draws.std(0) / len(draws) ** 0.5 + 20 * RTOL)


def log_power_mean(power, loc=LOC, sd=SD):
    """log E_q[w^power] / power in closed form, w = p(u, x) / q(u)."""
    precision = power / POST_SD**2 + (1 - power) / sd**2
    assert np.all(precision > 0)
    quadratic = (
        power * (1 - power) * (loc - POST_LOC) ** 2 / (power * sd**2 + (1 - power) * POST_SD**2)
    )
    log_norm = -power * np.log(POST_SD) - (1 - power) * np.log(sd) - 0.5 * np.log(precision)
    return LOG_EVIDENCE + np.sum(log_norm - 0.5 * quadratic) / power


def exact_elbo(beta_kl=1.0, beta_likelihood=1.0, loc=LOC, sd=SD):
    """beta_l E_q[log p(x | w)] - beta_k KL(q || prior)."""
    x = np.asarray(DATA, np.float64)
    variance = sd**2 + (x - loc) ** 2
    likelihood = np.sum(-0.5 * variance / NOISE_SD**2 - np.log(NOISE_SD) - 0.5 * np.log(2 * np.pi))
    kl = np.log(PRIOR_SD / sd) + (sd**2 + (loc - PRIOR_LOC) ** 2) / (2 * PRIOR_SD**2) - 0.5
    return beta_likelihood * likelihood - beta_kl * kl.sum()


ELBO_GRADIENT = np.concatenate([(POST_LOC - LOC) / POST_SD, 1 - SD**2 / POST_SD**2])
FORWARD_KL = np.sum(np.log(SD / POST_SD) + (POST_SD**2 + (LOC - POST_LOC) ** 2) / (2 * SD**2) - 0.5)
FORWARD_GRADIENT = np.concatenate(
    [(POST_LOC - LOC) * POST_SD / SD**2, (POST_SD**2 + (LOC - POST_LOC) ** 2) / SD**2 - 1]
)

# name: (objective with unbiased value and gradient of the ELBO, guide)
ELBOS = {
    gradient + suffix: (
        ELBO(num, gradient, draws),
        SCORED if gradient == "score_function" else GUIDE,
    )
    for gradient in ELBO._gradients
    for suffix, num, draws in [
        ("", 2, "independent"),
        (", antithetic", 2, "antithetic"),
        (", quasi", 4, "quasi"),
    ]
    if gradient != "score_function" or draws == "independent"
}
# name: (objective at K particles, limit of its value as K grows)
BOUNDS = {
    "importance weighted": (lambda k, **options: ImportanceWeighted(k, **options), LOG_EVIDENCE),
    "renyi 0.5": (lambda k, **options: Renyi(k, alpha=0.5, **options), log_power_mean(0.5)),
    "renyi 2": (lambda k, **options: Renyi(k, alpha=2.0, **options), log_power_mean(-1.0)),
    "renyi -0.5": (lambda k, **options: Renyi(k, alpha=-0.5, **options), log_power_mean(1.5)),
    "cubo": (lambda k, **options: CUBO(k, **options), -log_power_mean(2.0)),
    "forward kl": (lambda k, **options: ForwardKL(k, **options), -FORWARD_KL),
}
DOUBLE = [name for name in BOUNDS if name != "forward kl"]


@pytest.mark.parametrize(
    "name",
    standing_for(
        ELBOS,
        "reparameterised, antithetic",
        "sticking_the_landing, quasi",
        "closed_form_entropy",
        "closed_form_kl",
        "score_function",
    ),
)
def test_elbo_and_gradient_are_unbiased(name, key):
    objective, guide = ELBOS[name]
    value, grad = estimates(objective, key, 100_000, guide=guide)
    assert within(value, exact_elbo())
    assert within(grad, ELBO_GRADIENT)


@lru_cache
def values_of_all_bounds(num):
    """{name: values} of every bound at `num` particles, at the same draws, in one program."""
    run = jax.vmap(
        lambda k: {
            name: make(num)(k, MODEL, GUIDE, params(), DATA) for name, (make, _) in BOUNDS.items()
        }
    )
    found = jax.jit(run)(jax.random.split(jax.random.key(20), round(40_000 / num**0.5)))
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


@pytest.mark.parametrize("name", BOUNDS)
def test_bias_of_a_bound_shrinks_as_one_over_k(name):
    _, limit = BOUNDS[name]
    gaps, errors = [], []
    for num in (4, 16, 64, 256):
        value = values_of_all_bounds(num)[name]
        gaps.append(value.mean() - limit)
        errors.append(value.std() / len(value) ** 0.5)
    for gap, later, error in zip(gaps, gaps[1:], errors):
        assert abs(later) < 0.6 * abs(gap) + 4 * error
    assert abs(gaps[-1]) < 0.1 * abs(gaps[0]) + 4 * errors[-1]


@pytest.mark.parametrize("name", standing_for(DOUBLE, "renyi 0.5"))
def test_both_gradients_of_a_bound_have_the_same_mean(name, key):
    make, _ = BOUNDS[name]
    # At the same draws the bound is the same, and the error is that of the difference.
    (value, plain), (same, double) = together(
        [make(5), make(5, gradient="doubly_reparameterised")], key, 100_000
    )
    assert np.allclose(same, value, rtol=RTOL)
    difference = plain - double
    assert np.all(difference.std(0) > 0.01)  # they are two estimators
    error = difference.std(0) / 100_000**0.5
    assert np.all(np.abs(difference.mean(0)) < 4 * error)
    assert np.max(np.abs(plain.mean(0)) / error) > 20  # there was a gradient to see


def test_bias_of_the_forward_kls_gradient_shrinks(key):
    gaps, errors = [], []
    for num in (10, 100, 1000):
        _, grad = estimates(ForwardKL(num), key, 400_000 // num)
        gaps.append(np.max(np.abs(grad.mean(0) - FORWARD_GRADIENT)))
        errors.append(4 * np.max(grad.std(0)) / len(grad) ** 0.5)
    assert gaps[0] > 3 * errors[0]  # there was a bias to see
    assert gaps[1] < 0.3 * gaps[0] + errors[1]
    assert gaps[2] < 0.03 * gaps[0] + errors[2]


@pytest.mark.whole
def test_bounds_are_ordered(key):
    objectives = [ELBO(1), ImportanceWeighted(2), ImportanceWeighted(10), ImportanceWeighted(100)]
    found = [values(objective, key, 20_000) for objective in objectives]
    means = [value.mean() for value in found] + [LOG_EVIDENCE, -values(CUBO(1000), key, 200).mean()]
    errors = [value.std() / len(value) ** 0.5 for value in found] + [0.0, 0.0]
    assert all(low < high + 3 * error for low, high, error in zip(means, means[1:], errors))
    assert means[0] < LOG_EVIDENCE - 0.2
    assert means[-1] > LOG_EVIDENCE + 0.05


EXACT = {"elbo": ELBO(3, "sticking_the_landing")} | {
    name: BOUNDS[name][0](3, gradient="doubly_reparameterised") for name in DOUBLE
}


@pytest.mark.parametrize(
    "objective",
    standing_for(EXACT.values(), EXACT["elbo"], EXACT["renyi 2"], EXACT["cubo"]),
    ids=EXACT,
)
def test_gradient_is_zero_for_each_draw_where_q_is_the_posterior(objective, key):
    optimum = params(POST_LOC, POST_SD)
    other = type(objective)(**{**objective.__dict__, "gradient": "reparameterised"})
    (value, grad), (_, plain) = together([objective, other], key, 200, optimum)
    sign = -1 if isinstance(objective, CUBO) else 1
    assert np.allclose(value, sign * LOG_EVIDENCE, rtol=5 * RTOL)
    assert np.max(np.abs(grad)) < 3000 * jnp.finfo(FLOAT).eps
    assert np.all(plain[:, :3].std(0) > 0.2)


def test_renyi_meets_the_elbo_at_one(key):
    # log mean exp(d x) / d = mean x + d var x / 2 + O(d^2), for the same draws.
    alphas = [1 - 1e-1, 1 - 1e-3, 1 - 1e-5, 1 - 1e-6, 1.0, 1 + 1e-6, 1 + 1e-4]
    (elbo, elbo_grad), *found = together(
        [ELBO(50)] + [Renyi(50, alpha=alpha) for alpha in alphas], key, 20
    )
    for alpha, (renyi, grad) in zip(alphas, found, strict=True):
        d = abs(1 - alpha)
        assert np.allclose(renyi, elbo, rtol=2 * RTOL, atol=3 * d), alpha
        assert np.allclose(grad, elbo_grad, rtol=1e-3, atol=30 * d + 1e-3), alpha


@pytest.mark.parametrize("shape", [(7, 3), (1, 4), (5, 0)])
def test_normals_drawn_as_a_vector_are_those_of_the_array(shape, key):
    assert np.array_equal(noise.normals(key, shape), jax.random.normal(key, shape))


def test_antithetic_draws_make_the_location_gradient_exact(key):
    # On a Gaussian it is linear in eps, and eps and -eps cancel.
    _, grad = estimates(ELBO(2, sampling="antithetic"), key, 50)
    assert np.allclose(grad[:, :3], ELBO_GRADIENT[:3], atol=2e4 * jnp.finfo(FLOAT).eps)
    _, independent = estimates(ELBO(2), key, 50)
    assert np.all(independent[:, :3].std(0) > 0.1)


def test_quasi_random_draws_have_a_fraction_of_the_variance(key):
    value, grad = estimates(ELBO(64), key, 2000)
    quasi_value, quasi_grad = estimates(ELBO(64, sampling="quasi"), key, 2000)
    assert quasi_value.var() < 0.1 * value.var()
    assert np.all(quasi_grad.var(0) < 0.1 * grad.var(0))
    bound = values(ImportanceWeighted(64), key, 2000)
    assert values(ImportanceWeighted(64, sampling="quasi"), key, 2000).var() < 0.5 * bound.var()


# --- Common random numbers. ---


@pytest.mark.parametrize(
    "objective",
    standing_for(
        [ELBO(8, sampling="antithetic"), ImportanceWeighted(8), Renyi(8, alpha=0.3)],
        ELBO(8, sampling="antithetic"),
    ),
)
def test_fixed_draws_do_not_depend_on_the_key(objective, key):
    fixed = FixedDraws(objective, seed=4)
    value, grad = estimates(fixed, key, 3)
    assert np.ptp(value) == 0
    assert np.all(np.ptp(grad, axis=0) == 0)
    expected = jax.jit(lambda k: objective(k, MODEL, GUIDE, params(), DATA))(jax.random.key(4))
    assert value[0] == pytest.approx(float(expected), rel=RTOL)
    assert FixedDraws(objective, 4) == fixed
    assert hash(FixedDraws(objective, 4)) == hash(fixed)
    assert FixedDraws(objective, 5) != fixed


def test_fixed_antithetic_draws_and_lbfgs_find_the_exact_location(key):
    # Antithetic draws have mean zero, so that the fixed ELBO's optimum is the posterior's location.
    svi = SVI(MODEL, GUIDE, optax.lbfgs(), FixedDraws(ELBO(32, sampling="antithetic")))
    result = svi.run(key, 60, DATA, params=params(), progress_bar=False)
    assert np.allclose((result.params["loc"] - POST_LOC) / POST_SD, 0, atol=1e-3)
    grad = jax.jit(jax.grad(lambda p: svi.objective(key, MODEL, GUIDE, p, DATA)))(result.params)
    assert np.all(np.abs(grad["loc"] * POST_SD) < 1e-2)
    assert np.all(np.abs(grad["log_scale"]) < 1e-2)


# --- Annealing. ---


@pytest.mark.parametrize(
    "gradient",
    standing_for(
        [
            "reparameterised",
            "sticking_the_landing",
            "closed_form_entropy",
            "closed_form_kl",
            "score_function",
        ],
        "closed_form_kl",
        "score_function",
    ),
)
def test_annealed_elbo_is_the_closed_form_with_its_weights(gradient, key):
    # One program for all the weights: it is the step that picks them.
    weights = np.array([(0.3, 1.0), (1.0, 0.6), (0.25, 0.5), (0.0, 1.0)])
    at_step = lambda column: lambda step: jnp.asarray(weights[:, column], FLOAT)[step]
    objective = ELBO(2, gradient, kl_weight=at_step(0), likelihood_weight=at_step(1))
    guide = SCORED if gradient == "score_function" else GUIDE
    elbo = lambda p, k, step: objective(k, MODEL, guide, p, DATA, step=step)
    run = jax.jit(jax.vmap(jax.value_and_grad(elbo), (None, 0, None)))
    for step, (kl, likelihood) in enumerate(weights):
        value, grad = run(params(), jax.random.split(key, 40_000), step)
        assert within(np.asarray(value, np.float64), exact_elbo(kl, likelihood))
        at = lambda shift, kl=kl, likelihood=likelihood: exact_elbo(
            kl, likelihood, LOC + shift * POST_SD
        )
        assert within(
            in_sds(grad)[:, :3],
            np.array([(at(1e-5 * e) - at(-1e-5 * e)) / 2e-5 for e in np.eye(3)]),
        )


def test_annealing_follows_the_step_and_ends_at_the_plain_elbo(key):
    schedule = optax.linear_schedule(0.0, 1.0, 100)
    svi = SVI(MODEL, GUIDE, optax.sgd(0.0), ELBO(50, kl_weight=schedule))
    result = svi.run(key, 150, DATA, params=params(), progress_bar=False)
    for step in (0, 37, 100, 149):
        exact = exact_elbo(min(step / 100, 1.0))
        assert abs(result.elbo[step] - exact) < 1.5
    plain = SVI(MODEL, GUIDE, optax.sgd(0.0), ELBO(50)).run(
        key, 150, DATA, params=params(), progress_bar=False
    )
    assert np.allclose(result.elbo[100:], plain.elbo[100:], rtol=2 * RTOL)


def test_objectives_pass_through_a_whole_fit_without_a_second_trace(key):
    traces = []

    def log_likelihood(theta, x):
        traces.append(None)
        return conjugate_model().log_likelihood(theta, x)

    target = Model(MODEL.latents, prior=MODEL.prior, log_likelihood=log_likelihood)
    optimizer = adam(0.05, 1500)
    start = params(POST_LOC + POST_SD, 2 * POST_SD)
    for make in (
        lambda: ELBO(4, "closed_form_kl", "quasi"),
        lambda: Renyi(8, "doubly_reparameterised", alpha=0.5),
        lambda: ImportanceWeighted(8, "doubly_reparameterised"),
        lambda: CUBO(64, "doubly_reparameterised"),
        lambda: ForwardKL(64),
    ):
        result = SVI(target, GUIDE, optimizer, make()).run(
            key, 1500, DATA, params=start, progress_bar=False
        )
        assert np.allclose((result.params["loc"] - POST_LOC) / POST_SD, 0, atol=0.15)
        assert np.allclose(np.exp(result.params["log_scale"]) / POST_SD, 1, atol=0.15)
        count = len(traces)
        SVI(target, GUIDE, optimizer, make()).run(
            key, 9, DATA + 1, params=start, progress_bar=False
        )
        assert len(traces) == count
