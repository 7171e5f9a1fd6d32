"""Seconds to a right answer of a new model: `minisvi.fit` of this commit, of an old one, NumPyro's
best guide and BlackJAX's NUTS.

    python benchmarks/first_fit.py                 # all cells, results/first_fit.json, the table
    python benchmarks/first_fit.py --smoke         # a minute: does it run? It measures nothing
    python benchmarks/first_fit.py --targets gamma --engines minisvi,BlackJAX    # these cells
    python benchmarks/first_fit.py --old COMMIT    # another old commit
    python benchmarks/first_fit.py --table         # the file's table again

Each cell, an engine on a target, is a fresh process without a persistent compilation cache. Engines
take turns within a round, and each round has another seed. Figures are medians over the rounds, and
a ratio is the median of the rounds' ratios. The old commit is unpacked into a temporary directory,
which is the first on the process's path. The JSON names both commits, and says whether this one has
changes that are not committed.

Targets: the concentration of 1,000 Gamma draws (D = 1), eight schools, centred (D = 10), logistic
regression of the breast cancer data (D = 31), and a hierarchy of 20 intercepts and two unknown
scales, not centred (D = 23).

The fits:

- first fit: the process's first, of a model that JAX has not seen.
- second fit: then the same model, on as many rows drawn of the same ones.
- new N: then the same model on one row less. Eight schools has none: its latents are its rows.

The figures:

- seconds: from the call to numbers on the host: compilation, fit, draws and their moments.
  Importing the engine, and NumPyro's and BlackJAX's own, is apart.
- programs, XLA s: how many programs XLA compiled during the fit, and how long this took.
- maps, MiB: memory maps and resident memory, after the fit less before.
- mean_err, sd_err: root mean square over the quantities of (mean - truth) / true sd, and of sd /
  true sd - 1. The truths are those of `field.py`; of the hierarchy, a quadrature.

NumPyro's guide of each target is the one of its three first that was the most accurate, with
20,000 steps of Adam and 10 particles, then 10,000 draws. NUTS: 2 chains
of 1,000 + 2,000 from uniform(-2, 2), one after the other in one program: that is faster here than
`vmap`, 4.8 s against 8.2 s on eight schools.
"""

import argparse
import datetime
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from common import machine, significant, summary, turn, versions
from field_cells import chosen, tidy

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "first_fit.json"
OLD = "da68593"  # the last commit before random numbers and statistics moved to the host
TARGETS = ("gamma", "eight_schools", "breast_cancer", "varying_intercepts")
ENGINES = ("minisvi", "old minisvi", "NumPyro", "BlackJAX")
FITS = ("first fit", "second fit", "new N")
PACKAGES = ["jax", "jaxlib", "optax", "numpyro", "blackjax", "numpy", "scipy"]
SMOKE_EFFORT = 0.01
GOALS = [
    ("gamma", "first fit", 0.25),
    ("eight_schools", "first fit", 0.35),
    ("gamma", "new N", 0.25),
    ("breast_cancer", "new N", 0.25),
]  # seconds of this commit over those of the old one, at most

Sample = dict[str, Any]  # target, engine, round, and a cell's figures


# Cells.


def unpack(commit: str, folder: str) -> None:
    """The package at `commit`, in the folder."""
    archive = ["git", "-C", str(ROOT), "archive", "--format=tar", commit, "minisvi"]
    packed = subprocess.run(archive, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(folder, filter="data")


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commits(old: str) -> dict[str, Any]:
    """Which two commits are compared."""
    changes = git("status", "--porcelain", "--", "minisvi")
    return {
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(changes),
        "old_commit": git("rev-parse", old),
    }


def child(target: str, engine: str, round: int, root: str, options: argparse.Namespace) -> Sample:
    """The figures of a cell in a fresh process; a failure or a time limit is a figure too."""
    command = [sys.executable, __file__, "--cell", target, engine, str(round), root]
    command += ["--effort", str(options.effort)]
    environment = {n: v for n, v in os.environ.items() if not ("JAX" in n and "CACHE" in n)}
    environment["JAX_ENABLE_X64"] = "1" if options.precision == "float64" else "0"
    environment["PYTHONPATH"] = root
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=options.limit
        )
    except subprocess.TimeoutExpired:
        return {"status": "time limit"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"status": "failed", "reason": last[0][:300]}
    return {"status": "ok"} | json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> list[Sample]:
    """All cells, round after round; the file as it stands after each round."""
    samples: list[Sample] = []
    facts = report(options)
    with tempfile.TemporaryDirectory() as old_root:
        if "old minisvi" in options.engines:
            unpack(options.old, old_root)
        for round in range(options.repeats):
            for target in options.targets:
                for engine in turn(options.engines, round):
                    root = old_root if engine == "old minisvi" else str(ROOT)
                    figures = child(target, engine, round, root, options)
                    name = {"target": target, "engine": engine, "round": round}
                    samples.append(name | figures)
                    progress = f"{round}: {target}, {engine}: {said(figures)}"
                    print(progress, file=sys.stderr, flush=True)
            if options.output:
                save(options.output, facts | {"rounds": round + 1}, samples)
    return samples


def said(figures: Sample) -> str:
    if figures["status"] != "ok":
        return f"{figures['status']} {figures.get('reason', '')}"
    fits = figures["fits"].items()
    return ", ".join(f"{name} {fit['seconds']:.2f} s" for name, fit in fits)


# The file.


def report(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "date": options.date,
        "precision": options.precision,
        "machine": machine(),
        "versions": versions(PACKAGES),
        **commits(options.old),
    }


def save(output: Path, facts: dict[str, Any], samples: list[Sample]) -> None:
    """Write the file, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    contents = facts | {"goals": goals(samples), "cells": cells(samples), "samples": samples}
    written = output.with_suffix(".part")
    written.write_text(json.dumps(contents, indent=1) + "\n")
    written.replace(output)


def cells(samples: list[Sample]) -> list[dict[str, Any]]:
    """The medians of each fit of each engine on each target, and what minisvi takes of its time."""
    found = []
    for target in TARGETS:
        for fit in FITS:
            for engine in ENGINES:
                rounds = rounds_of(samples, target, engine, fit)
                if rounds:
                    ratio = ratio_to(samples, target, engine, fit)
                    name = {"target": target, "fit": fit, "engine": engine}
                    found.append(name | {"minisvi_over_it": ratio} | medians(rounds))
    return found


def rounds_of(samples: list[Sample], target: str, engine: str, fit: str) -> dict[int, Sample]:
    """The figures of a fit by round, of the rounds that went well."""
    found = {}
    for sample in samples:
        is_cell = (sample["target"], sample["engine"]) == (target, engine)
        if is_cell and sample["status"] == "ok" and fit in sample["fits"]:
            known = {"import_s": sample["import_s"], "dim": sample["dim"]}
            found[sample["round"]] = known | sample["fits"][fit]
    return found


def medians(rounds: dict[int, Sample]) -> dict[str, Any]:
    """The median of each number, the range of the seconds, and all verdicts."""
    first = next(iter(rounds.values()))
    figures: dict[str, Any] = {}
    for name, value in first.items():
        if isinstance(value, (int, float)):
            values = [sample[name] for sample in rounds.values()]
            figures[name] = significant(statistics.median(values))
    figures["range_s"] = summary([sample["seconds"] for sample in rounds.values()])["range"]
    for name in ("verdict", "guide"):
        if name in first:
            figures[name] = ", ".join(sorted({sample[name] for sample in rounds.values()}))
    return figures


def ratio_to(samples: list[Sample], target: str, engine: str, fit: str) -> float | None:
    """The median over the rounds of minisvi's seconds over the engine's; None without both."""
    mine = rounds_of(samples, target, "minisvi", fit)
    theirs = rounds_of(samples, target, engine, fit)
    ratios = [mine[r]["seconds"] / theirs[r]["seconds"] for r in mine.keys() & theirs.keys()]
    return significant(statistics.median(ratios)) if ratios else None


def goals(samples: list[Sample]) -> list[dict[str, Any]]:
    """Each goal with what was measured, of those that were."""
    found = []
    for target, fit, bound in GOALS:
        ratio = ratio_to(samples, target, "old minisvi", fit)
        if ratio is not None:
            name = {"target": target, "fit": fit, "at_most": bound}
            found.append(name | {"measured": ratio, "met": ratio <= bound})
    return found


# The table.

COLUMNS = ("seconds", "minisvi / it", "import s", "programs", "XLA s", "maps", "MiB")


def table(samples: list[Sample]) -> str:
    """Markdown, a row for each fit of each engine."""
    head = ["target", "fit", "engine", *COLUMNS, "verdict", "mean_err", "sd_err"]
    lines = [line(head), "|---|---|---|" + "---:|" * len(COLUMNS) + "---|---:|---:|"]
    shown = ""
    for cell in cells(samples):
        target = f"{cell['target']}, D = {cell['dim']:.0f}"
        lines.append(row(target if target != shown else "", cell))
        shown = target
    return "\n".join(lines)


def row(target: str, cell: dict[str, Any]) -> str:
    ratio = "" if cell["engine"] == "minisvi" else number(cell["minisvi_over_it"], 2)
    engine = f"NumPyro's {cell['guide']}" if "guide" in cell else cell["engine"]
    figures = [
        number(cell["seconds"], 2),
        ratio,
        number(cell["import_s"], 2) if cell["fit"] == "first fit" else "",
        number(cell["programs"], 0),
        number(cell["xla_seconds"], 2),
        number(cell["maps"], 0),
        number(cell["mib"], 0),
        cell.get("verdict", ""),
        number(cell.get("mean_err"), 3),
        number(cell.get("sd_err"), 3),
    ]
    return line([target, cell["fit"], engine, *figures])


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def line(columns: list[str]) -> str:
    return "| " + " | ".join(columns) + " |"


# The command line.


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="seconds to a right answer of a new model")
    parser.add_argument("--cell", nargs=4, metavar=("TARGET", "ENGINE", "SEED", "ROOT"))
    parser.add_argument("--targets", help="some of the targets, by commas")
    parser.add_argument("--engines", help="some of the engines, by commas")
    parser.add_argument("--old", default=OLD, help="the old commit")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--precision", choices=("float32", "float64"), default="float32")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds of a cell")
    parser.add_argument("--effort", type=float, default=1.0, help="share of the peers' steps")
    parser.add_argument("--smoke", action="store_true", help="one target, one round, few steps")
    parser.add_argument("--table", action="store_true", help="print the table of the file")
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--output", type=Path, help="default: results/first_fit.json")
    options = parser.parse_args()
    options.targets = chosen(options.targets, TARGETS, ("gamma",) if options.smoke else TARGETS)
    options.engines = chosen(options.engines, ENGINES, ENGINES)
    if options.smoke:
        # A clone may not have the old commit.
        options.effort, options.repeats, options.old = SMOKE_EFFORT, 1, "HEAD"
    options.output = options.output or (None if options.smoke else RESULTS)
    return options


def main() -> None:
    options = parse()
    if options.cell:
        import first_fit_cells

        target, engine, seed, root = options.cell
        figures = first_fit_cells.cell(target, engine, int(seed), options.effort, root)
        print(json.dumps(tidy(figures)))
        return
    if options.table:
        print(table(json.loads((options.output or RESULTS).read_text())["samples"]))
        return
    samples = measure(options)
    print(table(samples))
    if options.smoke:
        print("\nA smoke run: it shows that everything runs; its figures mean nothing.")
    failed = [sample for sample in samples if sample["status"] != "ok"]
    if options.smoke and failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
