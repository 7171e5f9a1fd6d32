"""minisvi: stochastic variational inference in pure JAX.

Reading order, which is also the order of the mathematics: the rooms `model` (T and log p), `guides`
(q), `objectives` (E and its gradient), `data` (D); then `svi` (the maximum over phi) and
`posterior` (what q says). `auto` has the fit that needs no tuning, and its verdict. `minisvi.bnn`
makes a Flax module a pytree of latents; it is imported by name, as it loads Flax. So is
`minisvi.posterior.plots`, which draws a fit with Matplotlib.
"""

from minisvi.auto.fit import Fit, fit
from minisvi.auto.judging import judge
from minisvi.auto.verdict import Judged, Verdict
from minisvi.data.batches import FullBatch, Minibatches
from minisvi.data.streams import Stream, StreamError
from minisvi.guides.base import Distribution, Guide
from minisvi.guides.block import block
from minisvi.guides.conditional import conditional
from minisvi.guides.custom import custom
from minisvi.guides.delta import delta
from minisvi.guides.discrete import categorical
from minisvi.guides.driven import driven
from minisvi.guides.flow import affine_coupling, inverse_autoregressive, spline_coupling
from minisvi.guides.gaussian import full_rank, mean_field
from minisvi.guides.joint import Dependent
from minisvi.guides.local import amortised, per_row
from minisvi.guides.low_rank import low_rank
from minisvi.guides.mixture import mixture
from minisvi.guides.products import product
from minisvi.guides.whitened import whitened
from minisvi.model.fitted_prior import with_prior
from minisvi.model.model import Model
from minisvi.model.prior_supports import PriorSupportWarning
from minisvi.model.summed import log_conditional, sum_out
from minisvi.model.supports import (
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
from minisvi.objectives.bounds import CUBO, FixedDraws, ForwardKL, ImportanceWeighted, Renyi
from minisvi.objectives.elbo import ELBO
from minisvi.posterior.draws import Draws
from minisvi.posterior.export import to_arviz
from minisvi.posterior.posterior import Posterior, log_weights
from minisvi.posterior.saving import load, save
from minisvi.posterior.summary import Summary
from minisvi.running.result import NonFiniteError, Restarts, SVIResult
from minisvi.second_order.deterministic import Deterministic, deterministic
from minisvi.second_order.laplace import IndefiniteHessianError, laplace
from minisvi.second_order.newton import newton
from minisvi.second_order.response import linear_response
from minisvi.stopping.convergence import Convergence
from minisvi.stopping.patience import Patience
from minisvi.svi import SVI, StepInfo, SVIState
from minisvi.tools.sharding import mesh, shard_rows

__version__ = "0.2.0"

__all__ = [
    "CUBO",
    "ELBO",
    "SVI",
    "Convergence",
    "Dependent",
    "Deterministic",
    "Distribution",
    "Draws",
    "Fit",
    "FixedDraws",
    "ForwardKL",
    "FullBatch",
    "Guide",
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
    "driven",
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
