"""What a fit comes to: parameters, how it went, and why it ended."""

from typing import Any, Literal, NamedTuple

import numpy as np

Reason = Literal[
    "finished",
    "patience",
    "converged",
    "interrupted",
    "budget",
    "exhausted",
    "stream",
    "non-finite",
]


class Restarts(NamedTuple):
    """All of R starts.

    - `elbo`, `elbo_se` (R,): the ELBO of each at fresh draws, the same for all, and its standard
      error, in nats; NaN for those that failed. Of a stream, whose rows are gone, it is the mean of
      the objective over the last 512 steps, or over the last half if that is less.
    - `params`: stacked, R first. `best`: the start with the highest `elbo`.
    - `trace` (steps, R): the objective's value at each step, NaN after a start has ended.
    """

    elbo: np.ndarray
    elbo_se: np.ndarray
    params: Any
    best: int
    trace: np.ndarray


class SVIResult(NamedTuple):
    """A fit. `params` are what was asked for: the last iterate, the tail average, or what the
    stopping rule chose. `Posterior.of(svi, result, *data)` leads on from here, to draws, summaries
    and predictions.

    - `state`: the last iterate's, where `resume` goes on.
    - `elbo`: the objective's value at each step that this call took, in nats: an estimate of the
      ELBO, or of the bound that the objective is of. `num_skipped` counts the steps that were not
      finite, those before this call too.
    - `reason`: `"finished"`, `"patience"` or `"converged"` (the stopping rules), `"interrupted"`
      (Ctrl-C), `"budget"` (no time left), `"exhausted"` (a stream ended), `"stream"` (one failed)
      or `"non-finite"` (ten steps in a row; `params` are the last good).
    - `checks`: what the stopping rule saw at each of its checks, if there is one.
    - `restarts`: all the starts, if there are several; the rest is then that of the best.
    - `num_dropped`: rows of a stream left out for a NaN.
    """

    params: Any
    state: Any
    elbo: np.ndarray
    num_skipped: int
    reason: Reason
    checks: Any = None
    restarts: Restarts | None = None
    num_dropped: int = 0


class NonFiniteError(FloatingPointError):
    """Ten steps in a row were not finite. `result` holds the fit up to the last good state."""

    def __init__(self, message: str, result: SVIResult) -> None:
        super().__init__(message)
        self.result = result
