"""Weighted draws, entry by entry: the sums and the order that all their statistics are made of.

They are computed on the host, in double precision, an entry at a time. `log_weights` (S,) are
in nats and need not be normalised. A draw of weight zero never counts, whatever its value; of a
draw that is not finite and has a weight the statistics are not finite either.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from minisvi.tools.sharding import to_host

_BLOCK = 64  # entries that are copied at a time, to bound the memory


def softmax(log_weights: ArrayLike) -> np.ndarray:
    """The weights, (S,), whose sum is one; NaN if none is positive."""
    log_weights = doubles(log_weights)
    with np.errstate(all="ignore"):
        weights = np.exp(log_weights - np.max(log_weights))
        return weights / np.sum(weights)


def normalised(log_weights: ArrayLike) -> np.ndarray:
    """The weights, (S,), as `softmax` has them, but zero below the smallest normal number of JAX's
    default float.

    Where the density is as low as that, theta may have left the floats.
    """
    weights = softmax(log_weights)
    smallest = jnp.finfo(jnp.result_type(float)).tiny
    return np.where(weights < smallest, 0.0, weights)


def doubles(values: ArrayLike) -> np.ndarray:
    """The values on the host, in double precision."""
    return np.asarray(to_host(values), float)


def have_weight(weights: np.ndarray) -> np.ndarray:
    """Which draws count: all but those of weight zero. One whose weight is NaN does."""
    return weights != 0


class Entry(NamedTuple):
    """One scalar entry of the draws that have a weight, S of them.

    `x` and `weights` are (S,), the weights normalised; `mean` and `sd` are the weighted ones. `z`
    (S,) is (x - mean) / sd, and zero where the sd is zero.
    """

    x: np.ndarray
    weights: np.ndarray
    mean: float
    sd: float
    z: np.ndarray

    @np.errstate(all="ignore")
    def mean_error(self) -> float:
        """The standard error of the mean, in sds: sqrt(sum_s w_s^2 z_s^2) (Owen 2013, 9.9)."""
        terms = self.weights * self.z
        return math.sqrt(np.sum(terms**2))

    @np.errstate(all="ignore")
    def sd_error(self) -> float:
        """The relative standard error of the sd: sqrt(sum_s w_s^2 (z_s^2 - 1)^2) / 2, and zero for
        a constant.
        """
        if self.sd == 0:
            return 0.0
        terms = self.weights * (self.z**2 - 1)
        return 0.5 * math.sqrt(np.sum(terms**2))

    @np.errstate(all="ignore")
    def mean_change(self, added: np.ndarray) -> float:
        """By how many sds the mean moves where small weights (S,) are added: |sum_s a_s z_s|."""
        return abs(np.sum(added * self.z))

    @np.errstate(all="ignore")
    def sd_change(self, added: np.ndarray) -> float:
        """The same of the sd, relative to it: |sum_s a_s (z_s^2 - 1)| / 2, and zero for a
        constant.
        """
        if self.sd == 0:
            return 0.0
        return 0.5 * abs(np.sum(added * (self.z**2 - 1)))


def entries(x: ArrayLike, weights: np.ndarray) -> Iterator[Entry]:
    """Each scalar entry of draws x (S, ...), in their order, under normalised weights (S,)."""
    counts = have_weight(weights)
    weights = weights[counts]
    for column in _columns(x, counts):
        yield _entry(column, weights)


def _columns(x: ArrayLike, counts: np.ndarray) -> Iterator[np.ndarray]:
    """Each entry of the draws x (S, ...) that count, in double precision."""
    draws = to_host(x)
    num_entries = math.prod(draws.shape[1:])
    matrix = draws.reshape(len(draws), num_entries)
    for start in range(0, num_entries, _BLOCK):
        block = matrix[:, start : start + _BLOCK]
        counted = block[counts]
        yield from counted.T.astype(float, order="C")


@np.errstate(all="ignore")
def _entry(x: np.ndarray, weights: np.ndarray) -> Entry:
    # The sums are no products by BLAS, which shares those of many draws out among threads: waiting
    # for a core that is busy takes longer than the sum.
    # Taken from one of the draws, so that a constant has no spread. The draw of the largest weight
    # is finite if most are.
    origin = x[np.argmax(weights)]
    from_origin = x - origin
    shift = np.sum(weights * from_origin)
    centred = from_origin - shift
    sd = math.sqrt(np.sum(weights * centred**2))
    return Entry(x, weights, float(origin + shift), sd, centred / _unit(sd))


def _unit(sd: float) -> float:
    """What draws are divided by to be in sds; NaN for a spread beyond the floats."""
    if not math.isfinite(sd):
        return math.nan
    return 1.0 if sd == 0 else sd


def quantiles(x: ArrayLike, log_weights: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """Weighted quantiles of each entry of draws x (S, ...), one for each of `probabilities`, whose
    shape comes in front of the entry's.

    A quantile is the mean of the weighted quantile function over a window [a, a + 1/n], where
    a = p (1 - 1/n) and n = 1 / sum_s w_s^2. For equal weights this is the linear interpolation
    between order statistics of `numpy.quantile` (Akinshin 2023, type 7). A draw of weight zero
    changes nothing, and n is 1 where one draw has all the weight.
    """
    p = doubles(probabilities)
    weights = normalised(log_weights)
    counts = have_weight(weights)
    weights = weights[counts]
    found = [quantiles_of_entry(column, weights, p.ravel()) for column in _columns(x, counts)]
    by_probability = np.reshape(found, (len(found), p.size)).T
    return by_probability.reshape(p.shape + np.shape(x)[1:])


def quantiles_of_entry(x: np.ndarray, weights: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The `quantiles` of one entry (S,), at probabilities p (P,). The weights (S,) are normalised,
    and none is zero.
    """
    order = np.argsort(x)
    x = x[order]
    if np.isnan(x[-1]) or np.isnan(weights[0]):  # NaN is sorted to the end, and always counts
        return np.full(p.size, np.nan)
    upper = np.cumsum(weights[order])
    upper /= upper[-1]
    width = np.sum(weights**2)
    starts = p * (1 - width)
    return np.array([_mean_between(x, upper, a, a + width) for a in starts])


@np.errstate(invalid="ignore")
def _mean_between(x: np.ndarray, upper: np.ndarray, a: float, b: float) -> float:
    """The mean from a to b, both in 0..1, of the step function that is x[i], ascending, from
    upper[i - 1] to upper[i].
    """
    first = np.searchsorted(upper, a, side="right")
    last = np.searchsorted(upper, b, side="left")
    edges = np.concatenate([[a], upper[first:last], [b]])
    share = np.diff(edges)
    steps = x[first : last + 1]
    mean = np.sum(share * steps) / np.sum(share)
    # Rounding does not take the mean out of the range of the steps, so that the quantiles of a
    # constant are that constant.
    return np.clip(mean, steps[0], steps[-1])
