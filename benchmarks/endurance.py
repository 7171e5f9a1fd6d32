"""Many different models in one process: does it last, and what does a fit leave behind?

    python benchmarks/endurance.py              # 500 fits, twice; results/endurance.json, the table
    python benchmarks/endurance.py --fits 5     # fewer; no file unless --output
    python benchmarks/endurance.py --smoke      # the same with 2 fits: it measures nothing
    python benchmarks/endurance.py --table      # the file's table again

Every fit is `minisvi.fit` of a model that JAX has not seen: new function objects, and another
number of rows than the last 200 fits had. The models are in turn a Gamma's concentration (D = 1), a
linear regression with an unknown scale (D = 5) and eight intercepts of a hierarchy that is not
centred (D = 10). Each keeps some compiled programs alive, and each program takes memory maps, of
which Linux allows a process 65,530.

Both ways are a fresh process without a persistent compilation cache:

- kept: nothing is done between fits.
- cleared: `jax.clear_caches()` after every fit.

The figures: memory maps and resident MiB after every 25th fit, with garbage collected; what a fit
adds to both, which is the slope of a straight line through those points, without the first, since
the first fits load what all use; how many fits were made, and the levels of their verdicts; seconds
a fit, the median. A process that dies tells how far it came.
"""

import argparse
import collections
import datetime
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import machine, significant, versions

RESULTS = Path(__file__).parent / "results" / "endurance.json"
WAYS = ("kept", "cleared")
PACKAGES = ["jax", "jaxlib", "optax", "numpy", "scipy"]
NUM_FITS, EVERY = 500, 25
GOALS = {"maps": 150, "mib": 5.0}  # that a fit may add at most, where caches are kept

Figures = dict[str, Any]


# Models: a new one at each call, with functions of its own.


def rows_of(i: int) -> int:
    """The number of rows of fit i: 40 to 239, in an order without a trend."""
    return 40 + (83 * i) % 200


def gamma(num_rows: int, random: Any) -> tuple[Any, tuple[Any, ...]]:
    import jax.numpy as jnp
    from jax.scipy.stats import gamma as gamma_density
    from jax.scipy.stats import norm

    import minisvi

    def log_joint(theta: Any, z: Any) -> Any:
        c = theta["concentration"]
        return norm.logpdf(c) + jnp.sum(gamma_density.logpdf(z, c))

    model = minisvi.Model({"concentration": minisvi.positive()}, log_joint)
    return model, (random.gamma(2.0, size=num_rows),)


def regression(num_rows: int, random: Any) -> tuple[Any, tuple[Any, ...]]:
    import jax.numpy as jnp
    from jax.scipy.stats import norm

    import minisvi

    def log_prior(theta: Any) -> Any:
        return jnp.sum(norm.logpdf(theta["w"], 0.0, 3.0)) + norm.logpdf(theta["scale"])

    def log_likelihood(theta: Any, x: Any, y: Any) -> Any:
        return norm.logpdf(y, x @ theta["w"], theta["scale"])

    latents = {"w": minisvi.real(4), "scale": minisvi.positive()}
    model = minisvi.Model(latents, log_prior=log_prior, log_likelihood=log_likelihood)
    x = random.normal(size=(num_rows, 4))
    y = x @ random.normal(size=4) + 0.7 * random.normal(size=num_rows)
    return model, (x, y)


def hierarchy(num_rows: int, random: Any) -> tuple[Any, tuple[Any, ...]]:
    import jax.numpy as jnp
    import numpy as np
    from jax.scipy.stats import norm

    import minisvi

    def log_prior(theta: Any) -> Any:
        scalars = norm.logpdf(theta["mu"], 0.0, 5.0) + norm.logpdf(theta["tau"])
        return scalars + jnp.sum(norm.logpdf(theta["z"]))

    def log_likelihood(theta: Any, group: Any, y: Any) -> Any:
        effects = theta["mu"] + theta["tau"] * theta["z"]
        return norm.logpdf(y, effects[group], 0.6)

    latents = {"mu": minisvi.real(), "tau": minisvi.positive(), "z": minisvi.real(8)}
    model = minisvi.Model(latents, log_prior=log_prior, log_likelihood=log_likelihood)
    group = np.arange(num_rows) % 8
    effects = 1.5 + 0.8 * random.normal(size=8)
    return model, (group, effects[group] + 0.6 * random.normal(size=num_rows))


MODELS = (gamma, regression, hierarchy)


# One way, in a process of its own.


def endure(way: str, num_fits: int, every: int) -> None:
    """Fit one model after the other. Each fit is a line of JSON, so that those of a process that
    dies are not lost.
    """
    import jax
    import numpy as np
    from meters import num_maps, resident_mib

    import minisvi

    random = np.random.default_rng(0)
    for i in range(num_fits):
        make = MODELS[i % len(MODELS)]
        model, data = make(rows_of(i), random)
        begin = time.perf_counter()
        fit = minisvi.fit(jax.random.key(i), model, *data, progress_bar=False)
        jax.device_get(fit.draws.mean())
        seconds = time.perf_counter() - begin
        level = fit.verdict.level
        del model, data, fit
        if way == "cleared":
            jax.clear_caches()
        line: Figures = {"fit": i + 1, "seconds": seconds, "verdict": level}
        if i == 0 or (i + 1) % every == 0:
            gc.collect()
            line |= {"maps": num_maps(), "mib": resident_mib()}
        print(json.dumps(line), flush=True)


def child(way: str, options: argparse.Namespace) -> Figures:
    """What came of one way in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--fits", str(options.fits)]
    command += ["--every", str(options.every)]
    environment = {n: v for n, v in os.environ.items() if not ("JAX" in n and "CACHE" in n)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    output, errors = process.communicate()
    lines = [json.loads(line) for line in output.splitlines()]
    found = figures(lines) | {"way": way, "asked": options.fits}
    if process.returncode:
        last = errors.strip().splitlines()[-1:] or ["no message"]
        found |= {"returncode": process.returncode, "error": last[0][:300]}
    return found


def figures(lines: list[Figures]) -> Figures:
    """What the fits of a process come to."""
    points = [line for line in lines if "maps" in line]
    found: Figures = {"fits": len(lines)}
    if lines:
        found["seconds_a_fit"] = significant(statistics.median(line["seconds"] for line in lines))
        found["verdicts"] = dict(collections.Counter(line["verdict"] for line in lines))
    for name in ("maps", "mib"):
        found[f"{name}_a_fit"] = slope(points[1:], name)
    found["points"] = [{name: point[name] for name in ("fit", "maps", "mib")} for point in points]
    return found


def slope(points: list[Figures], name: str) -> float | None:
    """What a fit adds, by least squares; None of fewer than two points."""
    if len(points) < 2:
        return None
    fits = [point["fit"] for point in points]
    return significant(statistics.linear_regression(fits, [p[name] for p in points]).slope)


# All of it, and the file.


def measure(options: argparse.Namespace) -> Figures:
    report: Figures = {
        "date": options.date,
        "machine": machine(),
        "versions": versions(PACKAGES),
        "goals": GOALS,
        "ways": [],
    }
    for way in WAYS:
        report["ways"].append(child(way, options))
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(report, indent=1) + "\n")
    return report


def table(report: Figures) -> str:
    """Markdown, a row for each way."""
    head = ["caches", "fits", "s a fit", "maps, first", "last", "a fit", "MiB, first", "last"]
    lines = [row([*head, "a fit"]), "|---|" + "---:|" * len(head)]
    for found in report["ways"]:
        lines.append(row([found["way"], fits_of(found), *seconds_of(found), *memory_of(found)]))
    return "\n".join(lines)


def fits_of(found: Figures) -> str:
    made = f"{found['fits']} of {found['asked']}"
    return f"{made}: {found['error']}" if "error" in found else made


def seconds_of(found: Figures) -> list[str]:
    return [number(found.get("seconds_a_fit"), 2)]


def memory_of(found: Figures) -> list[str]:
    """Maps and MiB at the first and the last point, and what a fit adds to them."""
    columns = []
    for name, digits in (("maps", 0), ("mib", 0)):
        at_points = [point[name] for point in found["points"]]
        first, last = (at_points[0], at_points[-1]) if at_points else (None, None)
        columns += [number(first, digits), number(last, digits)]
        columns.append(number(found[f"{name}_a_fit"], 1))
    return columns


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def row(columns: list[str]) -> str:
    return "| " + " | ".join(columns) + " |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="many different models in one process")
    parser.add_argument("--way", choices=WAYS, help="one way in this process, a line a fit")
    parser.add_argument("--fits", type=int, help=f"default: {NUM_FITS}")
    parser.add_argument("--every", type=int, default=EVERY, help="fits from point to point")
    parser.add_argument("--smoke", action="store_true", help="2 fits; no file unless --output")
    parser.add_argument("--table", action="store_true", help="print the table of the file")
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--output", type=Path, help="default: results/endurance.json")
    options = parser.parse_args()
    if options.smoke:
        options.fits, options.every = 2, 1
    is_whole = options.fits is None
    options.fits = options.fits or NUM_FITS
    options.output = options.output or (RESULTS if is_whole else None)
    return options


def main() -> None:
    options = parse()
    if options.way:
        endure(options.way, options.fits, options.every)
        return
    if options.table:
        print(table(json.loads((options.output or RESULTS).read_text())))
        return
    report = measure(options)
    print(table(report))
    if options.smoke:
        print("\nA smoke run: it shows that everything runs; its figures mean nothing.")
        if any("error" in found for found in report["ways"]):
            raise SystemExit(1)


if __name__ == "__main__":
    main()
