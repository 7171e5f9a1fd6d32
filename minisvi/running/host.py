"""The host's side of a run: block after block, and between them all that is not mathematics.

That is progress, Ctrl-C, the budget, checkpoints, and the next batches of a stream. Several
processes drive the same blocks, and agree before each on what to do next.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import jax
import numpy as np

from minisvi.data.streams import StreamError
from minisvi.running import device
from minisvi.running.checkpoint import Checkpoints, NoCheckpoints, Saved
from minisvi.running.feed import Feed
from minisvi.running.identity import describe, fingerprint
from minisvi.running.plan import Lane, Plan
from minisvi.running.progress import Progress
from minisvi.running.result import Reason
from minisvi.tools import checks
from minisvi.tools.interrupts import deferred_interrupt
from minisvi.tools.sharding import agreed, to_host
from minisvi.tools.types import Data, Engine, Params

_BLOCK_SECONDS = 0.25  # how long the bar may stand still and Ctrl-C may wait
_FIRST_BLOCK = 16
_STOPS: tuple[Reason | None, ...] = (None, "exhausted", "budget", "interrupted", "stream")


@dataclass(frozen=True)
class Host:
    """The options of the host: the bar, the budget of time, and where checkpoints go."""

    progress_bar: bool = True
    seconds: float = np.inf
    checkpoint_dir: str | Path | None = None
    checkpoint_every: float = 60.0

    def __post_init__(self) -> None:
        checks.seconds(self.seconds)

    def checkpoints(self, begin: int, key: Any, lane: Lane, **run: Any) -> Any:
        """Where the run is saved. It is told from other runs by its key, its data and its records,
        and not by the numbers of its start.
        """
        if self.checkpoint_dir is None:
            return NoCheckpoints()
        form = jax.eval_shape(lambda lane: lane, lane)
        run |= {"begin": begin, "key": fingerprint(key), "lane": form}
        return Checkpoints(self.checkpoint_dir, self.checkpoint_every, describe("run", run))


class Outcome(NamedTuple):
    """Where a run ended. Arrays of several starts have an axis R: last in `elbo` and `checks`,
    first elsewhere.

    - `state`, `params`: of the last step, and what the plan makes of the run.
    - `ended`: whether the rule ended a start. `stopped`: what ended the run from outside, with the
      `error` if that was the stream's.
    - `elbo`, `checks`: the estimates that the steps saw, and what the rule saw.
    - `data`: those of the last block. `num_dropped`: the rows of a stream that were left out.
    """

    state: Any
    params: Params
    ended: np.ndarray
    elbo: np.ndarray
    checks: Any
    stopped: Reason | None
    error: StreamError | None
    data: Data
    num_dropped: int


def drive(
    svi: Engine,
    plan: Plan,
    host: Host,
    state: Any,
    num_steps: int,
    feed: Feed,
    held_out: Any,
) -> Outcome:
    """Take `num_steps` of `svi.update`, or fewer where all starts end before, or are stopped."""
    deadline = time.monotonic() + host.seconds
    first = int(to_host(state.step).max())
    program = device.program(svi, plan)
    lane = device.start(program, state, feed.example, held_out)
    about = {"svi": svi, "plan": plan, "data": feed.example, "held_out": held_out}
    with ExitStack() as stack:
        checkpoints = host.checkpoints(first, state.key, lane, **about)
        stack.callback(checkpoints.close)
        track = Track(program, held_out, num_steps, lane)
        track.go_on(checkpoints.restore(lane))
        feed.start(first + track.done, first + num_steps, track.num_dropped)
        stack.callback(feed.close)
        bar = host.progress_bar and jax.process_index() == 0
        progress = stack.enter_context(Progress(num_steps, track.done, bar))
        interrupted = stack.enter_context(deferred_interrupt())
        over = partial(_over, deadline, interrupted)
        blocks = _Blocks(track, feed, first, over, checkpoints, progress, feed.example)
        while blocks.advance():
            pass
        track.num_dropped = feed.num_dropped(first + track.done)
        checkpoints.save(track.saved())
        track.look_at_the_end(blocks.data)  # after it was saved: a longer run does not look here
    return track.outcome(blocks.stopped, blocks.error, blocks.data)


def _over(deadline: float, interrupted: Event) -> Reason | None:
    """Why no more steps are wanted, or None."""
    if interrupted.is_set():
        return "interrupted"
    return "budget" if time.monotonic() >= deadline else None


@dataclass
class _Blocks:
    """One block after the other, as long as there is something left to do."""

    track: "Track"
    feed: Feed
    first: int  # step of the engine, where the run began
    over: Callable[[], Reason | None]
    checkpoints: Any
    progress: Progress
    data: Data
    limit: int = _FIRST_BLOCK
    stopped: Reason | None = None
    error: StreamError | None = None
    _since: float = field(default=0.0, init=False)

    def advance(self) -> bool:
        """Do one block; False if it was the last."""
        if self.track.done >= self.track.num_steps:
            return False
        self._since = time.perf_counter()
        size = self._ask()
        if self.stopped is not None:
            return False
        elbo, alive = self.track.advance(size, self.data)
        self.progress.advance(elbo)
        self._set_pace()
        return alive

    def _ask(self) -> int:
        """Ask the feed for the next steps: how many of them there are, as all processes agree."""
        step = self.first + self.track.done
        limit = min(self.limit, self.track.num_steps - self.track.done)
        size = 0
        try:
            self.data, size = self.feed.block(step, limit, self.over)
            stop = self.over() or (None if size else "exhausted")
        except StreamError as error:
            self.error = error
            stop = "stream"
        votes = -size, _STOPS.index(stop), self.checkpoints.due
        minus_size, code, save = agreed(*votes)
        self.stopped = _STOPS[code]
        self.track.num_dropped = self.feed.num_dropped(step)
        if save and self.stopped is None:
            self._save()
        return -minus_size

    def _save(self) -> None:
        begin = time.perf_counter()
        self.checkpoints.save(self.track.saved())
        # A shorter block would not make the disk faster: this time does not count.
        self._since += time.perf_counter() - begin

    def _set_pace(self) -> None:
        """Choose the next block's length by how long this one took."""
        seconds = time.perf_counter() - self._since
        wanted = self.limit * _BLOCK_SECONDS / seconds
        highest = min(64 * self.limit, device.BLOCK_CAPACITY)
        self.limit = int(np.clip(wanted, 1, highest))


class Track:
    """How far a run is: the steps done, its lane, and what it has seen in blocks."""

    def __init__(self, program: device.Program, held_out: Any, num_steps: int, lane: Lane) -> None:
        self.program = program
        self.held_out = held_out
        self.num_steps = num_steps
        self.done = 0
        self.num_dropped = 0
        self._lane = lane
        elbo = np.zeros((0, *lane.state.step.shape), np.float32)
        self._blocks = [(elbo, self._nothing_seen())]

    def _nothing_seen(self) -> Any:
        memory = self._lane.memory
        if memory is None:
            return None
        return jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), memory.seen)

    def go_on(self, saved: Saved | None) -> None:
        """From where a checkpoint has it; ValueError if that is beyond the steps asked for."""
        if saved is None:
            return
        if saved.done > self.num_steps:
            raise ValueError(
                f"`num_steps` must be {saved.done} or more, as the checkpoint has; "
                f"got {self.num_steps}"
            )
        self.done = saved.done
        self.num_dropped = saved.num_dropped
        self._lane = saved.lane
        self._blocks = [(saved.elbo, saved.seen)]

    def advance(self, size: int, data: Data) -> tuple[np.ndarray, bool]:
        """One block of at most `size` steps: their estimates, and whether a start goes on."""
        span = np.array([self.done, self.done + size], np.int32)
        result = self.program.block(self._lane, span, data, self.held_out)
        self._lane = result.lane
        num_steps, num_looks = map(int, np.asarray(result.taken))
        elbo, seen = to_host((result.elbo, result.checks))
        elbo = elbo[:num_steps]
        seen = jax.tree.map(lambda leaf: leaf[:num_looks], seen)
        self._blocks.append((elbo, seen))
        self.done += num_steps
        return elbo, bool(result.alive)

    def look_at_the_end(self, data: Data) -> None:
        """The rule's look at the last step of all, where none was due."""
        stop = self.program.plan.stop
        if stop is not None and self.done == self.num_steps and self.done % stop.every:
            self.advance(0, data)

    def saved(self) -> Saved:
        """All that a run depends on that goes on from here."""
        whole = jax.tree.map(lambda *parts: np.concatenate(parts), *self._blocks)
        self._blocks = [whole]
        elbo, seen = whole
        return Saved(self.done, self._lane, elbo, seen, self.num_dropped)

    def outcome(self, stopped: Reason | None, error: StreamError | None, data: Data) -> Outcome:
        saved = self.saved()
        return Outcome(
            state=self._lane.state,
            params=self._params(),
            ended=self._ended(),
            elbo=saved.elbo,
            checks=saved.seen,
            stopped=stopped,
            error=error,
            data=data,
            num_dropped=saved.num_dropped,
        )

    def _params(self) -> Params:
        plan = self.program.plan
        if plan.stop is None and not plan.average:
            return self._lane.state.params  # with nothing to compile
        return device.params(plan, self._lane)

    def _ended(self) -> np.ndarray:
        if self._lane.memory is None:
            return np.zeros(self._lane.state.step.shape, bool)
        return to_host(self._lane.memory.ended)
