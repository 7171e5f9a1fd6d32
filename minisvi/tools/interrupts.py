"""Ctrl-C during long work: the first one is noted, and the work ends when it is safe to."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# The event of the outermost `deferred_interrupt`, if there is one.
_listening: list[threading.Event] = []


def interrupted() -> bool:
    """Whether Ctrl-C was pressed since the `deferred_interrupt` around this work began.

    It is False where there is none.
    """
    return _in_main_thread() and any(event.is_set() for event in _listening)


def time_is_up(deadline: float) -> bool:
    """Whether work is to end: at Ctrl-C, or at the `deadline`, of `time.monotonic()`."""
    return interrupted() or time.monotonic() >= deadline


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts as usual.

    Inside another `deferred_interrupt` it is the same event. A block's inputs are donated, so that
    an exception between its call and the assignment of what it returns would lose the fit: the
    request has to wait for the block's end.
    """
    if _in_main_thread() and _listening:
        yield _listening[0]
        return
    event = threading.Event()
    if not _can_listen():
        yield event
        return
    previous = signal.getsignal(signal.SIGINT)

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


def _can_listen() -> bool:
    """Whether Ctrl-C can be listened for here, and its handler put back afterwards."""
    if not _in_main_thread():  # signals reach the main thread alone
        return False
    previous = signal.getsignal(signal.SIGINT)
    is_ignored = previous == signal.SIG_IGN  # as in a job in the background
    is_foreign = previous is None  # set by other code than Python's
    return not (is_ignored or is_foreign)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
