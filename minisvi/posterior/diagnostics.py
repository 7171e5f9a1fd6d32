"""Is it true? Figures of a fit from arrays: importance weights, restarts and iterates. Arrays in,
arrays out.

`log_w` (S,) are log p - log q at S independent draws of any q, in nats; `log_weights` (S,) are
normalised ones, such as `psis(log_w).log_weights`. All functions are pure, and may be jitted and
vmapped.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class PSIS(NamedTuple):
    """Normalised smoothed log weights (S,), k-hat, and the log mean of the smoothed weights: the
    log evidence, nats.
    """

    log_weights: Array
    khat: Array
    log_evidence: Array


def psis(log_w: Array) -> PSIS:
    """Pareto-smoothed importance sampling (Vehtari, Simpson, Gelman, Yao & Gabry 2024, algorithm
    1).

    The T = floor(3 sqrt(S)) largest weights (floor(S/5) for S <= 225) are replaced by the expected
    order statistics of the generalised Pareto distribution fitted to them, none above the largest;
    k-hat is its shape: weights have about 1/k finite moments. It is -inf where the tail is
    constant, as for q = p. A weight of -inf is zero, which a draw outside the support has, and
    stays so. k-hat is +inf where no tail can be seen: of fewer than 25 draws, or T + 1 positive
    weights; and where a weight is +inf or NaN, which is taken as zero, for what is left of the
    rest.

    An expectation has weights of its own: psis(log_w + log f) is for E[f], where f = p(y_new |
    theta) say, and its log evidence less that of log_w is log E[f].
    """
    size = log_w.shape[-1]
    broken = jnp.isnan(log_w) | (log_w == jnp.inf)
    x = jnp.where(broken, -jnp.inf, log_w)
    top = jnp.max(x)
    nothing = ~jnp.isfinite(top)
    x = jnp.where(nothing, 0.0, x - jnp.where(nothing, 0.0, top))
    x, khat = _smooth_tail(x) if tail_size(size) >= 5 else (x, jnp.array(jnp.inf, x.dtype))
    total = jax.nn.logsumexp(x)
    khat = jnp.where(jnp.any(broken) | nothing | jnp.isnan(khat), jnp.inf, khat)
    return PSIS(x - total, khat, jnp.where(nothing, -jnp.inf, total + top - math.log(size)))


def _smooth_tail(x: Array) -> tuple[Array, Array]:
    """Log weights (S,), of which the largest is zero, with their tail replaced; and k-hat."""
    num = tail_size(x.size)
    order = jnp.argsort(x)
    rows, cutoff = order[x.size - num :], jnp.exp(x[order[x.size - num - 1]])
    tail = jnp.exp(x[rows])
    constant = tail[-1] - tail[0] <= 4 * jnp.finfo(x.dtype).eps
    # Rounded weights tie with the cutoff, in float32 at the exact posterior most of them. An
    # exceedance of zero has the log of a heavy tail: half of the smallest one stands for it.
    above = tail - cutoff
    above = jnp.maximum(above, 0.5 * jnp.min(jnp.where(above > 0, above, jnp.inf)))
    khat, sigma = pareto_fit(jnp.where(constant, jnp.linspace(0.5, 1.0, num, dtype=x.dtype), above))
    p = (jnp.arange(num) + 0.5) / num
    smoothed = jnp.minimum(jnp.log(cutoff + pareto_quantile(p, khat, sigma)), 0.0)
    keep = constant | ~jnp.isfinite(smoothed) | (x[rows] == -jnp.inf)
    khat = jnp.where(constant, -jnp.inf, jnp.where(cutoff == 0, jnp.inf, khat))
    return x.at[rows].set(jnp.where(keep, x[rows], smoothed)), khat


def khat_threshold(num_samples: int) -> float:
    """Above it a weighted mean of S draws converges too slowly: min(1 - 1/log10 S, 0.7) (the same,
    eq. 13).
    """
    return min(1 - 1 / math.log10(num_samples), 0.7)


def pareto_fit(exceedances: Array) -> tuple[Array, Array]:
    """Shape k and scale of the generalised Pareto distribution, from its exceedances (T,),
    ascending.

    The empirical Bayes estimate of Zhang & Stephens (2009), shrunk to 1/2 by a prior of ten draws.
    NumPy arrays are computed with on the host.
    """
    xp, size = exceedances.__array_namespace__(), exceedances.size
    # A tie with the threshold, or a zero weight in the tail, leaves a zero here; the grid divides
    # by it.
    x = xp.maximum(exceedances, exceedances[-1] * xp.finfo(exceedances.dtype).eps)
    num = 30 + math.isqrt(size)
    grid = 1 - xp.sqrt(num / (xp.arange(1, num + 1) - 0.5))
    b = grid / (3 * x[int(size / 4 + 0.5) - 1]) + 1 / x[-1]
    # One may be zero, the exponential distribution, where k is too and -b / k is 1 / mean: a small
    # one has that ratio.
    b = xp.where(b == 0, xp.finfo(x.dtype).eps / x[-1], b)
    k = xp.mean(xp.log1p(-b[:, None] * x[None, :]), axis=1)
    log_posterior = size * (xp.log(-b / k) - k - 1)
    posterior = xp.exp(log_posterior - xp.max(log_posterior))
    mean_b = xp.sum(b * posterior) / xp.sum(posterior)
    k = xp.mean(xp.log1p(-mean_b * x))
    return (size * k + 5) / (size + 10), -k / mean_b


def pareto_quantile(p: Array, k: Array, sigma: Array) -> Array:
    """The generalised Pareto quantile sigma ((1 - p)^-k - 1) / k, and its limit at k = 0."""
    exponential = -jnp.log1p(-p)
    safe = jnp.where(k == 0, 1.0, k)
    return sigma * jnp.where(k == 0, exponential, jnp.expm1(safe * exponential) / safe)


def tail_size(size: int) -> int:
    """How many of S weights are the tail that `psis` smooths."""
    return math.floor(3 * math.sqrt(size)) if size > 225 else size // 5


def importance_ess(log_weights: Array) -> Array:
    """1 / sum_i w_i^2, in 1..S: how many independent draws of p the weighted ones are worth (Kong
    1992).
    """
    return jnp.exp(-jax.nn.logsumexp(2 * log_weights))


def elbo(log_w: Array, where: Array | None = None) -> tuple[Array, Array]:
    """The ELBO, mean log w, and its standard error, in nats; of the draws `where`, (S,), is true."""
    num = log_w.size if where is None else jnp.sum(where)
    return jnp.mean(log_w, where=where), jnp.std(log_w, ddof=1, where=where) / num**0.5


def log_evidence(log_w: Array) -> tuple[Array, Array]:
    """log mean w, which is log p(D) if log p is normalised, and its standard error by the delta
    method, in nats.

    It is low in the mean; the standard error is itself to be trusted only where k-hat is below 1/2.
    """
    size = log_w.size
    total = jax.nn.logsumexp(log_w)
    relative = jnp.exp(log_w - total + math.log(size))
    return total - math.log(size), jnp.std(relative, ddof=1) / size**0.5


def per_draw(values: Array, x: Array) -> Array:
    """`values` (S,) with as many axes as the draws x (S, ...)."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def weighted_moments(x: Array, log_weights: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of draws x (S, ...) under weights (S,); one of weight zero never
    counts.
    """
    # Not a matrix product: accelerators round its inputs to fewer digits. From one of the draws, so
    # that a coordinate that is constant has no spread, and with a softmax, which is exact for equal
    # weights.
    weights, origin = per_draw(jax.nn.softmax(log_weights), x), x[jnp.argmax(log_weights)]
    x = jnp.where(weights == 0, 0.0, x - origin[None])
    mean = jnp.sum(weights * x, axis=0)
    return origin + mean, jnp.sqrt(jnp.sum(weights * (x - mean[None]) ** 2, axis=0))


def mean_shift(x: Array, log_weights: Array) -> Array:
    """|weighted mean - plain mean| in weighted sds, of draws x (S, ...): how far q's means are from
    the truth.
    """
    mean, sd = weighted_moments(x, log_weights)
    plain, _ = weighted_moments(x, jnp.zeros_like(log_weights))
    return _ratio(jnp.abs(mean - plain), sd)


def weighted_mcse(x: Array, log_weights: Array) -> Array:
    """Standard error of the weighted mean in weighted sds: sqrt(sum w_i^2 (x_i - mean)^2) / sd
    (Owen 2013, 9.9).
    """
    mean, sd = weighted_moments(x, log_weights)
    weights = per_draw(jax.nn.softmax(log_weights), x)
    return _ratio(
        jnp.sqrt(jnp.sum(jnp.where(weights == 0, 0.0, weights * (x - mean[None])) ** 2, axis=0)), sd
    )


def weighted_sd_mcse(x: Array, log_weights: Array) -> Array:
    """Relative standard error of the weighted sd: sqrt(sum_i w_i^2 (z_i^2 - 1)^2) / 2, z = (x -
    mean) / sd.
    """
    mean, sd = weighted_moments(x, log_weights)
    square = ((x - mean[None]) / jnp.where(sd == 0, 1.0, sd)[None]) ** 2
    return 0.5 * weighted_mcse(square, log_weights) * weighted_moments(square, log_weights)[1]


def _ratio(error: Array, sd: Array) -> Array:
    return jnp.where(error == 0, 0.0, error / jnp.where(sd == 0, 1.0, sd))


def distinct_optima(elbo: Array, loc: Array, sd: Array, tolerance: float = 0.5) -> Array:
    """For each of R restarts the best one that ended at the same optimum, (R,); as many optima as
    distinct entries.

    The same: locations (R, D) within `tolerance` of `sd` (R, D), the larger of the two, in every
    coordinate.
    """
    order = jnp.argsort(-jnp.where(jnp.isnan(elbo), -jnp.inf, elbo))
    z = jnp.abs(loc[:, None] - loc[None]) / jnp.maximum(sd[:, None], sd[None])
    # Its own at the least, though a location of NaN is within no distance of itself.
    same = (jnp.max(z, axis=2, initial=0.0) <= tolerance) | jnp.eye(elbo.size, dtype=bool)
    return order[jnp.argmax(same[:, order], axis=1)]


def split_rhat(chains: Array) -> Array:
    """Split R-hat of chains (C, N, ...): each is cut in two, and the halves compared (Gelman et al.
    2013, eq. 11.4).

    Near 1 where they agree; along an axis of one chain, it asks whether its iterates have stopped
    moving.
    """
    half = chains.shape[1] // 2
    halves = jnp.concatenate([chains[:, :half], chains[:, -half:]])
    within = jnp.mean(jnp.var(halves, axis=1, ddof=1), axis=0)
    between = jnp.var(jnp.mean(halves, axis=1), axis=0, ddof=1)
    return jnp.sqrt((half - 1) / half + between / within)


def chain_ess(chains: Array) -> Array:
    """Effective sample size of chains (C, N, ...) by Geyer's initial monotone sequence (Vehtari et
    al. 2021, 10-13).
    """
    num, length = chains.shape[:2]
    centred = chains - jnp.mean(chains, axis=1, keepdims=True)
    spectrum = jnp.abs(jnp.fft.rfft(centred, n=2 * length, axis=1)) ** 2
    acov = jnp.mean(jnp.fft.irfft(spectrum, axis=1)[:, :length], axis=0) / length
    within = acov[:1] * length / (length - 1)
    total = acov[:1] + (jnp.var(jnp.mean(chains, axis=1), axis=0, ddof=1)[None] if num > 1 else 0.0)
    rho = (1 - (within - acov) / total).at[0].set(1.0)
    pairs = rho[: length // 2 * 2].reshape(length // 2, 2, *rho.shape[1:]).sum(axis=1)
    positive = jnp.cumprod(pairs > 0, axis=0)
    tau = 2 * jnp.sum(positive * jax.lax.cummin(pairs, axis=0), axis=0) - 1
    return num * length / jnp.maximum(tau, 1 / math.log10(num * length))


def mcse(chains: Array) -> Array:
    """Standard error of the mean of chains (C, N, ...): sd / sqrt(ESS)."""
    return jnp.std(chains, axis=(0, 1), ddof=1) / jnp.sqrt(chain_ess(chains))


class Optima(NamedTuple):
    """Where R starts ended, each (R, ...): the ELBO at fresh draws, with its standard error, in
    nats; the mean field's `loc` and `log_scale` (R, D); whether Newton converged; and the `optimum`
    it belongs to (see `diagnostics.distinct_optima`).
    """

    elbo: Array
    elbo_se: Array
    loc: Array
    log_scale: Array
    converged: Array
    optimum: Array
