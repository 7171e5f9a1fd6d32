"""Cells of field.py: an engine on a target, in a process of its own, and the file of all of them.

The driver's process loads no JAX.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import machine, versions
from field_engines import catalogue

PACKAGES = [
    "jax",
    "jaxlib",
    "optax",
    "numpyro",
    "blackjax",
    "flowjax",
    "tfp-nightly",
    "inference_gym",
    "scikit-learn",
    "numpy",
]
TARGETS = (
    "gamma",
    "correlated_gaussian",
    "ill_conditioned_gaussian",
    "breast_cancer",
    "eight_schools",
    "banana",
    "funnel",
    "brownian_motion",
    "stochastic_volatility",
    "lorenz",
    "cox_process",
    "item_response",
    "two_moons",
)  # by name, so that the driver loads no JAX
ENGINES = tuple(catalogue.ENGINES)
LONG = 15.0  # seconds of a first call after which there is no second one

Cell = dict[str, Any]


# One cell, in its own process.


def cell(target: str, engine: str, seed: int, effort: float) -> Cell:
    """The figures of one engine on one target, in this process."""
    import accuracy_targets
    import jax
    from field_engines.figures import SkippedError

    posterior = accuracy_targets.TARGETS[target]()
    known = {
        "dim": posterior.dim,
        "reference": posterior.source,
        "log_evidence_reference": posterior.log_evidence,
        "backend": jax.default_backend(),
    }
    if effort != 1:
        known["effort"] = effort
    try:
        answers = answers_of(target, posterior, catalogue.ENGINES[engine], [seed, seed + 1], effort)
    except SkippedError as reason:
        return known | {"status": "skipped", "reason": str(reason)}
    return known | {"status": "ok"} | figures(posterior, answers)


def answers_of(
    name: str, target: Any, engine: catalogue.Engine, seeds: list[int], effort: float
) -> Any:
    """The answers of a first and of a second call, with a new key, and the seconds of each."""
    from field_engines import foreign
    from field_engines.figures import SkippedError

    if engine.environment:
        return foreign.calls(engine.environment, engine.method, name, target, seeds, effort)
    if not catalogue.installed(engine):
        raise SkippedError(f"{engine.package} is not installed")
    return timed(catalogue.load(engine), target, seeds, effort)


def timed(method: Any, target: Any, seeds: list[int], effort: float) -> Any:
    """From the call to numbers on the host. What a user keeps between two calls, such as a guide
    and an optimizer, is made within the first.
    """
    from field_engines.figures import host_moments

    answers = []
    begin = time.perf_counter()
    fit = method(target, effort)
    for seed in seeds:
        answer = fit(seed)
        host_moments(answer)
        seconds = time.perf_counter() - begin
        answers.append((answer, seconds))
        if seconds > LONG:
            break
        begin = time.perf_counter()
    return answers


def figures(target: Any, answers: Any) -> Cell:
    """Errors are those of the first call. The second call's are kept beside them."""
    from field_engines.figures import moments

    (first, cold), *others = answers
    found = {"seconds": cold, "said": first.said} | first.figures
    found |= moments(target, first.draws, first.weights)
    if first.judge is not None:
        found |= first.judge()
    for second, warm in others:
        found["warm_seconds"] = warm
        found["warm"] = moments(target, second.draws, second.weights)
    return found


# The same from the driver.


def child(target: str, engine: str, options: argparse.Namespace) -> Cell:
    """A cell in a fresh process; a failure or a time limit is a figure too."""
    script = Path(__file__).with_name("field.py")
    command = [sys.executable, str(script), "--cell", target, engine, "--seed", str(options.seed)]
    command += ["--effort", str(options.effort)]
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            env=environment(options.precision),
            capture_output=True,
            text=True,
            timeout=options.limit,
        )
    except subprocess.TimeoutExpired:
        return {"status": "time limit", "limit_s": options.limit}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"status": "failed", "reason": last[0][:300], "returncode": done.returncode}
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"process_seconds": time.perf_counter() - begin}


def environment(precision: str) -> dict[str, str]:
    """No compilation cache, and the precision."""
    kept = {n: v for n, v in os.environ.items() if not ("JAX" in n and "CACHE" in n)}
    return kept | {"JAX_ENABLE_X64": "1" if precision == "float64" else "0"}


def tidy(value: Any) -> Any:
    """Eight digits, and strings for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: tidy(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [tidy(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else str(value)
    return value


def run(options: argparse.Namespace) -> list[Cell]:
    """The chosen cells in turn, the engines of a target beside each other; the file as it stands
    after each.
    """
    cells: list[Cell] = []
    for target in options.targets:
        for engine in options.engines:
            found = named(target, engine, options) | tidy(child(target, engine, options))
            print(f"{target}, {engine}: {summary(found)}", file=sys.stderr, flush=True)
            cells.append(found)
            if options.output:
                save(options, found)
    return cells


def named(target: str, engine: str, options: argparse.Namespace) -> Cell:
    return {
        "target": target,
        "engine": engine,
        "library": catalogue.ENGINES[engine].library,
        "seed": options.seed,
        "precision": options.precision,
        "date": options.date,
    }


def summary(cell: Cell) -> str:
    if cell["status"] != "ok":
        return f"{cell['status']} {cell.get('reason', '')}"
    shown = ("gap", "mean_err", "sd_err", "test_nll", "k_hat", "seconds", "warm_seconds", "said")
    return ", ".join(f"{name} {cell[name]}" for name in shown if name in cell)


# The file.


def identity(cell: Cell) -> tuple[Any, ...]:
    return tuple(cell[name] for name in ("target", "engine", "seed", "precision"))


def load(path: Path) -> list[Cell]:
    return json.loads(path.read_text())["cells"] if path.exists() else []


def save(options: argparse.Namespace, cell: Cell) -> None:
    """Replace one cell of the file, whole or not at all."""
    kept = [other for other in load(options.output) if identity(other) != identity(cell)]
    report = {
        "date": options.date,
        "machine": machine(),
        "versions": versions(PACKAGES) | environment_versions(),
        "limit_s": options.limit,
        "cells": sorted([*kept, cell], key=order),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    written = options.output.with_suffix(".part")
    written.write_text(json.dumps(report, indent=1) + "\n")
    written.replace(options.output)


def order(cell: Cell) -> tuple[Any, ...]:
    target, engine = TARGETS.index(cell["target"]), ENGINES.index(cell["engine"])
    return target, engine, cell["precision"], cell["seed"]


def environment_versions() -> dict[str, str]:
    """Of the packages that have an environment of their own."""
    found = {}
    for folder in sorted(environments().glob("*/lib/python*/site-packages/*.dist-info")):
        name, _, version = folder.name.removesuffix(".dist-info").partition("-")
        if name in ("pyro_ppl", "torch", "pymc", "pymc_extras", "pytensor"):
            found[name] = version
    return found


def environments() -> Path:
    return Path(__file__).with_name(".environments")


def chosen(text: str | None, known: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text else default
    unknown = set(names) - set(known)
    if unknown:
        raise SystemExit(f"expected some of {', '.join(known)}; got {', '.join(sorted(unknown))}")
    return names
