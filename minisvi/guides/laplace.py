"""The Laplace approximation: a Gaussian at the mode of the log density, with the inverse of its Hessian there."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from minisvi import checks, curvature, trees
from minisvi.guides.gaussian import Family, full_rank, mean_field
from minisvi.guides.location_scale import LOG_2PI
from minisvi.guides.low_rank import low_rank

_NUM_REPORTED = 5


class IndefiniteHessianError(ValueError):
    """The Hessian of -log p at the point found is singular or indefinite; `eigenvalues` are its smallest, ascending."""

    def __init__(self, eigenvalues: Array) -> None:
        self.eigenvalues = eigenvalues
        smallest = ", ".join(f"{value:.3g}" for value in eigenvalues)
        super().__init__(
            f"expected a positive definite Hessian of -log p at the mode; its smallest eigenvalues, scaled to a unit "
            f"diagonal, are {smallest}: the posterior is flat, or rises, along some direction. `min_eigenvalue=0.01`, "
            "say, raises them to that and goes on"
        )


class Laplace(NamedTuple):
    """N(mode, H^-1): `guide` and its `params`, as from a fit.

    `loc` (the mode, a tree u) and `cov` (H^-1, (D, D), or variances (D,)) start any other Gaussian family:
    `init(key, loc=fit.loc, cov=fit.cov)`. `eigenvalues`: the smallest of S H S, S = |diag H|^(-1/2), before any was
    raised. `grad_norm`: |grad log p| at the mode in units of the posterior's sds, to tell whether it is one.
    `log_evidence`, in nats: log p(u, D) + D/2 log 2 pi - log det H / 2.
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
    """L-BFGS to the mode of log p(T(u), D) + log|det J_T(u)|, and its curvature there (MacKay 2003, chapter 27).

    **Arguments**

    - `start`: a tree u to climb from, such as `model.unconstrain(theta)`; None: uniform(-2, 2).
    - `hessian`: `"exact"`, D Hessian-vector products and a full-rank guide; `"diagonal"`, a mean-field one with sd
      1/sqrt(H_ii); `"low_rank"`, that and the `rank` directions in which the posterior is widest beyond it (LOBPCG on
      Hessian-vector products). Neither of these two forms a D x D matrix.
    - `num_probes`: the diagonal is exact for D up to this, else estimated from as many random signs (Bekas 2007).
    - `min_eigenvalue`: None, or what smaller eigenvalues of the scaled Hessian are raised to.

    IndefiniteHessianError, with the smallest eigenvalues, for a singular or indefinite Hessian, unless they are raised;
    ValueError for another `hessian`, a rank outside 1..D/5 under `"low_rank"`, or a mode that is not finite.
    """
    if hessian not in ("exact", "diagonal", "low_rank"):
        raise ValueError(f"`hessian` must be 'exact', 'diagonal' or 'low_rank'; got {hessian!r}")
    size, (start_key, probe_key) = trees.spec(model.latents).shape[0], jax.random.split(checks.prng_key(key))
    if hessian == "low_rank" and checks.positive_integer("rank", rank) > size // 5:
        raise ValueError(f"`rank` must be in 1..{size // 5}, a fifth of the number of latents; got {rank}")
    mode, value, grad = curvature.climb(model, trees.start(model.latents, start_key, start), data, max_steps)
    if not (jnp.isfinite(value) and jnp.all(jnp.isfinite(grad))):
        raise ValueError(
            f"the climb ended where the log density or its gradient is not finite ({value}): try a `start`"
        )
    times = partial(curvature.hessian_times, model, mode, data)
    exact = hessian == "exact" or size <= num_probes
    probes = (
        jnp.eye(size, dtype=mode.dtype) if exact else jax.random.rademacher(probe_key, (num_probes, size), mode.dtype)
    )
    products = times(probes)
    diagonal = jnp.sum(probes * products, axis=0) / jnp.sum(probes * probes, axis=0)
    scale = jnp.where(diagonal == 0, 1.0, jnp.abs(diagonal) ** -0.5)
    if hessian == "exact":
        values, vectors = jnp.linalg.eigh(scale[:, None] * products * scale[None, :])
    elif hessian == "low_rank":
        values, vectors = curvature.smallest_eigenpairs(
            lambda x: scale[:, None] * times((scale[:, None] * x).T).T, size, rank, probe_key
        )
    else:
        values, vectors = jnp.sign(diagonal), jnp.zeros((size, 0))
    raised = _positive(values, min_eigenvalue)
    guide, params, cov = _gaussian(hessian, model.latents, trees.unravel(model.latents, mode), scale, raised, vectors)
    variances = cov if cov.ndim == 1 else jnp.diagonal(cov)
    log_evidence = value + 0.5 * size * LOG_2PI + jnp.sum(jnp.log(scale)) - 0.5 * jnp.sum(jnp.log(raised))
    grad_norm = jnp.linalg.norm(grad * jnp.sqrt(variances))
    loc = trees.unravel(model.latents, mode)
    return Laplace(guide, params, loc, cov, jnp.sort(values)[:_NUM_REPORTED], grad_norm, log_evidence)


def _gaussian(
    hessian: str, latents: Any, loc: Any, scale: Array, values: Array, vectors: Array
) -> tuple[Family, Any, Array]:
    """The guide whose scaled precision has these eigenpairs, its parameters, and its covariance or variances."""
    key = jax.random.key(0)  # not used: the start is given
    if hessian == "exact":
        half = scale[:, None] * vectors / jnp.sqrt(values)[None, :]
        cov = half @ half.T
        return full_rank(latents), full_rank(latents).init(key, loc=loc, cov=cov), cov
    if hessian == "diagonal":
        cov = scale**2 / values
        return mean_field(latents), mean_field(latents).init(key, loc=loc, cov=cov), cov
    factor = vectors * jnp.sqrt(jnp.maximum(1 / values - 1, 0.0))[None, :]
    params = {"loc": trees.ravel(latents, loc), "log_scale": jnp.log(scale), "factor": factor}
    return low_rank(latents, values.size), params, scale**2 * (1 + jnp.sum(factor**2, axis=1))


def _positive(values: Array, min_eigenvalue: float | None) -> Array:
    if min_eigenvalue is not None:
        return jnp.maximum(values, min_eigenvalue)
    if jnp.min(values, initial=1.0) < 10 * values.size * jnp.finfo(values.dtype).eps:
        raise IndefiniteHessianError(jnp.sort(values)[:_NUM_REPORTED])
    return values
