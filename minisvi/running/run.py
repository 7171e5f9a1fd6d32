"""A whole fit: the loop, what it comes to, and the best of several starts."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.data.batches import Chunks, FullBatch
from minisvi.data.streams import Reader, Stream, StreamError
from minisvi.objectives import scores
from minisvi.running import device, failure
from minisvi.running.host import Host, InMemory, Outcome
from minisvi.running.host import run as drive
from minisvi.running.result import NonFiniteError, Reason, Restarts, SVIResult
from minisvi.tools import checks, inputs
from minisvi.tools.sharding import check_axes, to_host, whole

_NUM_ESTIMATES = 512  # of the ELBO, to choose among several starts


def fit(
    svi: Any,
    plan: device.Plan,
    start: Callable[..., Any],
    begin: int,
    num_steps: int,
    data: tuple[Any, ...],
    held_out: tuple[Any, ...] | None,
    host: Host,
    on_failure: str,
    key: Any = None,
) -> SVIResult:
    """`num_steps` from the state `start(svi, *data)` at step `begin`, stacked if the plan has
    several starts; `key` is for choosing among these.
    """
    checks.positive_integer("num_steps", num_steps)
    if on_failure not in ("raise", "return"):
        raise ValueError(f"`on_failure` must be 'raise' or 'return'; got {on_failure!r}")
    if held_out is not None and plan.stop is None:
        raise ValueError(
            "`held_out` is for a stopping rule: expected `stop`, such as Patience(); got None"
        )
    held_out = None if held_out is None else inputs.arrays(held_out)
    if not any(isinstance(part, Stream) for part in data):
        data = inputs.arrays(data)
    check_axes((data, held_out))
    svi, feed = _feed(svi, data, begin)
    state = start(svi, *feed.example)
    state = state._replace(
        num_failed=jnp.zeros_like(state.num_failed)
    )  # a fit that ended in failure may try again
    outcome = drive(svi, plan, state, num_steps, feed, held_out, host)
    result = (
        _result(outcome, plan, begin)
        if plan.num_restarts == 1
        else _best(svi, outcome, plan, data, key)
    )
    if on_failure == "raise" and result.reason == "non-finite":
        raise NonFiniteError(failure.explain(svi, result.state, outcome.data), result)
    if on_failure == "raise" and result.reason == "stream":
        error = outcome.error or StreamError("the stream of another process failed")
        error.result = result
        raise error
    return result


def _feed(svi: Any, data: tuple[Any, ...], begin: int) -> tuple[Any, Any]:
    if not any(isinstance(part, Stream) for part in data):
        return svi, InMemory(data)
    if len(data) != 1 or svi.batches != FullBatch():
        raise ValueError(
            f"a Stream is all of the data, in batches of its own; got {len(data)} data and {svi.batches}"
        )
    reader = Reader(data[0], begin)
    return replace(svi, batches=reader.batches), reader


def _result(outcome: Outcome, plan: device.Plan, begin: Any) -> SVIResult:
    state, seen = outcome.state, outcome.checks
    taken = int(state.step - begin)
    # Fewer than ten steps may all have failed: then nothing was fitted either.
    failed = state.num_failed >= device.MAX_CONSECUTIVE_FAILURES or (
        taken > 0 and state.num_skipped == state.step
    )
    reason: Reason = (
        "non-finite"
        if failed
        else plan.stop.reason
        if outcome.ended
        else outcome.stopped or "finished"
    )
    if seen is not None:  # a start that was over before the others has its last check repeated
        seen = jax.tree.map(lambda column: column[np.diff(seen.step, prepend=-1) > 0], seen)
    return SVIResult(
        params=outcome.params,
        state=state,
        elbo=outcome.elbo[:taken],
        num_skipped=int(state.num_skipped),
        reason=reason,
        checks=seen,
        num_dropped=outcome.num_dropped,
    )


def _best(
    svi: Any, outcome: Outcome, plan: device.Plan, data: tuple[Any, ...], key: Array
) -> SVIResult:
    outcome = outcome._replace(state=whole(outcome.state), params=whole(outcome.params))
    lanes = [_result(_lane(outcome, i), plan, 0) for i in range(plan.num_restarts)]
    failed = np.array([lane.reason == "non-finite" for lane in lanes])
    if isinstance(
        svi.batches, Chunks
    ):  # whose rows are gone: what the last steps saw, all starts the same rows
        recent = [
            lane.elbo[lane.elbo.size // 2 :][-_NUM_ESTIMATES:] for lane in lanes
        ]  # and not the way there
        values = [v[~np.isnan(v)] for v in recent]  # which a skipped step's is
    else:
        # A large number, for split(key, R)[i] is fold_in(key, i).
        values = to_host(_fresh_elbo(svi, jax.random.fold_in(key, 2**31 - 1), data, outcome.params))
    with np.errstate(invalid="ignore"):  # the spread of infinite estimates
        moments = np.array(
            [
                (v.mean(), v.std(ddof=1) / v.size**0.5) if v.size > 1 else (np.nan, np.nan)
                for v in values
            ]
        )
    elbo, se = np.where(failed[:, None], np.nan, moments).T
    rank = np.where(np.isfinite(elbo), elbo, np.where(failed, -np.inf, np.finfo(elbo.dtype).min))
    best = int(np.argmax(rank))
    restarts = Restarts(elbo, se, outcome.params, best, outcome.elbo)
    return lanes[best]._replace(restarts=restarts)


def _lane(outcome: Outcome, i: int) -> Outcome:
    state, params, ended = jax.tree.map(lambda a: a[i], outcome[:3])
    elbo, seen = jax.tree.map(lambda a: a[:, i], outcome[3:5])
    return outcome._replace(state=state, params=params, ended=ended, elbo=elbo, checks=seen)


@partial(jax.jit, static_argnames="svi")
def _fresh_elbo(svi: Any, key: Array, data: tuple[Any, ...], params: Any) -> Array:
    """Estimates of the ELBO of each start, (R, S): at the same draws for all, and on the rows of a
    step each. One start at a time, to bound the memory.
    """

    def estimates(params: Any) -> Array:
        def one(pair: tuple[Array, Array]) -> Array:
            step, key = pair
            batch, weight = svi.batches(step, data)
            return scores.elbo(key, svi.model, svi.guide, params, 1, *batch, weight=weight)[0]

        pairs = jnp.arange(_NUM_ESTIMATES), jax.random.split(key, _NUM_ESTIMATES)
        return jax.lax.map(one, pairs, batch_size=scores.CHUNK)

    return jax.lax.map(estimates, params)
