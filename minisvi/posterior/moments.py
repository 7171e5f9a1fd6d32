"""Which means and sds of theta weighted draws give: on the host, in double precision, entry by
entry.

Importance weights that are light in u may still leave a moment of theta = T(u) without a limit: the
sd of exp(u), say, where u has exponential tails. So each moment is judged by its own terms, w_s
|z_s|^p with z = (theta - mean) / sd.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minisvi.posterior import diagnostics
from minisvi.tools import checks
from minisvi.tools.sharding import to_host

MAX_KHAT = 0.7  # as for the weights themselves (Vehtari et al. 2024, section 3)
_SMALL_SHARE = 0.003  # of 80,000 terms of shape 0.7 the largest has 0.03
_LEAST_TAIL = 50  # of fewer draws the shape is a guess
_COLUMNS = 64  # entries at a time, to bound the memory


class Moment(NamedTuple):
    """One moment of one latent, as its worst entry has it.

    `power` p is 1 for the mean and 2 for the sd. `error` is its standard error in sds. `khat` is
    the shape of the tail of the terms w |z|^p: from 1 on they have no mean, so that the moment does
    not exist, or draws do not give it. It is -inf where the largest term has next to no share in
    their sum.
    """

    latent: str
    power: int
    error: float
    khat: float

    def __str__(self) -> str:
        return f"the {'mean' if self.power == 1 else 'sd'} of `{self.latent}`"

    def holds(self, error: float, khat: float = MAX_KHAT) -> bool:
        """Whether the draws give it to within `error` sds, by terms whose tail is lighter than
        `khat`.
        """
        return self.error <= error and self.khat < khat


def moments(theta: Any, log_w: Any, log_weights: Any) -> list[Moment]:
    """The mean and the sd of each leaf of theta (S, ...), by log weights (S,), raw and normalised,
    in nats.

    The errors are those of `diagnostics.weighted_mcse` and `weighted_sd_mcse`.
    """
    log_w, log_weights = to_host((log_w, log_weights))
    counts = log_weights > -np.inf
    log_w, weights = log_w[counts].astype(float), np.exp(log_weights[counts].astype(float))
    weights /= weights.sum()
    found = []
    for latent, leaf in checks.named_leaves(to_host(theta)).items():
        if not leaf.size:
            continue
        columns = leaf.reshape(len(leaf), -1)[counts]
        figures = np.concatenate(
            [_figures(part, log_w, weights) for part in _chunks(columns)], axis=1
        )
        mean_error, mean_khat, sd_error, sd_khat = np.max(figures, axis=1).tolist()
        found.append(Moment(latent, 1, mean_error, mean_khat))
        found.append(Moment(latent, 2, sd_error, sd_khat))
    return found


def _chunks(columns: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, columns.shape[1], _COLUMNS):
        yield columns[:, start : start + _COLUMNS].astype(float)


def _figures(x: np.ndarray, log_w: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Error and k-hat of the mean, and of the sd, of each column of x (S, C): (4, C)."""
    finite = np.isfinite(x).all(axis=0)
    if not finite.all():
        x = np.where(finite, x, 0.0)
    z = x - weights @ x
    sd = np.sqrt(weights @ z**2)
    z /= np.where(sd == 0, 1.0, sd)
    square = z**2
    mean_error = np.sqrt(weights**2 @ square)
    share = np.max(
        weights[:, None] * square, axis=0
    )  # of the largest term in the sum of all, which is one
    square -= 1
    square *= square
    sd_error = 0.5 * np.sqrt(weights**2 @ square)
    shapes = np.array([_shapes(log_w, column, largest) for column, largest in zip(z.T, share)]).T
    figures = np.stack([mean_error, shapes[0], np.where(sd == 0, 0.0, sd_error), shapes[1]])
    return np.where(finite, figures, np.inf)  # an infinite draw leaves no moment


def _shapes(log_w: np.ndarray, z: np.ndarray, share: float) -> tuple[float, float]:
    """k-hat of the mean and of the sd of one entry, and -inf where it is not worth computing: where
    the largest term of the sd's has next to no share in their sum, as of S terms with a tail of
    shape k it has about S^(k - 1); and the mean's where the sd's will do, whose terms have the
    heavier tail.
    """
    if share < _SMALL_SHARE:
        return -math.inf, -math.inf
    with np.errstate(divide="ignore"):
        log_z = np.log(np.abs(z))
    of_sd = tail_shape(log_w + 2 * log_z)
    of_mean = -math.inf if of_sd < MAX_KHAT else tail_shape(log_w + log_z)
    return of_mean, of_sd


def tail_shape(log_terms: np.ndarray) -> float:
    """The generalised Pareto shape of the largest of exp(log_terms) (S,), as many as `psis` fits
    one to: -inf where they are all alike, and where there are too few to tell.
    """
    num = diagnostics.tail_size(log_terms.size)
    if num < _LEAST_TAIL:
        return -math.inf
    tail = np.sort(np.partition(log_terms, log_terms.size - num - 1)[-num - 1 :])
    if tail[-1] == -np.inf:  # all terms are zero
        return -math.inf
    tail = np.exp(tail - tail[-1])
    exceedances = tail[1:] - tail[0]
    if exceedances[-1] - exceedances[0] <= 4 * np.finfo(float).eps:
        return -math.inf
    smallest = np.min(exceedances[exceedances > 0])
    with np.errstate(divide="ignore", invalid="ignore"):  # of a grid point at zero
        shape, _ = diagnostics.pareto_fit(np.maximum(exceedances, 0.5 * smallest))
    return math.inf if np.isnan(shape) else float(shape)
