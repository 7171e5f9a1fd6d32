"""Shared settings: rank promotion is an error, tolerances are keyed by dtype, keys are fixed."""

import os

import jax
import jax.numpy as jnp
import pytest

FLOAT = jnp.result_type(float)
RTOL = {jnp.dtype("float32"): 1e-5, jnp.dtype("float64"): 1e-10}[jnp.dtype(FLOAT)]


def pytest_configure(config):
    """Most of a short test is compilation, and much of that is LLVM's work; slow tests run what users run."""
    if config.getoption("markexpr") != "slow":
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"


@pytest.fixture(autouse=True)
def no_rank_promotion(request):
    """No array of ours meets one of another rank; a `foreign` library may do so."""
    foreign = request.node.get_closest_marker("foreign") is not None
    with jax.numpy_rank_promotion("allow" if foreign else "raise"):
        yield


@pytest.fixture
def key():
    return jax.random.key(20)


@pytest.fixture
def rtol():
    """1e-5 in float32, 1e-10 in float64."""
    return RTOL
