"""What is said of an answer: errors of its moments against the truth, and how far q is from the
posterior.

An engine is a method `(target, effort) -> fit` with `fit(seed) -> Answer`. Making `fit` sets up
what a user would keep between two fits, such as a model, a guide and an optimizer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accuracy_targets import Target, Theta

from minisvi.model import trees

NUM_DRAWS = 10_000
BATCH = 100  # draws whose log densities are computed at a time

Figures = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """Draws of theta on the host, with their weights where they have any, and what the library says
    of the quality of its own answer. `judge` computes figures of q, outside of the clock.
    """

    draws: Theta
    weights: np.ndarray | None = None
    said: str = ""
    figures: Figures = field(default_factory=dict)
    judge: Callable[[], Figures] | None = None


Fit = Callable[[int], Answer]
Method = Callable[[Target, float], Fit]


class SkippedError(Exception):
    """An engine that does not apply to a target, or is not installed; the message is the reason."""


# The posterior as other libraries take it: a log density over one flat, unconstrained vector.


def log_density(target: Target) -> Callable[[jax.Array], jax.Array]:
    latents = target.model.latents

    def of_vector(u: jax.Array) -> jax.Array:
        return target.model.log_density(trees.unravel(latents, u), *target.data)

    return of_vector


def constrain(target: Target) -> Callable[[jax.Array], Theta]:
    """Draws of theta from draws u (S, D); compiled once."""
    latents = target.model.latents
    return jax.jit(jax.vmap(lambda u: target.model.constrain(trees.unravel(latents, u))))


def starts(target: Target, seed: int, count: int) -> np.ndarray:
    """Starts u (count, D), uniform over (-2, 2) as Stan has them."""
    return np.random.default_rng(seed).uniform(-2.0, 2.0, (count, target.dim))


# How far q is from the posterior.


def of_q(target: Target, u: Any, log_q: Any) -> Figures:
    """ELBO, gap and k-hat from draws u (S, D) of q and their log densities (S,)."""
    batched = jax.jit(lambda u: jax.lax.map(log_density(target), u, batch_size=BATCH))
    log_p = np.asarray(batched(jnp.asarray(u, float)), np.float64)
    return of_weights(target, log_p - np.asarray(log_q, np.float64))


def of_weights(target: Target, log_w: np.ndarray) -> Figures:
    """The same from log weights log p - log q of draws of q."""
    se = float(np.std(log_w) / np.sqrt(len(log_w)))
    return gap(target, float(np.mean(log_w))) | {"elbo_se": se, "k_hat": k_hat(log_w)}


def gap(target: Target, elbo: float) -> Figures:
    """log evidence - ELBO, the KL to the posterior in nats, where the evidence is known."""
    if target.log_evidence is None:
        return {"elbo": elbo}
    return {"elbo": elbo, "gap": target.log_evidence - elbo}


def k_hat(log_w: np.ndarray) -> float:
    """The Pareto shape of the weights' tail, by minisvi: equal to arviz-stats, which fails if a
    tail underflows.
    """
    from minisvi.posterior import diagnostics

    return float(diagnostics.psis(jnp.asarray(log_w)).khat)


# Errors of moments.


def host_moments(answer: Answer) -> Any:
    """Mean and sd of each latent: what a user reads off, and so a part of the clocked call."""
    return jax.tree.map(lambda leaf: weighted(flat_rows(leaf), plain(answer)), answer.draws)


def flat_rows(leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf, np.float64)
    return leaf.reshape(len(leaf), -1)


def plain(answer: Answer) -> np.ndarray:
    """The weights, which sum to one; equal ones where the answer has none."""
    size = len(jax.tree.leaves(answer.draws)[0])
    if answer.weights is None:
        return np.full(size, 1 / size)
    return answer.weights / np.sum(answer.weights)


def moments(target: Target, draws: Theta, weights: np.ndarray | None = None) -> Figures:
    """Errors of the (weighted) moments of the target's quantities, and its own score."""
    weights = plain(Answer(draws, weights))
    figures = target.score(draws, weights) if target.score else {}
    if target.mean is None:
        return figures
    values = np.asarray(jax.jit(jax.vmap(target.quantities))(draws), np.float64)
    return figures | errors(target, *weighted(values, weights))


def weighted(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of each column; draws of zero weight count for nothing, even where they
    overflow.
    """
    values = np.where(weights[:, None] > 0, values, 0.0)
    mean = weights @ values
    return mean, np.sqrt(weights @ (values - mean) ** 2)


def errors(target: Target, mean: np.ndarray, sd: np.ndarray) -> Figures:
    """RMS and largest of (mean - reference) / reference sd, and of the relative error of the sd."""
    assert target.mean is not None
    assert target.sd is not None
    shift, ratio = (mean - target.mean) / target.sd, sd / target.sd
    return {
        "mean_err": float(np.sqrt(np.mean(shift**2))),
        "mean_err_max": float(np.max(np.abs(shift))),
        "sd_err": float(np.sqrt(np.mean((ratio - 1) ** 2))),
        "sd_err_max": float(np.max(np.abs(ratio - 1))),
        "sd_ratio": [float(np.min(ratio)), float(np.max(ratio))],
    }
