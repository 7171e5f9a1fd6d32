"""The linear response of the deterministic fit: the covariance that a mean field lacks."""

import numpy as np
from jax.typing import ArrayLike

from minisvi.model import trees
from minisvi.second_order.deterministic import Deterministic
from minisvi.second_order.fixed_draws import expansions
from minisvi.second_order.newton import Expansion


def linear_response(fit: Deterministic, vectors: ArrayLike | None = None) -> np.ndarray:
    """The linear-response covariance of u (Giordano, Ingram & Broderick 2024, eq. 9): C =
    [H^-1]_(loc, loc).

    H is the Hessian of f at the fit, over loc and log_scale alike. C is (D, D), and exact for any
    Gaussian posterior, of which the mean field itself has too small variances. With `vectors` (n,
    D) the result is their products with C, (n, D), by conjugate gradients, which form no matrix. It
    is NaN where H is not positive definite: there is no maximum there.
    """
    params = [np.asarray(fit.params[name], float) for name in ("loc", "log_scale")]
    x = np.concatenate(params)
    (at,) = expansions(fit.model, fit.fixed, x[None], dense=vectors is None)
    if vectors is None:
        return covariance(at)
    tolerance = trees.precision(fit.model.latents) ** 0.75
    return _products(at, np.asarray(vectors, float), tolerance)


def is_sound(response: np.ndarray, variances: np.ndarray) -> bool:
    """Whether a linear response may be used: in a Gaussian no variance is smaller than the mean
    field's `variances`. One that is NaN may not, nor one that rounding has left without a root.
    """
    is_wide_enough = np.all(np.diagonal(response) > 0.8 * variances)
    return bool(is_wide_enough) and _is_positive_definite(response)


def covariance(at: Expansion) -> np.ndarray:
    """C, in which the loc's block of H^-1 is the inverse of a Schur complement in H."""
    size = at.grad.size // 2
    unit = at.unit[:size]
    unknown = np.full((size, size), np.nan)
    hessian = np.asarray(at.hessian)
    if not _is_positive_definite(hessian):
        return unknown
    of_loc, mixed = hessian[:size, :size], hessian[size:, :size]
    complement = of_loc - mixed.T @ np.linalg.solve(hessian[size:, size:], mixed)
    complement = (complement + complement.T) / 2
    if not _is_positive_definite(complement):  # of a flat direction, by rounding
        return unknown
    # By its root, as one may find a root where the other finds it singular.
    inverse_root = np.linalg.inv(np.linalg.cholesky(complement))
    inverse = inverse_root.T @ inverse_root
    return unit[:, None] * inverse * unit


def _is_positive_definite(matrix: np.ndarray) -> bool:
    if not np.all(np.isfinite(matrix)):
        return False
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


def _products(at: Expansion, vectors: np.ndarray, tolerance: float) -> np.ndarray:
    """C v for each row v of `vectors`, by conjugate gradients."""
    from scipy.sparse.linalg import LinearOperator, cg  # type: ignore[import-untyped]

    size = at.grad.size // 2
    operator = LinearOperator((2 * size, 2 * size), at.product, dtype=float)
    # With zeros for log_scale.
    padded = np.pad(vectors, ((0, 0), (0, size))) * at.unit
    solutions = [cg(operator, row, rtol=tolerance, maxiter=4 * size)[0] for row in padded]
    return np.stack(solutions)[:, :size] * at.unit[:size]
