"""How close answers are to the truth: `minisvi.fit` beside NumPyro's guides and NUTS, on thirteen
posteriors.

    python benchmarks/accuracy.py                     # all cells, results/accuracy.json, the table
    python benchmarks/accuracy.py --smoke             # a minute: does it run? It measures nothing
    python benchmarks/accuracy.py --targets funnel,gamma --engines minisvi.fit,NUTS   # these cells
    python benchmarks/accuracy.py --table             # the file's table again
    python benchmarks/accuracy.py --check             # are densities and determinants right?
    python benchmarks/accuracy.py --references        # truths: accuracy_references.py
    python benchmarks/accuracy.py --cell funnel NUTS  # one cell in this process: one line of JSON

Each cell, an engine on a target, is a fresh process under a time limit, so that compilation counts,
and a crash or a hang costs one cell. The results file is updated after every cell; a run may be
split, or a cell repeated. The targets are in `accuracy_targets.py`, the engines and the clock in
`accuracy_engines.py`.

The figures of a cell:

- gap: log evidence - ELBO in nats, which is the KL from q to the posterior. It depends on the
  constraining map, which is the same for all here. The evidence itself is known to 0.3 nats on the
  Lorenz system, 0.04 on item response, 0.03 on the Cox process and 0.01 on stochastic volatility;
  elsewhere to 0.002 or better.
- mean_err, sd_err: root mean square over the quantities of (mean - reference) / reference sd, and
  of sd / reference sd - 1. minisvi's moments are those of its answer, weighted draws; a guide's are
  those of 10,000 draws.
- k-hat of log p - log q; seconds from the call to the numbers on the host, compilation included,
  imports not.
- verdict: what `minisvi.fit` says of its own answer, without knowing the truth.

NumPyro's guides: Adam, 10 particles, 20,000 steps, rate 0.02 decaying to 0.0002, start at u = 0
(two moons, where that is a saddle: uniform(-2, 2)). AutoIAFNormal: 0.01 to 0.0001, and 0.002 to
0.00002 on two targets, where that overflows; 6,000 steps of 4 particles on the item response model.
NUTS: one chain of 1,000 + 1,000 (2,000 + 2,000 for D <= 31), started at the truth on the Lorenz
system, where it needs that. A guide is marked best by mean_err^2 + sd_err^2, or by test NLL where
there are no reference moments.
"""

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import machine, versions

RESULTS = Path(__file__).parent / "results" / "accuracy.json"
PACKAGES = ["jax", "jaxlib", "optax", "numpyro", "inference_gym", "scikit-learn", "numpy"]
TARGETS = (
    "banana",
    "ill_conditioned_gaussian",
    "funnel",
    "eight_schools",
    "item_response",
    "cox_process",
    "brownian_motion",
    "lorenz",
    "stochastic_volatility",
    "breast_cancer",
    "gamma",
    "two_moons",
    "correlated_gaussian",
)  # by name, so that the driver loads no JAX
GUIDES = ("AutoNormal", "AutoMultivariateNormal", "AutoIAFNormal")
ENGINES = ("minisvi.fit", *GUIDES, "NUTS")
SMOKE_TARGETS, SMOKE_ENGINES = ("gamma", "correlated_gaussian"), ("minisvi.fit", "AutoNormal")
SMOKE_EFFORT = 0.01

Cell = dict[str, Any]


# One cell.


def cell(target: str, engine: str, seed: int, effort: float) -> Cell:
    """The figures of one engine on one target, in this process."""
    import accuracy_engines
    import accuracy_targets
    import jax

    posterior = accuracy_targets.TARGETS[target]()
    known = {"effort": effort} if effort != 1 else {}
    known |= {
        "dim": posterior.dim,
        "reference": posterior.source,
        "log_evidence_reference": posterior.log_evidence,
    }
    figures = {"status": "ok"} | accuracy_engines.ENGINES[engine](posterior, seed, effort)
    return known | {"backend": jax.default_backend()} | figures


def child(target: str, engine: str, options: argparse.Namespace) -> Cell:
    """The same in a fresh process; a failure or a time limit is a figure too."""
    command = [sys.executable, __file__, "--cell", target, engine, "--seed", str(options.seed)]
    command += ["--effort", str(options.effort)]
    environment = {n: v for n, v in os.environ.items() if not ("JAX" in n and "CACHE" in n)}
    environment["JAX_ENABLE_X64"] = "1" if options.precision == "float64" else "0"
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=options.limit
        )
    except subprocess.TimeoutExpired:
        return {"status": "time limit", "limit_s": options.limit}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"status": "failed", "reason": last[0][:300], "returncode": done.returncode}
    return json.loads(done.stdout.splitlines()[-1]) | {
        "process_seconds": time.perf_counter() - begin
    }


def tidy(value: Any) -> Any:
    """Eight digits, and strings for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: tidy(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [tidy(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else str(value)
    return value


# All cells, and the file.


def run(options: argparse.Namespace) -> list[Cell]:
    """The chosen cells in turn, the engines of a target beside each other; the file as it stands
    after each.
    """
    cells: list[Cell] = []
    for target in options.targets:
        for engine in options.engines:
            name = {
                "target": target,
                "engine": engine,
                "seed": options.seed,
                "precision": options.precision,
            }
            found = name | {"date": options.date} | tidy(child(target, engine, options))
            print(f"{target}, {engine}: {summary(found)}", file=sys.stderr, flush=True)
            cells.append(found)
            if options.output:
                save(options, found)
    return cells


def summary(cell: Cell) -> str:
    if cell["status"] != "ok":
        return f"{cell['status']} {cell.get('reason', '')}"
    shown = ("gap", "mean_err", "sd_err", "test_nll", "k_hat", "seconds", "verdict")
    return ", ".join(f"{name} {cell[name]}" for name in shown if name in cell)


def identity(cell: Cell) -> tuple[Any, ...]:
    return tuple(cell[name] for name in ("target", "engine", "seed", "precision"))


def load(path: Path) -> list[Cell]:
    return json.loads(path.read_text())["cells"] if path.exists() else []


def save(options: argparse.Namespace, cell: Cell) -> None:
    """Replace one cell of the file, whole or not at all."""
    kept = [other for other in load(options.output) if identity(other) != identity(cell)] + [cell]
    order = lambda c: (
        TARGETS.index(c["target"]),
        ENGINES.index(c["engine"]),
        c["precision"],
        c["seed"],
    )
    report = {
        "date": options.date,
        "machine": machine(),
        "versions": versions(PACKAGES),
        "limit_s": options.limit,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    written = options.output.with_suffix(".part")
    written.write_text(json.dumps(report | {"cells": sorted(kept, key=order)}, indent=1) + "\n")
    written.replace(options.output)


# The table.


def table(cells: list[Cell]) -> str:
    """Markdown, a row a cell; the best NumPyro guide of each target is in bold."""
    rows = [
        "| target | D | engine | gap | mean_err | sd_err | k-hat | seconds | verdict |",
        "|---|" + "---:|" * 7 + "---|",
    ]
    rows[1] = "|---|---:|---|" + "---:|" * 5 + "---|"
    best = {identity(winner) for winner in map(best_guide, by_target(cells)) if winner}
    for group in by_target(cells):
        for position, cell in enumerate(group):
            name = f"{cell['target']} {variant(cell)}".strip() if position == 0 else ""
            engine = f"**{cell['engine']}**" if identity(cell) in best else cell["engine"]
            rows.append(
                "| " + " | ".join([name, str(cell.get("dim", "")), engine, *figures(cell)]) + " |"
            )
    return "\n".join(rows)


def by_target(cells: list[Cell]) -> list[list[Cell]]:
    """Cells that may be compared: of one target, seed and precision."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["target"], cell["precision"], cell["seed"]), []).append(cell)
    return list(groups.values())


def variant(cell: Cell) -> str:
    marks = ["float32"] if cell["precision"] == "float32" else []
    return ", ".join(marks + ([f"seed {cell['seed']}"] if cell["seed"] else []))


def figures(cell: Cell) -> list[str]:
    if cell["status"] != "ok":
        return ["", "", "", "", "", cell["status"]]
    quality = [short(cell.get(name)) for name in ("mean_err", "sd_err")]
    if "test_nll" in cell:
        quality = [f"NLL {cell['test_nll']:.4f}", f"AUC {cell['test_auc']:.4f}"]
    gap = (
        short(cell.get("gap"))
        if "gap" in cell or "elbo" not in cell
        else f"ELBO {cell['elbo']:.2f}"
    )
    seconds = f"{float(cell['seconds']):.1f}"
    return [gap, *quality, short(cell.get("k_hat")), seconds, cell.get("verdict", "")]


def short(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def best_guide(group: list[Cell]) -> Cell | None:
    guides = [cell for cell in group if cell["engine"] in GUIDES and cell["status"] == "ok"]
    return min((cell for cell in guides if math.isfinite(loss(cell))), key=loss, default=None)


def loss(cell: Cell) -> float:
    if "test_nll" in cell:
        return float(cell["test_nll"])
    return float(cell.get("mean_err", "nan")) ** 2 + float(cell.get("sd_err", "nan")) ** 2


# The command line.


def check(names: tuple[str, ...]) -> None:
    """Stop unless all densities are the package's, to float32 where it computes so, and NumPyro's
    to float64.
    """
    os.environ["JAX_ENABLE_X64"] = "1"
    import accuracy_targets

    for name in names:
        found = accuracy_targets.check(name)
        print(
            f"{name:28} package {found['package']:.1e}   numpyro {found['numpyro']:.1e}", flush=True
        )
        if not (found["package"] < 1e-5 and found["numpyro"] < 1e-10):
            raise SystemExit(f"{name}: the densities differ")


def references(names: list[str], date: str) -> None:
    os.environ["JAX_ENABLE_X64"] = "1"
    import accuracy_references

    accuracy_references.make(names, date)


def chosen(text: str | None, known: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text else default
    unknown = set(names) - set(known)
    if unknown:
        raise SystemExit(f"expected some of {', '.join(known)}; got {', '.join(sorted(unknown))}")
    return names


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="the accuracy of minisvi.fit and of NumPyro on known posteriors"
    )
    parser.add_argument(
        "--cell", nargs=2, metavar=("TARGET", "ENGINE"), help="one cell in this process, as JSON"
    )
    parser.add_argument("--targets", help="some of the targets, by commas")
    parser.add_argument("--engines", help="some of the engines, by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("float64", "float32"), default="float64")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds of a cell")
    parser.add_argument(
        "--effort", type=float, default=1.0, help="share of NumPyro's steps and draws, for trials"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="two small targets, few steps; no file unless --output"
    )
    parser.add_argument("--table", action="store_true", help="print the table of the file")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the densities with the package's and NumPyro's",
    )
    parser.add_argument(
        "--references", nargs="*", metavar="TARGET", help="compute the truths that no package has"
    )
    parser.add_argument(
        "--date", default=datetime.date.today().isoformat(), help="the date to record"
    )
    parser.add_argument(
        "--output", type=Path, help="default: results/accuracy.json beside this script"
    )
    options = parser.parse_args()
    options.targets = chosen(options.targets, TARGETS, SMOKE_TARGETS if options.smoke else TARGETS)
    options.engines = chosen(options.engines, ENGINES, SMOKE_ENGINES if options.smoke else ENGINES)
    options.effort = SMOKE_EFFORT if options.smoke else options.effort
    options.output = options.output or (None if options.smoke else RESULTS)
    return options


def main() -> None:
    options = parse()
    if options.cell:
        print(json.dumps(tidy(cell(*options.cell, options.seed, options.effort))))
    elif options.check:
        check(options.targets)
    elif options.references is not None:
        references(options.references, options.date)
    elif options.table:
        print(table(load(options.output)))
    else:
        cells = run(options)
        print(table(load(options.output) if options.output else cells))
        if options.smoke:
            print("\nA smoke run: it shows that everything runs; its figures mean nothing.")
            if any(cell["status"] in ("failed", "time limit") for cell in cells):
                raise SystemExit(1)


if __name__ == "__main__":
    main()
