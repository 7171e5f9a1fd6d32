"""The field: every Python library that fits such posteriors, on twelve with known answers.

    python benchmarks/field.py --environments      # Pyro and PyMC, in environments of their own
    python benchmarks/field.py                     # all cells, results/field.json, the table
    python benchmarks/field.py --smoke             # a minute: does it run? It measures nothing
    python benchmarks/field.py --targets funnel,gamma --engines "minisvi.fit,NumPyro NUTS"
    python benchmarks/field.py --table             # the file's table again
    python benchmarks/field.py --plot              # results/field.png
    python benchmarks/field.py --check             # are densities and determinants right?
    python benchmarks/field.py --references        # truths: accuracy_references.py
    python benchmarks/field.py --cell funnel "NumPyro NUTS"   # one cell here: one line of JSON

Each cell, an engine on a target, is a fresh process under a time limit, so that compilation counts,
and a crash or a hang costs one cell. The results file is updated after every cell; a run may be
split, or a cell repeated. The targets are in `accuracy_targets.py`, the engines in `field_engines`,
one file a library, and their budgets in `field_engines/budgets.py`. The libraries on JAX get the
target's own log density. Pyro and PyMC have models of their own of seven targets, whose densities
are compared with ours in each cell, and are skipped on the others.

The figures of a cell:

- gap: log evidence - ELBO in nats, which is the KL from q to the posterior. It depends on the
  constraining map, which is the same for all here. The evidence itself is known to 0.3 nats on the
  Lorenz system, 0.04 on item response, 0.03 on the Cox process and 0.01 on stochastic volatility;
  elsewhere to 0.002 or better.
- mean_err, sd_err: root mean square over the quantities of (mean - reference) / reference sd, and
  of sd / reference sd - 1. The moments of minisvi.fit and of BlackJAX's Pathfinder are those of
  their weighted draws; a guide's are those of 10,000 draws.
- k-hat of log p - log q.
- cold: seconds from a first call to draws and their moments on the host, compilation included,
  imports not. warm: a second call in the same process with a new key, by the same objects; it is
  left out where the first took more than a quarter of a minute.
- it says: what the library says of the quality of its own answer, without knowing the truth.

Two moons, a network that has no known answer, runs where `--targets` names it. NUTS starts at the
truth on the Lorenz system, where it needs that. An engine is marked best by
mean_err^2 + sd_err^2, or by test NLL where there are no reference moments.
"""

import argparse
import datetime
import json
import os
from pathlib import Path

import field_cells
import field_plot
from field_cells import ENGINES, TARGETS, chosen, load, tidy
from field_table import table

RESULTS = Path(__file__).parent / "results" / "field.json"
WITH_TRUTH = tuple(name for name in TARGETS if name != "two_moons")  # what runs by default
SMOKE_TARGETS = ("correlated_gaussian",)  # it needs no package of data, and all apply to it
SMOKE_ENGINES = (
    "minisvi.fit",
    "minisvi full rank",
    "NumPyro AutoNormal",
    "NumPyro NUTS",
    "BlackJAX Pathfinder",
    "BlackJAX mean field",
    "TFP full rank",
    "FlowJAX autoregressive flow",
)  # each library that may be in the present environment
SMOKE_EFFORT = 0.002


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


def environments() -> None:
    from field_engines import foreign

    for name in foreign.PACKAGES:
        print(f"{name}: {foreign.make(name)}", flush=True)


def smoke(options: argparse.Namespace) -> None:
    """Few steps of an engine or two of each library, all in this process; it installs nothing."""
    os.environ["JAX_ENABLE_X64"] = "1"
    cells = []
    for target in options.targets:
        for engine in options.engines:
            found = field_cells.cell(target, engine, options.seed, options.effort)
            cells.append(field_cells.named(target, engine, options) | tidy(found))
            print(f"{target}, {engine}: {field_cells.summary(cells[-1])}", flush=True)
    print(table(cells))
    print("\nA smoke run: it shows that everything runs; its figures mean nothing.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="accuracy and seconds of minisvi and of its peers on known posteriors"
    )
    parser.add_argument(
        "--cell", nargs=2, metavar=("TARGET", "ENGINE"), help="one cell in this process, as JSON"
    )
    parser.add_argument("--targets", help="some of the targets, by commas")
    parser.add_argument("--engines", help="some of the engines, by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("float64", "float32"), default="float64")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds of a cell")
    parser.add_argument(
        "--effort", type=float, default=1.0, help="share of the steps and draws, for trials"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="one small target, few steps; no file unless --output"
    )
    parser.add_argument(
        "--environments", action="store_true", help="install what has an environment of its own"
    )
    parser.add_argument("--table", action="store_true", help="print the table of the file")
    parser.add_argument("--plot", action="store_true", help="draw the picture of the file")
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
        "--output", type=Path, help="default: results/field.json beside this script"
    )
    options = parser.parse_args()
    options.targets = chosen(
        options.targets, TARGETS, SMOKE_TARGETS if options.smoke else WITH_TRUTH
    )
    options.engines = chosen(options.engines, ENGINES, SMOKE_ENGINES if options.smoke else ENGINES)
    options.effort = SMOKE_EFFORT if options.smoke else options.effort
    options.output = options.output or (None if options.smoke else RESULTS)
    return options


def main() -> None:
    options = parse()
    if options.cell:
        target, engine = options.cell
        print(json.dumps(tidy(field_cells.cell(target, engine, options.seed, options.effort))))
    elif options.check:
        check(options.targets)
    elif options.references is not None:
        references(options.references, options.date)
    elif options.environments:
        environments()
    elif options.table:
        print(table(load(options.output)))
    elif options.plot:
        field_plot.plot(load(options.output), options.output.with_suffix(".png"))
    elif options.smoke:
        smoke(options)
    else:
        field_cells.run(options)
        print(table(load(options.output)))
        field_plot.plot(load(options.output), options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
