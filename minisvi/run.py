"""A whole fit: the loop, what it comes to, and the best of several starts."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi import checks, drive, failure, loop, scores
from minisvi.batches import FullBatch
from minisvi.result import NonFiniteError, Reason, Restarts, SVIResult
from minisvi.sharding import to_host, whole
from minisvi.streams import Reader, Stream, StreamError

_NUM_PAIRS = 512  # of fresh draws, to choose among several starts


def fit(
    svi: Any,
    plan: loop.Plan,
    start: Callable[..., Any],
    begin: int,
    num_steps: int,
    data: tuple[Any, ...],
    held_out: tuple[Any, ...] | None,
    host: drive.Host,
    on_failure: str,
    key: Any = None,
) -> SVIResult:
    """`num_steps` from the state `start(svi, *data)` at step `begin`, stacked if the plan has several starts; `key` is
    for choosing among these.
    """
    checks.positive_integer("num_steps", num_steps)
    if on_failure not in ("raise", "return"):
        raise ValueError(f"`on_failure` must be 'raise' or 'return'; got {on_failure!r}")
    if held_out is not None and plan.stop is None:
        raise ValueError("`held_out` is for a stopping rule: expected `stop`, such as Patience(); got None")
    svi, feed = _feed(svi, data, begin)
    state = start(svi, *feed.example)
    state = state._replace(num_failed=jnp.zeros_like(state.num_failed))  # a fit that ended in failure may try again
    outcome = drive.run(svi, plan, state, num_steps, feed, held_out, host)
    end = begin + len(outcome.elbo)
    result = _result(outcome, plan, begin) if plan.num_restarts == 1 else _best(svi, outcome, plan, key, feed, end)
    result = result._replace(num_dropped=feed.num_dropped(end))
    if on_failure == "raise" and result.reason == "non-finite":
        raise NonFiniteError(failure.explain(svi, result.state, outcome.data), result)
    if on_failure == "raise" and result.reason == "stream":
        error = outcome.error or StreamError("the stream of another process failed")
        error.result = result
        raise error
    return result


def _feed(svi: Any, data: tuple[Any, ...], begin: int) -> tuple[Any, Any]:
    if not any(isinstance(part, Stream) for part in data):
        return svi, drive.InMemory(data)
    if len(data) != 1 or svi.batches != FullBatch():
        raise ValueError(f"a Stream is all of the data, in batches of its own; got {len(data)} data and {svi.batches}")
    reader = Reader(data[0], begin)
    return replace(svi, batches=reader.batches), reader


def _result(outcome: drive.Outcome, plan: loop.Plan, begin: Any) -> SVIResult:
    state, seen = outcome.state, outcome.checks
    taken = int(state.step - begin)
    # Fewer than ten steps may all have failed: then nothing was fitted either.
    failed = state.num_failed >= loop.MAX_CONSECUTIVE_FAILURES or (taken > 0 and state.num_skipped == state.step)
    reason: Reason = "non-finite" if failed else plan.stop.reason if outcome.ended else outcome.stopped or "finished"
    if seen is not None:  # a start that was over before the others has its last check repeated
        seen = jax.tree.map(lambda column: column[np.diff(seen.step, prepend=-1) > 0], seen)
    return SVIResult(outcome.params, state, outcome.elbo[:taken], int(state.num_skipped), reason, seen)


def _best(svi: Any, outcome: drive.Outcome, plan: loop.Plan, key: Array, feed: Any, step: int) -> SVIResult:
    outcome = outcome._replace(state=whole(outcome.state), params=whole(outcome.params))
    lanes = [_result(_lane(outcome, i), plan, 0) for i in range(plan.num_restarts)]
    failed = np.array([lane.reason == "non-finite" for lane in lanes])
    # A large number, for split(key, R)[i] is fold_in(key, i).
    key = jax.random.fold_in(key, 2**31 - 1)
    fresh = _fresh_elbo(svi, key, step, *feed.latest(step), outcome.params)
    values = np.where(failed[:, None], np.nan, to_host(fresh))
    with np.errstate(invalid="ignore"):  # the spread of infinite estimates
        elbo, se = values.mean(axis=1), values.std(axis=1, ddof=1) / _NUM_PAIRS**0.5
    rank = np.where(np.isfinite(elbo), elbo, np.where(failed, -np.inf, np.finfo(elbo.dtype).min))
    best = int(np.argmax(rank))
    restarts = Restarts(elbo, se, outcome.params, best, outcome.elbo)
    return lanes[best]._replace(restarts=restarts)


def _lane(outcome: drive.Outcome, i: int) -> drive.Outcome:
    state, params, ended = jax.tree.map(lambda a: a[i], outcome[:3])
    elbo, seen = jax.tree.map(lambda a: a[:, i], outcome[3:5])
    return outcome._replace(state=state, params=params, ended=ended, elbo=elbo, checks=seen)


@partial(jax.jit, static_argnames="svi")
def _fresh_elbo(svi: Any, key: Array, step: Any, data: tuple[Any, ...], num: Any, params: Any) -> Array:
    """Estimates of the ELBO of each start, (R, S): at the same draws for all, each on the rows of one of the latest
    `num` steps. One start at a time, to bound the memory.
    """

    def estimates(params: Any) -> Array:
        def one(pair: tuple[Array, Array]) -> Array:
            i, key = pair
            batch, scale = svi.batches(jnp.maximum(step - 1 - i % num, 0), data)
            return scores.elbo(key, svi.model, svi.guide, params, 1, *batch, scale=scale)[0]

        pairs = jnp.arange(_NUM_PAIRS), jax.random.split(key, _NUM_PAIRS)
        return jax.lax.map(one, pairs, batch_size=scores.CHUNK)

    return jax.lax.map(estimates, params)
