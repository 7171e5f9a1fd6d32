"""Guides: the contract in `base`, the Gaussian families, and the catalogue, one file per kind of family."""

from minisvi.guides.base import Distribution, Guide
from minisvi.guides.block import block
from minisvi.guides.delta import delta
from minisvi.guides.discrete import categorical
from minisvi.guides.flow import affine_coupling, inverse_autoregressive, spline_coupling
from minisvi.guides.gaussian import full_rank, mean_field
from minisvi.guides.joint import Dependent, Joint
from minisvi.guides.laplace import IndefiniteHessianError, laplace
from minisvi.guides.low_rank import low_rank
from minisvi.guides.mixture import mixture
from minisvi.guides.rows import amortised, per_row
from minisvi.guides.structured import conditional, custom, product
from minisvi.guides.whitened import whitened

__all__ = [
    "Dependent",
    "Distribution",
    "Guide",
    "IndefiniteHessianError",
    "Joint",
    "affine_coupling",
    "amortised",
    "block",
    "categorical",
    "conditional",
    "custom",
    "delta",
    "full_rank",
    "inverse_autoregressive",
    "laplace",
    "low_rank",
    "mean_field",
    "mixture",
    "per_row",
    "product",
    "spline_coupling",
    "whitened",
]
