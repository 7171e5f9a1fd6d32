"""A Gaussian between mean field and full rank: it has any covariance inside groups of latents, and
none between groups.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from minisvi.guides.gaussian import Family, log_cholesky
from minisvi.guides.location_scale import LocationScale, Triangular
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools import checks
from minisvi.tools.types import Draw, Latents, Params


class FactorByGroup(NamedTuple):
    """L with a triangular factor for each group of coordinates, and zeros between groups.

    `places[g]` are the indices in the vector (D,) of the coordinates of group g, known before
    anything is compiled.
    """

    places: tuple[np.ndarray, ...]
    factors: tuple[Triangular, ...]

    def times(self, z: Array) -> Array:
        return self._in_each_group(Triangular.times, z)

    def solve(self, x: Array) -> Array:
        return self._in_each_group(Triangular.solve, x)

    def _in_each_group(self, method: Callable[[Triangular, Array], Array], vector: Array) -> Array:
        for places, factor in zip(self.places, self.factors, strict=True):
            moved = method(factor, vector[places])
            vector = vector.at[places].set(moved)
        return vector

    def log_det(self) -> Array:
        return jnp.asarray(sum(factor.log_det() for factor in self.factors))


@dataclass(frozen=True, eq=False)
class BlockDiagonal(Family):
    """See `block`."""

    groups: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        known = list(checks.named_leaves(self.latents))
        given = [name for group in self.groups for name in group]
        if sorted(given) != sorted(known):
            groups = list(self.groups)
            raise ValueError(
                f"block: expected each of the latents {known} in one group; got {groups}"
            )

    def _places(self) -> tuple[np.ndarray, ...]:
        """For each group, the indices of its latents' coordinates in the vector (D,)."""
        places = {}
        end = 0
        for name, support in checks.named_leaves(self.latents).items():
            start = end
            end = start + math.prod(support.unconstrained.shape)
            places[name] = np.arange(start, end)
        return tuple(np.concatenate([places[name] for name in group]) for group in self.groups)

    def init(
        self, key: Array, /, loc: Draw | None = None, cov: ArrayLike | None = None
    ) -> dict[str, Any]:
        vector, cov = self._start(key, loc, cov)
        matrices = []
        for places in self._places():
            own = places if cov.ndim == 1 else np.ix_(places, places)
            matrices.append(log_cholesky(cov[own]))
        return {"loc": vector, "scale_tril": matrices}

    def distribution(self, params: Params, /, *data: Any) -> LocationScale:
        del data
        factors = tuple(Triangular(matrix) for matrix in params["scale_tril"])
        factor = FactorByGroup(self._places(), factors)
        return LocationScale(self.latents, params["loc"], factor)


def block(
    latents: Latents | Model, groups: Sequence[Sequence[str]], scale: float = 0.1
) -> BlockDiagonal:
    """A Gaussian that is full rank inside each group of latents and independent between groups.

    `groups` has the dotted paths of latents, each latent in one group, such as `[["w", "b"],
    ["tau"]]`. Parameters: `loc` (D,), and `scale_tril`, a list with one matrix a group as in
    `full_rank`. It starts as `mean_field` does. ValueError if a latent is missing, unknown or named
    twice.
    """
    named = tuple(tuple(group) for group in groups)
    return BlockDiagonal(trees.latents_of(latents), scale, named)
