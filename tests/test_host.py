"""Statistics of draws, and generators of PRNG keys, are the host's: they compile nothing."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from minisvi import Draws, Fit, Model, real
from minisvi.posterior import diagnostics
from minisvi.posterior.moments import moments
from minisvi.tools.keys import generator

# A shape that no other test has: what is compiled for another one is compiled again for this.
SIZE = 613
RNG = np.random.default_rng(0)
LOG_W = jax.device_put(RNG.normal(size=SIZE).astype(np.float32))
THETA = {
    "x": jax.device_put(RNG.normal(size=(SIZE, 2, 3)).astype(np.float32)),
    "n": jax.device_put(RNG.integers(0, 9, SIZE).astype(np.int32)),
}
LOC = jax.device_put(RNG.normal(size=(SIZE, 2)))
KEYS = {
    "typed": jax.random.key(3),
    "legacy": jax.random.PRNGKey(3),
    "rbg": jax.random.key(3, impl="rbg"),
}


def test_a_compilation_is_counted(programs):
    with programs() as found:
        jnp.cumsum(LOG_W)
    assert found
    with programs() as found:
        jnp.cumsum(LOG_W)
    assert not found


def weighted_draws():
    return Draws(THETA, diagnostics.psis(LOG_W).log_weights)


def a_fit():
    verdict = SimpleNamespace(level="good", elbo=-3.0, reason="equal weights", unreached=())
    judged = SimpleNamespace(draws=weighted_draws(), verdict=verdict)
    stages = (SimpleNamespace(judged=judged, name="mean field"),)
    return Fit(Model(real(), lambda x: -(x**2)), (), stages, None)


STATISTICS = {
    "mean": lambda: weighted_draws().mean(),
    "sd": lambda: weighted_draws().sd(),
    "median": lambda: weighted_draws().median(),
    "quantiles": lambda: weighted_draws().quantiles([0.1, 0.9]),
    "summary": lambda: weighted_draws().summary(),
    "a printed summary": lambda: str(weighted_draws().summary()),
    "a fit's summary": lambda: str(a_fit().summary()),
    "resample": lambda: weighted_draws().resample(KEYS["typed"], 100),
    "resample by a legacy key": lambda: weighted_draws().resample(KEYS["legacy"], 100),
    "resample by an rbg key": lambda: weighted_draws().resample(KEYS["rbg"], 100),
    "psis": lambda: diagnostics.psis(LOG_W),
    "elbo": lambda: diagnostics.elbo(LOG_W),
    "log evidence": lambda: diagnostics.log_evidence(LOG_W),
    "ess": lambda: diagnostics.importance_ess(LOG_W),
    "mean shift": lambda: diagnostics.mean_shift(THETA["x"], LOG_W),
    "mcse": lambda: diagnostics.weighted_mcse(THETA["x"], LOG_W),
    "sd mcse": lambda: diagnostics.weighted_sd_mcse(THETA["x"], LOG_W),
    "optima": lambda: diagnostics.distinct_optima(LOG_W, LOC, LOC),
    "moments": lambda: moments(THETA, LOG_W, LOG_W, np.zeros(len(LOG_W))),
    "tail": lambda: diagnostics.tail_excess(LOG_W),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_compile_nothing(name, programs):
    with programs() as found:
        STATISTICS[name]()
    assert not found


def test_marginals_compile_nothing(programs):
    pytest.importorskip("matplotlib").use("agg")
    from minisvi.posterior import plots

    with programs() as found:
        plots.marginals(weighted_draws(), weighted_draws())
    assert not found


def test_predictions_are_one_program(programs):
    add_noise = lambda key, theta: theta["x"] + jax.random.normal(key, (2, 3))
    draws = weighted_draws()
    with programs() as found:
        draws.predictive(KEYS["typed"], add_noise, 100)
    assert len(found) == 1
    with programs() as found:
        draws.predictive(KEYS["rbg"], add_noise, 100, batch_size=30)
    assert len(found) == 1


def test_statistics_have_the_dtype_of_theta():
    theta = {"half": np.ones(SIZE, np.float16), "double": np.ones(SIZE)} | THETA
    draws = Draws(theta, LOG_W)
    expected = {"half": np.float16, "double": np.float64, "x": np.float32, "n": jnp.zeros(()).dtype}
    for found in (draws.mean(), draws.sd(), draws.median()):
        assert {name: leaf.dtype for name, leaf in found.items()} == expected
        assert all(isinstance(leaf, np.ndarray) for leaf in found.values())


def test_statistics_of_arrays_on_a_mesh():
    mesh = jax.make_mesh((1,), ("rows",))
    spread = jax.device_put(THETA, jax.NamedSharding(mesh, PartitionSpec()))
    jax.tree.map(
        np.testing.assert_array_equal, Draws(spread, LOG_W).mean(), Draws(THETA, LOG_W).mean()
    )


@pytest.mark.parametrize("name", KEYS)
def test_a_generator_is_that_of_its_key_and_path(name, programs):
    key = KEYS[name]
    with programs() as found:
        first = generator(key, 1, 2).normal(size=1000)
        np.testing.assert_array_equal(generator(key, 1, 2).normal(size=1000), first)
    assert not found
    others = [generator(key), generator(key, 1), generator(key, 2, 1), generator(KEYS[name], 1, 3)]
    for other in others:
        assert abs(np.corrcoef(first, other.normal(size=1000))[0, 1]) < 4 / 1000**0.5


def test_generators_of_keys_are_told_apart():
    same = [generator(KEYS[name], 5).random() for name in ("typed", "legacy")]
    assert same[0] == same[1]
    keys = jax.random.split(KEYS["typed"], 50)
    assert len({generator(key).random() for key in keys}) == 50
