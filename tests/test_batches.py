"""Which rows a step sees: every row once an epoch, in an order that is computed, with weights that
leave no bias.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from problems import adam
from scipy.stats import chisquare
from tiers import standing_for

import minisvi
from minisvi.data.batches import Chunk, Chunks
from minisvi.data.permutation import shuffled
from minisvi.guides import foreign


@pytest.mark.parametrize(
    "num", standing_for([1, 2, 3, 5, 7, 16, 101, 256, 1000, 65_537], 1, 7, 256)
)
def test_every_place_once(num, key):
    order = jax.jit(shuffled, static_argnames="num")
    one, other = (order(k, jnp.arange(num), num=num) for k in jax.random.split(key))
    np.testing.assert_array_equal(np.sort(one), np.arange(num))
    assert num < 7 or np.any(one != other)


def test_part_of_an_order_is_that_part(key):
    np.testing.assert_array_equal(
        shuffled(key, jnp.arange(40, 60), 137), shuffled(key, jnp.arange(137), 137)[40:60]
    )


@pytest.mark.parametrize("num", standing_for([4, 6, 11, 30], 11))
def test_pairs_of_places_are_uniform(num, key):
    """chi^2 of where two places go, over 50,000 keys; p > 1e-4 for each of six pairs."""
    orders = jax.jit(jax.vmap(lambda key: shuffled(key, jnp.arange(num), num)))(
        jax.random.split(key, 50_000)
    )
    for i, j in itertools.islice(itertools.combinations(range(0, num, max(num // 4, 1)), 2), 6):
        counts = np.bincount(
            np.asarray(orders[:, i] * num + orders[:, j]), minlength=num**2
        ).reshape(num, num)
        assert np.all(np.diagonal(counts) == 0)
        assert chisquare(counts[~np.eye(num, dtype=bool)]).pvalue > 1e-4


def epoch(batches, rows, number=0):
    """Batches of (rows, weights, how many rows count) of an epoch."""
    num_batches = -(-len(rows) // batches.batch_size)
    step = jax.jit(lambda step: batches(step, (rows,)))
    for k in range(num_batches):
        (seen,), weights = step(jnp.int32(number * num_batches + k))
        yield (
            np.asarray(seen),
            np.broadcast_to(weights, len(seen)),
            int(np.sum(np.broadcast_to(weights, len(seen)) > 0)),
        )


SIZES = {
    "B divides N": (12, 4, 1),
    "B does not": (13, 4, 1),
    "one batch": (5, 5, 1),
    "one row": (7, 1, 1),
    "shards": (24, 9, 3),
}


@pytest.mark.parametrize("name", standing_for(SIZES, "B does not", "shards"))
def test_an_epoch_has_every_row_once_and_weights_that_add_up_to_n(name):
    num, batch_size, shards = SIZES[name]
    batches = minisvi.Minibatches(batch_size, seed=3, shards=shards)
    orders = []
    for number in range(2):
        parts = list(epoch(batches, jnp.arange(num), number))
        for seen, weights, count in parts:
            assert len(seen) <= batch_size
            np.testing.assert_allclose(weights, np.where(weights > 0, num / count, 0))
        counts = [count for *_, count in parts]
        assert max(counts) - min(counts) <= shards
        orders.append(np.concatenate([seen[weights > 0] for seen, weights, _ in parts]))
        np.testing.assert_array_equal(np.sort(orders[-1]), np.arange(num))
    assert num == batch_size or num < 6 or np.any(orders[0] != orders[1])


def test_a_shard_gives_its_own_rows_only():
    (seen,), _ = minisvi.Minibatches(6, shards=3)(jnp.int32(5), (jnp.arange(30),))
    np.testing.assert_array_equal(np.asarray(seen) // 10, [0, 0, 1, 1, 2, 2])


def regression(num=103, dim=3):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(num, dim)) * np.array([1.0, 30.0, 0.1])
    y = x @ np.array([2.0, -0.1, 5.0]) + 0.7 * rng.normal(size=num)
    return tuple(jnp.asarray(a, jnp.result_type(float)) for a in (x, y))


LATENTS = {"w": minisvi.real(3), "sigma": minisvi.positive()}
MODEL = minisvi.Model(
    LATENTS,
    log_prior=lambda t: jnp.sum(norm.logpdf(t["w"], 1.0, 3.0)) + norm.logpdf(t["sigma"], 1.0, 0.5),
    log_likelihood=lambda t, x, y: norm.logpdf(y, jnp.sum(x * t["w"][None], axis=1), t["sigma"]),
)
GUIDE = minisvi.mean_field(LATENTS)


@pytest.mark.parametrize(
    ("batch_size", "shards"), standing_for([(10, 1), (103, 1), (7, 1), (50, 1)], (10, 1))
)
def test_the_mean_over_an_epoch_is_the_elbo_of_all_rows(batch_size, shards, key, rtol):
    """At the same draws, batches counted by their rows."""
    data, params = regression(), GUIDE.init(key)
    batches = minisvi.Minibatches(batch_size, seed=1, shards=shards)
    objective = minisvi.ELBO(3)
    num_batches = -(-103 // batch_size)

    @jax.jit
    def one(step):
        batch, weight = batches(step, data)
        share = jnp.sum(jnp.broadcast_to(weight, len(batch[1])) > 0) / 103
        return share, objective(key, MODEL, GUIDE, params, *batch, weight=weight)

    shares, elbos = zip(*(one(jnp.int32(k + 4 * num_batches)) for k in range(num_batches)))
    assert np.std(np.asarray(elbos)) > 0 or num_batches == 1
    expected = jax.jit(objective, static_argnums=(1, 2))(key, MODEL, GUIDE, params, *data)
    np.testing.assert_allclose(np.dot(shares, elbos), expected, rtol=10 * rtol)


def test_a_minibatch_is_unbiased(key):
    """The gradient over 4,000 steps, each in an epoch of its own, to four standard errors."""
    data, params, batches = regression(), GUIDE.init(key), minisvi.Minibatches(10)
    num_batches = -(-103 // 10)

    @jax.jit
    def gradient(params, batch, weight):
        return jax.grad(lambda p: minisvi.ELBO()(key, MODEL, GUIDE, p, *batch, weight=weight))(
            params
        )

    steps = jnp.arange(4000) * num_batches + jnp.arange(4000) % num_batches
    grads = jax.jit(jax.vmap(lambda step: gradient(params, *batches(step, data))))(steps)
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(gradient(params, data, None))):
        error = np.std(got, axis=0) / 4000**0.5
        assert np.all(np.abs(np.mean(got, axis=0) - expected) < 4 * error)


def test_rows_may_have_weights_of_their_own(key, rtol):
    """A row of weight three is that row three times, for globals and for local latents with their
    guide.
    """
    model = minisvi.Model(
        {"mu": minisvi.real(), "z": minisvi.local(minisvi.positive())},
        log_prior=lambda t: norm.logpdf(t["mu"], 2.0, 3.0),
        log_likelihood=lambda t, i, x: norm.logpdf(x, t["mu"] + t["z"], 0.4) - t["z"],
    )
    rows = minisvi.per_row(minisvi.mean_field(minisvi.positive()), 4, lambda i, x: i)
    guide = minisvi.product({"mu": minisvi.mean_field(minisvi.real()), "z": rows})
    params, x = guide.init(key), jnp.array([1.0, 4.0, 2.5, -1.0])
    params["z"]["log_scale"] = jnp.linspace(-1.0, 1.0, 4)[:, None]
    index, counts = jnp.arange(4), np.array([3, 0, 1, 2])

    def log_w(index, x, weight, normals):
        q = foreign.weighted(guide.distribution(params, index, x), weight, model.latents)
        u, log_q = q.from_noise(normals)
        return model.log_density(u, index, x, weight=weight) - log_q

    normals = jax.random.normal(key, (5,))
    repeated = np.repeat(np.arange(4), counts)
    again = jnp.concatenate([normals[:1], normals[1:][repeated]])
    weighted = log_w(index, x, jnp.asarray(counts, x.dtype), normals)
    np.testing.assert_allclose(
        weighted, log_w(index[repeated], x[repeated], None, again), rtol=10 * rtol
    )
    halves = log_w(index, x, jnp.full(4, 2.5), normals)
    np.testing.assert_allclose(halves, log_w(index, x, 2.5, normals), rtol=10 * rtol)


def test_a_block_gives_each_step_its_batch():
    rows = jnp.arange(24.0).reshape(4, 3, 2)
    (seen,), weights = Chunks(100)(
        jnp.int32(12), (Chunk(10, (rows,), jnp.arange(12.0).reshape(4, 3)),)
    )
    np.testing.assert_array_equal(seen, rows[2])
    np.testing.assert_array_equal(weights, [6.0, 7.0, 8.0])


def test_going_on_sees_the_rows_that_one_run_would(key):
    svi = minisvi.SVI(MODEL, GUIDE, adam(1e-2), batches=minisvi.Minibatches(10))
    whole = svi.run(key, 60, *regression(), progress_bar=False)
    half = svi.run(key, 25, *regression(), progress_bar=False)
    rest = svi.resume(half.state, 35, *regression(), progress_bar=False)
    np.testing.assert_array_equal(whole.elbo, np.concatenate([half.elbo, rest.elbo]))


WRONG = {
    "unequal rows": (
        lambda: minisvi.Minibatches(2)(0, (jnp.zeros(3), jnp.zeros(4))),
        "same number of rows",
    ),
    "too large": (
        lambda: minisvi.Minibatches(4)(0, (jnp.zeros(3),)),
        r"`batch_size` must be in 1..3; got 4",
    ),
    "shards and batch": (
        lambda: minisvi.Minibatches(4, shards=3),
        "`shards` must divide `batch_size`, 4; got 3",
    ),
    "rows of a shard": (
        lambda: minisvi.Minibatches(4).num_rows((jax.ShapeDtypeStruct((2**31,), float),)),
        "fewer than 2\\^31 rows a shard; got 2147483648 in 1",
    ),
    "shards and rows": (
        lambda: minisvi.Minibatches(4, shards=2)(0, (jnp.zeros(5),)),
        "the number of rows, 5; got 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_sizes_are_named(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call()
