"""minisvi: stochastic variational inference in pure JAX.

Reading order, which is also the order of the mathematics: `supports` (T), `model` (log p), `guides` (q), `elbo` (E and
its gradient), `svi` (the maximum over phi), `posterior` (what q says). `minisvi.bnn` makes a Flax module a pytree of
latents; it is imported by name, because it loads Flax.
"""

from minisvi.batches import FullBatch
from minisvi.elbo import ELBO
from minisvi.guides import custom, delta, full_rank, mean_field
from minisvi.model import Model
from minisvi.posterior import Posterior
from minisvi.supports import (
    Support,
    corr_cholesky,
    greater_than,
    interval,
    lower_cholesky,
    ordered,
    positive,
    real,
    simplex,
    transformed,
    unit_interval,
)
from minisvi.svi import SVI, NonFiniteError, StepInfo, SVIResult, SVIState

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "SVI",
    "FullBatch",
    "Model",
    "NonFiniteError",
    "Posterior",
    "SVIResult",
    "SVIState",
    "StepInfo",
    "Support",
    "corr_cholesky",
    "custom",
    "delta",
    "full_rank",
    "greater_than",
    "interval",
    "lower_cholesky",
    "mean_field",
    "ordered",
    "positive",
    "real",
    "simplex",
    "transformed",
    "unit_interval",
]
