"""What the two workers share. It runs in their environments, which have no JAX and no minisvi."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NUM_DRAWS = 10_000
LONG = 15.0  # seconds of a first call after which there is no second one


@dataclass(frozen=True)
class Found:
    """Draws of theta (S, D); what the library says of itself; and, where q is known, `of_q`, which
    draws u and its log q outside of the clock.
    """

    theta: np.ndarray
    said: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    of_q: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None


def serve(
    make: Callable[[str, str, dict[str, np.ndarray], float], Callable[[int], Found]],
    log_density: Callable[[str, dict[str, np.ndarray]], np.ndarray],
) -> None:
    """Fit once for each seed, and write what `foreign.calls` reads. The first call's seconds have
    the making of the model and of the guide in them.
    """
    name, method, seeds, effort, given, found = sys.argv[1:]
    with np.load(given) as file:
        data = dict(file)
    arrays: dict[str, Any] = {}
    begin = time.perf_counter()
    fit = make(name, method, data, float(effort))
    for call, seed in enumerate(json.loads(seeds)):
        answer = fit(seed)
        np.mean(answer.theta, 0), np.std(answer.theta, 0)
        seconds = time.perf_counter() - begin
        arrays |= {f"seconds{call}": seconds} | written(answer, call)
        if seconds > LONG:
            break
        begin = time.perf_counter()
    np.savez(found, **arrays, log_density=log_density(name, data))


def written(answer: Found, call: int) -> dict[str, Any]:
    arrays = {
        f"theta{call}": answer.theta,
        f"said{call}": answer.said,
        f"figures{call}": json.dumps(answer.figures),
    }
    if answer.of_q is not None:
        arrays[f"u{call}"], arrays[f"log_q{call}"] = answer.of_q()
    return arrays


def gaussian(
    seed: int, mean: np.ndarray, factor: np.ndarray
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Draws of N(mean, factor factor') and their log densities."""

    def of_q() -> tuple[np.ndarray, np.ndarray]:
        white = np.random.default_rng(seed).normal(size=(NUM_DRAWS, len(mean)))
        log_norm = np.sum(np.log(np.diag(factor))) + 0.5 * len(mean) * np.log(2 * np.pi)
        return mean + white @ factor.T, -0.5 * np.sum(white**2, axis=1) - log_norm

    return of_q
