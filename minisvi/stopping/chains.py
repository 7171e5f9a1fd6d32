"""Have the iterates come to rest? Figures of chains, for rules that look while a fit runs.

All functions are pure, and may be jitted and vmapped. Chains are (C, N, ...): C of them, of N
iterates.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array


def split_rhat(chains: Array) -> Array:
    """Split R-hat of chains (C, N, ...): each chain is cut in two, and the halves are compared
    (Gelman et al. 2013, eq. 11.4).

    It is near 1 where the halves agree. Of one chain it tells whether the iterates have stopped
    moving.
    """
    half = chains.shape[1] // 2
    first = chains[:, :half]
    last = chains[:, -half:]
    halves = jnp.concatenate([first, last])
    variances = jnp.var(halves, axis=1, ddof=1)
    within = jnp.mean(variances, axis=0)
    means = jnp.mean(halves, axis=1)
    between = jnp.var(means, axis=0, ddof=1)
    return jnp.sqrt((half - 1) / half + between / within)


def chain_ess(chains: Array) -> Array:
    """Effective sample size of chains (C, N, ...) by Geyer's initial monotone sequence (Vehtari et
    al. 2021, eqs. 10-13).
    """
    num, length = chains.shape[:2]
    autocovariance = _autocovariance(chains)
    variance = autocovariance[:1]
    within = variance * length / (length - 1)
    between: Array | float = 0.0
    if num > 1:
        means = jnp.mean(chains, axis=1)
        between = jnp.var(means, axis=0, ddof=1)[None]
    total = variance + between
    rho = 1 - (within - autocovariance) / total
    rho = rho.at[0].set(1.0)
    tau = _integrated_time(rho)
    least_tau = 1 / math.log10(num * length)
    return num * length / jnp.maximum(tau, least_tau)


def _autocovariance(chains: Array) -> Array:
    """The mean autocovariance of the chains at each lag, (N, ...), by a Fourier transform."""
    length = chains.shape[1]
    centred = chains - jnp.mean(chains, axis=1, keepdims=True)
    # Padded with zeros, for the transform takes a chain as periodic.
    transform = jnp.fft.rfft(centred, n=2 * length, axis=1)
    spectrum = jnp.abs(transform) ** 2
    sums = jnp.fft.irfft(spectrum, axis=1)[:, :length]
    return jnp.mean(sums, axis=0) / length


def _integrated_time(rho: Array) -> Array:
    """The integrated autocorrelation time, in steps, of autocorrelations rho (N, ...).

    Sums of two neighbours are positive and decrease with the lag. Those after the first that is not
    positive are left out, and one that exceeds an earlier one is cut down to it.
    """
    num_pairs = len(rho) // 2
    in_pairs = rho[: 2 * num_pairs]
    pairs = in_pairs.reshape(num_pairs, 2, *rho.shape[1:])
    sums = pairs.sum(axis=1)
    positive = jnp.cumprod(sums > 0, axis=0)
    decreasing = jax.lax.cummin(sums, axis=0)
    return 2 * jnp.sum(positive * decreasing, axis=0) - 1


def mcse(chains: Array) -> Array:
    """Standard error of the mean of chains (C, N, ...): sd / sqrt(ESS)."""
    sd = jnp.std(chains, axis=(0, 1), ddof=1)
    return sd / jnp.sqrt(chain_ess(chains))
