"""Discrete latents: the categorical guide, the score-function gradient, and exact sums, against
enumeration.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT, RTOL
from jax.scipy.stats import norm
from problems import adam
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from tiers import standing_for

import minisvi
from minisvi import (
    CUBO,
    ELBO,
    SVI,
    ForwardKL,
    FullBatch,
    ImportanceWeighted,
    Minibatches,
    Model,
    Posterior,
    categorical,
    conditional,
    finite,
    local,
    log_conditional,
    mean_field,
    per_row,
    product,
    real,
    sum_out,
)

KEY = jax.random.key(0)


class Normal:
    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def log_prob(self, x):
        return norm.logpdf(x, self.loc, self.scale)


class Categorical:
    def __init__(self, weights):
        self.logits = jnp.log(jnp.asarray(weights, FLOAT))

    def log_prob(self, z):
        return self.logits[z]


def first(*data):
    return data[0]


# The guide.
TREE = {"a": finite(3, 2), "b": finite(4)}
LOGITS = {
    "a": jnp.array([[1.0, -0.5, 0.3], [0.0, 2.0, -1.0]]),
    "b": jnp.array([0.5, -2.0, 0.0, 1.5]),
}


def states_and_probabilities():
    """All 36 states of TREE, and their probabilities."""
    states = list(itertools.product(range(3), range(3), range(4)))
    p, q, r = (
        softmax(np.asarray(LOGITS["a"][0])),
        softmax(np.asarray(LOGITS["a"][1])),
        softmax(np.asarray(LOGITS["b"])),
    )
    return np.array(states), np.array([p[i] * q[j] * r[k] for i, j, k in states])


def test_categorical_knows_its_probabilities_and_entropy():
    q = categorical(TREE).distribution(LOGITS)
    states, expected = states_and_probabilities()
    log_q = jax.vmap(lambda s: q.log_prob({"a": s[:2], "b": s[2]}))(jnp.asarray(states))
    assert np.allclose(np.exp(log_q), expected, rtol=10 * RTOL)
    assert np.exp(log_q).sum() == pytest.approx(1.0, rel=10 * RTOL)
    assert q.entropy() == pytest.approx(-np.sum(expected * np.log(expected)), rel=10 * RTOL)


@pytest.mark.parametrize("by", ["key", "noise"])
def test_categorical_draws_each_state_as_often_as_it_should(by, key):
    q, n = categorical(TREE).distribution(LOGITS), 40_000
    noise = jax.random.split(key, n) if by == "key" else jax.random.normal(key, (n, q.noise_size))
    z, log_q = jax.jit(jax.vmap(lambda piece: q.draw(piece)))(noise)
    assert {name: leaf.dtype for name, leaf in z.items()} == {"a": jnp.int32, "b": jnp.int32}
    assert np.allclose(jax.vmap(q.log_prob)(z), log_q, rtol=10 * RTOL)
    _, p = states_and_probabilities()
    cells = np.asarray(z["a"][:, 0] * 12 + z["a"][:, 1] * 4 + z["b"])
    counts = np.bincount(cells, minlength=36)
    assert np.all(abs(counts - n * p) < 4 * (n * p * (1 - p)) ** 0.5)


def test_categorical_starts_uniform(key):
    guide = categorical(TREE)
    q = guide.distribution(guide.init(key))
    assert q.entropy() == pytest.approx(2 * np.log(3) + np.log(4), rel=10 * RTOL)
    assert guide == categorical(dict(TREE))
    assert hash(guide) == hash(categorical(dict(TREE)))


# Spike and slab: z_j ~ Bernoulli(PI_j), w_j ~ N(LOC_j, SD_j^2), x ~ N(sum_j z_j w_j a_j, I), with
# correlated a_j.
PI, LOC, SD = np.array([0.3, 0.5, 0.8]), np.array([1.0, -2.0, 0.5]), np.array([1.5, 0.7, 1.0])
A = np.array([[1.0, 0.8, -0.3], [0.5, 0.9, 0.2], [0.0, 0.4, 1.1], [0.7, 0.0, 0.6]])
SPIKE_X = np.array([0.4, -1.2, 0.9, 1.6])
SPIKES = {"w": real(3), "z": finite(2, 3)}
STATES = np.array(list(itertools.product([0, 1], repeat=3)))


def spike_log_joint(theta, x):
    w, z = theta["w"], theta["z"]
    log_prior = jnp.sum(norm.logpdf(w, jnp.asarray(LOC), jnp.asarray(SD)))
    log_prior += jnp.sum(jnp.where(z == 1, jnp.asarray(np.log(PI)), jnp.asarray(np.log1p(-PI))))
    return log_prior + jnp.sum(norm.logpdf(x, jnp.asarray(A) @ (z * w)))


SPIKE = Model(SPIKES, spike_log_joint)
SPIKE_DATA = (jnp.asarray(SPIKE_X),)


def spike_guide(dependent):
    w = mean_field(real(3))
    return product(
        {"w": conditional(w, {"z": SPIKES["z"]}) if dependent else w, "z": categorical(SPIKES["z"])}
    )


def spike_params(dependent):
    w = {"loc": jnp.array([0.5, -1.0, 0.2]), "log_scale": jnp.array([-0.5, 0.1, -1.0])}
    if dependent:
        tables = jnp.linspace(-0.6, 0.8, 18).reshape(2, 3, 3)
        w = {"guide": w, "network": {}, "readout": {"loc": tables[0], "log_scale": 0.3 * tables[1]}}
    return {"w": w, "z": jnp.array([[0.3, -0.2], [-0.5, 0.4], [0.0, 1.0]])}


def spike_elbo(params, xp=jnp):
    """The ELBO as a sum over the eight states, the normals integrated in closed form."""
    w = params["w"]
    guide, readout = (
        (w["guide"], w["readout"]) if "guide" in w else (w, {"loc": 0.0, "log_scale": 0.0})
    )
    log_q = params["z"] - xp.log(xp.sum(xp.exp(params["z"]), axis=1))[:, None]
    total = 0.0
    for z in STATES:
        loc = guide["loc"] + xp.sum(readout["loc"] * z[None], axis=-1)
        log_sd = guide["log_scale"] + xp.sum(readout["log_scale"] * z[None], axis=-1)
        variance = xp.exp(2 * log_sd)
        log_q_z = xp.sum(log_q[np.arange(3), z])
        residual = SPIKE_X - xp.sum(A * (z * loc)[None], axis=1)
        log_lik = -0.5 * (residual @ residual + xp.sum(z * variance * (A**2).sum(0))) - 2 * np.log(
            2 * np.pi
        )
        kl_w = xp.sum(np.log(SD) - log_sd + (variance + (loc - LOC) ** 2) / (2 * SD**2) - 0.5)
        log_prior_z = np.where(z == 1, np.log(PI), np.log1p(-PI)).sum()
        total = total + xp.exp(log_q_z) * (log_lik - kl_w + log_prior_z - log_q_z)
    return total


def spike_evidence():
    """log p(x, z) of each state, w integrated out: x | z ~ N(A (z LOC), I + A z SD^2 z A^T)."""
    terms = []
    for z in STATES:
        residual, factor = SPIKE_X - A @ (z * LOC), A * (z * SD)
        cov = np.eye(4) + factor @ factor.T
        log_x = -0.5 * (
            np.linalg.slogdet(2 * np.pi * cov)[1] + residual @ np.linalg.solve(cov, residual)
        )
        terms.append(log_x + np.where(z == 1, np.log(PI), np.log1p(-PI)).sum())
    return np.array(terms)


@pytest.mark.parametrize("num_particles", standing_for([2, 5], 5))
@pytest.mark.parametrize(
    "dependent", standing_for([False, True], True), ids=["independent w", "w given z"]
)
def test_score_function_is_unbiased(dependent, num_particles, key):
    guide, params, n = spike_guide(dependent), spike_params(dependent), 40_000
    objective = ELBO(num_particles, "score_function")
    estimate = lambda p, k: objective(k, SPIKE, guide, p, *SPIKE_DATA)
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(estimate), (None, 0)))(
        params, jax.random.split(key, n)
    )
    with jax.numpy_rank_promotion("allow"):
        exact, exact_grad = jax.jit(jax.value_and_grad(spike_elbo))(params)
    assert abs(np.mean(values) - exact) < 4 * np.std(values) / n**0.5
    for draws, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(exact_grad), strict=True):
        draws = np.asarray(draws, np.float64)
        assert np.all(abs(draws.mean(0) - expected) < 4 * draws.std(0) / n**0.5)
        assert np.max(abs(expected)) > 0.05


def best_mean_field():
    """The best mean-field ELBO, by BFGS from several starts, in float64."""

    def unpack(v):
        z = np.stack([np.zeros(3), v[6:]], axis=1)
        return {"w": {"loc": v[:3], "log_scale": v[3:6]}, "z": z}

    starts = np.random.default_rng(0).normal(size=(8, 9))
    return max(-minimize(lambda v: -spike_elbo(unpack(v), np), start).fun for start in starts)


def test_a_fit_reaches_the_best_mean_field_elbo(key):
    guide = spike_guide(False)
    optimizer = adam(0.05, 3000)
    result = SVI(SPIKE, guide, optimizer, ELBO(16, "score_function")).run(
        key, 3000, *SPIKE_DATA, progress_bar=False
    )
    best = best_mean_field()
    reached = spike_elbo(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), result.params), np)
    assert best - 0.01 < reached < best + 1e-6
    assert best < logsumexp(spike_evidence()) - 0.1  # the family does not hold the posterior


# With one spike, w | z at each of the two z's own normal is the posterior.
ONE = {"w": real(), "z": finite(2)}


def one_log_joint(theta, x):
    log_z = jnp.asarray(np.log([0.4, 0.6]), FLOAT)[theta["z"]]
    return log_z + norm.logpdf(theta["w"], 3.0, 2.0) + norm.logpdf(x, theta["z"] * theta["w"], 0.5)


def test_no_variance_at_the_exact_posterior(key):
    x = 1.7
    v = 1 / (1 / 4 + 1 / 0.25)
    loc = v * (3 / 4 + x / 0.25)
    log_terms = np.log([0.4, 0.6]) + norm.logpdf(
        x, np.array([0.0, 3.0]), np.array([0.5, (4 + 0.25) ** 0.5])
    )
    guide = product(
        {"w": conditional(mean_field(real()), {"z": ONE["z"]}), "z": categorical(ONE["z"])}
    )
    w = {"loc": jnp.array([3.0]), "log_scale": jnp.log(jnp.array([2.0]))}
    readout = {
        "loc": jnp.array([[loc - 3.0]]),
        "log_scale": jnp.array([[0.5 * np.log(v) - np.log(2.0)]]),
    }
    params = {
        "w": {"guide": w, "network": {}, "readout": readout},
        "z": jnp.asarray(log_terms, FLOAT),
    }
    estimate = lambda p, k: ELBO(3, "score_function")(
        k, Model(ONE, one_log_joint), guide, p, jnp.asarray(x)
    )
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(estimate), (None, 0)))(
        params, jax.random.split(key, 200)
    )
    assert jnp.allclose(values, logsumexp(log_terms), rtol=10 * RTOL)
    assert jnp.max(jnp.abs(grads["z"])) < 100 * RTOL
    assert (
        jnp.max(jnp.abs(grads["w"]["guide"]["loc"])) > 0.1
    )  # the total derivative still has its score


# Three binary latents that are correlated: a table of eight probabilities, which sum to 1.
PROBABILITIES = np.array([0.30, 0.05, 0.02, 0.13, 0.03, 0.02, 0.10, 0.35])


def table_log_joint(theta):
    z = theta["z"]
    return jnp.asarray(np.log(PROBABILITIES), FLOAT)[4 * z[0] + 2 * z[1] + z[2]]


TABLE = Model({"z": finite(2, 3)}, table_log_joint)


@pytest.mark.whole
def test_forward_kl_finds_the_exact_marginals(key):
    optimizer = adam(0.05, 2000)
    guide = categorical(TABLE.latents)
    result = SVI(TABLE, guide, optimizer, ForwardKL(100)).run(key, 2000, progress_bar=False)
    marginals = PROBABILITIES @ STATES
    fitted = jax.nn.softmax(result.params["z"])[:, 1]
    assert np.max(abs(np.asarray(fitted) - marginals)) < 0.02
    # The reverse KL's optimum lies elsewhere, so that the test tells one from the other.
    reverse = SVI(TABLE, guide, optimizer, ELBO(16, "score_function")).run(
        key, 2000, progress_bar=False
    )
    assert np.max(abs(np.asarray(jax.nn.softmax(reverse.params["z"])[:, 1]) - marginals)) > 0.2


# Local z: a mixture of three normals, each row with a component of its own.
WEIGHTS, SCALES = np.array([0.2, 0.5, 0.3]), np.array([0.5, 1.0, 2.0])
MEANS = np.array([-4.0, 1.0, 6.0])
ROWS = np.array([-3.5, 0.2, 4.0, 9.0, -1.0])
MIXTURE_DATA = (jnp.arange(5), jnp.asarray(ROWS))


def mixture_prior(theta):
    return {"mu": Normal(1.0, 5.0), "z": Categorical(WEIGHTS)}


def mixture_rows(theta, index, x):
    del index
    return norm.logpdf(x, theta["mu"][theta["z"]], jnp.asarray(SCALES, FLOAT)[theta["z"]])


MIXTURE = Model(
    {"mu": real(3), "z": local(finite(3))}, log_likelihood=mixture_rows, prior=mixture_prior
)


def mixture_terms(x=ROWS, means=MEANS):
    """log [pi_k N(x_n; mu_k, s_k^2)], (N, 3)."""
    quadratic = ((x[:, None] - means) / SCALES) ** 2
    return np.log(WEIGHTS) - 0.5 * quadratic - np.log(SCALES * np.sqrt(2 * np.pi))


# The means known, and so near each other that no state is too rare for its score: the posterior is
# in the family.
NEAR = 0.3 * MEANS


def near_rows(theta, index, x):
    return mixture_rows({"mu": jnp.asarray(NEAR, FLOAT), **theta}, index, x)


NEAR_MODEL = Model(
    {"z": local(finite(3))},
    log_likelihood=near_rows,
    prior=lambda theta: {"z": Categorical(WEIGHTS)},
)


def near_guide(num_rows):
    return product({"z": per_row(categorical(finite(3)), num_rows, first)})


NEAR_ROWS = np.array([-1.0, -0.5, 0.0, -1.5, -2.0])


@pytest.mark.parametrize(
    ("batches", "tolerance"),
    standing_for([(FullBatch(), 1e-4), (Minibatches(2), 1e-4)], (Minibatches(2), 1e-4)),
    ids=["full", "mini"],
)
def test_per_row_categoricals_find_the_responsibilities(batches, tolerance, key):
    optimizer = adam(0.1, 3000)
    svi = SVI(NEAR_MODEL, near_guide(5), optimizer, ELBO(8, "score_function"), batches)
    result = svi.run(key, 3000, jnp.arange(5), jnp.asarray(NEAR_ROWS), progress_bar=False)
    expected = softmax(mixture_terms(NEAR_ROWS, NEAR), axis=1)
    assert np.allclose(jax.nn.softmax(result.params["z"]), expected, atol=tolerance)
    assert np.ptp(expected) > 0.7


def test_score_function_of_local_latents_is_unbiased_over_batches(key):
    # Three rows, every batch of two: the mean gradient is that of all rows, and not N/B times it.
    logits = jnp.array([[0.5, -1.0, 0.2], [0.0, 0.3, -0.6], [1.0, 0.1, 0.0]])
    x, n = jnp.asarray(NEAR_ROWS[:3]), 20_000
    log_p = jnp.asarray(mixture_terms(np.asarray(x), NEAR), FLOAT)

    def exact(logits):
        log_q = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(log_q) * (log_p - log_q))

    @jax.jit
    def gradients(keys, rows):
        objective = lambda p, k: ELBO(2, "score_function")(
            k, NEAR_MODEL, near_guide(3), p, rows, x[rows], weight=1.5
        )
        return jax.vmap(jax.grad(objective), (None, 0))({"z": logits}, keys)["z"]

    pairs = [jnp.array(rows) for rows in itertools.combinations(range(3), 2)]
    batches = [
        gradients(keys, rows)
        for keys, rows in zip(jax.random.split(key, (3, n)), pairs, strict=True)
    ]
    draws = np.mean(np.asarray(batches, np.float64), axis=0)
    error = draws.std(0) / n**0.5
    assert np.all(abs(draws.mean(0) - jax.grad(exact)(logits)) < 4 * error)


# Exact sums.
def brute_force_joint(theta, x):
    c, z, mu = theta["c"], theta["z"], theta["mu"]
    log_p = jnp.sin(2.0 * c[0] + z) - 0.3 * (c[1] - 0.2 * z) ** 2 + norm.logpdf(mu, z, 2.0)
    return log_p + jnp.sum(norm.logpdf(x, mu * c[0] - c[1], 1.0 + z))


JOINT = Model({"c": finite(3, 2), "mu": real(), "z": finite(2)}, brute_force_joint)
X = jnp.array([0.5, -2.0, 3.0])


def test_global_sums_equal_brute_force():
    mu = jnp.array(1.3)
    pairs = [jnp.array(c) for c in itertools.product(range(3), repeat=2)]
    joint = jax.jit(brute_force_joint)
    table = np.array(
        [[joint({"c": c, "mu": mu, "z": jnp.array(z)}, X) for z in range(2)] for c in pairs]
    )
    both = sum_out(JOINT, "z", "c")
    assert list(both.latents) == ["mu"]
    assert jax.jit(both.joint)({"mu": mu}, X) == pytest.approx(logsumexp(table), rel=10 * RTOL)
    assert jax.jit(both.log_density)({"mu": mu}, X) == pytest.approx(
        logsumexp(table), rel=10 * RTOL
    )
    one = sum_out(JOINT, "z")
    assert jax.jit(one.joint)({"mu": mu, "c": pairs[5]}, X) == pytest.approx(
        logsumexp(table[5]), rel=10 * RTOL
    )
    twice = sum_out(one, "c")
    assert jax.jit(twice.joint)({"mu": mu}, X) == pytest.approx(logsumexp(table), rel=10 * RTOL)
    states, log_p = log_conditional(JOINT, ("c", "z"), {"mu": mu}, X)
    assert states["c"].shape == (18, 2)
    cells = np.asarray(states["c"][:, 0] * 3 + states["c"][:, 1])
    expected = (table - logsumexp(table))[cells, np.asarray(states["z"])]
    assert np.allclose(log_p, expected, rtol=100 * RTOL, atol=10 * RTOL)


def test_local_sums_equal_the_mixture():
    model = sum_out(MIXTURE, "z")
    theta = {"mu": jnp.asarray(MEANS)}
    expected = logsumexp(mixture_terms(), axis=1)
    rows = model.log_likelihood(theta, *MIXTURE_DATA)
    assert np.allclose(rows, expected, rtol=10 * RTOL)
    prior = norm.logpdf(MEANS, 1.0, 5.0).sum()
    assert np.allclose(
        model.log_density(theta, *MIXTURE_DATA), prior + expected.sum(), rtol=10 * RTOL
    )
    # The weights inside the likelihood, beside a `log_prior`.
    inside = Model(
        MIXTURE.latents,
        log_prior=lambda theta: jnp.sum(norm.logpdf(theta["mu"], 1.0, 5.0)),
        log_likelihood=lambda theta, *data: (
            mixture_rows(theta, *data) + Categorical(WEIGHTS).log_prob(theta["z"])
        ),
    )
    other = sum_out(inside, "z").log_density(theta, *MIXTURE_DATA)
    assert np.allclose(other, prior + expected.sum(), rtol=10 * RTOL)


def test_local_sums_keep_the_minibatch_scale():
    model, theta = sum_out(MIXTURE, "z"), {"mu": jnp.asarray(MEANS)}
    full = model.log_density(theta, *MIXTURE_DATA)
    pairs = [jnp.array(rows) for rows in itertools.combinations(range(5), 2)]
    log_density = jax.jit(lambda *args: model.log_density(*args, weight=5 / 2))
    batches = jnp.stack([log_density(theta, rows, MIXTURE_DATA[1][rows]) for rows in pairs])
    assert jnp.allclose(jnp.mean(batches), full, rtol=10 * RTOL)
    assert jnp.std(batches) > 1.0


def test_log_conditional_gives_the_responsibilities():
    for names in ("z", ("z",)):
        states, log_p = log_conditional(MIXTURE, names, {"mu": jnp.asarray(MEANS)}, *MIXTURE_DATA)
        assert np.array_equal(states["z"], np.arange(3))
        assert np.allclose(np.exp(log_p), softmax(mixture_terms(), axis=1), atol=10 * RTOL)


def test_local_latents_that_depend_on_the_summed_ones(key):
    # w_n ~ N(mu_{z_n}, s_{z_n}^2), x_n ~ N(w_n, 0.8^2): w stays, z goes, and w's prior is a
    # mixture.
    model = Model(
        {"mu": real(3), "w": local(real()), "z": local(finite(3))},
        log_likelihood=lambda theta, index, x: norm.logpdf(x, theta["w"], 0.8),
        prior=lambda theta: {
            "mu": Normal(1.0, 5.0),
            "w": Normal(theta["mu"][theta["z"]], jnp.asarray(SCALES, FLOAT)[theta["z"]]),
            "z": Categorical(WEIGHTS),
        },
    )
    w = ROWS + np.array([0.3, -0.2, 0.5, -1.0, 0.8])
    theta = {"mu": jnp.asarray(MEANS), "w": jnp.asarray(w)}
    terms = norm.logpdf(ROWS, w, 0.8) + logsumexp(mixture_terms(w), axis=1)
    expected = terms.sum() + norm.logpdf(MEANS, 1.0, 5.0).sum()
    summed = sum_out(model, "z")
    assert np.allclose(summed.log_density(theta, *MIXTURE_DATA), expected, rtol=10 * RTOL)
    log_density = jax.jit(lambda *args: summed.log_density(*args, weight=5 / 2))
    batches = []
    for rows in itertools.combinations(range(5), 2):
        i = np.array(rows)
        batches.append(log_density(theta | {"w": theta["w"][i]}, i, MIXTURE_DATA[1][i]))
    assert np.allclose(np.mean(batches), expected, rtol=10 * RTOL)
    _, log_p = log_conditional(model, "z", theta, *MIXTURE_DATA)
    assert np.allclose(np.exp(log_p), softmax(mixture_terms(w), axis=1), atol=10 * RTOL)
    guide = product({"mu": mean_field(real(3)), "w": per_row(mean_field(real()), 5, first)})
    SVI(summed, guide, adam(0.1), ELBO(), Minibatches(2)).init(key, *MIXTURE_DATA)


def test_arrays_of_local_states_are_summed_jointly():
    # Two binary flags a row: four states each.
    def rows(theta, x):
        flags = theta["z"]
        return norm.logpdf(x, 2.0 * flags[:, 0] - 3.0 * flags[:, 1] + theta["mu"], 0.7) + jnp.log(
            0.25
        )

    model = Model(
        {"mu": real(), "z": local(finite(2, 2))},
        log_prior=lambda t: norm.logpdf(t["mu"]),
        log_likelihood=rows,
    )
    got = sum_out(model, "z").log_likelihood({"mu": jnp.array(0.4)}, MIXTURE_DATA[1])
    locs = 0.4 + np.array([0.0, -3.0, 2.0, -1.0])
    expected = logsumexp(
        np.log(0.25) + np.asarray(norm.logpdf(ROWS[:, None], locs[None], 0.7)), axis=1
    )
    assert np.allclose(got, expected, rtol=10 * RTOL)


@pytest.mark.whole
def test_a_fit_with_z_summed_out_has_the_exact_moments(key):
    # 0.35 N(-1, 0.6^2) + 0.65 N(mu, 1.2^2): the posterior of mu by quadrature.
    rng = np.random.default_rng(5)
    z = rng.random(200) < 0.65
    x = np.where(z, 2.0 + 1.2 * rng.normal(size=200), -1.0 + 0.6 * rng.normal(size=200))

    def rows(theta, x):
        loc = jnp.where(theta["z"] == 1, theta["mu"], -1.0)
        return norm.logpdf(x, loc, jnp.where(theta["z"] == 1, 1.2, 0.6))

    prior = lambda theta: {"mu": Normal(0.0, 5.0), "z": Categorical([0.35, 0.65])}
    model = sum_out(
        Model({"mu": real(), "z": local(finite(2))}, log_likelihood=rows, prior=prior), "z"
    )
    guide = mean_field(model.latents)
    optimizer = adam(0.05, 1500)
    svi = SVI(model, guide, optimizer, ELBO(8, "sticking_the_landing"))
    p = svi.run(key, 1500, jnp.asarray(x), progress_bar=False).params
    mu = np.linspace(1.0, 3.0, 4001)
    log_pdf = lambda x, m, s: -0.5 * ((x - m) / s) ** 2 - np.log(s)
    parts = np.stack(
        [
            np.log(0.65) + log_pdf(x, mu[:, None], 1.2),
            np.log(0.35) + log_pdf(x, -1.0 + 0 * mu[:, None], 0.6),
        ]
    )
    log_density = logsumexp(parts, axis=0).sum(1) + log_pdf(mu, 0.0, 5.0)
    density = softmax(log_density)
    mean = density @ mu
    sd = (density @ (mu - mean) ** 2) ** 0.5
    assert p["loc"][0] == pytest.approx(mean, abs=0.02 * sd)
    assert np.exp(p["log_scale"][0]) == pytest.approx(sd, rel=0.02)


def test_equal_sums_are_equal_and_are_not_traced_again(key):
    traces = []

    def log_joint(theta, x):
        traces.append(None)
        return brute_force_joint(theta, x)

    def rows(theta, index, x):
        traces.append(None)
        return mixture_rows(theta, index, x)

    optimizer = adam(0.1)
    make_joint = lambda: sum_out(Model(dict(JOINT.latents), log_joint), "z", "c")
    make_rows = lambda: sum_out(
        Model(dict(MIXTURE.latents), log_likelihood=rows, prior=mixture_prior), "z"
    )
    for make, data in ((make_joint, (X,)), (make_rows, MIXTURE_DATA)):
        assert make() == make()
        assert hash(make()) == hash(make())
        for shift in (0.0, 1.0):
            model = make()
            svi = SVI(model, mean_field(model.latents), optimizer, ELBO(2))
            svi.run(key, 5, *data[:-1], data[-1] + shift, progress_bar=False)
            if not shift:
                count = len(traces)
        assert len(traces) == count > 0
    assert sum_out(JOINT, "z") != sum_out(JOINT, "c")


def test_posterior_of_a_discrete_latent(key):
    posterior = Posterior(
        TABLE, categorical(TABLE.latents), {"z": jnp.array([[0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])}
    )
    z = posterior.sample(key, 20_000)["z"]
    p = np.array([jax.nn.sigmoid(1.0), jax.nn.sigmoid(-1.0), 0.5])
    assert z.dtype == jnp.int32
    assert np.all(abs(np.mean(z, 0) - p) < 4 * (p * (1 - p) / 20_000) ** 0.5)


def fit(objective, model=TABLE, guide=None, data=()):
    guide = categorical(model.latents) if guide is None else guide
    SVI(model, guide, adam(0.1), objective).run(KEY, 5, *data, progress_bar=False)


NOT_REPARAMETERISED = (
    r"not reparameterised \(latents \['z'\] are discrete\): "
    r"expected ELBO\(K, gradient='score_function'\)"
)
BAD = {
    "an unknown name": (
        lambda: sum_out(JOINT, "zz"),
        r"sum_out: expected some of the finite latents \['c', 'z'\]; got \['zz'\]",
    ),
    "a latent that is not finite": (
        lambda: sum_out(JOINT, "mu"),
        r"finite latents \['c', 'z'\]; got \['mu'\]",
    ),
    "no name": (lambda: sum_out(JOINT), r"sum_out: expected names of latents in a dict; got \[\]"),
    "latents that are no dict": (
        lambda: sum_out(Model((finite(2),), lambda t: jnp.zeros(())), "0"),
        r"sum_out: expected names of latents in a dict; got \['0'\]",
    ),
    "too many states": (
        lambda: sum_out(Model({"z": finite(2, 13)}, lambda t: jnp.zeros(())), "z"),
        r"sum_out: \['z'\] have 8192 joint values: expected at most 4096",
    ),
    "local and global at once": (
        lambda: sum_out(
            Model({"c": finite(2), "z": local(finite(2))}, log_prior=sum, log_likelihood=sum),
            "c",
            "z",
        ),
        r"expected latents that are all local, or none; got \['c', 'z'\]: sum in two calls",
    ),
    "local of an unfactored model": (
        lambda: sum_out(
            Model({"z": local(finite(2))}, lambda theta, x: jnp.sum(theta["z"] * x)), "z"
        ),
        "sum_out of local latents needs a factored model",
    ),
    "local without data": (
        lambda: sum_out(MIXTURE, "z").log_density({"mu": jnp.zeros(3)}),
        "sum_out of local latents: expected data",
    ),
    "unknown in log_conditional": (
        lambda: log_conditional(MIXTURE, "mu", {}, *MIXTURE_DATA),
        r"expected some of the finite latents \['z'\]; got \['mu'\]",
    ),
    "reparameterised": (lambda: fit(ELBO(2)), NOT_REPARAMETERISED),
    "sticking the landing": (lambda: fit(ELBO(2, "sticking_the_landing")), NOT_REPARAMETERISED),
    "closed-form entropy": (lambda: fit(ELBO(2, "closed_form_entropy")), NOT_REPARAMETERISED),
    "importance weighted": (lambda: fit(ImportanceWeighted(5)), NOT_REPARAMETERISED),
    "doubly reparameterised": (
        lambda: fit(ImportanceWeighted(5, "doubly_reparameterised")),
        NOT_REPARAMETERISED,
    ),
    "CUBO": (lambda: fit(CUBO(5)), NOT_REPARAMETERISED),
    "per row": (
        lambda: fit(
            ELBO(2),
            MIXTURE,
            product({"mu": mean_field(real(3)), "z": per_row(categorical(finite(3)), 5, first)}),
            MIXTURE_DATA,
        ),
        NOT_REPARAMETERISED,
    ),
    "one particle": (lambda: ELBO(1, "score_function"), "`num_particles` must be >= 2; got 1"),
    "a mean field over finite latents": (
        lambda: mean_field(TABLE.latents).init(KEY),
        "latent `z` is discrete: expected a guide such as `categorical` for it",
    ),
    "a fit of finite latents": (
        lambda: minisvi.fit(KEY, TABLE),
        "latent `z` is discrete: .*, by `sum_out`",
    ),
    "a categorical over real latents": (
        lambda: categorical({"w": real(2)}),
        "categorical: expected a `finite` support for latent `w`",
    ),
    "no values": (lambda: finite(0), r"`num_values` must be an integer >= 1; got 0"),
    "another number of values": (
        lambda: fit(ELBO(2, "score_function"), guide=categorical({"z": finite(2, 4)})),
        r"guide's draw `z`: expected shape \(3,\); got \(4,\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_static_mistakes(case):
    call, pattern = BAD[case]
    with pytest.raises(ValueError, match=pattern):
        call()
