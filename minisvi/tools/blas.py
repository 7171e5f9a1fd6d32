"""How many threads BLAS takes for a fit's own linear algebra."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

_LARGE = 1000  # rows, from where a matrix is worth several threads


def threads_for(size: int) -> AbstractContextManager[Any]:
    """A context in which BLAS takes one thread for matrices of so few rows, if threadpoolctl is
    installed.

    Several threads that share a small matrix wait for each other most of the time: with one of two
    cores busy an eigendecomposition of 64 rows took 49 ms, and 0.9 ms on one thread.
    """
    if size >= _LARGE:
        return nullcontext()
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    return threadpool_limits(limits=1, user_api="blas")
