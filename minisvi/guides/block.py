"""A Gaussian between mean field and full rank: any covariance inside groups of latents, none
between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.guides.gaussian import Family, log_cholesky
from minisvi.guides.location_scale import LocationScale, Triangular
from minisvi.model import trees
from minisvi.tools import checks


class _Factors(NamedTuple):
    """L block-diagonal after a permutation: one triangular factor for each static array of indices
    into the vector.
    """

    rows: tuple[Any, ...]
    factors: tuple[Triangular, ...]

    def _map(self, method: Any, x: Array) -> Array:
        for rows, factor in zip(self.rows, self.factors, strict=True):
            x = x.at[rows].set(method(factor, x[rows]))
        return x

    def times(self, z: Array) -> Array:
        return self._map(Triangular.times, z)

    def solve(self, x: Array) -> Array:
        return self._map(Triangular.solve, x)

    def log_det(self) -> Array:
        return jnp.asarray(sum(factor.log_det() for factor in self.factors))


@dataclass(frozen=True, eq=False)
class BlockDiagonal(Family):
    """See `block`."""

    groups: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        named, known = (
            [name for group in self.groups for name in group],
            list(checks.named_leaves(self.latents)),
        )
        if sorted(named) != sorted(known):
            raise ValueError(
                f"block: expected each of the latents {known} in one group; got {list(self.groups)}"
            )

    def _index(self) -> tuple[np.ndarray, ...]:
        sizes = {
            name: int(np.prod(s.unconstrained.shape))
            for name, s in checks.named_leaves(self.latents).items()
        }
        ends = dict(zip(sizes, np.cumsum(list(sizes.values()))))
        return tuple(
            np.concatenate([np.arange(ends[n] - sizes[n], ends[n]) for n in group])
            for group in self.groups
        )

    def init(self, key: Array, /, loc: Any = None, cov: Any = None) -> dict[str, Any]:
        vector, cov = self._start(key, loc, cov)
        blocks = [cov[i] if cov.ndim == 1 else cov[np.ix_(i, i)] for i in self._index()]
        return {"loc": vector, "scale_tril": [log_cholesky(block) for block in blocks]}

    def distribution(self, params: Any, /, *data: Any) -> LocationScale:
        del data
        factors = tuple(Triangular(matrix) for matrix in params["scale_tril"])
        return LocationScale(self.latents, params["loc"], _Factors(self._index(), factors))


def block(latents: Any, groups: Sequence[Sequence[str]], scale: float = 0.1) -> BlockDiagonal:
    """A Gaussian that is full rank inside each group of latents and independent between groups.

    `groups`: dotted paths of latents, each latent in one group, such as `[["w", "b"], ["tau"]]`.
    Parameters `loc` (D,) and `scale_tril`, one matrix a group, as in `full_rank`. ValueError if a
    latent is missing, unknown or named twice.
    """
    return BlockDiagonal(trees.latents_of(latents), scale, tuple(tuple(group) for group in groups))
