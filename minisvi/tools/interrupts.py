"""Ctrl-C during long work: the first one is noted, and the work ends when it is safe to."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_listening: list[
    threading.Event
] = []  # the event of the outermost `deferred_interrupt`, if there is one


def interrupted() -> bool:
    """Whether Ctrl-C was pressed since the `deferred_interrupt` around this work began; False
    without one.
    """
    return _in_main_thread() and any(event.is_set() for event in _listening)


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second interrupts as usual. One inside another gives
    the same event.

    A block's inputs are donated, so an exception between its call and the assignment of what it
    returns would lose the fit: the request has to wait for the block's end.
    """
    event = threading.Event()
    if not _in_main_thread():  # signals reach the main thread alone
        yield event
        return
    if _listening:
        yield _listening[0]
        return
    previous = signal.getsignal(signal.SIGINT)
    if previous in (
        signal.SIG_IGN,
        None,
    ):  # as of a job in the background; or not Python's to put back
        yield event
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, handle)
    _listening.append(event)
    try:
        yield event
    finally:
        _listening.clear()
        signal.signal(signal.SIGINT, previous)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
