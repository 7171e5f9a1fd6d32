"""A whole fit: the loop, what it comes to, and the best of several starts."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi import checks, failure, loop, scores
from minisvi.result import NonFiniteError, Reason, Restarts, SVIResult

_NUM_PAIRS = 512  # of fresh draws, to choose among several starts


def fit(
    svi: Any,
    plan: loop.Plan,
    state: Any,
    num_steps: int,
    data: tuple[Any, ...],
    held_out: tuple[Any, ...] | None,
    progress_bar: bool,
    on_failure: str,
    key: Any = None,
) -> SVIResult:
    """`num_steps` from `state`, which is stacked if the plan has several starts; `key` is for choosing among these."""
    checks.positive_integer("num_steps", num_steps)
    if on_failure not in ("raise", "return"):
        raise ValueError(f"`on_failure` must be 'raise' or 'return'; got {on_failure!r}")
    if held_out is not None and plan.stop is None:
        raise ValueError("`held_out` is for a stopping rule: expected `stop`, such as Patience(); got None")
    state = state._replace(num_failed=jnp.zeros_like(state.num_failed))  # a fit that ended in failure may try again
    begin = np.max(state.step)
    outcome = loop.run(svi, plan, state, num_steps, data, held_out, progress_bar)
    if plan.num_restarts == 1:
        result = _result(outcome, plan, begin, num_steps)
    else:
        assert key is not None
        result = _best(svi, outcome, plan, num_steps, data, key)
    if result.reason == "non-finite" and on_failure == "raise":
        raise NonFiniteError(failure.explain(svi, result.state, data), result)
    return result


def _result(outcome: loop.Outcome, plan: loop.Plan, begin: Any, num_steps: int) -> SVIResult:
    state, params, ended, elbo, seen = outcome
    # Fewer than ten steps may all have failed: then nothing was fitted either.
    failed = state.num_failed >= loop.MAX_CONSECUTIVE_FAILURES or state.num_skipped == state.step
    taken = int(state.step - begin)
    reason: Reason = "interrupted" if taken < num_steps else "finished"
    reason = "non-finite" if failed else plan.stop.reason if ended else reason
    if seen is not None:  # a start that was over before the others has its last check repeated
        seen = jax.tree.map(lambda column: column[np.diff(seen.step, prepend=-1) > 0], seen)
    return SVIResult(params, state, elbo[:taken], int(state.num_skipped), reason, seen)


def _best(
    svi: Any, outcome: loop.Outcome, plan: loop.Plan, num_steps: int, data: tuple[Any, ...], key: Array
) -> SVIResult:
    lanes = [_result(_lane(outcome, i), plan, 0, num_steps) for i in range(plan.num_restarts)]
    failed = np.array([lane.reason == "non-finite" for lane in lanes])
    # A large number, for split(key, R)[i] is fold_in(key, i).
    values = np.asarray(_fresh_elbo(svi, jax.random.fold_in(key, 2**31 - 1), outcome.params, data))
    values = np.where(failed[:, None], np.nan, values)
    with np.errstate(invalid="ignore"):  # the spread of infinite estimates
        elbo, se = values.mean(axis=1), values.std(axis=1, ddof=1) / _NUM_PAIRS**0.5
    rank = np.where(np.isfinite(elbo), elbo, np.where(failed, -np.inf, np.finfo(elbo.dtype).min))
    best = int(np.argmax(rank))
    restarts = Restarts(elbo, se, outcome.params, best, outcome.elbo)
    return lanes[best]._replace(restarts=restarts)


def _lane(outcome: loop.Outcome, i: int) -> loop.Outcome:
    state, params, ended = jax.tree.map(lambda a: a[i], outcome[:3])
    return loop.Outcome(state, params, ended, *jax.tree.map(lambda a: a[:, i], outcome[3:]))


@partial(jax.jit, static_argnames="svi")
def _fresh_elbo(svi: Any, key: Array, params: Any, data: tuple[Any, ...]) -> Array:
    """Estimates of the ELBO of each start, (R, S), at the same draws; one start at a time, to bound the memory."""
    return jax.lax.map(lambda p: scores.elbo(key, svi.model, svi.guide, p, _NUM_PAIRS, *data), params)
