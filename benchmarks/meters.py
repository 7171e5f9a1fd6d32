"""What a call costs a process besides its time: programs compiled, seconds in XLA, memory maps and
resident memory. It reads /proc, and so it needs Linux.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMPILATION = "/jax/core/compile/backend_compile_duration"
MIB = 2**20

Figures = dict[str, Any]


class Compilations:
    """The seconds of each program that XLA has compiled in this process since this was made."""

    def __init__(self) -> None:
        import jax

        self.seconds: list[float] = []
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILATION:
            self.seconds.append(duration_secs)


def num_maps() -> int:
    """The memory maps of this process, of which Linux allows 65,530."""
    with Path("/proc/self/maps").open() as lines:
        return sum(1 for _ in lines)


def resident_mib() -> float:
    """The resident memory of this process, in MiB."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


@contextmanager
def metered(compilations: Compilations) -> Iterator[Figures]:
    """The dict that this yields holds, after the block, what the block has cost.

    - `seconds`: from the block's begin to its end. The block has to bring its numbers to the host.
    - `programs`, `xla_seconds`: how many programs XLA compiled, and how long this took.
    - `maps`, `mib`: memory maps and resident MiB, after less before, with garbage collected.
    """
    figures: Figures = {}
    gc.collect()
    num_programs = len(compilations.seconds)
    maps = num_maps()
    mib = resident_mib()
    begin = time.perf_counter()
    yield figures
    figures["seconds"] = time.perf_counter() - begin
    compiled = compilations.seconds[num_programs:]
    figures["programs"] = len(compiled)
    figures["xla_seconds"] = sum(compiled)
    gc.collect()
    figures["maps"] = num_maps() - maps
    figures["mib"] = resident_mib() - mib
