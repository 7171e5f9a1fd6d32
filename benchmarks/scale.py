"""How a step's time and memory grow: with rows, dimensions, draws, restarts; and what streams and
checkpoints cost.

    python benchmarks/scale.py                # all figures, benchmarks/results/scale.json
    python benchmarks/scale.py --only rows    # one of them, which it replaces in the JSON
    python benchmarks/scale.py --smoke        # half a minute: does it run? It measures nothing

Every comparison is a ratio of contenders that take turns within a round, and the median of the
rounds' ratios, with their range: the speed of a machine drifts, and a wide range says that
something else ran on it. Times are those of the fastest round, of which a slope is that of log time
against log size, by least squares, over all sizes and over their upper half: 1 is linear; small
sizes are all overhead. Models and guides are in `engines/`; Adam from optax, one particle unless
said, float32.

- rows: a step of minibatches of 256 rows of 16 columns, of N rows; choosing the rows alone; and a
  loop by hand that draws them by `jax.random.randint`. What grows is the time to fetch rows from
  ever slower memory, for both.
- rivals: the same against NumPyro's plate with `subsample_size`, in a scan of `svi.update`, and
  that loop.
- streams: `svi.run` on a `Stream` of a memory-mapped file in the page cache, in order, against
  `svi.run` on the same array in memory: by `Minibatches`, which fetch rows from all over it, and
  `in order`, the very batches of the stream by a source of batches that is not in the library.
  `read` is the time to look for NaN in all batches of the file, once each. `cold` is a stream of
  the file after its pages were dropped, against reading it then.
- dims, particles, restarts: a step, and XLA's plan of the memory of a fit's compiled block.
- checkpoints: runs with a checkpoint a second, with one at the end only, and with none: the
  difference of the first two in seconds a checkpoint, on the clock and of all threads, and what the
  larger is of 30 s; and one run of about 70 s with a checkpoint every 30, between two without,
  whose own ratio says how steady the machine was.
- local: 256 rows of N, each with a latent of its own: parameters stored by row, or from an encoder.
- remat: temporaries of a block with and without `jax.checkpoint` in a deep or a long likelihood.
- gpu: bandwidth of a step against that of the card, 64 restarts against one, a network of 10
  million weights.
"""

import argparse
import datetime
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import interleaved, machine, progress, significant, versions
from engines import blocks, pairs, pieces, rows

from minisvi import Minibatches, Stream
from minisvi.running.checkpoint import Checkpoints

RESULTS = Path(__file__).parent / "results" / "scale.json"
PACKAGES = ["jax", "jaxlib", "optax", "numpyro", "numpy", "orbax-checkpoint"]
GPU_BYTES = {
    "H100 80GB HBM3": 3.35e12,
    "H200": 4.8e12,
    "A100-SXM4-80GB": 2.04e12,
}  # a second, by the maker

Row = dict[str, Any]
Call = Callable[[], Any]


class Settings(NamedTuple):
    rounds: int = 11
    nums: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    dim: int = 16
    batch: int = 256
    row_steps: int = 1_000
    rivals: tuple[tuple[int, int, int], ...] = (  # N, columns, batch
        (10_000, 16, 256),
        (1_000_000, 16, 256),
        (1_000_000, 100, 256),
        (1_000_000, 16, 4_096),
        (1_000_000, 16, 16_384),
    )
    file_bytes: float = 2e9
    stream_rounds: int = 3
    stream_batches: tuple[int, ...] = (256, 1_024, 16_384)
    network_batches: tuple[int, ...] = (1_024, 16_384)
    families: tuple[str, ...] = ("mean_field", "low_rank")
    dims: tuple[int, ...] = (100, 1_000, 10_000, 100_000, 1_000_000)
    sweep_dim: int = 1_000
    particles: tuple[int, ...] = (1, 4, 16, 64, 256, 1_024)
    restarts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    effort: float = 1e7  # floats of the parameters that a call goes through
    checkpoint_dims: tuple[int, ...] = (100, 1_000_000)
    checkpoint_rounds: int = 2
    checkpoint_seconds: float = 4.0
    checkpoint_every: float = 1.0
    long_seconds: float = 70.0
    local: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    remat: tuple[tuple[str, int, int, int], ...] = (("deep", 16_384, 128, 16), ("long", 256, 64, 8))
    gpu_dim: int = 10_000_000
    gpu_network: tuple[int, ...] = (784, 2_048, 2_048, 2_048, 1)


SMOKE = Settings(
    rounds=1,
    nums=(1_000, 2_000),
    row_steps=20,
    rivals=((1_000, 4, 32),),
    file_bytes=1e6,
    stream_rounds=1,
    stream_batches=(256,),
    network_batches=(),
    families=("mean_field",),
    dims=(10, 100),
    sweep_dim=10,
    particles=(1, 2),
    restarts=(1, 2),
    effort=1e4,
    checkpoint_dims=(10,),
    checkpoint_rounds=1,
    checkpoint_seconds=0.5,
    checkpoint_every=0.2,
    long_seconds=0.0,
    local=(1_000,),
    remat=(("deep", 64, 8, 4),),
    gpu_dim=1_000,
    gpu_network=(8, 16, 1),
)


# Arithmetic.


def ratio(above: Iterable[float], below: Iterable[float]) -> dict[str, Any]:
    """The median of the rounds' ratios, their range, and the ratio of the fastest rounds."""
    above, below = list(above), list(below)
    values = [a / b for a, b in zip(above, below, strict=True)]
    return {
        "median": median(values),
        "range": [significant(min(values)), significant(max(values))],
        "fastest": significant(min(above) / min(below)),
    }


def slope(sizes: Iterable[float], values: Iterable[float]) -> float:
    return significant(np.polyfit(np.log(list(sizes)), np.log(list(values)), 1)[0])


def slopes(sizes: tuple[int, ...], values: list[float]) -> dict[str, float]:
    """Over all sizes, and over the upper half, two at least."""
    half = min(len(sizes) // 2, len(sizes) - 2)
    return {"all": slope(sizes, values), "upper half": slope(sizes[half:], values[half:])}


def timed(
    calls: dict[Any, Call], steps: dict[Any, int] | int, rounds: int
) -> dict[Any, list[float]]:
    """Microseconds of a step of each, round by round."""
    samples = interleaved(calls, rounds)
    each = steps if isinstance(steps, dict) else dict.fromkeys(calls, steps)
    return {
        name: [1e6 * value / each[name] for value in values] for name, values in samples.items()
    }


def median(values: Iterable[float]) -> float:
    return significant(statistics.median(values))


def fastest(values: Iterable[float]) -> float:
    return significant(min(values))


# The figures. Each yields rows, dicts, of which those with the same keys make a table.


def of_rows(settings: Settings) -> Iterator[Row]:
    size, steps = settings.batch, settings.row_steps
    calls: dict[Any, Call] = {}
    for num in settings.nums:
        x, y = map(jnp.asarray, rows.problem(num, settings.dim))
        calls["minisvi", num] = rows.with_minisvi(x, y, size, steps)
        calls["its rows alone", num] = rows.rows_alone(num, size, steps)
        calls["by hand", num] = rows.by_hand(x, y, size, steps)
    samples = timed(calls, steps, settings.rounds)
    first = settings.nums[0]
    for num in settings.nums:
        seconds = 1e-6 * fastest(samples["minisvi", num])
        yield {
            "N": num,
            **{
                f"{name}, us a step": fastest(samples[name, num])
                for name in ("minisvi", "its rows alone", "by hand")
            },
            "minisvi, rows a second": significant(size / seconds),
            "over its first": ratio(samples["minisvi", num], samples["minisvi", first]),
            "by hand over its first": ratio(samples["by hand", num], samples["by hand", first]),
        }
    for name in ("minisvi", "its rows alone", "by hand"):
        yield {
            "slope on N": name,
            **slopes(settings.nums, [fastest(samples[name, num]) for num in settings.nums]),
        }


def of_rivals(settings: Settings) -> Iterator[Row]:
    for num, dim, size in settings.rivals:
        x, y = map(jnp.asarray, rows.problem(num, dim))
        steps = max(settings.row_steps * 256 // size, 20)
        few = max(
            min(steps, int(settings.row_steps * 1e4 / num)), 10
        )  # NumPyro's step grows with N
        each = {"minisvi": steps, "by hand": steps, "numpyro": few}
        calls = {name: rows.ENGINES[name](x, y, size, each[name]) for name in each}
        same_start({name: np.asarray(call()[:20]) for name, call in calls.items()})
        samples = timed(calls, each, settings.rounds)
        yield {
            "N": num,
            "columns": dim,
            "batch": size,
            **{f"{name}, us a step": fastest(values) for name, values in samples.items()},
            "by hand / minisvi": ratio(samples["by hand"], samples["minisvi"]),
            "numpyro / minisvi": ratio(samples["numpyro"], samples["minisvi"]),
        }
        jax.clear_caches()


def same_start(losses: dict[str, Any]) -> None:
    """Stop unless the first losses of all have the same mean, within five standard errors: batches
    differ.
    """
    for name, loss in losses.items():
        expected = losses["by hand"]
        error = math.sqrt((np.var(expected) + np.var(loss)) / min(len(loss), len(expected)))
        np.testing.assert_allclose(
            loss.mean(), expected.mean(), rtol=1e-3, atol=5 * error, err_msg=name
        )


def of_streams(settings: Settings) -> Iterator[Row]:
    num = int(settings.file_bytes / 4 / (settings.dim + 1))
    with tempfile.TemporaryDirectory() as folder:
        if shutil.disk_usage(folder).free < 2 * settings.file_bytes:
            raise SystemExit(f"streams: {folder} has no room for {settings.file_bytes:.2g} bytes")
        path = Path(folder) / "table"
        table = rows.write(path, num, settings.dim)
        memory = jnp.asarray(np.array(table))
        for model, sizes, share in (
            ("logistic", settings.stream_batches, 1),
            ("network", settings.network_batches, 8),
        ):
            for size in sizes:
                yield from race_streams(model, table, memory, size, num // size // share, settings)
        yield from cold(path, table, max(settings.stream_batches), settings)


def race_streams(
    model: str, table: np.ndarray, memory: Any, size: int, steps: int, settings: Settings
) -> Iterator[Row]:
    num = len(table)
    svi, source = rows.of_table(model, settings.dim), rows.in_order(table, size)

    def fit(batches: Any, *data: Any) -> Any:
        return (
            replace(svi, batches=batches)
            .run(jax.random.key(0), steps, *data, progress_bar=False)
            .elbo
        )

    calls: dict[str, Call] = {
        "stream": lambda: fit(svi.batches, Stream(source, num_data=num)),
        "Minibatches": lambda: fit(Minibatches(size), memory),
        "in order": lambda: fit(rows.InOrder(size), memory),
        "read": lambda: sum(
            bool(np.isnan(batch.min())) for batch, _ in zip(source(0), range(steps))
        ),
    }
    np.testing.assert_allclose(calls["stream"]()[:50], calls["in order"]()[:50], rtol=1e-3)
    samples = timed(calls, steps, settings.stream_rounds)
    yield {
        "model": model,
        "batch": size,
        **{f"{name}, us a step": fastest(values) for name, values in samples.items()},
        "Minibatches / stream": ratio(samples["Minibatches"], samples["stream"]),
        "in order / stream": ratio(samples["in order"], samples["stream"]),
    }


def cold(path: Path, table: np.ndarray, size: int, settings: Settings) -> Iterator[Row]:
    if not hasattr(os, "posix_fadvise"):
        return
    svi, steps, source = (
        rows.of_table("logistic", settings.dim),
        len(table) // size,
        rows.in_order(table, size),
    )

    def drop() -> None:
        table._mmap.madvise(4)  # MADV_DONTNEED, for mapped pages stay
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read() -> None:
        drop()
        with path.open("rb", buffering=0) as file:
            while file.read(2**24):
                pass

    def stream() -> Any:
        drop()
        return svi.run(
            jax.random.key(0), steps, Stream(source, num_data=len(table)), progress_bar=False
        ).elbo

    samples = interleaved({"read": read, "stream": stream}, 2 if settings.rounds > 1 else 1)
    gigabytes = 1e-9 * table.nbytes
    yield {
        "cold file": f"{gigabytes:.1f} GB, batch {size:,}",
        **{
            f"{name}, GB/s": significant(gigabytes / statistics.median(values))
            for name, values in samples.items()
        },
        "read / stream": ratio(samples["read"], samples["stream"]),
    }


def of_dims(settings: Settings) -> Iterator[Row]:
    for family in settings.families:
        make, work = partial(blocks.by_dim, family), partial(pairs.num_params, family)
        yield from sweep("D", settings.dims, make, work, settings)


def of_particles(settings: Settings) -> Iterator[Row]:
    dim = settings.sweep_dim
    yield from sweep(
        "particles",
        settings.particles,
        partial(blocks.by_particles, dim),
        lambda k: k * dim,
        settings,
    )


def of_restarts(settings: Settings) -> Iterator[Row]:
    dim = settings.sweep_dim
    yield from sweep(
        "restarts",
        settings.restarts,
        partial(blocks.by_restarts, dim),
        lambda r: 2 * r * dim,
        settings,
    )


def sweep(
    name: str,
    sizes: tuple[int, ...],
    make: Callable[[int, int], blocks.Block],
    work: Any,
    settings: Settings,
) -> Iterator[Row]:
    """Time and memory of a block by its size; `work(size)` floats are gone through in a step."""
    steps = {size: int(np.clip(settings.effort / (work(size) + 5_000), 5, 4_000)) for size in sizes}
    calls = {size: make(size, steps[size]) for size in sizes}
    samples = timed(calls, steps, settings.rounds)
    times = [fastest(samples[size]) for size in sizes]
    memory = [calls[size].memory for size in sizes]
    what = getattr(make, "args", ("",))[0]
    label = {"family": what} if isinstance(what, str) else {"D": what}
    for size, micros, num_bytes in zip(sizes, times, memory, strict=True):
        yield {
            **label,
            name: size,
            "us a step": micros,
            "over the smallest": ratio(samples[size], samples[sizes[0]]),
            "memory, MB": significant(1e-6 * num_bytes),
        }
    yield {**label, f"slope on {name}": "time", **slopes(sizes, times)}
    yield {**label, f"slope on {name}": "memory", **slopes(sizes, [float(m) for m in memory])}


def of_checkpoints(settings: Settings) -> Iterator[Row]:
    for dim in settings.checkpoint_dims:
        pace = seconds_of(lambda steps, dim=dim: checkpointed(dim, steps, None))
        steps = max(int(settings.checkpoint_seconds / pace), 10)
        runs = {None: [], math.inf: [], settings.checkpoint_every: []}
        for round in range(-1, settings.checkpoint_rounds):  # one before, that compiles and imports
            for every in sorted(runs, key=str, reverse=bool(round % 2)):
                found = checkpointed(dim, steps, every)
                runs[every] += [found] if round >= 0 else []
        none, end, often = runs.values()
        cost, cpu = (
            [(o[i] - e[i]) / max(o.count - e.count, 1) for o, e in zip(often, end, strict=True)]
            for i in (0, 1)
        )
        yield {
            "D": dim,
            "run, s": median([run.seconds for run in none]),
            "checkpoints": median([run.count for run in often]),
            "a checkpoint, s": median(cost),
            "range, s": [significant(min(cost)), significant(max(cost))],
            "of all threads, s": median(cpu),
            "the loop waits, s": median([run.waited / max(run.count, 1) for run in often]),
            "every 30 s, %": significant(100 * max(map(statistics.median, (cost, cpu))) / 30),
            "once a run, s": median(
                [e.seconds - n.seconds for e, n in zip(end, none, strict=True)]
            ),
        }
    if settings.long_seconds:
        yield long_runs(settings.checkpoint_dims[-1], settings.long_seconds)


def long_runs(dim: int, seconds: float) -> Row:
    """The first has a budget of seconds, and the others as many steps as that had time for."""
    before = checkpointed(dim, 10_000_000, None, seconds)
    run = checkpointed(dim, before.steps, 30.0)
    after = checkpointed(dim, before.steps, None)
    return {
        "real runs, D": dim,
        "steps": before.steps,
        "without, s": significant(before.seconds),
        "every 30 s, s": significant(run.seconds),
        "without again, s": significant(after.seconds),
        "checkpoints": run.count,
        "the loop waits, s": significant(run.waited),
        "ratio to their mean": significant(2 * run.seconds / (before.seconds + after.seconds)),
        "of all threads": significant(2 * run.cpu / (before.cpu + after.cpu)),
    }


class Run(NamedTuple):
    seconds: float
    cpu: float  # seconds of all threads
    count: int  # of checkpoints
    waited: float  # seconds until they were on their way
    steps: int


def checkpointed(dim: int, steps: int, every: float | None, seconds: float = math.inf) -> Run:
    svi, state = pairs.with_minisvi("mean_field", "ELBO", dim)
    svi, data, waits = replace(svi, optimizer=blocks.ADAM), pairs.problem(dim)[0], []
    save = Checkpoints.save

    def clocked(self: Checkpoints, saved: Any) -> None:
        begin = time.perf_counter()
        save(self, saved)
        waits.append(time.perf_counter() - begin)

    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = (
            {} if every is None else {"checkpoint_dir": folder, "checkpoint_every": every}
        )
        Checkpoints.save = clocked
        try:
            begin, cpu = time.perf_counter(), time.process_time()
            options |= {"params": state.params, "seconds": seconds, "progress_bar": False}
            taken = len(svi.run(state.key, steps, data, **options).elbo)
            return Run(
                time.perf_counter() - begin,
                time.process_time() - cpu,
                len(waits),
                sum(waits),
                taken,
            )
        finally:
            Checkpoints.save = save


def seconds_of(run: Callable[[int], Run]) -> float:
    """A step's, of runs that are ever longer, so that the last is nearly all steps."""
    steps = 20
    run(steps)
    while (found := run(steps).seconds) < 0.5:
        steps *= 4
    return found / steps


def of_local(settings: Settings) -> Iterator[Row]:
    size, times = settings.batch, []
    for num in settings.local:
        steps = int(np.clip(settings.effort / (num + 5_000), 10, 2_000))
        calls: dict[str, Any] = dict(blocks.hierarchy_pieces(num, size, steps))
        svi, data = blocks.hierarchy("amortised", num, size)
        calls["amortised, whole step"] = blocks.Block(svi, steps, *data)
        samples = timed(calls, steps, settings.rounds)
        times.append(fastest(samples["whole step"]))
        for name, values in samples.items():
            yield {
                "N": num,
                "piece": name,
                "us a step": fastest(values),
                "of the whole": ratio(values, samples["whole step"]),
                "memory, MB": significant(1e-6 * calls[name].memory) if "whole" in name else "",
            }
        jax.clear_caches()
    if len(times) > 1:
        yield {"slope on N": "per_row, whole step", **slopes(settings.local, times)}


def of_remat(settings: Settings) -> Iterator[Row]:
    for kind, num, size, chunks in settings.remat:
        calls = blocks.rematerialised(kind, num, size, chunks, 2)
        samples = timed(calls, 2, min(settings.rounds, 5))
        for name, block in calls.items():
            yield {
                "likelihood": f"{kind}, {num:,} rows",
                "way": name,
                "temporaries, MB": significant(1e-6 * block.temporary),
                "ms a step": significant(1e-3 * fastest(samples[name])),
                "time over plain": ratio(samples[name], samples["plain"]),
            }


def of_gpu(settings: Settings) -> Iterator[Row]:
    if jax.default_backend() != "gpu":
        yield {"gpu": "not measured on a GPU"}
        return
    yield from on_gpu(settings)


def on_gpu(settings: Settings) -> Iterator[Row]:
    """A step reads and writes the parameters, Adam's moments and the gradient once, at least."""
    kind, dim, steps = jax.devices()[0].device_kind, settings.gpu_dim, 200
    copy, copied = pieces.copy(4 * dim)
    samples = interleaved(
        {"step": blocks.by_dim("mean_field", dim, steps), "copy": copy}, settings.rounds
    )
    moved = steps * pieces.step_bytes(2 * dim) / statistics.median(samples["step"])
    peak = next((rate for name, rate in GPU_BYTES.items() if name in kind), None)
    yield {
        "card": kind,
        "D": dim,
        "step, GB/s": significant(1e-9 * moved),
        "x + 1, GB/s": significant(1e-9 * copied / statistics.median(samples["copy"])),
        "card, GB/s": significant(1e-9 * peak) if peak else "unknown",
        "step / card": significant(moved / peak) if peak else "unknown",
    }
    starts = {count: blocks.by_restarts(settings.sweep_dim, count, 1_000) for count in (1, 64)}
    samples = timed(starts, 1_000, settings.rounds)
    yield {
        "restarts": 64,
        "D": settings.sweep_dim,
        "us a step": fastest(samples[64]),
        "over one": ratio(samples[64], samples[1]),
    }
    network, num_weights = blocks.bnn(settings.gpu_network, 1_024, steps)
    samples = timed({"network": network}, steps, settings.rounds)
    yield {
        "network": str(settings.gpu_network),
        "weights": num_weights,
        "rows": 1_024,
        "us a step": fastest(samples["network"]),
        "memory, MB": significant(1e-6 * network.memory),
    }


FIGURES: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "rows": of_rows,
    "rivals": of_rivals,
    "streams": of_streams,
    "dims": of_dims,
    "particles": of_particles,
    "restarts": of_restarts,
    "checkpoints": of_checkpoints,
    "local": of_local,
    "remat": of_remat,
    "gpu": of_gpu,
}


# What is reported.


def judge(figures: dict[str, list[Row]]) -> list[Row]:
    goals: list[Row] = []

    def goal(name: str, measured: float, met: bool) -> None:
        goals.append({"goal": name, "measured": measured, "met": met})

    for row in figures.get("rows", []):
        if row.get("slope on N") == "its rows alone":
            goal("rows: slope on N of choosing them <= 0.05", row["all"], row["all"] <= 0.05)
        if row.get("slope on N") == "minisvi":
            goal("rows: slope on N of the step <= 0.05", row["all"], row["all"] <= 0.05)
    for row in figures.get("rivals", []):
        where = f"N = {row['N']:,}, {row['columns']} columns, batch {row['batch']:,}"
        measured = row["by hand / minisvi"]["median"]
        goal(f"rivals: {where}: by hand / minisvi >= 0.95", measured, measured >= 0.95)
        if row["N"] == 1_000_000 and row["batch"] == 256:
            measured = row["numpyro / minisvi"]["median"]
            goal(f"rivals: {where}: numpyro / minisvi >= 10", measured, measured >= 10)
    for row in figures.get("streams", []):
        for against in ("Minibatches / stream", "in order / stream") if "model" in row else ():
            measured = row[against]["median"]
            goal(
                f"streams: {row['model']}, batch {row['batch']:,}: {against} >= 0.9",
                measured,
                measured >= 0.9,
            )
    for name in ("dims", "particles", "restarts"):
        for row in figures.get(name, []):
            for on in (key for key in row if key.startswith("slope on ")):
                measured = row["upper half"]
                label = f"{row['family']}, " if "family" in row else ""
                goal(
                    f"{name}: {label}{on} of {row[on]}, upper half <= 1.05",
                    measured,
                    measured <= 1.05,
                )
    for row in figures.get("checkpoints", []):
        if "every 30 s, %" in row:
            measured = row["every 30 s, %"]
            goal(f"checkpoints: D = {row['D']:,}: every 30 s <= 2 %", measured, measured <= 2)
    return goals


def tables(rows: list[Row]) -> str:
    """Markdown, one for each set of keys that follow each other."""
    groups: list[list[Row]] = []
    for row in rows:
        if not groups or list(groups[-1][0]) != list(row):
            groups.append([])
        groups[-1].append(row)
    return "\n\n".join(table(group) for group in groups)


def table(rows: list[Row]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    lines = [line(rows[0]), line("---" for _ in rows[0])]
    return "\n".join(lines + [line(map(cell, row.values())) for row in rows])


def cell(value: Any) -> str:
    if isinstance(value, dict):
        low, high = value["range"]
        return f"{value['median']:.3g} ({low:.2g} to {high:.2g})"
    if isinstance(value, list):
        return " to ".join(f"{v:.3g}" for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:.4g}"
        if isinstance(value, float)
        else str(value)
    )


def measure(
    names: Iterable[str], settings: Settings, date: str
) -> tuple[dict[str, list[Row]], Row]:
    """The figures; and of each when, and the load of the machine before and after: above its cores,
    others worked.
    """
    figures, runs = {}, {}
    for name in names:
        for _ in progress(name, 1):
            before = os.getloadavg()[0]
            figures[name] = list(FIGURES[name](settings))
            runs[name] = {
                "date": date,
                "load": [significant(load) for load in (before, os.getloadavg()[0])],
            }
            jax.clear_caches()
        print(
            f"\n{name} (load of the machine {cell(runs[name]['load'])})\n\n{tables(figures[name])}",
            flush=True,
        )
    return figures, runs


def main() -> None:
    parser = argparse.ArgumentParser(
        description="how time and memory grow, and what streams and checkpoints cost"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="small and short; writes JSON only to --output"
    )
    parser.add_argument("--only", choices=FIGURES, help="one figure")
    parser.add_argument(
        "--date", default=datetime.date.today().isoformat(), help="the date to record"
    )
    parser.add_argument(
        "--output", type=Path, help="default: results/scale.json beside this script"
    )
    options = parser.parse_args()
    settings = SMOKE if options.smoke else Settings()
    jax.config.update(
        "jax_disable_most_optimizations", options.smoke
    )  # compiling is all that a smoke run does
    figures, runs = measure([options.only] if options.only else FIGURES, settings, options.date)
    output = options.output or (None if options.smoke else RESULTS)
    if options.only and output and output.exists():
        before = json.loads(output.read_text())
        figures, runs = before["figures"] | figures, before["runs"] | runs
    goals = judge(figures)
    if options.smoke:
        print("\nA smoke run: it shows that everything runs; its figures mean nothing.")
    elif goals:
        print("\ngoals\n\n" + table(goals))
    if output:
        report = {"date": options.date, "machine": machine(), "backend": jax.default_backend()}
        report |= {
            "versions": versions(PACKAGES),
            "settings": settings._asdict(),
            "runs": runs,
            "goals": goals,
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report | {"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
