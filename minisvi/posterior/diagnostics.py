"""Is it true? Figures of a fit: of its importance weights, its restarts and its iterates.

All functions take arrays and return arrays. They are pure, and may be jitted and vmapped. `log_w`
(S,) are log p - log q at S independent draws of any q, in nats; `log_weights` (S,) are normalised
ones, such as `psis(log_w).log_weights`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_LEAST_TAIL = 5  # weights; a shape cannot be fitted to fewer


class PSIS(NamedTuple):
    """What Pareto smoothing makes of S weights.

    `log_weights` (S,) are smoothed and normalised; `khat` is the shape of their tail;
    `log_evidence` is the log mean of the smoothed weights, in nats.
    """

    log_weights: Array
    khat: Array
    log_evidence: Array


def psis(log_w: Array) -> PSIS:
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
    size = log_w.shape[-1]
    broken = jnp.isnan(log_w) | (log_w == jnp.inf)
    usable = jnp.where(broken, -jnp.inf, log_w)
    largest = jnp.max(usable)
    all_zero = ~jnp.isfinite(largest)
    # Weights that are all zero are taken as equal ones.
    origin = jnp.where(all_zero, 0.0, largest)
    relative = jnp.where(all_zero, 0.0, usable - origin)
    if tail_size(size) >= _LEAST_TAIL:
        smoothed, khat = _smooth_tail(relative)
    else:
        smoothed = relative
        khat = jnp.array(jnp.inf, relative.dtype)
    total = jax.nn.logsumexp(smoothed)
    unknown = jnp.any(broken) | all_zero | jnp.isnan(khat)
    khat = jnp.where(unknown, jnp.inf, khat)
    log_mean = total + largest - math.log(size)
    log_evidence = jnp.where(all_zero, -jnp.inf, log_mean)
    return PSIS(smoothed - total, khat, log_evidence)


def _smooth_tail(log_w: Array) -> tuple[Array, Array]:
    """The log weights (S,), the largest of which is zero, with their tail replaced; and k-hat."""
    num = tail_size(log_w.size)
    order = jnp.argsort(log_w)
    first = log_w.size - num
    rows = order[first:]
    cutoff = jnp.exp(log_w[order[first - 1]])
    raw = log_w[rows]
    tail = jnp.exp(raw)
    constant = tail[-1] - tail[0] <= 4 * jnp.finfo(log_w.dtype).eps
    # The fit needs some spread; what it says of a tail that has none is not used.
    stand_in = jnp.linspace(0.5, 1.0, num, dtype=log_w.dtype)
    exceedances = jnp.where(constant, stand_in, _positive_exceedances(tail, cutoff))
    khat, sigma = pareto_fit(exceedances)
    p = (jnp.arange(num) + 0.5) / num
    expected = cutoff + pareto_quantile(p, khat, sigma)
    smoothed = jnp.minimum(jnp.log(expected), 0.0)
    keep = constant | ~jnp.isfinite(smoothed) | (raw == -jnp.inf)
    khat = jnp.where(cutoff == 0, jnp.inf, khat)
    khat = jnp.where(constant, -jnp.inf, khat)
    return log_w.at[rows].set(jnp.where(keep, raw, smoothed)), khat


def _positive_exceedances(tail: Array, cutoff: Array) -> Array:
    """By how much the weights of the tail exceed the cutoff; half of the least where they do not.

    Rounded weights tie with the cutoff, in float32 at the exact posterior most of them do. The log
    of an exceedance of zero would look like that of a heavy tail.
    """
    above = tail - cutoff
    least = jnp.min(jnp.where(above > 0, above, jnp.inf))
    return jnp.maximum(above, 0.5 * least)


def khat_threshold(num_samples: int) -> float:
    """The k-hat above which a weighted mean of S draws converges too slowly to be of use:
    min(1 - 1/log10 S, 0.7) (Vehtari et al. 2024, eq. 13).
    """
    return min(1 - 1 / math.log10(num_samples), 0.7)


def pareto_fit(exceedances: Array) -> tuple[Array, Array]:
    """Shape k and scale sigma of the generalised Pareto distribution, fitted to exceedances (T,) in
    ascending order.

    This is the empirical Bayes estimate of Zhang & Stephens (2009), with k shrunk to 1/2 by a prior
    that counts as ten draws. NumPy arrays are computed with on the host.
    """
    xp = exceedances.__array_namespace__()
    size = exceedances.size
    eps = xp.finfo(exceedances.dtype).eps
    # A tie with the cutoff, or a zero weight in the tail, leaves a zero here; the grid divides by
    # it.
    x = xp.maximum(exceedances, exceedances[-1] * eps)
    num = 30 + math.isqrt(size)
    grid = 1 - xp.sqrt(num / (xp.arange(1, num + 1) - 0.5))
    quartile = x[int(size / 4 + 0.5) - 1]
    b = grid / (3 * quartile) + 1 / x[-1]
    # A point of the grid may be zero, which is the exponential distribution: k is zero too and
    # -b / k is 1 / mean. A small b has that ratio.
    b = xp.where(b == 0, eps / x[-1], b)
    # At a given b the likeliest k is this mean, and the likeliest scale is -k / b.
    logs = xp.log1p(-b[:, None] * x[None, :])
    k = xp.mean(logs, axis=1)
    log_posterior = size * (xp.log(-b / k) - k - 1)
    posterior = xp.exp(log_posterior - xp.max(log_posterior))
    mean_b = xp.sum(b * posterior) / xp.sum(posterior)
    k = xp.mean(xp.log1p(-mean_b * x))
    shrunk = (size * k + 5) / (size + 10)
    return shrunk, -k / mean_b


def pareto_quantile(p: Array, k: Array, sigma: Array) -> Array:
    """The generalised Pareto quantile sigma ((1 - p)^-k - 1) / k, and its limit at k = 0."""
    exponential = -jnp.log1p(-p)
    safe = jnp.where(k == 0, 1.0, k)
    general = jnp.expm1(safe * exponential) / safe
    return sigma * jnp.where(k == 0, exponential, general)


def tail_size(size: int) -> int:
    """The number of the S weights that are the tail, which `psis` smooths."""
    return math.floor(3 * math.sqrt(size)) if size > 225 else size // 5


def importance_ess(log_weights: Array) -> Array:
    """The effective sample size 1 / sum_i w_i^2, in 1..S: the number of independent draws of p that
    the weighted ones are worth (Kong 1992).
    """
    return jnp.exp(-jax.nn.logsumexp(2 * log_weights))


def elbo(log_w: Array, where: Array | None = None) -> tuple[Array, Array]:
    """The ELBO, which is the mean of log w, and its standard error, in nats.

    With `where` (S,) only the draws count for which it is true.
    """
    num = log_w.size if where is None else jnp.sum(where)
    sd = jnp.std(log_w, ddof=1, where=where)
    return jnp.mean(log_w, where=where), sd / num**0.5


def log_evidence(log_w: Array) -> tuple[Array, Array]:
    """The log of the mean of w, which is log p(D) if log p is normalised, and its standard error by
    the delta method, in nats.

    The estimate is too low on average. Its standard error may be trusted only where k-hat is below
    1/2.
    """
    size = log_w.size
    total = jax.nn.logsumexp(log_w)
    relative = jnp.exp(log_w - total + math.log(size))
    error = jnp.std(relative, ddof=1) / size**0.5
    return total - math.log(size), error


def per_draw(values: Array, x: Array) -> Array:
    """`values` (S,) with as many axes as the draws x (S, ...), so that they broadcast."""
    ones = (1,) * (x.ndim - 1)
    return values.reshape(-1, *ones)


def weighted_moments(x: Array, log_weights: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of draws x (S, ...) under weights (S,). A draw of weight zero
    never counts.
    """
    # The sums are not matrix products, whose inputs accelerators round to fewer digits. They are
    # taken from one of the draws, so that a constant coordinate has no spread; and the weights by a
    # softmax, which is exact for equal ones.
    weights = per_draw(jax.nn.softmax(log_weights), x)
    origin = x[jnp.argmax(log_weights)]
    x = jnp.where(weights == 0, 0.0, x - origin[None])
    mean = jnp.sum(weights * x, axis=0)
    variance = jnp.sum(weights * (x - mean[None]) ** 2, axis=0)
    return origin + mean, jnp.sqrt(variance)


def mean_shift(x: Array, log_weights: Array) -> Array:
    """|weighted mean - plain mean| in weighted sds, of draws x (S, ...): how far q's means are from
    the truth.
    """
    mean, sd = weighted_moments(x, log_weights)
    plain, _ = weighted_moments(x, jnp.zeros_like(log_weights))
    return _in_sds(jnp.abs(mean - plain), sd)


def weighted_mcse(x: Array, log_weights: Array) -> Array:
    """Standard error of the weighted mean in weighted sds: sqrt(sum_i w_i^2 (x_i - mean)^2) / sd
    (Owen 2013, 9.9).
    """
    mean, sd = weighted_moments(x, log_weights)
    weights = per_draw(jax.nn.softmax(log_weights), x)
    terms = jnp.where(weights == 0, 0.0, weights * (x - mean[None]))
    error = jnp.sqrt(jnp.sum(terms**2, axis=0))
    return _in_sds(error, sd)


def weighted_sd_mcse(x: Array, log_weights: Array) -> Array:
    """Relative standard error of the weighted sd: sqrt(sum_i w_i^2 (z_i^2 - 1)^2) / 2, where
    z = (x - mean) / sd.
    """
    mean, sd = weighted_moments(x, log_weights)
    z = (x - mean[None]) / _or_one(sd)[None]
    square = z**2
    # The error of the mean of z^2, which is one; it comes in sds of z^2.
    error = weighted_mcse(square, log_weights)
    _, sd_of_square = weighted_moments(square, log_weights)
    return 0.5 * error * sd_of_square


def _in_sds(error: Array, sd: Array) -> Array:
    return jnp.where(error == 0, 0.0, error / _or_one(sd))


def _or_one(sd: Array) -> Array:
    """The sds, with one in place of those that are zero, by which nothing can be divided."""
    return jnp.where(sd == 0, 1.0, sd)


class Optima(NamedTuple):
    """Where R starts ended; each field is (R, ...).

    `elbo` is the ELBO at fresh draws and `elbo_se` its standard error, in nats. `loc` and
    `log_scale` (R, D) are the mean field's. `converged` says whether Newton's method did.
    `optimum` is the best start that ended at the same optimum (see `distinct_optima`).
    """

    elbo: Array
    elbo_se: Array
    loc: Array
    log_scale: Array
    converged: Array
    optimum: Array


def distinct_optima(elbo: Array, loc: Array, sd: Array, tolerance: float = 0.5) -> Array:
    """For each of R restarts the best one that ended at the same optimum, (R,). There are as many
    optima as distinct entries.

    Two are at the same optimum if their locations (R, D) are, in every coordinate, within
    `tolerance` times the larger one of their two `sd` (R, D).
    """
    known = jnp.where(jnp.isnan(elbo), -jnp.inf, elbo)
    best_first = jnp.argsort(-known)
    largest_sd = jnp.maximum(sd[:, None], sd[None])
    distance = jnp.abs(loc[:, None] - loc[None]) / largest_sd
    near = jnp.max(distance, axis=2, initial=0.0) <= tolerance
    # Each is at its own optimum, even one whose location is NaN, which is near nothing.
    same = near | jnp.eye(elbo.size, dtype=bool)
    rank_of_best = jnp.argmax(same[:, best_first], axis=1)
    return best_first[rank_of_best]


def split_rhat(chains: Array) -> Array:
    """Split R-hat of chains (C, N, ...): each chain is cut in two, and the halves are compared
    (Gelman et al. 2013, eq. 11.4).

    It is near 1 where the halves agree. Of one chain it tells whether the iterates have stopped
    moving.
    """
    half = chains.shape[1] // 2
    first = chains[:, :half]
    last = chains[:, -half:]
    halves = jnp.concatenate([first, last])
    variances = jnp.var(halves, axis=1, ddof=1)
    within = jnp.mean(variances, axis=0)
    means = jnp.mean(halves, axis=1)
    between = jnp.var(means, axis=0, ddof=1)
    return jnp.sqrt((half - 1) / half + between / within)


def chain_ess(chains: Array) -> Array:
    """Effective sample size of chains (C, N, ...) by Geyer's initial monotone sequence (Vehtari et
    al. 2021, eqs. 10-13).
    """
    num, length = chains.shape[:2]
    autocovariance = _autocovariance(chains)
    variance = autocovariance[:1]
    within = variance * length / (length - 1)
    between: Array | float = 0.0
    if num > 1:
        means = jnp.mean(chains, axis=1)
        between = jnp.var(means, axis=0, ddof=1)[None]
    total = variance + between
    rho = 1 - (within - autocovariance) / total
    rho = rho.at[0].set(1.0)
    tau = _integrated_time(rho)
    least_tau = 1 / math.log10(num * length)
    return num * length / jnp.maximum(tau, least_tau)


def _autocovariance(chains: Array) -> Array:
    """The mean autocovariance of the chains at each lag, (N, ...), by a Fourier transform."""
    length = chains.shape[1]
    centred = chains - jnp.mean(chains, axis=1, keepdims=True)
    # Padded with zeros, for the transform takes a chain as periodic.
    transform = jnp.fft.rfft(centred, n=2 * length, axis=1)
    spectrum = jnp.abs(transform) ** 2
    sums = jnp.fft.irfft(spectrum, axis=1)[:, :length]
    return jnp.mean(sums, axis=0) / length


def _integrated_time(rho: Array) -> Array:
    """The integrated autocorrelation time, in steps, of autocorrelations rho (N, ...).

    Sums of two neighbours are positive and decrease with the lag. Those after the first that is not
    positive are left out, and one that exceeds an earlier one is cut down to it.
    """
    num_pairs = len(rho) // 2
    in_pairs = rho[: 2 * num_pairs]
    pairs = in_pairs.reshape(num_pairs, 2, *rho.shape[1:])
    sums = pairs.sum(axis=1)
    positive = jnp.cumprod(sums > 0, axis=0)
    decreasing = jax.lax.cummin(sums, axis=0)
    return 2 * jnp.sum(positive * decreasing, axis=0) - 1


def mcse(chains: Array) -> Array:
    """Standard error of the mean of chains (C, N, ...): sd / sqrt(ESS)."""
    sd = jnp.std(chains, axis=(0, 1), ddof=1)
    return sd / jnp.sqrt(chain_ess(chains))
