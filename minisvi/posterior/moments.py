"""Which means and sds of theta weighted draws give, entry by entry.

The figures are computed on the host, in double precision.

Importance weights with a light tail may still leave a moment of theta = T(u) without a limit: the
sd of exp(u), say, where u has exponential tails. So each moment is judged by its own terms, which
are w_s |z_s|^p with z = (theta - mean) / sd.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minisvi.posterior import diagnostics
from minisvi.tools.names import named_leaves
from minisvi.tools.sharding import to_host
from minisvi.tools.types import Draw

MAX_KHAT = 0.7  # as for the weights themselves (Vehtari et al. 2024, section 3)
_SMALL_SHARE = 0.003  # the largest of 80,000 terms of shape 0.7 has a share of 0.03 in their sum
_LEAST_TAIL = 50  # the shape that is fitted to fewer draws is a guess
_COLUMNS = 64  # entries at a time, to bound the memory


class Moment(NamedTuple):
    """One moment of one latent, as its worst entry has it.

    `power` p is 1 for the mean and 2 for the sd. `error` is its standard error in sds. `khat` is
    the shape of the tail of the terms w |z|^p. From 1 on the terms have no mean: the moment does
    not exist, or draws do not give it. `khat` is -inf where the largest term has next to no share
    in the sum of all.
    """

    latent: str
    power: int
    error: float
    khat: float

    def __str__(self) -> str:
        kind = "mean" if self.power == 1 else "sd"
        return f"the {kind} of `{self.latent}`"

    def holds(self, error: float, khat: float = MAX_KHAT) -> bool:
        """Whether the draws give the moment to within `error` sds, by terms whose tail is lighter
        than that of `khat`.
        """
        return self.error <= error and self.khat < khat


def moments(theta: Draw, log_w: Any, log_weights: Any) -> list[Moment]:
    """The mean and the sd of each leaf of theta (S, ...). `log_w` (S,) are the raw log weights and
    `log_weights` (S,) the normalised ones, in nats.

    The errors are those of `diagnostics.weighted_mcse` and `weighted_sd_mcse`.
    """
    log_w, log_weights = to_host((log_w, log_weights))
    counts = log_weights > -np.inf
    log_w = log_w[counts].astype(float)
    weights = np.exp(log_weights[counts].astype(float))
    weights /= weights.sum()
    found = []
    for latent, leaf in named_leaves(to_host(theta)).items():
        if not leaf.size:
            continue
        columns = leaf.reshape(len(leaf), -1)[counts]
        worst = _worst(columns, log_w, weights)
        found.append(Moment(latent, 1, worst.mean_error, worst.mean_khat))
        found.append(Moment(latent, 2, worst.sd_error, worst.sd_khat))
    return found


class _Figures(NamedTuple):
    """The errors and the k-hats of means and sds: arrays, one for each entry, or numbers."""

    mean_error: Any
    mean_khat: Any
    sd_error: Any
    sd_khat: Any


def _worst(columns: np.ndarray, log_w: np.ndarray, weights: np.ndarray) -> _Figures:
    """The largest of each figure over the columns, one for each entry of a leaf."""
    parts = [_figures(part, log_w, weights) for part in _parts(columns)]
    by_entry = _Figures(*[np.concatenate(figure) for figure in zip(*parts)])
    return _Figures(*[float(np.max(figure)) for figure in by_entry])


def _parts(columns: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, columns.shape[1], _COLUMNS):
        part = columns[:, start : start + _COLUMNS]
        yield part.astype(float)


def _figures(x: np.ndarray, log_w: np.ndarray, weights: np.ndarray) -> _Figures:
    """The figures of each column of x (S, C), each (C,)."""
    finite = np.isfinite(x).all(axis=0)
    if not finite.all():
        x = np.where(finite, x, 0.0)
    z = x - weights @ x
    with np.errstate(over="ignore"):  # where the fit ran away
        sd = np.sqrt(weights @ z**2)
    finite &= np.isfinite(sd)
    z /= np.where(sd == 0, 1.0, sd)
    square = z**2
    mean_error = np.sqrt(weights**2 @ square)
    # The share of the largest term of the sd in the sum of all, which is one.
    share = np.max(weights[:, None] * square, axis=0)
    # In place, to bound the memory.
    square -= 1
    square *= square
    sd_error = 0.5 * np.sqrt(weights**2 @ square)
    sd_error = np.where(sd == 0, 0.0, sd_error)
    khats = np.array([_khats(log_w, column, largest) for column, largest in zip(z.T, share)])
    mean_khat, sd_khat = khats.T
    figures = _Figures(mean_error, mean_khat, sd_error, sd_khat)
    # An infinite draw, or spread, leaves no moment.
    return _Figures(*[np.where(finite, figure, np.inf) for figure in figures])


def _khats(log_w: np.ndarray, z: np.ndarray, share: float) -> tuple[float, float]:
    """k-hat of the mean and of the sd of one entry, and -inf where it is not worth computing.

    Neither is where the largest term of the sd has next to no share in the sum of all: of S terms
    whose tail has the shape k it has about S^(k - 1). The mean's is not where the sd's will do, for
    the terms of the sd have the heavier tail.
    """
    if share < _SMALL_SHARE:
        return -math.inf, -math.inf
    with np.errstate(divide="ignore"):
        log_z = np.log(np.abs(z))
    of_sd = tail_shape(log_w + 2 * log_z)
    of_mean = -math.inf if of_sd < MAX_KHAT else tail_shape(log_w + log_z)
    return of_mean, of_sd


def tail_shape(log_terms: np.ndarray) -> float:
    """The generalised Pareto shape of the tail of exp(log_terms) (S,), which is as long as that
    which `psis` smooths.

    It is -inf where all terms of the tail are alike, and where they are too few to tell. It is +inf
    where the largest term is not finite, for then no tail can be seen.
    """
    num = diagnostics.tail_size(log_terms.size)
    if num < _LEAST_TAIL:
        return -math.inf
    tail = _largest(log_terms, num + 1)
    if tail[-1] == -np.inf:  # all terms are zero
        return -math.inf
    if not np.isfinite(tail[-1]):
        return math.inf
    tail = np.exp(tail - tail[-1])
    exceedances = tail[1:] - tail[0]
    if exceedances[-1] - exceedances[0] <= 4 * np.finfo(float).eps:
        return -math.inf
    # As in `psis`, half of the smallest exceedance stands for those that are zero.
    smallest = np.min(exceedances[exceedances > 0])
    exceedances = np.maximum(exceedances, 0.5 * smallest)
    # The grid of the fit may have a point at zero, by which it divides.
    with np.errstate(divide="ignore", invalid="ignore"):
        shape, _ = diagnostics.pareto_fit(exceedances)
    return math.inf if np.isnan(shape) else float(shape)


def _largest(values: np.ndarray, num: int) -> np.ndarray:
    """The `num` largest values, ascending, without sorting the others."""
    unsorted = np.partition(values, values.size - num)[-num:]
    return np.sort(unsorted)
