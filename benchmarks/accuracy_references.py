"""Truths that no package has, or has wrong: quadrature where the model allows it, long NUTS where
it does not.

`python benchmarks/field.py --references` writes them to results/accuracy_references.json, in
float64; with names, of these targets only.
"""

import datetime
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accuracy_targets import REFERENCES, TARGETS, Target, brownian_data
from common import significant, versions
from field_engines.with_numpyro import model_of, start

from minisvi.model import trees

Reference = dict[str, Any]


def brownian_motion() -> Reference:
    """Given both scales all is Gaussian, so two dimensions are left: a trapezoid rule over their
    logarithms.

    With K = min(s, t) over observed times, y ~ N(0, a^2 K + b^2 I); one eigenbasis of K serves all
    a and b. The grid goes eight prior sd down in b, where the likelihood is flat.
    """
    y = brownian_data()
    seen = ~np.isnan(y)
    times = np.arange(1, len(y) + 1)
    kernel = np.minimum(times[:, None], times[None]).astype(float)
    values, basis = np.linalg.eigh(kernel[np.ix_(seen, seen)])
    z, cross = basis.T @ y[seen], kernel[:, seen] @ basis
    log_a, log_b = np.linspace(-5.0, 1.0, 601), np.linspace(-16.0, 2.0, 1801)
    a, b = (np.exp(g).ravel() for g in np.meshgrid(log_a, log_b, indexing="ij"))
    weights, first, second = (
        np.zeros(len(a)),
        np.zeros((len(a), len(y))),
        np.zeros((len(a), len(y))),
    )
    for block in np.array_split(np.arange(len(a)), 100):
        drift = a[block, None] ** 2
        spread = drift * values + b[block, None] ** 2
        weights[block] = -0.5 * np.sum(z**2 / spread + np.log(2 * np.pi * spread), axis=1)
        first[block] = drift * ((z / spread) @ cross.T)
        second[block] = (
            drift * np.diag(kernel) - drift**2 * ((1 / spread) @ (cross**2).T) + first[block] ** 2
        )
    for scale in (a, b):
        weights += -0.5 * (np.log(scale) / 2) ** 2 - np.log(2 * np.sqrt(2 * np.pi))
    area, top = (log_a[1] - log_a[0]) * (log_b[1] - log_b[0]), weights.max()
    weights = np.exp(weights - top)
    log_evidence = top + np.log(weights.sum() * area)
    values = np.column_stack([a, first, b])  # the order of the latents' names
    squares = np.column_stack([a**2, second, b**2])
    mean = weights @ values / weights.sum()
    sd = np.sqrt(weights @ squares / weights.sum() - mean**2)
    return answer(mean, sd, "quadrature over the two log scales, 601 x 1801", log_evidence)


def stochastic_volatility(points: int = 10_000, inner: int = 20) -> Reference:
    """The three hyperparameters by adaptive importance sampling; given them, the log volatilities
    by Laplace and more.

    The density of the volatilities given the rest is log-concave, so that its Gaussian at the mode
    (tridiagonal, by Newton) is close, and `inner` weighted draws of it make the integral over them
    unbiased.
    """
    target, rng = TARGETS["stochastic_volatility"](), np.random.default_rng(0)
    returns = np.asarray(target.data[0], np.float64)
    loc, factor = np.array([2.0, -9.0, -1.0]), np.diag([1.5, 2.0, 1.0])
    for size in (500, 1_000, 2_000, points):
        log_w, values = _volatility_round(returns, loc, factor, size, inner, rng)
        each = np.logaddexp.reduce(log_w, axis=1) - np.log(inner)
        weights = np.exp(each - each.max())
        hyper = _hyper_of(values[:, 0, :3])
        loc = weights @ hyper / weights.sum()
        factor = np.linalg.cholesky(
            (hyper - loc).T @ ((hyper - loc) * weights[:, None]) / weights.sum()
        )
    log_evidence = float(each.max() + np.log(weights.mean()))
    error = float(np.std(weights) / weights.mean() / np.sqrt(points))
    weights = np.exp(log_w - log_w.max()).ravel()
    values = values.reshape(len(weights), -1)
    mean = weights @ values / weights.sum()
    sd = np.sqrt(weights @ (values - mean) ** 2 / weights.sum())
    order = np.r_[
        3 : values.shape[1], 1, 0, 2
    ]  # log volatilities, mean, persistence, scale: the order of names
    how = (
        f"importance sampling of three hyperparameters, {points:,} points, "
        f"and of the volatilities, {inner} each"
    )
    return answer(mean[order], sd[order], how, log_evidence) | {
        "log_evidence_se": significant(error)
    }


def _hyper_of(theta: np.ndarray) -> np.ndarray:
    """(persistence, mean, scale) on the whole line."""
    return np.column_stack(
        [np.log1p(theta[:, 0]) - np.log1p(-theta[:, 0]), theta[:, 1], np.log(theta[:, 2])]
    )


def _volatility_round(
    returns: np.ndarray,
    loc: np.ndarray,
    factor: np.ndarray,
    size: int,
    inner: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Log weights (size, inner) and values (size, inner, 3 + T) from a t distribution of 5 degrees
    of freedom.
    """
    from scipy.stats import beta, cauchy, multivariate_t

    proposal = multivariate_t(loc, factor @ factor.T, df=5, seed=rng)
    hyper = proposal.rvs(size)
    p = 1 / (1 + np.exp(-hyper[:, 0]))
    persistence, mean, scale = 2 * p - 1, hyper[:, 1], np.exp(hyper[:, 2])
    # Beta(20, 1.5) of (persistence + 1) / 2, and the derivatives of both maps.
    prior = beta.logpdf(p, 20, 1.5) + np.log(p * (1 - p)) + cauchy.logpdf(mean, 0, 5)
    prior += np.log(2) + cauchy.logpdf(scale, 0, 2) + hyper[:, 2] - proposal.logpdf(hyper)
    log_w, values = np.empty((size, inner)), np.empty((size, inner, 3 + len(returns)))
    for i in range(size):
        path, log_ratio = _volatilities(returns, persistence[i], mean[i], scale[i], inner, rng)
        log_w[i] = prior[i] + log_ratio
        values[i, :, :3], values[i, :, 3:] = (persistence[i], mean[i], scale[i]), mean[i] + path
    return log_w, values


def _volatilities(
    returns: np.ndarray,
    persistence: float,
    mean: float,
    scale: float,
    inner: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the path given the hyperparameters, and log p(path, returns) - log q(path) of
    each.
    """
    from scipy.linalg import cholesky_banded, solve_banded, solveh_banded

    size, squares = len(returns), returns**2 * np.exp(-mean)
    diagonal = np.full(size, 1 + persistence**2)
    diagonal[[0, -1]] = 1.0
    prior = (
        np.vstack([np.full(size, -persistence), diagonal]) / scale**2
    )  # upper banded form of the precision
    times = lambda x: prior[1] * x + prior[0] * (np.r_[x[1:], 0.0] + np.r_[0.0, x[:-1]])
    path = np.zeros(size)
    for _ in range(40):
        pull = 0.5 * squares * np.exp(-path)
        step = solveh_banded(prior + np.vstack([np.zeros(size), pull]), pull - 0.5 - times(path))
        path = path + np.clip(step, -2.0, 2.0)
        if np.max(np.abs(step)) < 1e-10:
            break
    factor = cholesky_banded(prior + np.vstack([np.zeros(size), 0.5 * squares * np.exp(-path)]))
    noise = rng.normal(size=(size, inner))
    draws = (path[:, None] + solve_banded((0, 1), factor, noise)).T
    log_q = np.sum(np.log(factor[1])) - 0.5 * np.sum(noise**2, 0)
    white = (draws[:, 1:] - persistence * draws[:, :-1]) / scale
    first = draws[:, 0] / scale * np.sqrt(1 - persistence**2)
    log_p = (
        0.5 * np.log(1 - persistence**2)
        - size * np.log(scale)
        - 0.5 * (first**2 + np.sum(white**2, 1))
    )
    log_p += np.sum(-0.5 * (np.log(2 * np.pi) + mean + draws + squares * np.exp(-draws)), 1)
    return draws, log_p - log_q


def breast_cancer() -> Reference:
    return long_nuts(TARGETS["breast_cancer"]())


def long_nuts(
    target: Target, draws: int = 20_000, chains: int = 4, warmup: int = 2_000
) -> Reference:
    """Moments of NumPyro's NUTS, their Monte Carlo errors, and the evidence by a bridge from the
    same draws.
    """
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
    from numpyro.infer import MCMC, NUTS

    kernel = NUTS(model_of(target), init_strategy=start(target, near=True), target_accept_prob=0.9)
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.PRNGKey(0), *target.data)
    theta = {name: mcmc.get_samples()[name] for name in target.model.latents}
    values = np.asarray(jax.jit(jax.vmap(target.quantities))(theta), np.float64)
    by_chain = values.reshape(chains, draws, -1)
    found = answer(
        values.mean(0),
        values.std(0),
        f"NUTS, {chains} chains of {draws:,} after {warmup:,}, float64",
    )
    found["min_ess"] = significant(float(np.min(effective_sample_size(by_chain))))
    found["max_rhat"] = round(float(np.max(split_gelman_rubin(by_chain))), 5)
    found["log_evidence"], found["log_evidence_se"] = bridge(target, theta)
    return found


def bridge(target: Target, theta: Any) -> tuple[float, float]:
    """Log evidence by bridge sampling (Meng & Wong 1996) from a Gaussian fitted to half of the
    draws; and its error.

    For posteriors near a Gaussian alone. The error is half the difference of the two halves'
    answers, which misses what they share: on stochastic volatility, not centred, it says 221.83
    (0.04), where 222.96 is right.
    """
    unconstrain = jax.vmap(lambda t: trees.ravel(target.model.latents, target.model.unconstrain(t)))
    u = np.asarray(jax.jit(unconstrain)(theta), np.float64)
    found = [_bridge(target, *halves) for halves in ((u[::2], u[1::2]), (u[1::2], u[::2]))]
    return float(np.mean(found)), float(abs(found[0] - found[1]) / 2)


def _bridge(target: Target, fit: np.ndarray, draws: np.ndarray) -> float:
    from scipy.special import logsumexp

    density = lambda v: target.model.log_density(
        trees.unravel(target.model.latents, v), *target.data
    )
    log_p = jax.jit(lambda v: jax.lax.map(density, v, batch_size=200))
    loc, factor = fit.mean(0), np.linalg.cholesky(np.cov(fit.T).reshape(fit.shape[1], -1))
    log_norm = np.sum(np.log(np.diag(factor))) + 0.5 * len(loc) * np.log(2 * np.pi)
    white = np.random.default_rng(0).normal(size=draws.shape)
    log_q = lambda white: -0.5 * np.sum(white**2, axis=1) - log_norm
    proposed = np.asarray(log_p(jnp.asarray(loc + white @ factor.T)), np.float64) - log_q(white)
    drawn_white = np.linalg.solve(factor, (draws - loc).T).T
    drawn = np.asarray(log_p(jnp.asarray(draws)), np.float64) - log_q(drawn_white)
    proposed, log_z = np.where(np.isfinite(proposed), proposed, -np.inf), float(np.median(drawn))
    for _ in range(1_000):
        above = logsumexp(proposed - np.logaddexp(proposed, log_z))
        below = logsumexp(-np.logaddexp(drawn, log_z))
        log_z, before = float(above - below), log_z
        if abs(log_z - before) < 1e-10:
            break
    return log_z


def answer(
    mean: np.ndarray, sd: np.ndarray, how: str, log_evidence: float | None = None
) -> Reference:
    rounded = {"mean": [float(f"{v:.8g}") for v in mean], "sd": [float(f"{v:.8g}") for v in sd]}
    return {
        "how": how,
        "log_evidence": None if log_evidence is None else float(log_evidence),
    } | rounded


MADE: dict[str, Callable[[], Reference]] = {
    "brownian_motion": brownian_motion,
    "breast_cancer": breast_cancer,
}

# Not kept: second opinions on what the package says, with the evidence; `--references NAME` prints
# them.
OPINIONS: dict[str, Callable[[], Reference]] = {
    "stochastic_volatility": stochastic_volatility,
    "eight_schools": lambda: long_nuts(TARGETS["eight_schools"](), 10_000),
    "cox_process": lambda: long_nuts(TARGETS["cox_process"](), 1_000, 2, 500),
}


def make(names: list[str], date: str = "") -> None:
    """Compute the references of these targets and write them to the file; second opinions are
    printed beside it.
    """
    kept = json.loads(REFERENCES.read_text()) if REFERENCES.exists() else {"targets": {}}
    for name in names or list(MADE):
        found = (MADE.get(name) or OPINIONS[name])()
        print(
            name,
            {key: value for key, value in found.items() if key not in ("mean", "sd")},
            flush=True,
        )
        if name in MADE:
            kept["targets"][name] = found
        else:
            _compare(TARGETS[name](), found)
    kept |= {"date": date or datetime.date.today().isoformat()}
    kept |= {"versions": versions(["jax", "numpyro", "numpy", "inference_gym"])}
    REFERENCES.parent.mkdir(parents=True, exist_ok=True)
    REFERENCES.write_text(json.dumps(kept, indent=1) + "\n")


def _compare(target: Target, found: Reference) -> None:
    """The package's truth in units of this run's."""
    mean, sd = np.array(found["mean"]), np.array(found["sd"])
    shift, ratio = np.abs(mean - target.mean) / sd, target.sd / sd
    print(
        f"  package: largest mean error {shift.max():.3f} sd, sd ratios {ratio.min():.3f} "
        f"to {ratio.max():.3f}"
    )
