"""Gaussians, and mixtures of them, on the host: draws and densities that need no compilation."""

from typing import Any, NamedTuple

import jax
import numpy as np

from minisvi.auto import defensive
from minisvi.guides.gaussian import FullRank, MeanField, full_rank
from minisvi.guides.mixture import Mixture, mixture
from minisvi.model import trees
from minisvi.second_order.gaussian import Gaussian
from minisvi.tools.types import Latents, Params


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
