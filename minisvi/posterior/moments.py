"""Which means and sds of theta weighted draws give, entry by entry.

The figures are computed on the host, in double precision.

Importance weights with a light tail may still leave a moment of theta = T(u) without a limit: the
sd of exp(u), say, where u has exponential tails. So each moment is judged by its own terms, which
are w_s |z_s|^p with z = (theta - mean) / sd.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minisvi.posterior import diagnostics
from minisvi.posterior.weighted import Entry, doubles, entries, have_weight, softmax
from minisvi.tools.names import entry_name, named_leaves
from minisvi.tools.types import Draw

MAX_UNSEEN = 0.03  # sds
MAX_KHAT = 0.7  # as for the weights themselves (Vehtari et al. 2024, section 3)
_SMALL_SHARE = 0.003  # the largest of 80,000 terms of shape 0.7 has a share of 0.03 in their sum
_LEAST_TAIL = 50  # the shape that is fitted to fewer draws is a guess


class Moment(NamedTuple):
    """One moment of one latent: the largest of each figure over its entries.

    `power` p is 1 for the mean and 2 for the sd. `error` is its standard error in sds. `khat` is
    the shape of the tail of the terms w |z|^p. From 1 on the terms have no mean: the moment does
    not exist, or draws do not give it. `khat` is -inf where the largest term has next to no share
    in the sum of all. `unseen` is how far, in sds, what lies beyond the draws may move it. `entry`
    is the name of the one with the largest error, such as `effects[3]`.
    """

    latent: str
    power: int
    error: float
    khat: float
    unseen: float = 0.0
    entry: str = ""

    def __str__(self) -> str:
        kind = "mean" if self.power == 1 else "sd"
        return f"the {kind} of `{self.latent}`"

    def holds(self, error: float, khat: float = MAX_KHAT) -> bool:
        """Whether the draws give the moment to within `error` sds, by terms whose tail is lighter
        than that of `khat`, and what lies beyond them would not move it.
        """
        return self.error <= error and self.khat < khat and self.unseen <= MAX_UNSEEN


def moments(theta: Draw, log_w: Any, log_weights: Any, unseen: np.ndarray) -> list[Moment]:
    """The mean and the sd of each leaf of theta (S, ...). `log_w` (S,) are the raw log weights and
    `log_weights` (S,) the normalised ones, in nats; `unseen` (S,) is what may be added to these.

    The errors are those of `diagnostics.weighted_mcse` and `weighted_sd_mcse`.
    """
    # However small a weight is: the terms of a moment may still be large.
    weights = softmax(log_weights)
    counts = have_weight(weights)
    log_w, unseen = doubles(log_w)[counts], unseen[counts]
    found = []
    for latent, leaf in named_leaves(theta).items():
        if not leaf.size:
            continue
        of_entries = [_figures(entry, log_w, unseen) for entry in entries(leaf, weights)]
        for power, figures in zip((1, 2), zip(*of_entries)):
            entry = _worst_entry(latent, leaf.shape[1:], figures)
            found.append(Moment(latent, power, *_worst(figures), entry))
    return found


class _Figures(NamedTuple):
    """What is known of one moment of one entry; `Moment` says what each is."""

    error: float
    khat: float
    unseen: float


_NO_MOMENT = _Figures(math.inf, math.inf, math.inf)


def _worst(of_entries: Iterable[_Figures]) -> _Figures:
    """The largest of each figure over the entries of a leaf."""
    return _Figures(*map(max, zip(*of_entries)))


def _worst_entry(latent: str, shape: tuple[int, ...], of_entries: Sequence[_Figures]) -> str:
    place = np.argmax([figures.error for figures in of_entries])
    return entry_name(latent, tuple(map(int, np.unravel_index(place, shape))))


def _figures(entry: Entry, log_w: np.ndarray, unseen: np.ndarray) -> tuple[_Figures, _Figures]:
    """Those of the mean and those of the sd."""
    if not (math.isfinite(entry.mean) and math.isfinite(entry.sd)):
        # An infinite draw, or spread, leaves no moment.
        return _NO_MOMENT, _NO_MOMENT
    # The share of the largest term of the sd in the sum of all, which is one.
    share = np.max(entry.weights * entry.z**2)
    mean_khat, sd_khat = _khats(log_w, entry.z, share)
    mean = _Figures(entry.mean_error(), mean_khat, entry.mean_change(unseen))
    sd = _Figures(entry.sd_error(), sd_khat, entry.sd_change(unseen))
    return mean, sd


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
    cutoff = tail[0]
    tail = tail[1:]
    if tail[-1] - tail[0] <= 4 * np.finfo(float).eps:
        return -math.inf
    shape, _ = diagnostics.pareto_fit(diagnostics.positive_exceedances(tail, cutoff))
    return math.inf if np.isnan(shape) else shape


def _largest(values: np.ndarray, num: int) -> np.ndarray:
    """The `num` largest values, ascending, without sorting the others."""
    unsorted = np.partition(values, values.size - num)[-num:]
    return np.sort(unsorted)
