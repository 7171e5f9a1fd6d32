"""D from outside: batches of a Python iterable.

A thread reads them and sends them to the device, a chunk of batches at a time, while the steps on
the chunk before compute.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from minisvi.data.batches import Chunk, Chunks
from minisvi.data.packing import Form, Packed
from minisvi.tools import checks
from minisvi.tools.sharding import check_rows
from minisvi.tools.types import Data

_CHUNK_BYTES = 2**25
_MAX_BATCHES = 1024  # in a chunk
_CHUNK_SECONDS = 0.25  # after which a chunk goes on its way, full or not
_POLL_SECONDS = 0.1  # between two looks at whether the fit is to end, while the source is slow
_CLOSE_SECONDS = 1.0  # for a source to give the batch that it is at, before its owner may close it


class StreamError(RuntimeError):
    """A source of batches raised, hung, or gave what it must not.

    The message has the batch's number. `result` is the fit up to the last good batch, where there
    is one.
    """

    result: Any = None


@dataclass(frozen=True, eq=False)
class Stream:
    """Batches that come from outside, in place of data.

    For example `svi.run(key, num_steps, Stream(batches, num_data=N))`. Step t sees batch number t.
    A row has the weight N / b in the likelihood, where b is the number of rows in its batch.

    **Arguments**

    - `source`: an iterable of batches, or a function of a batch's number that returns an iterator
      from there on. A batch is an array, or a tuple or list of trees of arrays, which is what the
      likelihood gets after theta; the leading axis is the rows. The first batch is the largest: a
      smaller one is filled up with rows of weight zero. A fit that goes on at step t reads an
      iterable from its beginning and drops t batches, which is exact if it gives the same ones
      again; a function can seek.
    - `num_data`: N, the number of rows that the posterior is of. No loader knows it: `len` may
      count batches, or the rows of one process.
    - `nan`: a row with a NaN in it ends the fit (`"refuse"`), or is left out and counted
      (`"skip"`).
    - `timeout`: the seconds that a batch may take.
    - `sharding`: a `NamedSharding` of a batch's rows over devices, such as `NamedSharding(mesh,
      P("rows"))`. Of several processes each reads its own source, and a batch is made of the rows
      of all. The rows of each process stand for an equal share of the N, and in the first batch
      they are equally many. The devices divide the rows of the first batch.

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


class Reader:
    """A stream at work.

    `example` is data of its form, for static checks. After them comes `start`, and then `block`
    time after time.
    """

    def __init__(self, stream: Stream, begin: int) -> None:
        """Read the first batch of a stream, for a fit that begins with batch number `begin`.

        The form is that of batch number 0 all the same.
        """
        self._stream = stream
        self._iterator: Iterator[Any] | None = None
        self._number = 0  # of the batch that comes next
        self._since = time.monotonic()  # when that was asked for
        self._error: StreamError | None = None
        self._closed = False
        self._form: Form = self._wait(_in_background(lambda: self._peek(begin)))
        if stream.sharding is not None:
            check_rows([self._form.num_rows])
        self._capacity = _capacity(self._form)
        self._share = _share(stream)
        self.batches = Chunks(stream.num_data)
        room = Packed.empty(self._form, begin, self._capacity)
        self.example = (self._sent(room),)

    def start(self, first: int, last: int, num_dropped: int) -> None:
        """Begin to read the batches from number `first` to before number `last`.

        `num_dropped` rows have been left out of the batches before.
        """
        self._end = first
        self._last = last
        self._num_dropped = num_dropped  # of all batches before the chunk's
        self._dropped: dict[int, int] = {}  # by number, of the batches from there on
        (self._chunk,) = self.example
        self._read_on()

    def block(self, step: int, limit: int, over: Callable[[], bool]) -> tuple[tuple[Chunk], int]:
        """The data for the steps from `step` on, and for how many steps, at most `limit`.

        That is 0 at the end of the stream, and where the fit is `over` before the next batch has
        come.
        """
        if step == self._end:
            chunk, num = self._next(over)
            if chunk is not None and num > 0:
                self._forget_dropped_before(step)
                self._chunk = chunk
                self._end += num
                self._read_on()
        return (self._chunk,), min(limit, self._end - step)

    def num_dropped(self, step: int) -> int:
        """The number of rows left out of the batches before number `step`."""
        known = list(self._dropped.items())  # a copy, for the thread that reads adds to it
        return self._num_dropped + sum(num for number, num in known if number < step)

    def _forget_dropped_before(self, step: int) -> None:
        self._num_dropped = self.num_dropped(step)
        known = self._dropped.items()
        self._dropped = {number: num for number, num in known if number >= step}

    def close(self) -> None:
        """Ask for no more batches, and wait a little for the one that is being read."""
        self._closed = True
        wait([self._filling], _CLOSE_SECONDS)

    def _read_on(self) -> None:
        packed = Packed.empty(self._form, self._end, self._capacity)
        self._packed = packed
        self._filling = _in_background(lambda: self._fill(packed))

    def _next(self, over: Callable[[], bool]) -> tuple[Chunk | None, int]:
        """The chunk that is being read, and its number of batches; None if the fit is `over`.

        Where the source fails, the batches before that are a chunk, and the next call raises.
        """
        try:
            chunk = self._wait(self._filling, over)
        except StreamError as error:
            packed = replace(self._packed)  # as it is now: a source that hangs may come back
            if packed.num == 0:
                raise
            self._error = error
            return self._sent(packed), packed.num
        if chunk is None:
            return None, 0
        return chunk, self._packed.num

    def _wait(self, future: Future[Any], over: Callable[[], bool] = lambda: False) -> Any:
        """The result of the thread that reads; None where the fit is `over` before it comes.

        StreamError if a batch takes longer than it may.
        """
        while True:
            left = self._since + self._stream.timeout - time.monotonic()
            try:
                return future.result(min(max(left, 0.01), _POLL_SECONDS))
            except TimeoutError:
                if future.done():  # the source's own
                    raise
                if over():
                    return None
                if left < 0:
                    late = f"batch {self._number} did not come within {self._stream.timeout:g} s"
                    raise StreamError(late) from None

    # What follows runs in the background, one call at a time.

    def _peek(self, begin: int) -> Form:
        """The form of batch number 0, which is put back."""
        if begin and isinstance(self._stream.source, Iterator):
            raise ValueError(
                f"the fit goes on at batch {begin}, and an iterator cannot begin anew: expected an "
                "iterable, such as a list or a loader, or a function of a batch's number"
            )
        self._go_to(0)
        first = self._take()
        if first is None:
            raise StreamError("the stream has no batch 0")
        assert self._iterator is not None
        self._iterator = itertools.chain([first], self._iterator)
        self._number = 0
        try:
            return Form.of(first)
        except ValueError as error:
            raise StreamError(f"batch 0: {error}") from error

    def _go_to(self, number: int) -> None:
        """Make the next batch taken that of this number."""
        source = self._stream.source
        if callable(source):
            if self._iterator is None or number != self._number:
                self._open(lambda: iter(source(number)), number)
            return
        if self._iterator is None:
            self._open(lambda: iter(source), 0)
        while self._number < number and self._take() is not None:
            pass

    def _open(self, iterator: Callable[[], Iterator[Any]], number: int) -> None:
        self._since = time.monotonic()
        self._number = number
        try:
            self._iterator = iterator()
        except Exception as error:
            raise StreamError(f"batch {number}: the source raised {error!r}") from error

    def _take(self) -> Data | None:
        """The next batch, as a tuple; None at the end."""
        assert self._iterator is not None
        self._since = time.monotonic()
        try:
            batch = next(self._iterator)
        except StopIteration:
            return None
        except Exception as error:
            raise StreamError(f"batch {self._number}: the source raised {error!r}") from error
        self._number += 1
        return tuple(batch) if isinstance(batch, tuple | list) else (batch,)

    def _fill(self, packed: Packed) -> Chunk:
        """Read the batches of a chunk, until it is full, has waited long enough, or they end."""
        if self._error is not None:
            raise self._error
        self._since = time.monotonic()
        self._go_to(packed.first)
        num = min(self._capacity, self._last - packed.first)
        deadline = time.monotonic() + _CHUNK_SECONDS
        while packed.num < num and not self._closed:
            if packed.num > 0 and time.monotonic() >= deadline:
                break
            if not self._add_next(packed):
                break
        return self._sent(packed)

    def _add_next(self, packed: Packed) -> bool:
        """Read a batch into the chunk; False at the end of the stream."""
        number = self._number
        batch = self._take()
        if batch is None:
            return False
        try:
            dropped = packed.add(batch, self._share, self._stream.nan == "skip")
        except (TypeError, ValueError) as error:
            raise StreamError(f"batch {number}: {error}") from error
        if dropped:
            self._dropped[number] = dropped
        return True

    def _sent(self, packed: Packed) -> Chunk:
        """The chunk on the devices."""
        sharding = self._stream.sharding
        if sharding is None:
            arrays = jax.device_put(packed.arrays)
        else:
            arrays = _spread(packed.arrays, sharding)
        *leaves, weights = arrays
        rows = jax.tree.unflatten(self._form.treedef, leaves)
        return Chunk(np.int32(packed.first), rows, weights)


def _capacity(form: Form) -> int:
    """How many batches a chunk has, by their size in bytes."""
    size = sum(leaf.nbytes for leaf in form.empty(1))
    fitting = _CHUNK_BYTES // max(size, 1)
    return int(np.clip(fitting, 1, _MAX_BATCHES))


def _share(stream: Stream) -> float:
    """How many of the N rows the rows that this process reads stand for.

    Each process has an equal share, because none knows how many rows another one's batch has.
    """
    if stream.sharding is None:
        return stream.num_data
    processes = {device.process_index for device in stream.sharding.mesh.devices.flat}
    return stream.num_data / len(processes)


def _spread(arrays: list[np.ndarray], sharding: NamedSharding) -> list[Array]:
    """Arrays (S, B, ...) with the rows, their second axis, as `sharding` lays out a batch's."""
    spec = PartitionSpec(None, *sharding.spec[:1])
    rows = NamedSharding(sharding.mesh, spec)
    return [jax.make_array_from_process_local_data(rows, leaf) for leaf in arrays]


def _in_background(function: Callable[[], Any]) -> Future[Any]:
    """What the function returns, computed in a daemon thread.

    A source that hangs then does not keep the process from ending.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
