"""Local latents: the N/B scale, a hierarchy with a known posterior, encoders, and what is
refused.
"""

import itertools
from functools import lru_cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT, RTOL
from jax.scipy.stats import norm
from problems import adam
from tiers import standing_for

import minisvi
from minisvi import (
    ELBO,
    SVI,
    Minibatches,
    Model,
    NonFiniteError,
    Posterior,
    amortised,
    conditional,
    full_rank,
    local,
    mean_field,
    mixture,
    per_row,
    positive,
    product,
    real,
)
from minisvi.guides.foreign import weighted
from minisvi.guides.joint import Joint
from minisvi.model import trees
from minisvi.objectives import closed_kl

# g ~ N(M, S^2), z_n ~ N(g, T^2), x_n ~ N(z_n, R^2): off the origin, with unequal scales.
M, S, T, R = 3.0, 2.0, 0.7, 1.5
NUM = 6
X = 4.0 + 1.7 * np.random.default_rng(1).normal(size=NUM)
LATENTS = {"g": real(), "z": local(real())}
ON = {"g": real()}
ADAM = adam(0.05, 3000)


class Normal:
    """As small as a prior may be."""

    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def log_prob(self, x):
        return norm.logpdf(x, self.loc, self.scale)


def hierarchy_prior(theta):
    return {"g": Normal(M, S), "z": Normal(theta["g"], T)}


def hierarchy_rows(theta, index, x):
    del index
    return norm.logpdf(x, theta["z"], R)


HIERARCHY = Model(LATENTS, log_likelihood=hierarchy_rows, prior=hierarchy_prior)
DATA = (jnp.arange(NUM), jnp.asarray(X))


def first(*data):
    return data[0]


def exact():
    """Location and sd of g; z_n | g is N(slope x_n + pull g, sd_z^2); and the log evidence.
    float64.
    """
    precision = 1 / S**2 + NUM / (T**2 + R**2)
    sd_z = (1 / T**2 + 1 / R**2) ** -0.5
    cov = (T**2 + R**2) * np.eye(NUM) + S**2
    log_evidence = -0.5 * (
        np.linalg.slogdet(2 * np.pi * cov)[1] + (X - M) @ np.linalg.solve(cov, X - M)
    )
    loc = (M / S**2 + X.sum() / (T**2 + R**2)) / precision
    return loc, precision**-0.5, sd_z**2 / R**2, sd_z**2 / T**2, sd_z, log_evidence


def encode(weights, index, x):
    del index
    loc = weights["slope"] * x + weights["shift"]
    return {"loc": loc[:, None], "log_scale": jnp.full((x.size, 1), weights["log_scale"])}


def encode_on(weights, draws, index, x):
    return encode(weights | {"shift": weights["shift"] + weights["pull"] * draws["g"]}, index, x)


def encoder(*names):
    return lambda key: {name: jnp.zeros(()) for name in ("slope", "shift", "log_scale", *names)}


def as_leaf(value, *shape):
    return jnp.full(shape, value, FLOAT)


def exact_params(part, standard=True):
    """The posterior's parameters in each of the families of `hierarchies`; z on (g - loc) / sd if
    `standard`.
    """
    loc, sd, slope, pull, sd_z, _ = exact()
    pull, shift = (pull * sd, pull * loc) if standard else (pull, 0.0)
    weights = {"slope": as_leaf(slope), "shift": as_leaf(shift), "log_scale": as_leaf(np.log(sd_z))}
    if part == "per_row":
        rows = {"loc": slope * DATA[1][:, None] + shift, "log_scale": as_leaf(np.log(sd_z), NUM, 1)}
        readout = {"loc": as_leaf(pull, NUM, 1, 1), "log_scale": as_leaf(0.0, NUM, 1, 1)}
        z = {"guide": rows, "network": {}, "readout": readout}
    elif part == "amortised":
        z = weights | {"pull": as_leaf(pull)}
    else:
        readout = {
            "slope": as_leaf(0.0, 1),
            "shift": as_leaf(pull, 1),
            "log_scale": as_leaf(0.0, 1),
        }
        z = {"guide": weights, "network": {}, "readout": readout}
    return {"g": {"loc": as_leaf(loc, 1), "log_scale": as_leaf(np.log(sd), 1)}, "z": z}


@lru_cache
def hierarchies():
    """Three families that hold the posterior; the encoders have as many parameters for any number
    of rows.
    """
    parts = {
        "per_row": per_row(conditional(mean_field(real()), ON), NUM, first),
        "amortised": amortised(mean_field(real()), encoder("pull"), encode_on, ON),
        "conditional amortised": conditional(amortised(mean_field(real()), encoder(), encode), ON),
    }
    return {name: product({"g": mean_field(real()), "z": part}) for name, part in parts.items()}


@pytest.mark.parametrize(
    ("name", "draws"),
    standing_for(
        itertools.product(hierarchies(), ["independent", "antithetic", "quasi"]),
        ("per_row", "independent"),
        ("amortised", "antithetic"),
        ("conditional amortised", "quasi"),
    ),
)
def test_every_estimate_is_the_log_evidence_at_the_exact_posterior(name, draws, key):
    guide, objective = hierarchies()[name], ELBO(4, sampling=draws)
    elbo = lambda k: objective(k, HIERARCHY, guide, exact_params(name), *DATA)
    estimates = jax.jit(jax.vmap(elbo))(jax.random.split(key, 20))
    assert jnp.allclose(estimates, exact()[-1], rtol=10 * RTOL)


@partial(jax.jit, static_argnames="guide")
def elbo_of_1000(key, guide, params):
    return ELBO(1000)(key, HIERARCHY, guide, params, *DATA)


@pytest.mark.parametrize("name", standing_for(["per_row", "amortised"], "per_row"))
def test_a_fit_reaches_the_log_evidence(name, key):
    loc, sd, *_, log_evidence = exact()
    guide, objective = hierarchies()[name], ELBO(4, "sticking_the_landing")
    result = SVI(HIERARCHY, guide, ADAM, objective).run(key, 3000, *DATA, progress_bar=False)
    assert abs(elbo_of_1000(key, guide, result.params) - log_evidence) < 1e-3
    g = result.params["g"]
    assert abs(g["loc"][0] - loc) < 0.01 * sd
    assert np.exp(g["log_scale"][0]) == pytest.approx(sd, rel=0.01)


@pytest.mark.whole
@pytest.mark.parametrize("name", ["per_row", "amortised"])
def test_a_fit_by_minibatches_comes_near(name, key):
    loc, sd, *_, log_evidence = exact()
    guide, objective = hierarchies()[name], ELBO(4, "sticking_the_landing")
    svi = SVI(HIERARCHY, guide, ADAM, objective, Minibatches(2))
    result = svi.run(key, 3000, *DATA, progress_bar=False)
    g = result.params["g"]
    assert abs(g["loc"][0] - loc) < 0.2 * sd
    assert np.exp(g["log_scale"][0]) == pytest.approx(sd, rel=0.1)
    assert abs(elbo_of_1000(key, guide, result.params) - log_evidence) < 0.05


# The N/B scale: one draw of all rows, and every batch of B of its N rows.
ROW = {"s": positive(), "z": real(2)}
SIZE, BATCH = 5, 2


class LogNormal(Normal):
    def log_prob(self, x):
        return norm.logpdf(jnp.log(x), self.loc, self.scale) - jnp.log(x)


def scaled_prior(theta):
    g = theta["g"]
    return {"g": LogNormal(0.3, 1.5), "rows": {"s": LogNormal(-g, 0.5), "z": Normal(2.0 * g, 3.0)}}


def scaled_rows(theta, index, x):
    del index
    rows = theta["rows"]
    return norm.logpdf(x, theta["g"] + rows["z"][:, 0] * rows["z"][:, 1], rows["s"])


SCALED = Model(
    {"g": positive(), "rows": local(ROW)}, log_likelihood=scaled_rows, prior=scaled_prior
)
SCALED_DATA = (jnp.arange(SIZE), jnp.asarray([3.0, -1.0, 7.0, 0.5, -4.0]))


def encode_scaled(weights, index, x):
    features = jnp.stack([jnp.cos(x), jnp.tanh(x), jnp.ones(x.size)], axis=1)
    return {name: features @ w for name, w in weights.items()}


@lru_cache
def scaled_guides():
    init = lambda key: {"loc": jnp.ones((3, 3)), "log_scale": -0.3 * jnp.ones((3, 3))}
    tall = lambda weights, draws, *data: encode_scaled(weights, *data)
    on = {"g": positive()}
    parts = {
        "per_row": per_row(mean_field(ROW), SIZE, first),
        "per_row at full rank": per_row(full_rank(ROW), SIZE, first),
        "per_row of a product": per_row(
            product({n: mean_field(s) for n, s in ROW.items()}), SIZE, first
        ),
        "amortised": amortised(mean_field(ROW), init, encode_scaled),
        "amortised on g": amortised(mean_field(ROW), init, tall, on),
        "per_row conditional": per_row(conditional(mean_field(ROW), on), SIZE, first),
        "conditional amortised": conditional(amortised(mean_field(ROW), init, encode_scaled), on),
    }
    return {
        name: product({"g": mean_field(positive()), "rows": part}) for name, part in parts.items()
    }


def moved(params, key):
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    )


def terms(guide, params, u, data, weight=None):
    """Every term that may count N/B times."""
    q = weighted(guide.distribution(params, *data), weight, SCALED.latents)
    log_det = trees.constrain(SCALED.latents, u, weight)[1]
    log_prior, log_likelihood = SCALED.log_terms(u, *data, weight=weight)
    return {
        "log_det": log_det,
        "log_prior": log_prior - log_det,
        "log_likelihood": log_likelihood,
        "log_q": q.log_prob(u),
        "entropy": Joint(q.parts_at(u)).entropy(),
    }


@pytest.mark.parametrize(
    "name", standing_for(scaled_guides(), "per_row", "amortised on g", "per_row conditional")
)
def test_the_mean_over_all_batches_is_the_full_batch(name, key):
    guide = scaled_guides()[name]

    @jax.jit
    def whole(key):
        params = moved(guide.init(key), key)
        u, log_q = guide.distribution(params, *SCALED_DATA).sample_and_log_prob(seed=key)
        return params, u, log_q, terms(guide, params, u, SCALED_DATA)

    params, u, log_q, full = whole(key)
    assert jnp.allclose(full["log_q"], log_q, rtol=10 * RTOL)
    pick = lambda tree, rows: jax.tree.map(lambda leaf: leaf[jnp.array(rows)], tree)
    batch = jax.jit(lambda u, data: terms(guide, params, u, data, SIZE / BATCH))
    batches = [
        batch(u | {"rows": pick(u["rows"], rows)}, pick(SCALED_DATA, rows))
        for rows in itertools.combinations(range(SIZE), BATCH)
    ]
    for term, value in full.items():
        draws = jnp.stack([batch[term] for batch in batches])
        assert jnp.allclose(jnp.mean(draws), value, rtol=10 * RTOL, atol=10 * RTOL), term
        assert jnp.std(draws) > 1e-3, term


def test_the_rows_parts_of_log_q_are_independent_and_in_order(key):
    guide = scaled_guides()["per_row"]
    params = moved(guide.init(key), key)
    rows = {
        "s": jnp.linspace(-1.0, 2.0, SIZE),
        "z": jnp.linspace(0.0, 5.0, 2 * SIZE).reshape(SIZE, 2),
    }
    q = guide.parts["rows"].distribution(params["rows"], *SCALED_DATA)
    flat = np.concatenate([rows["s"][:, None], rows["z"]], axis=1)
    p = jax.tree.map(np.asarray, params["rows"])
    expected = norm.logpdf(flat, p["loc"], np.exp(p["log_scale"])).sum()
    assert jnp.allclose(q.log_prob(rows), expected, rtol=10 * RTOL)
    # A batch picks its own rows, in its own order, and twice if it holds one twice.
    index = jnp.array([3, 0, 3])
    batch = guide.parts["rows"].distribution(params["rows"], index, SCALED_DATA[1][index])
    assert np.array_equal(batch.params["loc"], p["loc"][np.array(index)])


def test_antithetic_draws_of_all_rows_come_in_pairs(key):
    guide = hierarchies()["per_row"]
    params = moved(exact_params("per_row"), key)
    params["z"]["readout"]["log_scale"] *= 0  # then z is linear in the noise

    @jax.jit
    def draws(params):
        q = guide.distribution(params, *DATA)
        particles = ELBO(4, sampling="antithetic").particles(key, q, lambda u, log_q: u)
        assert q.noise_size == 1 + NUM
        return particles.values, q.from_noise(jnp.zeros(q.noise_size))[0]

    u, centre = draws(params)
    for name in LATENTS:
        pairs = (u[name][:2] + u[name][2:]) / 2
        assert jnp.allclose(pairs, jnp.broadcast_to(centre[name], pairs.shape), rtol=10 * RTOL)
        assert jnp.min(jnp.abs(u[name][0] - u[name][1])) > 1e-3


# A chain within each row, a_n ~ N(M, S^2), b_n ~ N(a_n, T^2), x_n ~ N(b_n, R^2): latents local on
# local ones.
CHAIN = Model(
    {"a": local(real()), "b": local(real())},
    log_likelihood=lambda theta, index, x: norm.logpdf(x, theta["b"], R),
    prior=lambda theta: {"a": Normal(M, S), "b": Normal(theta["a"], T)},
)


@pytest.mark.parametrize("name", standing_for(["per_row", "amortised"], "amortised"))
def test_local_latents_depend_on_others_of_the_same_row(name, key):
    # b | a, x is N(slope x + pull a, sd_z^2) as in the hierarchy; a | x is N((M/S^2 + x/(T^2 +
    # R^2)) v, v).
    _, _, slope, pull, sd_z, _ = exact()
    v = 1 / (1 / S**2 + 1 / (T**2 + R**2))
    x, on = DATA[1], {"a": local(real())}
    a = {
        "loc": (v * (M / S**2 + x / (T**2 + R**2)))[:, None],
        "log_scale": as_leaf(0.5 * np.log(v), NUM, 1),
    }
    if name == "per_row":
        b = exact_params("per_row", standard=False)["z"]
        part = per_row(conditional(mean_field(real()), on), NUM, first)
    else:
        b = exact_params("amortised", standard=False)["z"]
        b_encode = lambda weights, draws, *data: encode_on(weights, {"g": draws["a"]}, *data)
        part = amortised(mean_field(real()), encoder("pull"), b_encode, on)
    guide = product({"a": per_row(mean_field(real()), NUM, first), "b": part})
    estimates = jax.jit(lambda params: ELBO(50)(key, CHAIN, guide, params, *DATA))({"a": a, "b": b})
    expected = norm.logpdf(X, M, (S**2 + T**2 + R**2) ** 0.5).sum()
    assert jnp.allclose(estimates, expected, rtol=10 * RTOL)
    assert slope * pull * sd_z > 0
    SVI(CHAIN, guide, ADAM).init(key, *DATA)  # its own start has the same tree


def test_posterior_draws_of_all_rows_and_of_new_ones(key):
    loc, sd, slope, pull, sd_z, _ = exact()
    n = 20_000

    def check(name, data):
        posterior = Posterior(HIERARCHY, hierarchies()[name], exact_params(name), data)
        draws = jax.tree.map(np.asarray, posterior.sample(key, n))
        assert draws["g"].shape == (n,)
        assert draws["z"].shape == (n, data[1].size)
        mean, variance = slope * np.asarray(data[1]) + pull * loc, sd_z**2 + pull**2 * sd**2
        assert np.all(abs(np.mean(draws["z"], 0) - mean) < 4 * (variance / n) ** 0.5)
        assert np.all(abs(np.var(draws["z"], 0) - variance) < 4 * variance * (2 / n) ** 0.5)
        # A row's dependence on g: cov(z_n, g) = pull sd^2.
        slopes = np.mean((draws["z"] - mean) * (draws["g"] - loc)[:, None], 0) / sd**2
        assert np.all(abs(slopes - pull) < 4 * (variance / sd**2 + pull**2) ** 0.5 / n**0.5)

    check("per_row", DATA)
    rows = jnp.array([4, 1])
    check("per_row", (rows, DATA[1][rows]))
    new = jnp.array([-7.0, 20.0, 3.0])
    check("amortised", (jnp.arange(3), new))
    check("conditional amortised", (jnp.arange(3), new))


# A variational autoencoder in small: the KL of a standard normal prior is closed.


def autoencoder():
    import distrax

    model = Model(
        {"w": real((2, 3)), "z": local(real(2))},
        log_likelihood=lambda theta, x: norm.logpdf(x, theta["z"] @ theta["w"], 0.7).sum(-1),
        prior=lambda theta: {"w": None, "z": distrax.Normal(0.5, 2.0)},
    )

    def encode(weights, x):
        loc, log_scale = jnp.split(x @ weights, 2, axis=1)
        return {"loc": loc, "log_scale": log_scale}

    z = amortised(mean_field(real(2)), lambda key: 0.3 * jax.random.normal(key, (3, 4)), encode)
    guide = product({"w": minisvi.delta(real((2, 3))), "z": z})
    x = 1.0 + jax.random.normal(jax.random.key(3), (4, 3))
    return model, guide, guide.init(jax.random.key(4)), x


@pytest.mark.foreign
@pytest.mark.parametrize("weight", standing_for([None, 2.5], 2.5))
def test_closed_form_kl_through_rows(weight, key):
    model, guide, params, x = autoencoder()
    target = model.over(guide.constrained)
    p = params["z"]
    loc, log_scale = np.split(np.asarray(x, np.float64) @ np.asarray(p, np.float64), 2, axis=1)
    closed = np.sum(np.log(2.0) - log_scale + (np.exp(2 * log_scale) + (loc - 0.5) ** 2) / 8 - 0.5)
    factor = 1.0 if weight is None else weight
    estimate = lambda gradient: (
        lambda k: ELBO(1, gradient)(k, target, guide, params, x, weight=weight)
    )
    u, _ = guide.distribution(params, x).sample_and_log_prob(seed=key)
    log_likelihood = jnp.sum(model.log_likelihood(u, x))
    value = jax.jit(estimate("closed_form_kl"))(key)
    assert jnp.allclose(value, factor * (log_likelihood - closed), rtol=10 * RTOL)
    keys, n = jax.random.split(key, 20_000), 20_000
    difference = jax.jit(
        jax.vmap(lambda k: estimate("closed_form_kl")(k) - estimate("reparameterised")(k))
    )(keys)
    assert jnp.std(difference) > 0.1
    assert abs(jnp.mean(difference)) < 4 * jnp.std(difference) / n**0.5
    sampled = jax.jit(
        jax.vmap(
            lambda k: closed_kl.sampled_minus_closed(
                guide.distribution(params, x), target, u, weight
            )
        )
    )
    assert jnp.std(sampled(keys[:3])) < 1e-6


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "batches"), [("per_row", Minibatches(2)), ("amortised", minisvi.FullBatch())]
)
def test_vmap_over_keys_equals_single_fits(name, batches, key):
    svi = SVI(HIERARCHY, hierarchies()[name], ADAM, ELBO(3), batches)
    keys = jax.random.split(key, 2)
    states, infos = jax.jit(jax.vmap(lambda k: svi.scan(svi.init(k, *DATA), 30, *DATA)))(keys)
    one = svi.run(keys[1], 30, *DATA, progress_bar=False)
    second = jax.tree.map(lambda leaf: leaf[1], states.params)
    chex.assert_trees_all_close(second, one.params, rtol=1000 * RTOL, atol=100 * RTOL)
    np.testing.assert_allclose(infos.elbo[1], one.elbo, rtol=1000 * RTOL)


def test_minibatches_touch_the_parameters_of_their_rows_alone(key):
    svi = SVI(HIERARCHY, hierarchies()["per_row"], optax.sgd(0.01), ELBO(), Minibatches(2, seed=5))
    state = svi.init(key, *DATA)
    after, _ = jax.jit(svi.update)(state, *DATA)
    (rows, _), weight = svi.batches(state.step, DATA)
    changed = np.any(
        np.asarray(after.params["z"]["guide"]["loc"] != state.params["z"]["guide"]["loc"]), axis=1
    )
    assert set(np.flatnonzero(changed)) == set(np.asarray(rows).tolist())
    assert weight == NUM / 2


def test_rows_come_up_equally_often():
    index = jnp.arange(NUM)
    rows = lambda batches: jax.jit(jax.vmap(lambda step: batches(step, (index,))[0][0]))
    batches = rows(Minibatches(4))(jnp.arange(3000))
    np.testing.assert_array_equal(np.bincount(np.ravel(batches), minlength=NUM), batches.size / NUM)
    other = rows(Minibatches(4, seed=1))(jnp.arange(3000))
    assert np.mean(batches == other) == pytest.approx(1 / NUM, abs=0.02)


def test_second_run_does_not_trace_again(key):
    traces = []

    def log_likelihood(theta, index, x):
        traces.append(None)
        return hierarchy_rows(theta, index, x)

    start = encoder("pull")

    def fit(x, name):
        # Everything but the functions and the optimiser is built anew.
        model = Model(
            {"g": real(), "z": local(real())}, log_likelihood=log_likelihood, prior=hierarchy_prior
        )
        z = per_row(conditional(mean_field(real()), {"g": real()}), NUM, first)
        if name == "amortised":
            z = amortised(mean_field(real()), start, encode_on, {"g": real()})
        guide = product({"g": mean_field(real()), "z": z})
        return SVI(model, guide, ADAM, ELBO(2), Minibatches(3)).run(
            key, 30, DATA[0], x, progress_bar=False
        )

    for name in ("per_row", "amortised"):
        fit(DATA[1], name)
        count = len(traces)
        fit(DATA[1] + 1.0, name)
        assert len(traces) == count > 0


def fit(part=None, model=HIERARCHY, batches=None, data=DATA):
    guide = product(
        {
            "g": mean_field(real()),
            "z": per_row(mean_field(real()), NUM, first) if part is None else part,
        }
    )
    batches = minisvi.FullBatch() if batches is None else batches
    return SVI(model, guide, ADAM, ELBO(), batches).run(
        jax.random.key(0), 20, *data, progress_bar=False
    )


def encoding(change):
    return amortised(
        mean_field(real()), encoder(), lambda weights, *data: change(encode(weights, *data))
    )


BAD = {
    "a flat guide over local latents": (
        lambda: fit(mean_field(LATENTS["z"])),
        ValueError,
        "is local: expected a guide such as `per_row` or `amortised`",
    ),
    "a flat guide over all latents": (
        lambda: mean_field(LATENTS).init(jax.random.key(0)),
        ValueError,
        (
            "latent `z` is local: expected a guide such as `per_row` or `amortised`, around "
            "one over a row"
        ),
    ),
    "a mixture per row": (
        lambda: fit(per_row(mixture(mean_field(real()), 2), NUM, first)),
        ValueError,
        "expected a family without strata",
    ),
    "a mixture from an encoder": (
        lambda: fit(
            amortised(
                mixture(mean_field(real()), 2),
                encoder(),
                lambda w, index, x: {
                    "logits": jnp.zeros((NUM, 2)),
                    "components": {n: jnp.zeros((NUM, 2, 1)) for n in ("loc", "log_scale")},
                },
            )
        ),
        ValueError,
        "expected a family without strata",
    ),
    "a minibatch of an unfactored model": (
        lambda: fit(
            model=Model(LATENTS, lambda theta, index, x: -jnp.sum((theta["z"] - theta["g"]) ** 2)),
            batches=Minibatches(2),
        ),
        ValueError,
        "a minibatch needs a factored model",
    ),
    "more rows than there are": (
        lambda: fit(batches=Minibatches(NUM + 1)),
        ValueError,
        r"`batch_size` must be in 1..6; got 7",
    ),
    "no rows": (lambda: Minibatches(0), ValueError, r"`batch_size` must be an integer >= 1; got 0"),
    "half a row": (
        lambda: Minibatches(0.5),
        TypeError,
        r"`batch_size` must be an integer >= 1; got 0.5",
    ),
    "data of different lengths": (
        lambda: Minibatches(2)(0, (DATA[0][:4], DATA[1])),
        ValueError,
        r"expected data with the same number of rows; got \{'0': \(4,\), '1': \(6,\)\}",
    ),
    "data without rows": (
        lambda: Minibatches(2)(0, (*DATA, 2.0)),
        ValueError,
        r"expected data with the same number of rows; got \{'0': \(6,\), '1': \(6,\), '2': \(\)\}",
    ),
    "floats for an index": (
        lambda: fit(per_row(mean_field(real()), NUM, lambda index, x: x)),
        ValueError,
        (
            r"per_row: `index` must return each row's place in 0..5: expected int\[6\]; got "
            r"float\d\d\[6\]"
        ),
    ),
    "a mask for an index": (
        lambda: fit(per_row(mean_field(real()), NUM, lambda index, x: x > 0)),
        ValueError,
        r"expected int\[6\]; got bool\[6\]",
    ),
    "an index of another length": (
        lambda: fit(per_row(mean_field(real()), NUM, lambda index, x: index[:4])),
        ValueError,
        r"expected int\[6\]; got int\d\d\[4\]",
    ),
    "no data": (
        lambda: hierarchies()["per_row"].distribution(exact_params("per_row")),
        ValueError,
        "a guide of local latents: expected data, whose leading axis is the rows; got none",
    ),
    "zero stored rows": (
        lambda: per_row(mean_field(real()), 0, first),
        ValueError,
        r"`num_rows` must be an integer >= 1; got 0",
    ),
    "an encoder of too few rows": (
        lambda: fit(encoding(lambda p: jax.tree.map(lambda leaf: leaf[:4], p))),
        ValueError,
        r"amortised: `encode` gave `loc`: expected shape \(6, 1\); got \(4, 1\)",
    ),
    "an encoder without the last axis": (
        lambda: fit(encoding(lambda p: p | {"log_scale": p["log_scale"][:, 0]})),
        ValueError,
        r"amortised: `encode` gave `log_scale`: expected shape \(6, 1\); got \(6,\)",
    ),
    "an encoder of another tree": (
        lambda: fit(encoding(lambda p: (p["loc"], p["log_scale"]))),
        ValueError,
        (
            r"amortised: `encode` gave: expected a tree with leaves \['loc', 'log_scale'\]; "
            r"got tuple with leaves"
        ),
    ),
    "a conditional guide from an encoder": (
        lambda: amortised(conditional(mean_field(real()), ON), encoder(), encode),
        ValueError,
        "amortised: expected `on` of its own, for the encoder; got a conditional guide",
    ),
    "a draw of another shape": (
        lambda: fit(per_row(mean_field(real(2)), NUM, first)),
        ValueError,
        r"guide's draw `z`: expected shape \(6,\); got \(6, 2\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_static_mistakes(case):
    call, error, pattern = BAD[case]
    with pytest.raises(error, match=pattern):
        call()


def test_a_row_beyond_the_stored_ones_stops_the_fit():
    # Clamped, it would quietly share the last row's parameters.
    with pytest.raises(NonFiniteError, match="latent z: 1 of 6 values not finite"):
        fit(data=(DATA[0].at[2].set(NUM), DATA[1]))
