"""The host's side of a fit: block after block, and between them all that is not mathematics.

Progress, Ctrl-C, the budget, checkpoints, the next batches of a stream. Several processes drive the same blocks, and
agree before each on what to do next.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from minisvi import loop
from minisvi.checkpoint import Checkpoints, Saved, describe, fingerprint
from minisvi.progress import Progress, deferred_interrupt
from minisvi.result import Reason
from minisvi.sharding import agreed, to_host
from minisvi.streams import StreamError

_BLOCK_SECONDS = 0.25  # how long the bar may stand still and Ctrl-C may wait
_FIRST_BLOCK = 16
_STOPS: tuple[Reason | None, ...] = (None, "exhausted", "budget", "interrupted", "stream")


class InMemory(NamedTuple):
    """Data that are all there, for a loop that takes them as it does those of a `streams.Reader`."""

    example: tuple[Any, ...]

    def start(self, first: int, last: int, num_dropped: int, several: bool) -> None:
        del first, last, num_dropped, several

    def block(self, step: int, limit: int) -> tuple[tuple[Any, ...], int]:
        del step
        return self.example, limit

    def latest(self, step: int) -> tuple[tuple[Any, ...], int]:
        return self.example, max(step, 1)

    def num_dropped(self, step: int) -> int:
        del step
        return 0


@dataclass(frozen=True)
class Host:
    """How a run is looked after, whatever it is of."""

    progress_bar: bool = True
    seconds: float = np.inf
    checkpoint_dir: str | Path | None = None
    checkpoint_every: float = 60.0

    def checkpoints(self, **run: Any) -> Checkpoints | None:
        if self.checkpoint_dir is None:
            return None
        return Checkpoints(self.checkpoint_dir, self.checkpoint_every, describe("run", run))


class Outcome(NamedTuple):
    """Where the loop ended: by the rule or not, or `stopped` from outside, by an `error` of the stream if there is one;
    and the `data` that it saw last. Arrays of several starts have an axis R: last in `elbo` and `checks`, first
    elsewhere.
    """

    state: Any
    params: Any
    ended: np.ndarray
    elbo: np.ndarray
    checks: Any
    stopped: Reason | None
    error: StreamError | None
    data: tuple[Any, ...]


def run(svi: Any, plan: loop.Plan, state: Any, num_steps: int, feed: Any, held_out: Any, host: Host) -> Outcome:
    """`num_steps` of `svi.update`, or fewer: if all starts end before, or are stopped."""
    deadline, limit, begin = time.monotonic() + host.seconds, _FIRST_BLOCK, int(to_host(state.step).max())
    data, stopped, error = feed.example, None, None
    lane = loop.start(svi, plan, state, data, held_out)
    now = Saved(0, lane, np.zeros((0, *state.step.shape), np.float32), _no_checks(lane))
    with ExitStack() as stack:
        checkpoints = host.checkpoints(svi=svi, plan=plan, lane=lane, data=data, key=fingerprint(state.key))
        if checkpoints is not None:
            stack.callback(checkpoints.close)
            now = checkpoints.restore(lane) or now
            if now.done > num_steps:
                raise ValueError(f"`num_steps`: expected {now.done} or more, which the checkpoint has; got {num_steps}")
        trace, done, lane = [now], now.done, now.lane
        feed.start(begin + done, begin + num_steps, now.num_dropped, plan.num_restarts > 1)
        bar = stack.enter_context(Progress(num_steps, done, host.progress_bar and jax.process_index() == 0))
        interrupted = stack.enter_context(deferred_interrupt())
        while done < num_steps:
            since, size = time.perf_counter(), 0
            try:
                data, size = feed.block(begin + done, min(limit, num_steps - done))
            except StreamError as caught:
                error = caught
            stop = _stop(size, error, deadline, interrupted.is_set())
            due = checkpoints is not None and checkpoints.due
            minus_size, code, save = agreed(-size, _STOPS.index(stop), due)
            stopped = _STOPS[code]
            if checkpoints is not None and save:
                checkpoints.save(_joined(trace, done, lane, feed.num_dropped(begin + done)))
            if stopped is not None:
                break
            clock = np.array([done, done - minus_size, num_steps], np.int32)
            lane, alive, taken, elbo, seen = loop.block(svi, plan, lane, clock, data, held_out)
            steps, looks = map(int, np.asarray(taken))
            elbo, seen = to_host((elbo, seen))
            trace.append(Saved(steps, None, elbo[:steps], jax.tree.map(lambda a, n=looks: a[:n], seen)))
            bar.advance(elbo[:steps])
            done += steps
            if not alive:
                break
            pace = _BLOCK_SECONDS / (time.perf_counter() - since)
            limit = int(np.clip(limit * pace, 1, min(64 * limit, loop.BLOCK_CAPACITY)))
        end = _joined(trace, done, lane, feed.num_dropped(begin + done))
        if checkpoints is not None:
            checkpoints.save(end)
    params = lane.state.params if plan.stop is None and not plan.average else loop.params(plan, lane)
    ended = np.zeros(lane.state.step.shape, bool) if plan.stop is None else to_host(lane.memory.ended)
    return Outcome(lane.state, params, ended, end.elbo, end.seen, stopped, error, data)


def _stop(size: int, error: StreamError | None, deadline: float, interrupted: bool) -> Reason | None:
    if error is not None:
        return "stream"
    if interrupted:
        return "interrupted"
    if time.monotonic() >= deadline:
        return "budget"
    return None if size else "exhausted"


def _no_checks(lane: loop.Lane) -> Any:
    return None if lane.memory is None else jax.tree.map(lambda a: np.zeros((0, *a.shape), a.dtype), lane.memory.seen)


def _joined(trace: list[Saved], done: int, lane: loop.Lane, num_dropped: int) -> Saved:
    elbo, seen = jax.tree.map(lambda *parts: np.concatenate(parts), *((part.elbo, part.seen) for part in trace))
    trace[:] = [Saved(done, lane, elbo, seen, num_dropped)]
    return trace[0]
