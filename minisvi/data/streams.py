"""D from outside: batches of a Python iterable, read by a thread and sent to the device in blocks,
while the former block computes.
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
from jax.sharding import NamedSharding, PartitionSpec

from minisvi.data.batches import Chunk, Chunks
from minisvi.data.packing import Form, Packed
from minisvi.tools import checks
from minisvi.tools.sharding import check_rows

_BLOCK_BYTES = 2**25
_MAX_BATCHES = 1024  # in a block
_BLOCK_SECONDS = 0.25  # after which a block goes on its way, full or not
_POLL_SECONDS = 0.1  # between two looks at whether the fit is to end, while the source is slow
_CLOSE_SECONDS = 1.0  # for a source to give the batch that it is at, before its owner may close it


class StreamError(RuntimeError):
    """A source of batches raised, hung, or gave what it must not; the message has the batch's
    number. `result` is the fit up to the last good batch, where there is one.
    """

    result: Any = None


@dataclass(frozen=True, eq=False)
class Stream:
    """Batches that come from outside, in place of data: `svi.run(key, num_steps, Stream(batches,
    num_data=N))`.

    Step t sees batch number t. A row has the weight N / b in the likelihood, b being the rows of
    its batch.

    **Arguments**

    - `source`: an iterable of batches, or a function of a batch's number that returns an iterator
      from there on. A batch is an array, or a tuple or list of trees of arrays, which is what the
      likelihood gets after theta; the leading axis is the rows. The first batch is the largest: a
      smaller one is filled up with rows of weight zero. A fit that goes on at step t reads an
      iterable from its beginning and drops t batches, which is exact if it gives the same ones
      again; a function can seek.
    - `num_data`: N, how many rows the posterior is of. No loader knows it: `len` may count batches,
      or rows a process.
    - `nan`: a row with a NaN in it ends the fit (`"refuse"`), or is left out and counted
      (`"skip"`).
    - `timeout`: seconds that a batch may take.
    - `sharding`: a `NamedSharding` of a batch's rows over devices, such as `NamedSharding(mesh,
      P("rows"))`. Of several processes each reads its own source, and a batch is the rows of all,
      each process's being as good as any other's, and in the first batch as many. The devices
      divide the rows of the first batch.

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
    """A stream at work. `example` is data of its form, for static checks; then `start`, and `block`
    time after time.
    """

    def __init__(self, stream: Stream, begin: int) -> None:
        """For a fit that begins with batch number `begin`; the form is that of number 0 all the
        same.
        """
        self._stream = stream
        self._iterator: Iterator[Any] | None = None
        self._number, self._since = 0, time.monotonic()  # of the batch that comes next
        self._error: StreamError | None = None
        self._closed = False
        self._form: Form = self._wait(_in_background(lambda: self._peek(begin)))
        if stream.sharding is not None:
            check_rows([self._form.num_rows])
        size = sum(leaf.nbytes for leaf in self._form.empty(1))
        self._capacity = int(np.clip(_BLOCK_BYTES // max(size, 1), 1, _MAX_BATCHES))
        self.batches = Chunks(stream.num_data)
        self.example = (self._sent(begin, Packed.empty(self._form, begin, self._capacity).arrays),)

    def start(self, first: int, last: int, num_dropped: int) -> None:
        """Read the batches from number `first` to before `last`, `num_dropped` rows having been
        left out before.
        """
        self._end, self._last, self._num_dropped = first, last, num_dropped
        self._dropped: dict[int, int] = {}
        self._block = self.example[0]
        self._read_on()

    def block(self, step: int, limit: int, over: Callable[[], bool]) -> tuple[tuple[Chunk], int]:
        """Data for the steps from `step` on, and for how many, `limit` at most; 0 at the end of the
        stream, and where the fit is `over` before the next batch has come.
        """
        if step == self._end:
            block, num = self._next(over)
            if num:
                self._block, self._end, self._num_dropped = (
                    block,
                    self._end + num,
                    self.num_dropped(step),
                )
                self._dropped = {
                    number: num for number, num in self._dropped.items() if number >= step
                }
                self._read_on()
        return (self._block,), min(limit, self._end - step)

    def num_dropped(self, step: int) -> int:
        """Rows left out of the batches before number `step`."""
        return self._num_dropped + sum(
            num for number, num in [*self._dropped.items()] if number < step
        )

    def close(self) -> None:
        """No batch is asked for any more."""
        self._closed = True
        wait([self._filling], _CLOSE_SECONDS)

    def _read_on(self) -> None:
        packed = self._packed = Packed.empty(self._form, self._end, self._capacity)
        self._filling = _in_background(lambda: self._fill(packed))

    def _next(self, over: Callable[[], bool]) -> tuple[Chunk, int]:
        try:
            block = self._wait(self._filling, over)
            return block, 0 if block is None else self._packed.num
        except StreamError as error:
            packed = replace(self._packed)  # as it is now: a source that hangs may come back
            if not packed.num:
                raise
            self._error = error  # for the next call: the batches before it are good
            return self._sent(packed.first, packed.arrays), packed.num

    def _wait(self, future: Future[Any], over: Callable[[], bool] = lambda: False) -> Any:
        while True:
            left = self._since + self._stream.timeout - time.monotonic()
            try:
                return future.result(min(max(left, 0.01), _POLL_SECONDS))
            except TimeoutError:
                if future.done():
                    raise
                if over():
                    return None
                if left < 0:
                    late = f"batch {self._number} did not come within {self._stream.timeout:g} s"
                    raise StreamError(late) from None

    # What follows runs in the background, one call at a time.

    def _peek(self, begin: int) -> Form:
        if begin and isinstance(self._stream.source, Iterator):
            raise ValueError(
                f"the fit goes on at batch {begin}, and an iterator cannot begin anew: expected an iterable, such as a "
                "list or a loader, or a function of a batch's number"
            )
        self._go_to(0)
        first = self._take()
        if first is None:
            raise StreamError("the stream has no batch 0")
        assert self._iterator is not None
        self._iterator, self._number = itertools.chain([first], self._iterator), 0
        try:
            return Form.of(first)
        except ValueError as error:
            raise StreamError(f"batch 0: {error}") from error

    def _go_to(self, number: int) -> None:
        """The next batch taken is that one."""
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
        self._since, self._number = time.monotonic(), number
        try:
            self._iterator = iterator()
        except Exception as error:
            raise StreamError(f"batch {number}: the source raised {error!r}") from error

    def _take(self) -> Any:
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
        if self._error is not None:
            raise self._error
        self._since = time.monotonic()
        self._go_to(packed.first)
        share, num = self._share(), min(self._capacity, self._last - packed.first)
        begin = time.monotonic()
        while (
            packed.num < num
            and not self._closed
            and (packed.num == 0 or time.monotonic() - begin < _BLOCK_SECONDS)
        ):
            number, batch = self._number, self._take()
            if batch is None:
                self._number = number
                break
            try:
                dropped = packed.add(batch, share, self._stream.nan == "skip")
            except (TypeError, ValueError) as error:
                raise StreamError(f"batch {number}: {error}") from error
            if dropped:
                self._dropped[number] = dropped
        return self._sent(packed.first, packed.arrays)

    def _share(self) -> float:
        """What this process's rows stand for: as much as any other's, for theirs are not known
        here.
        """
        sharding = self._stream.sharding
        if sharding is None:
            return self._stream.num_data
        return self._stream.num_data / len(
            {device.process_index for device in sharding.mesh.devices.flat}
        )

    def _sent(self, first: int, arrays: list[np.ndarray]) -> Chunk:
        sharding = self._stream.sharding
        if sharding is None:
            *leaves, weights = jax.device_put(arrays)
        else:
            rows = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[:1]))
            *leaves, weights = [
                jax.make_array_from_process_local_data(rows, leaf) for leaf in arrays
            ]
        return Chunk(np.int32(first), jax.tree.unflatten(self._form.treedef, leaves), weights)


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
