"""Gaussians, and mixtures of them, on the host: draws and densities that need no compilation."""

from typing import Any, NamedTuple

import jax
import numpy as np

from minisvi.auto import defensive
from minisvi.guides.gaussian import FullRank, MeanField, full_rank
from minisvi.guides.mixture import Mixture, mixture
from minisvi.model import trees
from minisvi.tools.types import Latents, Params


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


class Drawn(NamedTuple):
    """S points u, rows (S, D) or a tree (S, ...); log q(u) (S,) in nats; and the log ratio of q to
    what the points were drawn from, (S,): q and wider versions of it.
    """

    u: Any
    log_q: np.ndarray
    log_ratio: np.ndarray


class Gaussians(NamedTuple):
    """sum_k w_k N(loc_k, L_k L_k^T), with log weights (K,)."""

    log_weights: np.ndarray
    components: tuple[Gaussian, ...]

    @np.errstate(over="ignore", invalid="ignore")  # of a fit that runs away
    def draw(self, rng: np.random.Generator, num_draws: int) -> Drawn:
        """S points, as rows. Each component has its share of them, to within one."""
        size = self.components[0].loc.size
        eps = defensive.noise(rng, num_draws, size) if size else np.zeros((num_draws, 0))
        picked = self._picked(rng, num_draws)
        u = np.empty_like(eps)
        for k, component in enumerate(self.components):
            u[picked == k] = component.push(eps[picked == k])
        log_q, log_wider = self._log_probs(u, eps if len(self.components) == 1 else None)
        return Drawn(u, log_q, log_q - log_wider)

    def _picked(self, rng: np.random.Generator, num_draws: int) -> np.ndarray:
        """The component of each draw, (S,)."""
        ends = np.cumsum(np.exp(self.log_weights)) * num_draws
        places = np.arange(num_draws) + rng.random()
        picked = np.minimum(np.searchsorted(ends, places), len(ends) - 1)
        return rng.permutation(picked)

    def _log_probs(self, u: np.ndarray, eps: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """log q of each row, and the log density of q with its wider versions."""
        of_q = []
        of_wider = []
        for log_weight, component in zip(self.log_weights, self.components):
            pulled = component.pull(u) if eps is None else eps
            log_q = log_weight + component.log_prob(pulled)
            of_q.append(log_q)
            of_wider.append(log_q + defensive.log_ratio(pulled) if u.shape[1] else log_q)
        return np.logaddexp.reduce(of_q), np.logaddexp.reduce(of_wider)

    @np.errstate(over="ignore", invalid="ignore")
    def log_prob(self, u: np.ndarray) -> np.ndarray:
        """log q of each row, in nats."""
        log_q, _ = self._log_probs(u, None)
        return log_q

    def fitted(self, latents: Latents) -> tuple[Any, Params]:
        """The guide that this is a member of, and the parameters."""
        dtype = trees.spec(latents).dtype
        if len(self.components) == 1:
            return full_rank(latents), _params(self.components[0], dtype)
        params = [_params(component, dtype) for component in self.components]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *params)
        logits = self.log_weights.astype(dtype)
        guide = mixture(full_rank(latents), len(self.components))
        return guide, {"logits": logits, "components": stacked}


def of_guide(guide: Any, params: Params) -> Gaussians | None:
    """The member of a family of Gaussians, or of mixtures of them; None of any other guide."""
    if _is_gaussian(guide):
        return Gaussians(np.zeros(1), (_of_params(guide, params),))
    if isinstance(guide, Mixture) and _is_gaussian(guide.guide):
        logits = np.asarray(params["logits"], float)
        components = [
            _of_params(guide.guide, {name: leaf[k] for name, leaf in params["components"].items()})
            for k in range(guide.num_components)
        ]
        return Gaussians(logits - np.logaddexp.reduce(logits), tuple(components))
    return None


def _is_gaussian(guide: Any) -> bool:
    is_normal = isinstance(guide, MeanField) and guide.df is None
    return is_normal or isinstance(guide, FullRank)


def _of_params(guide: Any, params: Params) -> Gaussian:
    loc = np.asarray(params["loc"], float)
    if isinstance(guide, MeanField):
        with np.errstate(over="ignore"):  # of a fit that runs away
            return Gaussian(loc, np.exp(np.asarray(params["log_scale"], float)))
    matrix = np.asarray(params["scale_tril"], float)
    return Gaussian(loc, np.tril(matrix, -1) + np.diag(np.exp(np.diagonal(matrix))))


def _params(gaussian: Gaussian, dtype: Any) -> dict[str, Any]:
    """The parameters of `full_rank`."""
    scale_tril = gaussian.log_factor()
    return {"loc": gaussian.loc.astype(dtype), "scale_tril": scale_tril.astype(dtype)}
