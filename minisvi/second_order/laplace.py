"""The Laplace approximation: a Gaussian at the mode of the log density, with the inverse of the
Hessian of -log p there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from jax import Array

from minisvi.guides.gaussian import Family, FullRank, full_rank, mean_field
from minisvi.guides.low_rank import LowRank, low_rank
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.second_order import curvature
from minisvi.second_order.curvature import Eigenpairs, Mode
from minisvi.second_order.gaussian import Gaussian
from minisvi.second_order.starts import given
from minisvi.tools import checks, inputs
from minisvi.tools.keys import generator
from minisvi.tools.sharding import check_axes
from minisvi.tools.types import Data, Draw, Params

_NUM_REPORTED = 5


class IndefiniteHessianError(ValueError):
    """The Hessian of -log p at the point found is singular or indefinite; `eigenvalues` holds its
    smallest ones, ascending.
    """

    def __init__(self, eigenvalues: np.ndarray) -> None:
        self.eigenvalues = eigenvalues
        smallest = ", ".join(f"{value:.3g}" for value in eigenvalues)
        super().__init__(
            f"expected a positive definite Hessian at the mode; got eigenvalues {smallest}, "
            "scaled to a unit diagonal: the posterior is flat, or rises, along some direction. "
            "`min_eigenvalue=0.01`, say, raises them and goes on"
        )


class Laplace(NamedTuple):
    """N(mode, H^-1): `guide` and its `params`, as from a fit.

    `loc` (the mode, a tree u) and `cov` (H^-1, (D, D), or variances (D,)) start any other Gaussian
    family: `init(key, loc=fit.loc, cov=fit.cov)`. `eigenvalues`: the smallest of S H S, S = |diag
    H|^(-1/2), before any was raised. `grad_norm`: |L^T grad log p|, where L L^T is the covariance:
    about the distance from the true mode, in sds. `log_evidence`, in nats: log p(u, D) - log q(u)
    at the mode.
    """

    guide: Family
    params: Params
    loc: Draw
    cov: np.ndarray
    eigenvalues: np.ndarray
    grad_norm: float
    log_evidence: float


def laplace(
    key: Array,
    model: Model,
    *data: Any,
    start: Draw | None = None,
    hessian: Literal["exact", "diagonal", "low_rank"] = "exact",
    rank: int = 10,
    num_probes: int = 256,
    min_eigenvalue: float | None = None,
    max_steps: int = 1000,
) -> Laplace:
    """The Gaussian at the mode of log p(T(u), D) + log|det J_T(u)|, which Newton's method finds,
    with the curvature there (MacKay 2003, chapter 27).

    The density's derivatives are compiled, by whole Hessians or by products with them; all else is
    on the host, in double precision.

    **Arguments**

    - `start`: a tree u to climb from, such as `model.unconstrain(theta)`; None: uniform(-2, 2).
    - `hessian`: `"exact"`, D Hessian-vector products and a full-rank guide; `"diagonal"`, a
      mean-field one with sd 1/sqrt(H_ii); `"low_rank"`, the diagonal and the `rank` directions in
      which the posterior is widest beyond it, by products with H: exact for a Gaussian of the
      family `low_rank`. Neither of these two forms a D x D matrix.
    - `num_probes`: the diagonal is exact for D up to this, else estimated from as many random signs
      (Bekas 2007).
    - `min_eigenvalue`: None, or what smaller eigenvalues of the scaled Hessian are raised to.
    - `max_steps`: of Newton's method, and of L-BFGS before it where there are many latents.

    IndefiniteHessianError, with the smallest eigenvalues, for a singular or indefinite Hessian,
    unless they are raised; TypeError or ValueError for other values of these, a rank outside 1..D,
    or a density that is not finite.
    """
    families: dict[str, Any] = {
        "exact": full_rank,
        "diagonal": mean_field,
        "low_rank": partial(low_rank, rank=rank),
    }
    if hessian not in families:
        raise ValueError(f"`hessian` must be one of {list(families)}; got {hessian!r}")
    if min_eigenvalue is not None and not min_eigenvalue > 0:
        raise ValueError(f"`min_eigenvalue` must be None or > 0; got {min_eigenvalue}")
    checks.at_least_single(model.latents)
    data = inputs.arrays(data)
    check_axes(data)
    guide = families[hessian](model.latents)
    rng = generator(checks.prng_key(key))
    vector = trees.spec(model.latents)
    first = rng.uniform(-2, 2, vector.shape) if start is None else given(model.latents, start)
    mode = curvature.mode(rng, model, first, data, num_probes, max_steps)
    positive = partial(_positive, min_eigenvalue, trees.precision(model.latents))
    known, kept = _eigenpairs(guide, model, mode, data, rng, positive)
    gaussian = _gaussian(guide, mode, kept)
    log_q = -0.5 * (gaussian.log_det + mode.x.size * np.log(2 * np.pi))
    return Laplace(
        guide=guide,
        params={name: leaf.astype(vector.dtype) for name, leaf in gaussian.params.items()},
        loc=trees.unravel(model.latents, mode.x),
        cov=gaussian.cov.astype(vector.dtype),
        eigenvalues=np.sort(known)[:_NUM_REPORTED],
        grad_norm=float(gaussian.grad_norm),
        log_evidence=float(mode.log_p - log_q),
    )


def _eigenpairs(
    guide: Family,
    model: Model,
    mode: Mode,
    data: Data,
    rng: np.random.Generator,
    positive: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, Eigenpairs]:
    """The eigenvalues of S H S that are known; and the eigenpairs that make the Gaussian, with
    their values made `positive`.
    """
    if isinstance(guide, LowRank):
        return _widest(guide.rank, model, mode, data, rng, positive)
    if isinstance(guide, FullRank):
        found = curvature.eigenpairs(model, mode.x, data)
    else:
        no_vectors = np.zeros((mode.x.size, 0))
        found = Eigenpairs(curvature.unit_scale(mode.diag), np.sign(mode.diag), no_vectors)
    return found.values, found._replace(values=positive(found.values))


def _widest(
    rank: int,
    model: Model,
    mode: Mode,
    data: Data,
    rng: np.random.Generator,
    positive: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, Eigenpairs]:
    """What `_eigenpairs` gives, of the directions in which the posterior is widest."""
    basis = rng.standard_normal((mode.x.size, 3 * rank))
    found = curvature.widest(model, mode.x, data, mode.diag, basis, refine=False)
    values = positive(found.values)
    directions = found._replace(values=values)
    if np.all(values == found.values):
        directions = curvature.widest(model, mode.x, data, mode.diag, found.vectors, refine=True)
    first = Eigenpairs(directions.scale, directions.values[:rank], directions.vectors[:, :rank])
    return found.values, first


class _Gaussian(NamedTuple):
    """Parameters of the guide, the covariance or the variances, its log-determinant, and |L^T grad|
    for any L with L L^T the covariance.
    """

    params: dict[str, np.ndarray]
    cov: np.ndarray
    log_det: Any
    grad_norm: Any


def _gaussian(guide: Family, mode: Mode, pairs: Eigenpairs) -> _Gaussian:
    """The member of the guide's family at the mode that has these eigenpairs."""
    if isinstance(guide, LowRank):
        return _low_rank(mode, pairs)
    log_det = 2 * np.sum(np.log(pairs.scale)) - np.sum(np.log(pairs.values))
    if isinstance(guide, FullRank):
        half = pairs.scale[:, None] * pairs.vectors / np.sqrt(pairs.values)
        cov = half @ half.T
        params = {"loc": mode.x, "scale_tril": Gaussian.of(mode.x, cov).log_factor()}
        return _Gaussian(params, cov, log_det, np.linalg.norm(half.T @ mode.grad))
    sd = pairs.scale / np.sqrt(pairs.values)
    params = {"loc": mode.x, "log_scale": np.log(sd)}
    return _Gaussian(params, sd**2, log_det, np.linalg.norm(sd * mode.grad))


def _low_rank(mode: Mode, pairs: Eigenpairs) -> _Gaussian:
    """N(x, S (I + F F^T) S): the variance along the eigenvectors is 1 / lambda, or 1 if that is
    less.
    """
    widened = np.maximum(1 / pairs.values, 1.0)
    factor = pairs.vectors * np.sqrt(widened - 1)
    params = {"loc": mode.x, "log_scale": np.log(pairs.scale), "factor": factor}
    cov = pairs.scale**2 * (1 + np.sum(factor**2, axis=1))
    log_det = 2 * np.sum(np.log(pairs.scale)) + np.sum(np.log(widened))
    scaled = pairs.scale * mode.grad
    grad_norm = np.hypot(np.linalg.norm(scaled), np.linalg.norm(factor.T @ scaled))
    return _Gaussian(params, cov, log_det, grad_norm)


def _positive(min_eigenvalue: float | None, eps: float, values: np.ndarray) -> np.ndarray:
    """The eigenvalues, raised to `min_eigenvalue` if there is one; otherwise IndefiniteHessianError
    unless all are positive. `eps` is the precision of the dtype that H was computed in.
    """
    if min_eigenvalue is not None:
        return np.maximum(values, min_eigenvalue)
    largest = np.max(values, initial=1.0)
    # What the rounding of sums over the data may leave of a zero.
    rounding = 100 * largest * eps
    if np.min(values, initial=1.0) < rounding:
        raise IndefiniteHessianError(np.sort(values)[:_NUM_REPORTED])
    return values
