"""minisvi: stochastic variational inference in pure JAX.

Reading order, which is also the order of the mathematics: `supports` (T), `model` (log p), `guides` (q), `elbo` (E and
its gradient), `svi` (the maximum over phi), `posterior` (what q says). `minisvi.bnn` makes a Flax module a pytree of
latents; it is imported by name, because it loads Flax.
"""

from minisvi.batches import FullBatch, Minibatches
from minisvi.bounds import CUBO, FixedDraws, ForwardKL, ImportanceWeighted, Renyi
from minisvi.elbo import ELBO
from minisvi.guides import (
    Dependent,
    IndefiniteHessianError,
    affine_coupling,
    amortised,
    block,
    categorical,
    conditional,
    custom,
    delta,
    full_rank,
    inverse_autoregressive,
    laplace,
    low_rank,
    mean_field,
    mixture,
    per_row,
    product,
    spline_coupling,
)
from minisvi.model import Model
from minisvi.posterior import Posterior
from minisvi.sums import log_conditional, sum_out
from minisvi.supports import (
    Support,
    corr_cholesky,
    finite,
    greater_than,
    interval,
    local,
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
    "CUBO",
    "ELBO",
    "SVI",
    "Dependent",
    "FixedDraws",
    "ForwardKL",
    "FullBatch",
    "ImportanceWeighted",
    "IndefiniteHessianError",
    "Minibatches",
    "Model",
    "NonFiniteError",
    "Posterior",
    "Renyi",
    "SVIResult",
    "SVIState",
    "StepInfo",
    "Support",
    "affine_coupling",
    "amortised",
    "block",
    "categorical",
    "conditional",
    "corr_cholesky",
    "custom",
    "delta",
    "finite",
    "full_rank",
    "greater_than",
    "interval",
    "inverse_autoregressive",
    "laplace",
    "local",
    "log_conditional",
    "low_rank",
    "lower_cholesky",
    "mean_field",
    "mixture",
    "ordered",
    "per_row",
    "positive",
    "product",
    "real",
    "simplex",
    "spline_coupling",
    "sum_out",
    "transformed",
    "unit_interval",
]
