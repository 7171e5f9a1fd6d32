"""The Laplace approximation: a Gaussian at the mode of the log density, with the inverse of the
Hessian of -log p there.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.guides.gaussian import Family, FullRank, full_rank, mean_field
from minisvi.guides.low_rank import LowRank, low_rank
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.second_order import curvature
from minisvi.second_order.curvature import Eigenpairs, Mode
from minisvi.tools import checks, inputs
from minisvi.tools.noise import normals
from minisvi.tools.sharding import check_axes
from minisvi.tools.types import Data, Draw, Params

_NUM_REPORTED = 5


class IndefiniteHessianError(ValueError):
    """The Hessian of -log p at the point found is singular or indefinite; `eigenvalues` holds its
    smallest ones, ascending.
    """

    def __init__(self, eigenvalues: Array) -> None:
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
    cov: Array
    eigenvalues: Array
    grad_norm: Array
    log_evidence: Array


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
    """The Gaussian at the mode of log p(T(u), D) + log|det J_T(u)|, which L-BFGS and Newton find,
    with the curvature there (MacKay 2003, chapter 27).

    **Arguments**

    - `start`: a tree u to climb from, such as `model.unconstrain(theta)`; None: uniform(-2, 2).
    - `hessian`: `"exact"`, D Hessian-vector products and a full-rank guide; `"diagonal"`, a
      mean-field one with sd 1/sqrt(H_ii); `"low_rank"`, the diagonal and the `rank` directions in
      which the posterior is widest beyond it, by products with H: exact for a Gaussian of the
      family `low_rank`. Neither of these two forms a D x D matrix.
    - `num_probes`: the diagonal is exact for D up to this, else estimated from as many random signs
      (Bekas 2007).
    - `min_eigenvalue`: None, or what smaller eigenvalues of the scaled Hessian are raised to.
    - `max_steps`: of L-BFGS, and of Newton after it.

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
    start_key, mode_key, basis_key = jax.random.split(checks.prng_key(key), 3)
    first = trees.start(model.latents, start_key, start)
    mode = curvature.mode(mode_key, model, first, data, num_probes, max_steps)
    known, kept = _eigenpairs(guide, model, mode, data, basis_key, min_eigenvalue)
    gaussian = _at_mode(guide, mode.x, mode.log_density, mode.grad, *kept)
    return Laplace(
        guide=guide,
        params=gaussian.params,
        loc=gaussian.loc,
        cov=gaussian.cov,
        eigenvalues=jnp.sort(known)[:_NUM_REPORTED],
        grad_norm=gaussian.grad_norm,
        log_evidence=gaussian.log_evidence,
    )


def _eigenpairs(
    guide: Family,
    model: Model,
    mode: Mode,
    data: Data,
    key: Array,
    min_eigenvalue: float | None,
) -> tuple[Array, Eigenpairs]:
    """The eigenvalues of S H S that are known; and the eigenpairs that make the Gaussian, with
    their values raised to `min_eigenvalue`.
    """
    if isinstance(guide, FullRank):
        found = curvature.eigenpairs(model, mode.x, data, mode.diag)
        return found.values, found._replace(values=_positive(found.values, min_eigenvalue))
    if isinstance(guide, LowRank):
        return _widest(guide.rank, model, mode, data, key, min_eigenvalue)
    values = jnp.sign(mode.diag)
    scale = curvature.unit_scale(mode.diag)
    no_vectors = jnp.zeros((mode.x.size, 0))
    return values, Eigenpairs(scale, _positive(values, min_eigenvalue), no_vectors)


def _widest(
    rank: int, model: Model, mode: Mode, data: Data, key: Array, min_eigenvalue: float | None
) -> tuple[Array, Eigenpairs]:
    """What `_eigenpairs` gives, of the directions in which the posterior is widest."""
    basis = normals(key, (mode.x.size, 3 * rank), mode.x.dtype)
    found = curvature.widest(model, mode.x, data, mode.diag, basis, False)
    values = _positive(found.values, min_eigenvalue)
    directions = found._replace(values=values)
    if np.all(values == found.values):
        directions = curvature.widest(model, mode.x, data, mode.diag, found.vectors, True)
    first = Eigenpairs(directions.scale, directions.values[:rank], directions.vectors[:, :rank])
    return found.values, first


class _Gaussian(NamedTuple):
    """Parameters of the guide, the mode as a tree, the covariance or variances, |L^T grad|, and the
    log evidence.
    """

    params: Params
    loc: Draw
    cov: Array
    grad_norm: Array
    log_evidence: Array


@partial(jax.jit, static_argnames="guide")
def _at_mode(
    guide: Any,
    x: Array,
    log_density: Array,
    grad: Array,
    scale: Array,
    eigenvalues: Array,
    vectors: Array,
) -> _Gaussian:
    """The Gaussian at the mode x with these eigenpairs."""
    loc = trees.unravel(guide.latents, x)
    params: Params
    if isinstance(guide, LowRank):
        factor = vectors * jnp.sqrt(jnp.maximum(1 / eigenvalues - 1, 0.0))[None, :]
        cov = scale**2 * (1 + jnp.sum(factor**2, 1))
        params = {"loc": x, "log_scale": jnp.log(scale), "factor": factor}
    else:
        cov = _covariance(guide, scale, eigenvalues, vectors)
        unused = jax.random.key(0)  # the start is given
        params = guide.init(unused, loc=loc, cov=cov)
    q = guide.distribution(params)

    def from_noise(eps: Array) -> Array:
        u, _ = q.from_noise(eps)
        return trees.ravel(guide.latents, u)

    _, pull = jax.vjp(from_noise, jnp.zeros(q.noise_size, x.dtype))
    (scaled_grad,) = pull(grad)
    grad_norm = jnp.linalg.norm(scaled_grad)
    return _Gaussian(params, loc, cov, grad_norm, log_density - q.log_prob(loc))


def _covariance(guide: Family, scale: Array, eigenvalues: Array, vectors: Array) -> Array:
    """H^-1 of a full-rank guide, (D, D), or the variances of a mean field, (D,)."""
    if not isinstance(guide, FullRank):
        return scale**2 / eigenvalues
    half = scale[:, None] * vectors / jnp.sqrt(eigenvalues)[None, :]
    return half @ half.T


def _positive(values: Array, min_eigenvalue: float | None) -> Any:
    """The eigenvalues, raised to `min_eigenvalue` if there is one; otherwise IndefiniteHessianError
    unless all are positive.
    """
    if min_eigenvalue is not None:
        return np.maximum(values, min_eigenvalue)
    largest = np.max(values, initial=1.0)
    # What the rounding of sums over the data may leave of a zero.
    rounding = 100 * largest * np.finfo(values.dtype).eps
    if np.min(values, initial=1.0) < rounding:
        raise IndefiniteHessianError(jnp.sort(values)[:_NUM_REPORTED])
    return values
