"""A Gaussian on the host: draws and densities that need no compilation."""

from typing import NamedTuple

import numpy as np


class Gaussian(NamedTuple):
    """N(loc, L L^T), with `factor` L: a lower triangle (D, D), or the sds (D,)."""

    loc: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, loc: np.ndarray, cov: np.ndarray) -> "Gaussian":
        """The one with this covariance (D, D), or these variances (D,)."""
        factor = np.linalg.cholesky(cov) if cov.ndim == 2 else np.sqrt(cov)
        return cls(np.asarray(loc, float), factor)

    def push(self, eps: np.ndarray) -> np.ndarray:
        """u = loc + L eps, of each row."""
        if self.factor.ndim == 1:
            return self.loc + self.factor * eps
        return self.loc + eps @ self.factor.T

    def pull(self, u: np.ndarray) -> np.ndarray:
        """eps = L^-1 (u - loc), of each row."""
        from scipy.linalg import solve_triangular  # type: ignore[import-untyped]

        if self.factor.ndim == 1:
            return (u - self.loc) / self.factor
        return solve_triangular(self.factor, (u - self.loc).T, lower=True).T

    def log_det(self) -> float:
        """log |det L|."""
        diagonal = self.factor if self.factor.ndim == 1 else np.diagonal(self.factor)
        return float(np.sum(np.log(diagonal)))

    def log_prob(self, eps: np.ndarray) -> np.ndarray:
        """log q at the points that are pushed from the rows of eps, in nats."""
        return -0.5 * np.sum(eps**2 + np.log(2 * np.pi), axis=1) - self.log_det()

    def sds(self) -> np.ndarray:
        return self.factor if self.factor.ndim == 1 else np.sqrt(np.sum(self.factor**2, axis=1))

    def log_factor(self) -> np.ndarray:
        """L (D, D) with the log of its diagonal, as `full_rank` and `whitened` keep it."""
        dense = np.diag(self.factor) if self.factor.ndim == 1 else self.factor
        return np.tril(dense, -1) + np.diag(np.log(np.diagonal(dense)))
