"""Run by `test_sharding`, on eight devices: a sharded fit is the unsharded one, and no row leaves
its device.

By hand: XLA_FLAGS=--xla_force_host_platform_device_count=8 pytest -n 0 tests/eight_devices.py
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import RTOL
from jax.sharding import NamedSharding, PartitionSpec
from problems import adam, conjugate_data, conjugate_model
from tiers import standing_for

import minisvi
from minisvi import ELBO, SVI, FullBatch, Minibatches, Patience, Stream, mean_field
from minisvi.running import device
from minisvi.running.plan import Plan
from minisvi.svi import _init

NUM_ROWS = 400  # 50 a shard: orders that are walked, and batches of two sizes
ADAM = adam(0.05)
X = np.asarray(conjugate_data(NUM_ROWS))
D = X.shape[1]


def svi_of(objective=ELBO(), batches=FullBatch()):
    model = conjugate_model()
    return SVI(model, mean_field(model.latents), ADAM, objective, batches)


def patience(rows):
    return {"average": True, "stop": Patience(every=100, num_draws=4), "held_out": (rows,)}


# --- The same numbers. ---

BY_SHARDS = Minibatches(48, shards=8)
FITS = {
    "full batch": ({"rows": 8}, svi_of(), {}),
    "particles": ({"rows": 2, "particles": 4}, svi_of(ELBO(8)), {}),
    "restarts": ({"rows": 2, "restarts": 4}, svi_of(), {"num_restarts": 8}),
}
SLOW = {
    "more shards than devices": ({"rows": 4, "particles": 2}, svi_of(batches=BY_SHARDS), {}),
    "shards that the devices do not divide": ({"rows": 8}, svi_of(batches=Minibatches(48)), {}),
    "restarts by minibatches": (
        {"rows": 4, "restarts": 2},
        svi_of(batches=BY_SHARDS),
        {"num_restarts": 4},
    ),
}


def assert_same_fit(sharded, whole):
    np.testing.assert_allclose(sharded.elbo, whole.elbo, rtol=RTOL)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=RTOL),
        sharded.params,
        whole.params,
    )
    assert sharded.reason == whole.reason
    assert int(sharded.state.step) == int(whole.state.step) == len(sharded.elbo)


@pytest.mark.parametrize(
    "name",
    [
        *standing_for(FITS, "particles"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_a_sharded_fit_is_the_unsharded_one(name, key):
    axes, svi, options = (FITS | SLOW)[name]
    mesh = minisvi.mesh(**axes)
    whole = svi.run(key, 500, X, progress_bar=False, **options)
    with jax.set_mesh(mesh):
        sharded = svi.run(key, 500, *minisvi.shard_rows(mesh, X), progress_bar=False, **options)
    assert_same_fit(sharded, whole)
    if whole.restarts is not None:
        assert sharded.restarts.best == whole.restarts.best
        np.testing.assert_allclose(sharded.restarts.elbo, whole.restarts.elbo, rtol=RTOL)


@pytest.mark.whole
def test_a_rule_and_the_average_choose_the_same_by_minibatches_within_shards(key):
    mesh, svi = minisvi.mesh(rows=8), svi_of(batches=BY_SHARDS)
    x, held_out = minisvi.shard_rows(mesh, X, X[:80])
    whole = svi.run(key, 500, X, progress_bar=False, **patience(X[:80]))
    with jax.set_mesh(mesh):
        sharded = svi.run(key, 500, x, progress_bar=False, **patience(held_out))
    assert_same_fit(sharded, whole)
    np.testing.assert_allclose(sharded.checks.score, whole.checks.score, rtol=RTOL)


@pytest.mark.whole
def test_a_stream_goes_to_all_devices(key):
    def fit(sharding):
        batches = [X[i : i + 40] for i in range(0, NUM_ROWS, 40)] * 50
        return svi_of().run(
            key, 500, Stream(batches, NUM_ROWS, sharding=sharding), progress_bar=False
        )

    assert_same_fit(fit(NamedSharding(minisvi.mesh(rows=8), PartitionSpec("rows"))), fit(None))


def test_latents_stay_where_their_parameters_are_put(key):
    """Parameters and optimiser through a whole fit, of latents spread over all devices."""
    loc, sd = np.linspace(3.0, 9.0, 64), np.geomspace(2.0, 20.0, 64)

    def log_joint(
        theta,
    ):  # not normalised: at an ELBO of zero no error would be relative to anything
        return jnp.sum(jax.scipy.stats.norm.logpdf(theta["x"], loc, sd)) - 1000.0

    model = minisvi.Model({"x": minisvi.real(64)}, log_joint)
    svi = SVI(model, mean_field(model.latents), ADAM)
    params, spread = (
        svi.guide.init(key),
        NamedSharding(minisvi.mesh(latents=8), PartitionSpec("latents")),
    )
    sharded = svi.run(key, 500, params=jax.device_put(params, spread), progress_bar=False)
    assert_same_fit(sharded, svi.run(key, 500, params=params, progress_bar=False))
    vectors = [
        leaf for leaf in jax.tree.leaves((sharded.params, sharded.state.opt_state)) if leaf.ndim
    ]
    assert len(vectors) == 6
    assert all(leaf.sharding.is_equivalent_to(spread, 1) for leaf in vectors)


@pytest.mark.slow
def test_rows_alone_need_no_mesh_in_use(key):
    svi = svi_of(batches=BY_SHARDS)
    sharded = svi.run(key, 500, *minisvi.shard_rows(minisvi.mesh(rows=8), X), progress_bar=False)
    assert_same_fit(sharded, svi.run(key, 500, X, progress_bar=False))


@pytest.mark.slow
def test_a_step_outside_jit_needs_no_number_that_an_axis_divides(key):
    mesh, svi = minisvi.mesh(rows=4, particles=2), svi_of(ELBO(3), BY_SHARDS)
    whole = svi.evaluate(svi.init(key, X), X)
    with jax.set_mesh(mesh):
        data = minisvi.shard_rows(mesh, X)
        np.testing.assert_allclose(svi.evaluate(svi.init(key, *data), *data), whole, rtol=RTOL)


# --- What crosses between devices in a step. ---

# Of one estimate: the sum over rows in the gradient of the D locations, from which that of the
# scales follows, and in the ELBO. All particles of a device go together.
ESTIMATE = D + 1
STEPS = {
    "full batch": ({"rows": 8}, svi_of(), [ESTIMATE]),
    "minibatch": ({"rows": 8}, svi_of(batches=BY_SHARDS), [ESTIMATE]),
    "particles of a minibatch": ({"rows": 8}, svi_of(ELBO(4), BY_SHARDS), [4 * ESTIMATE]),
    "particles on their axis": (
        {"rows": 2, "particles": 4},
        svi_of(ELBO(8)),
        [8 // 4 * ESTIMATE, 2 * D + 1],
    ),
}
COLLECTIVE = re.compile(r" = (.*?) (all-\w+|reduce-scatter|collective-\w+|ragged-\S+)(?:-start)?\(")


def collectives(compiled):
    """(kind, how many numbers) of each."""
    found = COLLECTIVE.findall(compiled.as_text())
    sizes = [re.findall(r"\w\[([\d,]*)\]", shapes) for shapes, _ in found]
    return [
        (k, sum(math.prod(map(int, s.split(","))) if s else 1 for s in size))
        for (_, k), size in zip(found, sizes)
    ]


@pytest.mark.parametrize("name", standing_for(STEPS, "minibatch", "particles on their axis"))
def test_only_sums_leave_a_device(name, key):
    axes, svi, sizes = STEPS[name]
    mesh = minisvi.mesh(**axes)
    data = minisvi.shard_rows(mesh, X)
    with jax.set_mesh(mesh):
        step = jax.jit(svi.update).lower(jax.jit(svi.init)(key, *data), *data).compile()
    assert collectives(step) == [("all-reduce", size) for size in sizes]


def test_starts_lie_on_their_own_devices_and_share_only_their_ends(key):
    mesh, svi = minisvi.mesh(rows=2, restarts=4), svi_of()
    program = device.program(svi, Plan(8))
    data, spread = minisvi.shard_rows(mesh, X), NamedSharding(mesh, PartitionSpec("restarts"))
    with jax.set_mesh(mesh):
        lane = device.start(
            program, _init(svi, *data, key=key, params=None, num_restarts=8), data, None
        )
        arguments = lane, np.array([0, 10], np.int32), data, None
        compiled = program.block.lower(*arguments).compile()
        lane, *_ = program.block(*arguments)
    for leaf in jax.tree.leaves(lane):
        assert leaf.sharding.is_equivalent_to(spread, leaf.ndim)
    # Two starts a device: their sums in a step, whether any goes on after it, and that again at the
    # block's end.
    assert sorted(collectives(compiled)) == [
        ("all-reduce", 1),
        ("all-reduce", 1),
        ("all-reduce", 2 * ESTIMATE),
    ]


# --- Mistakes. ---

MISTAKES = {
    "rows": (
        lambda: minisvi.shard_rows(minisvi.mesh(rows=8), X[:399]),
        "partitioned 8 times.* 399",
    ),
    "no such axis": (lambda: minisvi.shard_rows(minisvi.mesh(particles=8), X), "rows.*particles"),
    "devices": (lambda: minisvi.mesh(rows=9), "devices 8 must be >=.*9"),
    "no rows": (
        lambda: minisvi.shard_rows(minisvi.mesh(rows=8), X, jnp.array(1.0)),
        "rank at least 1.* rank 0",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_layout_that_cannot_be_says_why(name):
    make, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        make()
