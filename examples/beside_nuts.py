"""NUTS on the same density: how the gallery's examples check their fits.

NumPyro's sampler takes `model.log_density`, so that both see one model. It is the slower way and,
where its chains mix, the exact one. `--quick` leaves it out, and gives a fit a second.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import minisvi

QUICK = "--quick" in sys.argv
EFFORT: Any = {"num_draws": 2000, "seconds": 1.0} if QUICK else {}  # of a fit
NUM_WARMUP, NUM_SAMPLES, NUM_CHAINS = 1000, 2000, 2


class Reference(NamedTuple):
    """Draws of NUTS, theta with leading axes (chain, draw), and what they took."""

    theta: Any
    seconds: float


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What the function returns, and the seconds that it took, compilation included."""
    begin = time.perf_counter()
    value = jax.block_until_ready(function())
    return value, time.perf_counter() - begin


def nuts(key: Any, model: minisvi.Model, *data: Any) -> Reference:
    """Draws of theta by NUTS, from two chains that start near u = 0."""
    from numpyro.infer import MCMC, NUTS

    sampler = MCMC(
        NUTS(potential_fn=lambda u: -model.log_density(u, *data)),
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=NUM_CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    positions = near_zero(key, model)

    def run() -> Any:
        sampler.run(key, init_params=positions)
        u = sampler.get_samples(group_by_chain=True)
        return jax.vmap(jax.vmap(model.constrain))(u)

    return Reference(*timed(run))


def near_zero(key: Any, model: minisvi.Model) -> Any:
    """A position u for each chain, uniform on (-0.5, 0.5) in every coordinate."""
    supports, structure = jax.tree.flatten(model.latents)
    keys = jax.random.split(key, len(supports))
    positions = []
    for support, one in zip(supports, keys):
        shape = (NUM_CHAINS, *support.unconstrained.shape)
        positions.append(jax.random.uniform(one, shape, minval=-0.5, maxval=0.5))
    return jax.tree.unflatten(structure, positions)


def compare(
    fit: minisvi.Fit, seconds: float, key: Any, select: Callable[[Any], Any] | None = None
) -> Reference | None:
    """Print the verdict, and how far means and sds of the fit lie from those of NUTS, whose draws
    it returns; None with `--quick`.

    Errors are those of the worst scalar, in sds of NUTS; constants, such as the upper half of a
    Cholesky factor, are left out. `select(theta)` is a tree of what is compared, and theta itself
    unless it is given.
    """
    print(f"{'verdict':22}{fit.verdict.level}: {fit.verdict.reason}")
    print(f"{'seconds of fit':22}{seconds:.1f}")
    if QUICK:
        return None
    reference = nuts(key, fit.model, *fit.data)
    select = select or (lambda theta: theta)
    samples = jax.tree.leaves(jax.vmap(jax.vmap(select))(reference.theta))
    draws = fit.draws.map(select)
    means, sds = jax.tree.leaves(draws.mean()), jax.tree.leaves(draws.sd())
    errors = [differences(*one) for one in zip(means, sds, samples)]
    mean_error, sd_error = np.max(errors, axis=0)
    print(f"{'seconds of NUTS':22}{reference.seconds:.1f}")
    rhat, own_error = quality(samples)
    print(f"{'r-hat of NUTS':22}{rhat:.3f}")
    print(
        f"{'largest mean error':22}{mean_error:.3f} sd, of which {own_error:.3f} may be NUTS's own"
    )
    print(f"{'largest sd error':22}{sd_error:.3f}")
    return reference


def differences(mean: Any, sd: Any, samples: Any) -> tuple[float, float]:
    """The largest errors of one leaf's means and sds, in sds of the samples (chain, draw, ...)."""
    samples, varies = np.asarray(samples, float), varying(samples)
    expected, spread = samples.mean((0, 1))[varies], samples.std((0, 1))[varies]
    mean_error = np.abs(np.asarray(mean)[varies] - expected) / spread
    sd_error = np.abs(np.asarray(sd)[varies] / spread - 1)
    return float(np.max(mean_error, initial=0.0)), float(np.max(sd_error, initial=0.0))


def varying(samples: Any) -> Any:
    """Which entries of the samples (chain, draw, ...) vary."""
    return np.asarray(np.ptp(samples, axis=(0, 1)) > 0)


def quality(samples: list[Any]) -> tuple[float, float]:
    """Of NUTS: the largest split r-hat, and the largest standard error of a mean in sds."""
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    rhat, ess = [], []
    for leaf in map(np.asarray, samples):
        leaf = leaf[:, :, varying(leaf)]
        rhat.append(np.max(split_gelman_rubin(leaf), initial=0.0))
        ess.append(np.min(effective_sample_size(leaf), initial=np.inf))
    return float(max(rhat)), float(min(ess)) ** -0.5
