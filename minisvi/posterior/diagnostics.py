"""Is it true? Figures of a fit: of its importance weights, and of its restarts.

They are computed on the host, in double precision. `log_w` (S,) are log p - log q at S independent
draws of any q, in nats; `log_weights` (S,) are normalised ones, such as `psis(log_w).log_weights`.
What counts as equal numbers depends on the dtype in which they come.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from minisvi.posterior.weighted import doubles, entries, normalised, softmax
from minisvi.tools.sharding import to_host

_LEAST_TAIL = 5  # weights; a shape cannot be fitted to fewer


class PSIS(NamedTuple):
    """What Pareto smoothing makes of S weights.

    `log_weights` (S,) are smoothed and normalised; `khat` is the shape of their tail;
    `log_evidence` is the log mean of the smoothed weights, in nats.
    """

    log_weights: np.ndarray
    khat: float
    log_evidence: float


def psis(log_w: ArrayLike) -> PSIS:
    """Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao & Gabry 2024, algorithm
    1).

    The T = floor(3 sqrt(S)) largest weights (floor(S/5) for S <= 225) are replaced by the expected
    order statistics of the generalised Pareto distribution that is fitted to them. None comes to
    exceed the largest weight. k-hat is the shape of that distribution: the weights have about 1/k
    finite moments. It is -inf where the tail is constant, as it is for q = p.

    A weight of -inf is zero, as that of a draw outside the support is, and stays zero. A weight of
    +inf or NaN is taken as zero too, and k-hat is then +inf. k-hat is also +inf where no tail can
    be seen, which is so with fewer than 25 draws and with fewer than T + 1 positive weights.

    An expectation E[f] has weights of its own: psis(log_w + log f), where f = p(y_new | theta),
    say. The log evidence of these less that of log_w is log E[f].
    """
    given = to_host(log_w)
    size = given.shape[-1]
    broken = np.isnan(given) | (given == np.inf)
    usable = np.where(broken, -np.inf, given.astype(float))
    largest = np.max(usable)
    if not np.isfinite(largest):  # weights that are all zero are taken as equal ones
        equal = np.full(size, -math.log(size))
        return PSIS(equal, np.inf, -np.inf)
    smoothed = usable - largest
    khat = np.inf
    if tail_size(size) >= _LEAST_TAIL:
        smoothed, khat = _smooth_tail(smoothed, _eps(given.dtype))
    total = _logsumexp(smoothed)
    unknown = np.any(broken) or np.isnan(khat)
    log_evidence = float(total + largest - math.log(size))
    return PSIS(smoothed - total, np.inf if unknown else float(khat), log_evidence)


def _eps(dtype: Any) -> float:
    """The relative spacing of the numbers of a dtype; integers are taken for doubles."""
    floating = dtype if jnp.issubdtype(dtype, jnp.floating) else float
    return float(jnp.finfo(floating).eps)


def _smooth_tail(log_w: np.ndarray, eps: float) -> tuple[np.ndarray, float]:
    """The log weights (S,), the largest of which is zero, with their tail replaced; and k-hat."""
    num = tail_size(log_w.size)
    order = np.argsort(log_w, kind="stable")
    first = log_w.size - num
    rows = order[first:]
    cutoff = np.exp(log_w[order[first - 1]])
    raw = log_w[rows]
    tail = np.exp(raw)
    if tail[-1] - tail[0] <= 4 * eps:
        return log_w, np.inf if cutoff == 0 else -np.inf
    khat, sigma = pareto_fit(positive_exceedances(tail, cutoff))
    p = (np.arange(num) + 0.5) / num
    with np.errstate(all="ignore"):  # what is not finite is not used
        smoothed = np.minimum(np.log(cutoff + pareto_quantile(p, khat, sigma)), 0.0)
    keep = ~np.isfinite(smoothed) | (raw == -np.inf)
    log_w = log_w.copy()
    log_w[rows] = np.where(keep, raw, smoothed)
    return log_w, np.inf if cutoff == 0 else khat


def positive_exceedances(tail: np.ndarray, cutoff: float) -> np.ndarray:
    """By how much the weights of the tail exceed the cutoff; half of the least where they do not.

    Rounded weights tie with the cutoff, in float32 at the exact posterior most of them do. The log
    of an exceedance of zero would look like that of a heavy tail.
    """
    above = tail - cutoff
    least = np.min(above, where=above > 0, initial=np.inf)
    return np.maximum(above, 0.5 * least)


def tail_excess(log_w: ArrayLike) -> np.ndarray:
    """By how much each of the T largest weights exceeds the next one, c, (S,), in shares of all
    weight; zero for the others.

    The T largest are the tail, as in `psis`. The sum is that of E[(w - c)+]: the mass that q lacks
    where c times q is too little. The weights are raw, for smoothing hides a single large one.
    """
    given = doubles(log_w)
    weights = softmax(np.where(given < np.inf, given, -np.inf))  # zero where it is NaN, too
    size = weights.size
    if np.isnan(weights[0]):  # none is positive, so that nothing was seen
        return np.full(size, 1 / size)
    first = size - tail_size(size)
    cutoff = np.partition(weights, first - 1)[first - 1]
    return np.maximum(weights - cutoff, 0.0)


def excess_beyond(k: float, num: int) -> float:
    """How much there is beyond T weights above c, as a share of their `tail_excess`.

    The excess is generalised Pareto, of shape k. Of its mean sigma / (1 - k) the part

        (T^(k - 1) - (1 - k) / T) / k

    lies beyond the level that one of T draws exceeds on average. It is all of it at k = 1. For
    k > 1 there is no mean, and it is taken to be as much again.
    """
    if k >= 1:
        return 1.0
    if k == -np.inf:  # the tail is constant
        return 0.0
    if abs(k) < 1e-6:
        return (1 + math.log(num)) / num
    return (num ** (k - 1) - (1 - k) / num) / k


def khat_threshold(num_samples: int) -> float:
    """The k-hat above which a weighted mean of S draws converges too slowly to be of use:
    min(1 - 1/log10 S, 0.7) (Vehtari et al. 2024, eq. 13).
    """
    return min(1 - 1 / math.log10(num_samples), 0.7)


@np.errstate(all="ignore")  # a point of the grid may lead to 0 / 0, and the fit is then NaN
def pareto_fit(exceedances: ArrayLike) -> tuple[float, float]:
    """Shape k and scale sigma of the generalised Pareto distribution, fitted to exceedances (T,) in
    ascending order.

    This is the empirical Bayes estimate of Zhang & Stephens (2009), with k shrunk to 1/2 by a prior
    that counts as ten draws.
    """
    exceedances = doubles(exceedances)
    size = exceedances.size
    finfo = np.finfo(float)
    # The grid divides by these, so that none may be zero. A larger floor than this one would be a
    # constant part of a tail that is very heavy, and make it look light.
    x = np.maximum(exceedances, exceedances[-1] * finfo.tiny)
    num = 30 + math.isqrt(size)
    grid = 1 - np.sqrt(num / (np.arange(1, num + 1) - 0.5))
    quartile = x[int(size / 4 + 0.5) - 1]
    b = grid / (3 * quartile) + 1 / x[-1]
    # A point of the grid may be zero, which is the exponential distribution: k is zero too and
    # -b / k is 1 / mean. A small b has that ratio.
    b = np.where(b == 0, finfo.eps / x[-1], b)
    # At a given b the likeliest k is this mean, and the likeliest scale is -k / b.
    logs = np.log1p(-b[:, None] * x[None, :])
    k = np.mean(logs, axis=1)
    log_posterior = size * (np.log(-b / k) - k - 1)
    posterior = np.exp(log_posterior - np.max(log_posterior))
    mean_b = np.sum(b * posterior) / np.sum(posterior)
    k = np.mean(np.log1p(-mean_b * x))
    shrunk = (size * k + 5) / (size + 10)
    return float(shrunk), float(-k / mean_b)


def pareto_quantile(p: ArrayLike, k: float, sigma: float) -> np.ndarray:
    """The generalised Pareto quantile sigma ((1 - p)^-k - 1) / k, and its limit at k = 0."""
    exponential = -np.log1p(-doubles(p))
    if k == 0:
        return sigma * exponential
    return sigma * np.expm1(k * exponential) / k


def tail_size(size: int) -> int:
    """The number of the S weights that are the tail, which `psis` smooths."""
    return math.floor(3 * math.sqrt(size)) if size > 225 else size // 5


def _logsumexp(terms: np.ndarray) -> float:
    """log sum exp, where -inf counts as nothing."""
    largest = np.max(terms)
    if not np.isfinite(largest):
        return float(largest)
    return float(largest + np.log(np.sum(np.exp(terms - largest))))


def importance_ess(log_weights: ArrayLike) -> float:
    """The effective sample size 1 / sum_i w_i^2, in 1..S: the number of independent draws of p that
    the weighted ones are worth (Kong 1992).
    """
    log_sum_of_squares = _logsumexp(2 * doubles(log_weights))
    with np.errstate(over="ignore"):
        return float(np.exp(-log_sum_of_squares))


def elbo(log_w: ArrayLike, where: ArrayLike | None = None) -> tuple[float, float]:
    """The ELBO, which is the mean of log w, and its standard error, in nats.

    With `where` (S,) only the draws count for which it is true.
    """
    used = doubles(log_w)
    if where is not None:
        used = used[to_host(where)]
    if used.size == 0:
        return math.nan, math.nan
    with np.errstate(invalid="ignore", over="ignore"):  # of densities that are not finite
        return float(np.mean(used)), _standard_error(used)


@np.errstate(invalid="ignore", over="ignore")
def _standard_error(values: np.ndarray) -> float:
    """That of the mean of the values; NaN of a single one, which has no spread."""
    if values.size < 2:
        return math.nan
    sd = np.std(values, ddof=1)
    return float(sd) / math.sqrt(values.size)


def log_evidence(log_w: ArrayLike) -> tuple[float, float]:
    """The log of the mean of w, which is log p(D) if log p is normalised, and its standard error by
    the delta method, in nats.

    The estimate is too low on average. Its standard error may be trusted only where k-hat is below
    1/2.
    """
    log_w = doubles(log_w)
    total = _logsumexp(log_w)
    log_size = math.log(log_w.size)
    with np.errstate(invalid="ignore", over="ignore"):
        relative = np.exp(log_w - total + log_size)
    return total - log_size, _standard_error(relative)


def weighted_moments(x: ArrayLike, log_weights: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of draws x (S, ...) under weights (S,). A draw of weight zero
    never counts.
    """
    weights = normalised(log_weights)
    moments = [(entry.mean, entry.sd) for entry in entries(x, weights)]
    mean, sd = np.reshape(moments, (len(moments), 2)).T
    shape = np.shape(x)[1:]
    return mean.reshape(shape), sd.reshape(shape)


def mean_shift(x: ArrayLike, log_weights: ArrayLike) -> np.ndarray:
    """|weighted mean - plain mean| in weighted sds, of draws x (S, ...): how far q's means are from
    the truth.
    """
    mean, sd = weighted_moments(x, log_weights)
    plain, _ = weighted_moments(x, np.zeros(np.shape(x)[0]))
    with np.errstate(invalid="ignore"):
        shift = np.abs(mean - plain)
        in_sds = shift / np.where(sd == 0, 1.0, sd)
    return np.where(shift == 0, 0.0, in_sds)


def weighted_mcse(x: ArrayLike, log_weights: ArrayLike) -> np.ndarray:
    """Standard error of the weighted mean in weighted sds: sqrt(sum_i w_i^2 (x_i - mean)^2) / sd
    (Owen 2013, 9.9).
    """
    errors = [entry.mean_error() for entry in entries(x, normalised(log_weights))]
    return np.reshape(errors, np.shape(x)[1:])


def weighted_sd_mcse(x: ArrayLike, log_weights: ArrayLike) -> np.ndarray:
    """Relative standard error of the weighted sd: sqrt(sum_i w_i^2 (z_i^2 - 1)^2) / 2, where
    z = (x - mean) / sd.
    """
    errors = [entry.sd_error() for entry in entries(x, normalised(log_weights))]
    return np.reshape(errors, np.shape(x)[1:])


class Optima(NamedTuple):
    """Where R starts ended; each field is (R, ...).

    `elbo` is the ELBO at fresh draws and `elbo_se` its standard error, in nats. `loc` and
    `log_scale` (R, D) are the mean field's. `converged` says whether Newton's method did.
    `optimum` is the best start that ended at the same optimum (see `distinct_optima`).
    """

    elbo: np.ndarray
    elbo_se: np.ndarray
    loc: np.ndarray
    log_scale: np.ndarray
    converged: np.ndarray
    optimum: np.ndarray


def distinct_optima(
    elbo: ArrayLike, loc: ArrayLike, sd: ArrayLike, tolerance: float = 0.5
) -> np.ndarray:
    """For each of R restarts the best one that ended at the same optimum, (R,). There are as many
    optima as distinct entries.

    Two are at the same optimum if their locations (R, D) are, in every coordinate, within
    `tolerance` times the larger one of their two `sd` (R, D).
    """
    elbo, loc, sd = doubles(elbo), doubles(loc), doubles(sd)
    known = np.where(np.isnan(elbo), -np.inf, elbo)
    best_first = np.argsort(-known, kind="stable")
    largest_sd = np.maximum(sd[:, None], sd[None])
    with np.errstate(all="ignore"):  # a location may not be finite
        distance = np.abs(loc[:, None] - loc[None])
        near = np.all(distance <= tolerance * largest_sd, axis=2)
    # Each is at its own optimum, even one whose location is NaN, which is near nothing.
    same = near | np.eye(len(elbo), dtype=bool)
    rank_of_best = np.argmax(same[:, best_first], axis=1)
    return best_first[rank_of_best]
