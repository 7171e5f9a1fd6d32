"""The host's side of a fit: block after block, and between them all that is not mathematics.

Progress, Ctrl-C, the budget, checkpoints, the next batches of a stream. Several processes drive the
same blocks, and agree before each on what to do next.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import jax
import numpy as np

from minisvi.data.streams import StreamError
from minisvi.running import device
from minisvi.running.checkpoint import Checkpoints, Saved
from minisvi.running.identity import describe, fingerprint
from minisvi.running.progress import Progress
from minisvi.running.result import Reason
from minisvi.tools import checks
from minisvi.tools.interrupts import deferred_interrupt
from minisvi.tools.sharding import agreed, to_host

_BLOCK_SECONDS = 0.25  # how long the bar may stand still and Ctrl-C may wait
_FIRST_BLOCK = 16
_STOPS: tuple[Reason | None, ...] = (None, "exhausted", "budget", "interrupted", "stream")


class InMemory(NamedTuple):
    """Data that are all there, for a loop that takes them as it does those of a `streams.Reader`."""

    example: tuple[Any, ...]

    def start(self, first: int, last: int, num_dropped: int) -> None:
        del first, last, num_dropped

    def block(self, step: int, limit: int, over: Callable[[], bool]) -> tuple[tuple[Any, ...], int]:
        del step, over
        return self.example, limit

    def close(self) -> None: ...

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

    def __post_init__(self) -> None:
        checks.seconds(self.seconds)

    def checkpoints(
        self, begin: int, key: Any, lane: device.Lane, **run: Any
    ) -> Checkpoints | None:
        """None if they are not wanted. A run is told from others by its key, and not by the numbers
        of its start.
        """
        if self.checkpoint_dir is None:
            return None
        run |= {
            "begin": begin,
            "key": fingerprint(key),
            "lane": jax.eval_shape(lambda lane: lane, lane),
        }
        return Checkpoints(self.checkpoint_dir, self.checkpoint_every, describe("run", run))


class Outcome(NamedTuple):
    """Where the loop ended: by the rule or not, or `stopped` from outside, by an `error` of the
    stream if there is one; the `data` that it saw last, and the rows of a stream that were left
    out. Arrays of several starts have an axis R: last in `elbo` and `checks`, first elsewhere.
    """

    state: Any
    params: Any
    ended: np.ndarray
    elbo: np.ndarray
    checks: Any
    stopped: Reason | None
    error: StreamError | None
    data: tuple[Any, ...]
    num_dropped: int


def run(
    svi: Any, plan: device.Plan, state: Any, num_steps: int, feed: Any, held_out: Any, host: Host
) -> Outcome:
    """`num_steps` of `svi.update`, or fewer: if all starts end before, or are stopped."""
    deadline, first, data = (
        time.monotonic() + host.seconds,
        int(to_host(state.step).max()),
        feed.example,
    )
    program = device.program(svi, plan)
    lane = device.start(program, state, data, held_out)
    with ExitStack() as stack:
        checkpoints = host.checkpoints(
            first, state.key, lane, svi=svi, plan=plan, data=data, held_out=held_out
        )
        now = _Run(num_steps, lane)
        if checkpoints is not None:
            stack.callback(checkpoints.close)
            now.go_on(checkpoints.restore(lane))
        feed.start(first + now.done, first + num_steps, now.num_dropped)
        stack.callback(feed.close)
        bar = stack.enter_context(
            Progress(num_steps, now.done, host.progress_bar and jax.process_index() == 0)
        )
        interrupted = stack.enter_context(deferred_interrupt())
        over = partial(_over, deadline, interrupted)
        stopped, error, limit = None, None, _FIRST_BLOCK
        while now.done < num_steps:
            since, size = time.perf_counter(), 0
            try:
                data, size = feed.block(first + now.done, min(limit, num_steps - now.done), over)
            except StreamError as caught:
                error = caught
            stop = "stream" if error is not None else over() or (None if size else "exhausted")
            due = checkpoints is not None and checkpoints.due
            minus_size, code, save = agreed(-size, _STOPS.index(stop), due)
            now.num_dropped, stopped = feed.num_dropped(first + now.done), _STOPS[code]
            if stopped is not None:
                break
            if checkpoints is not None and save:
                begin = time.perf_counter()
                checkpoints.save(now.saved())
                since += (
                    time.perf_counter() - begin
                )  # a shorter block would not make the disk faster
            elbo, alive = now.advance(program, -minus_size, data, held_out)
            bar.advance(elbo)
            if not alive:
                break
            pace = _BLOCK_SECONDS / (time.perf_counter() - since)
            limit = int(np.clip(limit * pace, 1, min(64 * limit, device.BLOCK_CAPACITY)))
        now.num_dropped = feed.num_dropped(first + now.done)
        if checkpoints is not None:
            checkpoints.save(now.saved())
        now.look_at_the_end(
            program, data, held_out
        )  # after it was saved, for a longer fit does not look here
    return now.outcome(plan, stopped, error, data)


class _Run:
    """Where a run is: so many steps done, its lane, and what it has seen in blocks."""

    def __init__(self, num_steps: int, lane: device.Lane) -> None:
        self._num_steps, self._lane, self.done, self.num_dropped = num_steps, lane, 0, 0
        seen = (
            None
            if lane.memory is None
            else jax.tree.map(lambda a: np.zeros((0, *a.shape), a.dtype), lane.memory.seen)
        )
        self._blocks = [(np.zeros((0, *lane.state.step.shape), np.float32), seen)]

    def go_on(self, saved: Saved | None) -> None:
        if saved is not None:
            if saved.done > self._num_steps:
                raise ValueError(
                    f"`num_steps` must be {saved.done} or more, as the checkpoint has; got {self._num_steps}"
                )
            self.done, self._lane, self.num_dropped = saved.done, saved.lane, saved.num_dropped
            self._blocks = [(saved.elbo, saved.seen)]

    def advance(
        self, program: device.Program, size: int, data: Any, held_out: Any
    ) -> tuple[np.ndarray, bool]:
        """One block of at most `size` steps: their estimates, and whether there is anything left to
        do.
        """
        span = np.array([self.done, self.done + size], np.int32)
        self._lane, alive, taken, elbo, seen = program.block(self._lane, span, data, held_out)
        steps, looks = map(int, np.asarray(taken))
        elbo, seen = to_host((elbo, seen))
        self._blocks.append((elbo[:steps], jax.tree.map(lambda a: a[:looks], seen)))
        self.done += steps
        return elbo[:steps], bool(alive)

    def look_at_the_end(self, program: device.Program, data: Any, held_out: Any) -> None:
        """The rule's look at the last step of all, where it was not due there."""
        stop = program.plan.stop
        if stop is not None and self.done == self._num_steps and self.done % stop.every:
            self.advance(program, 0, data, held_out)

    def saved(self) -> Saved:
        self._blocks = [jax.tree.map(lambda *parts: np.concatenate(parts), *self._blocks)]
        return Saved(self.done, self._lane, *self._blocks[0], self.num_dropped)

    def outcome(
        self, plan: device.Plan, stopped: Reason | None, error: StreamError | None, data: Any
    ) -> Outcome:
        state, memory = self._lane.state, self._lane.memory
        params = (
            state.params
            if plan.stop is None and not plan.average
            else device.params(plan, self._lane)
        )
        ended = np.zeros(state.step.shape, bool) if plan.stop is None else to_host(memory.ended)
        _, _, elbo, seen, num_dropped = self.saved()
        return Outcome(state, params, ended, elbo, seen, stopped, error, data, num_dropped)


def _over(deadline: float, interrupted: Event) -> Reason | None:
    if interrupted.is_set():
        return "interrupted"
    return "budget" if time.monotonic() >= deadline else None
