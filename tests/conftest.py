"""Shared settings: rank promotion is an error, tolerances are keyed by dtype, keys are fixed."""

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

FLOAT = jnp.result_type(float)
RTOL = {jnp.dtype("float32"): 1e-5, jnp.dtype("float64"): 1e-10}[jnp.dtype(FLOAT)]


@pytest.fixture
def key():
    return jax.random.key(20)


@pytest.fixture
def rtol():
    """1e-5 in float32, 1e-10 in float64."""
    return RTOL
