"""What the outcome of a run comes to: a result, the best of several starts, or an error."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.data.batches import Chunks
from minisvi.data.streams import StreamError
from minisvi.objectives import scores
from minisvi.running import failure
from minisvi.running.host import Outcome
from minisvi.running.plan import MAX_CONSECUTIVE_FAILURES, Plan
from minisvi.running.result import NonFiniteError, Reason, Restarts, SVIResult
from minisvi.tools.sharding import to_host, whole
from minisvi.tools.types import Data, Engine, Params

_NUM_ESTIMATES = 512  # of the ELBO, to choose among several starts
_CHOICE = 2**31 - 1  # a large number to fold in, for split(key, R)[i] is fold_in(key, i)


def result_of(outcome: Outcome, plan: Plan, begin: int) -> SVIResult:
    """The result of one start, which began at step `begin`."""
    state = outcome.state
    num_taken = int(state.step) - begin
    return SVIResult(
        params=outcome.params,
        state=state,
        elbo=outcome.elbo[:num_taken],
        num_skipped=int(state.num_skipped),
        reason=_reason(outcome, plan, num_taken),
        checks=_without_repeats(outcome.checks),
        num_dropped=outcome.num_dropped,
    )


def _reason(outcome: Outcome, plan: Plan, num_taken: int) -> Reason:
    state = outcome.state
    num_skipped = int(state.num_skipped)
    # Fewer than ten steps may all have failed: then nothing was fitted either.
    all_failed = num_taken > 0 and num_skipped == int(state.step)
    if all_failed or int(state.num_failed) >= MAX_CONSECUTIVE_FAILURES:
        return "non-finite"
    if outcome.ended:
        return plan.stop.reason
    return outcome.stopped or "finished"


def _without_repeats(checks: Any) -> Any:
    """A start that was over before the others has its last check repeated."""
    if checks is None:
        return None
    is_new = np.diff(checks.step, prepend=-1) > 0
    return jax.tree.map(lambda column: column[is_new], checks)


def best_of(svi: Engine, outcome: Outcome, plan: Plan, data: Data, key: Array) -> SVIResult:
    """The result of the start with the highest ELBO at fresh draws, with all in `restarts`."""
    outcome = outcome._replace(state=whole(outcome.state), params=whole(outcome.params))
    lanes = [result_of(_lane(outcome, i), plan, 0) for i in range(plan.num_restarts)]
    failed = np.array([lane.reason == "non-finite" for lane in lanes])
    if isinstance(svi.batches, Chunks):
        values = [_recent(lane.elbo) for lane in lanes]
    else:
        choice_key = jax.random.fold_in(key, _CHOICE)
        values = to_host(_fresh_elbo(svi, choice_key, data, outcome.params))
    elbo, elbo_se = np.transpose([_mean_and_error(estimates) for estimates in values])
    elbo = np.where(failed, np.nan, elbo)
    elbo_se = np.where(failed, np.nan, elbo_se)
    best = int(np.argmax(_rank(elbo, failed)))
    restarts = Restarts(elbo, elbo_se, outcome.params, best, outcome.elbo)
    return lanes[best]._replace(restarts=restarts)


def _lane(outcome: Outcome, i: int) -> Outcome:
    """The outcome of start number i."""

    def one(leaf: Any) -> Any:
        return leaf[i]

    state = jax.tree.map(one, outcome.state)
    params = jax.tree.map(one, outcome.params)
    checks = jax.tree.map(lambda column: column[:, i], outcome.checks)
    elbo = outcome.elbo[:, i]
    ended = outcome.ended[i]
    return outcome._replace(state=state, params=params, ended=ended, elbo=elbo, checks=checks)


def _recent(elbo: np.ndarray) -> np.ndarray:
    """What the last steps saw, all starts the same rows: of a stream these are gone. Not those on
    the way there, and not the NaN of a skipped step.
    """
    last_half = elbo[elbo.size // 2 :]
    recent = last_half[-_NUM_ESTIMATES:]
    return recent[~np.isnan(recent)]


def _mean_and_error(estimates: np.ndarray) -> tuple[Any, Any]:
    if estimates.size < 2:
        return np.nan, np.nan
    with np.errstate(invalid="ignore"):  # the spread of infinite estimates
        return estimates.mean(), estimates.std(ddof=1) / estimates.size**0.5


def _rank(elbo: np.ndarray, failed: np.ndarray) -> np.ndarray:
    """The ELBOs, with those that are not finite below all others, and starts that failed last."""
    lowest = np.finfo(elbo.dtype).min
    not_finite = np.where(failed, -np.inf, lowest)
    return np.where(np.isfinite(elbo), elbo, not_finite)


@partial(jax.jit, static_argnames="svi")
def _fresh_elbo(svi: Engine, key: Array, data: Data, params: Params) -> Array:
    """Estimates of the ELBO of each start, (R, S): at the same draws for all, and on the rows of a
    step each. One start at a time, to bound the memory.
    """
    steps = jnp.arange(_NUM_ESTIMATES)
    keys = jax.random.split(key, _NUM_ESTIMATES)

    def of_start(params: Params) -> Array:
        def estimate(step_and_key: tuple[Array, Array]) -> Array:
            step, key = step_and_key
            batch, weight = svi.batches(step, data)
            return scores.elbo(key, svi.model, svi.guide, params, 1, *batch, weight=weight)[0]

        return jax.lax.map(estimate, (steps, keys), batch_size=scores.CHUNK)

    return jax.lax.map(of_start, params)


def raise_on_failure(svi: Engine, outcome: Outcome, result: SVIResult) -> None:
    """NonFiniteError or StreamError, with the result, if the run failed."""
    if result.reason == "non-finite":
        message = failure.explain(svi, result.state, outcome.data)
        raise NonFiniteError(message, result)
    if result.reason == "stream":
        error = outcome.error or StreamError("the stream of another process failed")
        error.result = result
        raise error
