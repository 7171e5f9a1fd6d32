"""What the benchmarks share: turns, clocks, summaries, and the facts of a run. It loads neither JAX
nor NumPy.
"""

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def turn(names: Iterable[str], round: int) -> list[str]:
    """The contenders of a round, each in turn the first."""
    names = list(names)
    return names[round % len(names) :] + names[: round % len(names)]


def progress(what: str, count: int) -> Iterable[int]:
    begin = time.perf_counter()
    yield from range(count)
    print(f"{what}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, the calls taking turns; one before the rounds, which
    compiles.
    """
    for call in calls.values():
        host(call())
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for round in range(rounds):
        for name in turn(calls, round):
            begin = time.perf_counter()
            host(calls[name]())
            samples[name].append(time.perf_counter() - begin)
    return samples


def host(tree: Any) -> Any:
    """The arrays on the host: JAX returns before the computation ends."""
    import jax

    return jax.device_get(tree)


def summary(values: list[float]) -> dict[str, Any]:
    return {
        "median": significant(statistics.median(values)),
        "range": [significant(min(values)), significant(max(values))],
        "samples": [significant(value) for value in values],
    }


def significant(value: float) -> float:
    return float(f"{value:.5g}")


def versions(packages: Iterable[str]) -> dict[str, str]:
    import minisvi

    found = {"python": platform.python_version(), "minisvi": minisvi.__version__}
    return found | {name: importlib.metadata.version(name) for name in packages}


def machine() -> dict[str, Any]:
    """The processor, its cores and the memory, and no name of the host."""
    info = Path("/proc/cpuinfo")
    models = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "cpu": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "platform": f"{platform.system()} {platform.machine()}",
    }
