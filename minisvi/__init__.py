"""minisvi: stochastic variational inference in pure JAX.

Reading order, which is also the order of the mathematics: `supports` (T), `model` (log p), `guides` (q), `elbo` (E and
its gradient), `svi` (the maximum over phi), `posterior` (what q says); then `diagnostics`, `verdict` (is it true?) and
`fit`, which needs no tuning. `minisvi.bnn` makes a Flax module a pytree of latents; it is imported by name, because it
loads Flax. So is `minisvi.plots`, which draws a fit with Matplotlib.
"""

from minisvi.batches import FullBatch, Minibatches
from minisvi.bounds import CUBO, FixedDraws, ForwardKL, ImportanceWeighted, Renyi
from minisvi.checkpoint import load, save
from minisvi.convergence import Convergence
from minisvi.deterministic import Deterministic, deterministic
from minisvi.draws import Draws
from minisvi.elbo import ELBO
from minisvi.export import to_arviz
from minisvi.fit import Fit, fit
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
    whitened,
)
from minisvi.model import Model
from minisvi.newton import newton
from minisvi.online import with_prior
from minisvi.posterior import Posterior, log_weights
from minisvi.prior_supports import PriorSupportWarning
from minisvi.response import linear_response
from minisvi.result import NonFiniteError, Restarts, SVIResult
from minisvi.sharding import mesh, shard_rows
from minisvi.stopping import Patience
from minisvi.streams import Stream, StreamError
from minisvi.summary import Summary
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
from minisvi.svi import SVI, StepInfo, SVIState
from minisvi.verdict import Judged, Verdict, judge

__version__ = "0.1.0"

__all__ = [
    "CUBO",
    "ELBO",
    "SVI",
    "Convergence",
    "Dependent",
    "Deterministic",
    "Draws",
    "Fit",
    "FixedDraws",
    "ForwardKL",
    "FullBatch",
    "ImportanceWeighted",
    "IndefiniteHessianError",
    "Judged",
    "Minibatches",
    "Model",
    "NonFiniteError",
    "Patience",
    "Posterior",
    "PriorSupportWarning",
    "Renyi",
    "Restarts",
    "SVIResult",
    "SVIState",
    "StepInfo",
    "Stream",
    "StreamError",
    "Summary",
    "Support",
    "Verdict",
    "affine_coupling",
    "amortised",
    "block",
    "categorical",
    "conditional",
    "corr_cholesky",
    "custom",
    "delta",
    "deterministic",
    "finite",
    "fit",
    "full_rank",
    "greater_than",
    "interval",
    "inverse_autoregressive",
    "judge",
    "laplace",
    "linear_response",
    "load",
    "local",
    "log_conditional",
    "log_weights",
    "low_rank",
    "lower_cholesky",
    "mean_field",
    "mesh",
    "mixture",
    "newton",
    "ordered",
    "per_row",
    "positive",
    "product",
    "real",
    "save",
    "shard_rows",
    "simplex",
    "spline_coupling",
    "sum_out",
    "to_arviz",
    "transformed",
    "unit_interval",
    "whitened",
    "with_prior",
]
