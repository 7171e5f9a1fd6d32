"""D from outside: batches of a Python iterable, read by a thread and sent to the device in blocks, while the former
block computes.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from minisvi import checks
from minisvi.batches import Block, Blocks
from minisvi.packing import Form

_BLOCK_BYTES = 2**25
_MAX_BATCHES = 1024  # in a block
_BLOCK_SECONDS = 0.25  # after which a block goes on its way, full or not


class StreamError(RuntimeError):
    """A source of batches raised, hung, or gave what it must not; the message has the batch's number. `result` is the
    fit up to the last good batch, where there is one.
    """

    result: Any = None


@dataclass(frozen=True, eq=False)
class Stream:
    """Batches that come from outside, in place of data: `svi.run(key, num_steps, Stream(batches, num_data=N))`.

    Step t sees batch number t. A row has the weight N / b in the likelihood, b being the rows of its batch.

    **Arguments**

    - `source`: an iterable of batches, or a function of a batch's number that returns an iterator from there on. A
      batch is an array, or a tuple or list of trees of arrays, which is what the likelihood gets after theta; the
      leading axis is the rows. The first batch is the largest: a smaller one is filled up with rows of weight zero.
      A fit that goes on at step t reads an iterable from its beginning and drops t batches, which is exact if it gives
      the same ones again; a function can seek.
    - `num_data`: N, how many rows the posterior is of. No loader knows it: `len` may count batches, or rows a process.
    - `nan`: a row with a NaN in it ends the fit (`"refuse"`), or is left out and counted (`"skip"`).
    - `timeout`: seconds that a batch may take.
    - `sharding`: a `NamedSharding` of a batch's rows over devices, such as `NamedSharding(mesh, P("rows"))`. Of several
      processes each reads its own source, and a batch is the rows of all, each process's being as good as any other's.

    The fit ends when the stream does, with the reason "exhausted"; epochs are the source's affair.
    """

    source: Iterable[Any] | Callable[[int], Iterator[Any]]
    num_data: int
    nan: Literal["refuse", "skip"] = "refuse"
    timeout: float = 60.0
    sharding: NamedSharding | None = None

    def __post_init__(self) -> None:
        checks.positive_integer("num_data", self.num_data)
        if self.nan not in ("refuse", "skip"):
            raise ValueError(f"`nan` must be 'refuse' or 'skip'; got {self.nan!r}")
        if not self.timeout > 0:
            raise ValueError(f"`timeout` must be above 0 seconds; got {self.timeout}")


class _Filled(NamedTuple):
    block: Block
    num_batches: int
    num_dropped: int


class Reader:
    """A stream at work. `example` is data of its form, for static checks; then `start`, and `block` time after time.

    `num_dropped` counts the rows left out so far.
    """

    def __init__(self, stream: Stream, begin: int) -> None:
        """The first batch is number `begin`, unless `start` says otherwise."""
        self._stream = stream
        self._iterator: Iterator[Any] | None = None
        self._number, self._since = begin, time.monotonic()  # of the batch that comes next
        self.num_dropped = 0
        self._error: StreamError | None = None
        self._form: Form = self._wait(_in_background(lambda: self._peek(begin)))
        size = sum(leaf.nbytes for leaf in self._form.empty(1))
        self._capacity = int(np.clip(_BLOCK_BYTES // max(size, 1), 1, _MAX_BATCHES))
        self.batches = Blocks(stream.num_data)
        self.example = (self._sent(begin, self._form.empty(self._capacity), self._no_weights()),)

    def start(self, first: int, last: int) -> None:
        """Read the batches from number `first` to before `last`."""
        self._end, self._last = first, last
        self._next_block = _in_background(lambda: self._fill(first))

    def block(self, step: int, limit: int) -> tuple[tuple[Block], int]:
        """Data for the steps from `step` on, and for how many, `limit` at most; 0 at the end of the stream."""
        if step == self._end:
            self._block, num_batches, num_dropped = self._wait(self._next_block)
            self._end += num_batches
            self.num_dropped += num_dropped
            self._next_block = _in_background(lambda: self._fill(self._number))
        return (self._block,), min(limit, self._end - step)

    def _wait(self, future: Future[Any]) -> Any:
        while True:
            left = self._since + self._stream.timeout - time.monotonic()
            try:
                return future.result(max(left, 0.01))
            except TimeoutError:
                if future.done():
                    raise
                if left < 0:
                    late = f"batch {self._number} did not come within {self._stream.timeout:g} s"
                    raise StreamError(late) from None

    # What follows runs in the background, one call at a time.

    def _peek(self, number: int) -> Form:
        self._go_to(number)
        first = self._take()
        if first is None:
            raise StreamError(f"the stream has no batch {number}")
        assert self._iterator is not None
        self._iterator, self._number = itertools.chain([first], self._iterator), number
        try:
            return Form.of(first)
        except ValueError as error:
            raise StreamError(f"batch {number}: {error}") from error

    def _go_to(self, number: int) -> None:
        """The next batch taken is that one."""
        source = self._stream.source
        if callable(source):
            if self._iterator is None or number != self._number:
                self._iterator, self._number = iter(source(number)), number
            return
        if self._iterator is None:
            self._iterator, self._number = iter(source), 0
            if number and self._iterator is source:
                raise ValueError(
                    f"the fit goes on at batch {number}, and an iterator cannot begin anew: expected an iterable, such "
                    "as a list or a loader, or a function of a batch's number"
                )
        while self._number < number and self._take() is not None:
            pass

    def _take(self) -> Any:
        """The next batch, as a tuple; None at the end."""
        assert self._iterator is not None
        self._since = time.monotonic()
        try:
            batch = next(self._iterator, None)
        except Exception as error:
            raise StreamError(f"batch {self._number}: the source raised {error!r}") from error
        self._number += 1
        return tuple(batch) if isinstance(batch, tuple | list) else batch if batch is None else (batch,)

    def _fill(self, first: int) -> _Filled:
        if self._error is not None:
            raise self._error
        self._since = time.monotonic()
        self._go_to(first)
        leaves, weights, num, num_dropped = self._form.empty(self._capacity), self._no_weights(), 0, 0
        # Each process has the same share of N, for what the others have is not known here.
        share, end = self._stream.num_data / jax.process_count(), min(first + self._capacity, self._last)
        begin = time.monotonic()
        while first + num < end and (num == 0 or time.monotonic() - begin < _BLOCK_SECONDS):
            try:
                batch = self._take()
                if batch is None:
                    break
                there = self._put(batch, first + num, [leaf[num] for leaf in leaves])
            except StreamError as error:
                if num == 0:
                    raise
                self._error = error  # for the next call: the batches before it are good
                break
            weights[num] = np.where(there, share / there.sum(), 0.0)
            num_dropped += len(jax.tree.leaves(batch)[0]) - int(there.sum())
            num += 1
        self._number = first + num
        return _Filled(self._sent(first, leaves, weights), num, num_dropped)

    def _put(self, batch: Any, number: int, slots: list[np.ndarray]) -> np.ndarray:
        try:
            return self._form.put(batch, slots, self._stream.nan == "skip")
        except (TypeError, ValueError) as error:
            raise StreamError(f"batch {number}: {error}") from error

    def _no_weights(self) -> np.ndarray:
        return np.zeros((self._capacity, self._form.num_rows), np.dtype(jax.dtypes.canonicalize_dtype(float)))

    def _sent(self, first: int, leaves: list[np.ndarray], weights: np.ndarray) -> Block:
        sharding = self._stream.sharding
        if sharding is None:
            leaves, weights = jax.device_put((leaves, weights))
        else:
            rows = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[:1]))
            leaves, weights = jax.tree.map(
                lambda leaf: jax.make_array_from_process_local_data(rows, leaf), (leaves, weights)
            )
        return Block(np.int32(first), jax.tree.unflatten(self._form.treedef, leaves), weights)


def _in_background(function: Callable[[], Any]) -> Future[Any]:
    """In a daemon thread, so that a source that hangs does not keep the process from ending."""
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
