"""The Laplace approximation: a Gaussian at the mode of the log density, with the inverse of its
Hessian there.
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
from minisvi.second_order import curvature
from minisvi.tools import checks, inputs
from minisvi.tools.noise import normals
from minisvi.tools.sharding import check_axes

_NUM_REPORTED = 5


class IndefiniteHessianError(ValueError):
    """The Hessian of -log p at the point found is singular or indefinite; `eigenvalues` are its
    smallest, ascending.
    """

    def __init__(self, eigenvalues: Array) -> None:
        self.eigenvalues = eigenvalues
        smallest = ", ".join(f"{value:.3g}" for value in eigenvalues)
        super().__init__(
            f"expected a positive definite Hessian at the mode; got eigenvalues {smallest}, scaled to a unit diagonal: "
            "the posterior is flat, or rises, along some direction. `min_eigenvalue=0.01`, say, raises them and goes on"
        )


class Laplace(NamedTuple):
    """N(mode, H^-1): `guide` and its `params`, as from a fit.

    `loc` (the mode, a tree u) and `cov` (H^-1, (D, D), or variances (D,)) start any other Gaussian
    family: `init(key, loc=fit.loc, cov=fit.cov)`. `eigenvalues`: the smallest of S H S, S = |diag
    H|^(-1/2), before any was raised. `grad_norm`: |L^T grad log p|, L L^T the covariance: the
    distance from the true mode, about, in sds. `log_evidence`, in nats: log p(u, D) - log q(u) at
    the mode.
    """

    guide: Family
    params: Any
    loc: Any
    cov: Array
    eigenvalues: Array
    grad_norm: Array
    log_evidence: Array


def laplace(
    key: Array,
    model: Any,
    *data: Any,
    start: Any = None,
    hessian: Literal["exact", "diagonal", "low_rank"] = "exact",
    rank: int = 10,
    num_probes: int = 256,
    min_eigenvalue: float | None = None,
    max_steps: int = 1000,
) -> Laplace:
    """L-BFGS and Newton to the mode of log p(T(u), D) + log|det J_T(u)|, and its curvature (MacKay
    2003, chapter 27).

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
    keys = jax.random.split(checks.prng_key(key), 3)
    first = trees.start(model.latents, keys[0], start)
    x, value, grad, diag = curvature.mode(keys[1], model, first, data, num_probes, max_steps)
    scale, values, kept, vectors = _eigenpairs(guide, model, x, data, diag, keys[2], min_eigenvalue)
    params, loc, cov, grad_norm, log_evidence = _at_mode(
        guide, x, value, grad, scale, kept, vectors
    )
    return Laplace(
        guide, params, loc, cov, jnp.sort(values)[:_NUM_REPORTED], grad_norm, log_evidence
    )


def _eigenpairs(
    guide: Any,
    model: Any,
    x: Array,
    data: tuple[Any, ...],
    diag: Array,
    key: Array,
    min_eigenvalue: float | None,
) -> tuple[Array, Array, Array, Array]:
    """S, the eigenvalues of S H S that are known, the same raised, and the vectors of the first of
    them.
    """
    if isinstance(guide, FullRank):
        scale, values, vectors = curvature.eigenpairs(model, x, data, diag)
        return scale, values, _positive(values, min_eigenvalue), vectors
    if not isinstance(guide, LowRank):
        values = jnp.sign(diag)
        return (
            curvature.unit_scale(diag),
            values,
            _positive(values, min_eigenvalue),
            jnp.zeros((x.size, 0)),
        )
    basis = normals(key, (x.size, 3 * guide.rank), x.dtype)
    scale, values, basis = curvature.widest(model, x, data, diag, basis, False)
    kept = _positive(values, min_eigenvalue)
    if np.all(kept == values):
        scale, kept, basis = curvature.widest(model, x, data, diag, basis, True)
    return scale, values, kept[: guide.rank], basis[:, : guide.rank]


@partial(jax.jit, static_argnames="guide")
def _at_mode(
    guide: Any,
    x: Array,
    value: Array,
    grad: Array,
    scale: Array,
    eigenvalues: Array,
    vectors: Array,
) -> tuple[Any, Any, Array, Array, Array]:
    """Parameters, mode, covariance or variances, |L^T grad| and log evidence of the Gaussian with
    these eigenpairs.
    """
    loc = trees.unravel(guide.latents, x)
    if isinstance(guide, LowRank):
        factor = vectors * jnp.sqrt(jnp.maximum(1 / eigenvalues - 1, 0.0))[None, :]
        cov, params = (
            scale**2 * (1 + jnp.sum(factor**2, 1)),
            {"loc": x, "log_scale": jnp.log(scale), "factor": factor},
        )
    else:
        half = (
            scale[:, None] * vectors / jnp.sqrt(eigenvalues)[None, :]
            if isinstance(guide, FullRank)
            else None
        )
        cov = scale**2 / eigenvalues if half is None else half @ half.T
        params = guide.init(
            jax.random.key(0), loc=loc, cov=cov
        )  # the key is not used: the start is given
    q = guide.distribution(params)
    _, pull = jax.vjp(
        lambda eps: trees.ravel(guide.latents, q.from_noise(eps)[0]),
        jnp.zeros(q.noise_size, x.dtype),
    )
    return params, loc, cov, jnp.linalg.norm(pull(grad)[0]), value - q.log_prob(loc)


def _positive(values: Array, min_eigenvalue: float | None) -> Any:
    if min_eigenvalue is not None:
        return np.maximum(values, min_eigenvalue)
    rounding = (
        100 * np.max(values, initial=1.0) * np.finfo(values.dtype).eps
    )  # what sums over data leave of a zero
    if np.min(values, initial=1.0) < rounding:
        raise IndefiniteHessianError(jnp.sort(values)[:_NUM_REPORTED])
    return values
