"""From a fit to MCMC: where its chains start, and the units of their steps."""

import jax
import numpy as np
from jax import Array

from minisvi.auto import drawing
from minisvi.auto.stages import MAX_DENSE
from minisvi.model.at_rows import density_at_rows, ravel_rows
from minisvi.posterior import diagnostics
from minisvi.posterior.draws import Draws
from minisvi.posterior.posterior import Posterior
from minisvi.posterior.weighted import normalised
from minisvi.tools.types import Draw

_NUM_DRAWS = 4000


def restart(key: Array, posterior: Posterior, num_chains: int) -> tuple[Draw, np.ndarray]:
    """Positions u, resampled by their weights, and the covariance of u: see `Fit.to_blackjax`."""
    model, guide, data = posterior.model, posterior.guide, posterior.data
    num_draws = max(_NUM_DRAWS, 10 * num_chains)
    drawn = drawing.draw(key, model, guide, posterior.params, data, num_draws)
    _, log_p = density_at_rows(model, drawn.u, num_draws, data)
    with np.errstate(invalid="ignore"):  # inf - inf
        log_w = log_p - drawn.log_q + drawn.log_ratio
    log_weights = diagnostics.psis(log_w).log_weights
    positions = Draws(drawn.u, log_weights).resample(key, num_chains).theta
    rows = ravel_rows(drawn.u, num_draws)
    weights = normalised(log_weights)
    of_posterior = _covariance(rows, weights)
    of_q = _covariance(rows, normalised(drawn.log_ratio))
    ess = diagnostics.importance_ess(log_weights)
    share = ess / (ess + rows.shape[1])
    return jax.tree.map(np.asarray, positions), share * of_posterior + (1 - share) * of_q


def _covariance(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of weighted rows, (D, D); or the variances (D,), of very many columns."""
    z = rows - weights @ rows
    if rows.shape[1] > MAX_DENSE:
        return weights @ z**2
    return (weights[:, None] * z).T @ z
