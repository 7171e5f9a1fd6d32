"""Where the data of a run come from: they are all there, or a stream brings them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from minisvi.data.batches import FullBatch
from minisvi.data.streams import Reader, Stream
from minisvi.tools.types import Data, Engine


class Feed(Protocol):
    """Data for one block of steps after the other."""

    @property
    def example(self) -> Data:
        """Data of the form of all that follow, for static checks."""
        ...

    def start(self, first: int, last: int, num_dropped: int) -> None:
        """The steps from `first` to before `last` are next; so many rows were left out before."""
        ...

    def block(self, step: int, limit: int, over: Callable[[], Any]) -> tuple[Data, int]:
        """Data for the steps from `step` on, and for how many of them, `limit` at most; zero if
        there are no more, or `over()` became true while they were waited for.
        """
        ...

    def num_dropped(self, step: int) -> int:
        """Rows left out of the batches before `step`, for a NaN in them."""
        ...

    def close(self) -> None:
        """No block is asked for any more."""
        ...


class InMemory(NamedTuple):
    """Data that are all there."""

    example: Data

    def start(self, first: int, last: int, num_dropped: int) -> None:
        del first, last, num_dropped

    def block(self, step: int, limit: int, over: Callable[[], Any]) -> tuple[Data, int]:
        del step, over
        return self.example, limit

    def num_dropped(self, step: int) -> int:
        del step
        return 0

    def close(self) -> None:
        pass


def is_stream(data: Data) -> bool:
    return any(isinstance(part, Stream) for part in data)


def feed(svi: Any, data: Data, begin: int) -> tuple[Engine, Feed]:
    """The data as a feed from step `begin` on, and the engine with the batches that it then sees.

    ValueError for a stream beside other data, or beside batches of rows.
    """
    if not is_stream(data):
        return svi, InMemory(data)
    if len(data) != 1 or svi.batches != FullBatch():
        raise ValueError(
            "a Stream is all of the data, in batches of its own; "
            f"got {len(data)} data and {svi.batches}"
        )
    reader = Reader(data[0], begin)
    return replace(svi, batches=reader.batches), reader
