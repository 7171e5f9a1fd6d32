"""Figures of chains against ArviZ, closed forms, and their own standard errors over repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats

from minisvi.stopping import chains as c

CHAIN_ESS = jax.jit(jax.vmap(c.chain_ess))
MCSE = jax.jit(jax.vmap(c.mcse))


def autoregressive(key, rho, *shape):
    """Stationary AR(1) chains (..., N) about 7, of variance one."""
    noise = jax.random.normal(key, shape)

    def step(x, eps):
        x = rho * x + (1 - rho**2) ** 0.5 * eps
        return x, x

    _, x = jax.lax.scan(step, noise[..., 0], jnp.moveaxis(noise, -1, 0))
    return 7.0 + jnp.moveaxis(x, 0, -1)


def test_split_rhat_equals_arviz(key, rtol):
    length = 201  # odd: the one in the middle is in neither half
    chains = autoregressive(key, 0.8, 3, length) + jnp.array([[0.0], [0.3], [0.0]])
    drift = jnp.broadcast_to(jnp.linspace(0.0, 2.0, length), (3, length))
    got = jax.jit(c.split_rhat)(jnp.stack([chains, chains + drift], axis=2))
    expected = [
        array_stats.rhat(np.asarray(x, float), method="split") for x in (chains, chains + drift)
    ]
    np.testing.assert_allclose(got, expected, rtol=10 * rtol)
    assert got[1] > got[0] + 0.1


@pytest.mark.parametrize("rho", [-0.3, 0.0, 0.9])
def test_effective_sample_size_of_chains(rho, key):
    repeats, num, length = 40, 4, 1000
    chains = autoregressive(key, rho, repeats, num, length)
    ess = np.asarray(CHAIN_ESS(chains))
    assert np.mean(ess) == pytest.approx((1 - rho) / (1 + rho) * num * length, rel=0.1)
    # ArviZ halves the chains first, and for some ends the sum one term later, of up to 6 /
    # sqrt(4000); most are equal.
    halves = CHAIN_ESS(chains[:8].reshape(8, 2 * num, length // 2))
    arviz = [array_stats.ess(np.asarray(x, float), method="mean") for x in chains[:8]]
    np.testing.assert_allclose(halves, arviz, rtol=0.1)
    assert np.median(np.abs(halves / np.array(arviz) - 1)) < 1e-4
    errors = MCSE(chains)
    spread = np.sqrt(np.mean((np.mean(chains, axis=(1, 2)) - 7) ** 2))
    assert spread == pytest.approx(float(np.mean(errors)), rel=4 / (2 * repeats) ** 0.5)
    assert errors[0] == pytest.approx(
        array_stats.mcse(np.asarray(chains[0], float), method="mean"), rel=0.1
    )


@pytest.mark.whole
def test_chains_of_many_coordinates_are_those_of_each(key, rtol):
    chains = jnp.stack([autoregressive(key, rho, 2, 300) for rho in (0.0, 0.5, 0.95)], axis=2)
    for function in (c.chain_ess, c.mcse, c.split_rhat):
        each = jax.jit(jax.vmap(function, in_axes=2))(chains)
        got = jax.jit(function)(chains.reshape(2, 300, 3, 1))
        np.testing.assert_allclose(got[:, 0], each, rtol=100 * rtol)
