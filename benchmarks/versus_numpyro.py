"""minisvi against NumPyro and against a loop written by hand, on the two reference examples, in one
run.

    python benchmarks/versus_numpyro.py            # all figures, results/versus_numpyro.json
    python benchmarks/versus_numpyro.py --smoke    # a minute: does it run? It measures nothing

`gamma`: the concentration of 1,000 Gamma draws; log-normal guide, 10 particles, Adam 0.005, 1,000
steps. `bnn`: a 2-4-3-1 tanh network on 980 rows of two moons; mean-field normal guide, 1 particle,
Adam 0.01, 10,000 steps. The engines are in `engines/`: the same model, guide, optimiser (optax),
number of steps and data in each.

The figures:

- import: `import jax, optax`, `import minisvi` and `import numpyro, numpyro.infer`, each in a fresh
  process; and the same with Python's garbage collector off, because whether a full collection (a
  tenth of these times) falls into an import is decided by where the allocation counter happens to
  stand.
- first fit: a fresh process, from before the first import of an engine to the result on the host,
  reading the data from a file included; each engine's `run` with its default progress bar.
- peak memory: the largest resident size of that process up to the end of its first fit.
- second fit: in that process after the first, new data of the same shape, the same call.
- steady step: time per step of compiled fits, in one process: minisvi's `svi.scan` in the user's
  jit; minisvi's `svi.run(progress_bar=False)` when warm, all its host work included; NumPyro's
  `svi.update` in a scan that is jitted once; and the same mathematics by hand in jax and optax.
- first fit of the bnn with JAX's persistent compilation cache: `JAX_COMPILATION_CACHE_DIR` at an
  empty directory, and once more at what this left there. By default JAX stores only what took a
  second to compile, which few parts of these fits do, hence also
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 and JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1.

Contenders take turns within a round, and a ratio is the median of the rounds' ratios, because the
speed of a machine drifts. Fresh processes are this script with `--child`; the parent loads neither
JAX nor NumPy, so no child inherits its memory. Everything runs on JAX's default backend, which the
JSON names.
"""

import argparse
import datetime
import gc
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import host, interleaved, machine, progress, significant, summary, turn, versions

RESULTS = Path(__file__).parent / "results" / "versus_numpyro.json"
STEPS = {"gamma": 1_000, "bnn": 10_000}
ENGINES = {
    "minisvi": "engines.with_minisvi",
    "numpyro": "engines.with_numpyro",
    "by hand": "engines.by_hand",
}
IMPORTS = {
    "jax + optax": ["jax", "optax"],
    "minisvi": ["minisvi"],
    "numpyro": ["numpyro", "numpyro.infer"],
}
PACKAGES = ["jax", "jaxlib", "optax", "numpyro", "numpy", "tqdm", "scikit-learn"]
CACHE_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

# Measure, example, numerator, denominator, and the bound of their ratio.
GOALS = [
    ("second fit (s)", "gamma", "numpyro", "minisvi", ">=", 50.0),
    ("second fit (s)", "bnn", "numpyro", "minisvi", ">=", 4.0),
    ("first fit (s)", "gamma", "numpyro", "minisvi", ">=", 1.5),
    ("first fit (s)", "bnn", "numpyro", "minisvi", ">=", 3.0),
    *[
        ("steady step (us)", example, f"minisvi {how}", rival, "<=", bound)
        for example in STEPS
        for how in ("scan", "run")
        for rival, bound in (("numpyro scan", 1.0), ("by hand", 1.1))
    ],
    ("import (s)", "-", "minisvi", "jax + optax", "<=", 1.15),
]

# (measure, example, contender): one sample a round.
Samples = dict[tuple[str, str, str], list[float]]


# In the parent: who is measured, in what order.


def measure(
    repeats: int, rounds: int, steps: dict[str, int], cached: list[str]
) -> tuple[Samples, dict[str, Any]]:
    """All samples (with a compilation cache, for the engines `cached`), and the children's backend
    and versions.
    """
    samples: Samples = {}

    def add(measure: str, example: str, contender: str, values: float | Iterable[float]) -> None:
        samples.setdefault((measure, example, contender), []).extend(
            [values] if isinstance(values, float) else values
        )

    with tempfile.TemporaryDirectory() as folder:
        facts = child("prepare", folder, repeats)
        for round in progress("import", repeats):
            for name in turn(IMPORTS, round):
                add("import (s)", "-", name, child("import", name, "gc"))
                add("import, gc off (s)", "-", name, child("import", name, "no gc"))
        for example, num_steps in steps.items():
            for round in progress(f"fits, {example}", repeats):
                for engine in turn(["minisvi", "numpyro"], round):
                    for name, value in child(
                        "fit", engine, example, num_steps, folder, round
                    ).items():
                        add(name, example, engine, value)
        for round in progress("compilation cache, bnn", repeats):
            for engine in turn(cached, round):
                with tempfile.TemporaryDirectory() as cache:
                    env = CACHE_ALL | {"JAX_COMPILATION_CACHE_DIR": cache}
                    for state in ("empty", "warm"):
                        figures = child("first", engine, "bnn", steps["bnn"], folder, **env)
                        add(
                            f"first fit, {state} cache (s)", "bnn", engine, figures["first fit (s)"]
                        )
        for example, num_steps in steps.items():
            for _ in progress(f"steady step, {example}", 1):
                for name, values in child("steady", example, num_steps, folder, rounds).items():
                    add("steady step (us)", example, name, values)
    return samples, facts


def child(kind: str, *args: Any, **env: str) -> Any:
    """What one of the `CHILDREN`, in a fresh process, returns."""
    environment = {
        name: value for name, value in os.environ.items() if not ("JAX" in name and "CACHE" in name)
    } | env
    command = [sys.executable, __file__, "--child", kind, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:4])} {args} failed:\n{done.stderr}")
    return json.loads(done.stdout)


# In a child: one measurement. No engine is imported outside of these functions.


def child_prepare(folder: str, repeats: str) -> dict[str, Any]:
    """Write the data: the reference ones first, then one set a round of new ones."""
    import jax
    import numpy as np
    from sklearn.datasets import make_moons
    from sklearn.model_selection import train_test_split

    key = jax.random.PRNGKey(42)
    for i in range(int(repeats) + 1):
        key, subkey = jax.random.split(key)
        np.savez(f"{folder}/gamma_{i}.npz", np.asarray(jax.random.gamma(subkey, 2.0, (1_000,))))
        x, y = make_moons(2_000, noise=0.25, random_state=42 + i)
        for _ in ("test", "validation"):
            x, _, y, _ = train_test_split(x, y, test_size=0.3, random_state=42)
        np.savez(f"{folder}/bnn_{i}.npz", x.astype(np.float32), y.astype(np.float32))
    return {"backend": jax.default_backend(), "versions": versions(PACKAGES)}


def child_import(name: str, collector: str) -> float:
    if collector == "no gc":
        gc.disable()
    begin = time.perf_counter()
    for module in IMPORTS[name]:
        importlib.import_module(module)
    return time.perf_counter() - begin


def child_first(engine: str, example: str, num_steps: str, folder: str) -> dict[str, float]:
    begin = time.perf_counter()
    module = importlib.import_module(ENGINES[engine])
    host(module.fit(example, int(num_steps), load(folder, example, 0)))
    first = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )
    return {"first fit (s)": first, "peak memory (MiB)": peak}


def child_fit(
    engine: str, example: str, num_steps: str, folder: str, round: str
) -> dict[str, float]:
    figures = child_first(engine, example, num_steps, folder)
    module = importlib.import_module(ENGINES[engine])
    data = load(folder, example, int(round) + 1)
    begin = time.perf_counter()
    host(module.fit(example, int(num_steps), data))
    return figures | {"second fit (s)": time.perf_counter() - begin}


def child_steady(example: str, num_steps: str, folder: str, rounds: str) -> dict[str, list[float]]:
    """Microseconds per step of each contender, round by round."""
    data = load(folder, example, 0)
    fits: dict[str, Any] = {}
    for module in map(importlib.import_module, ENGINES.values()):
        fits |= module.steady(example, int(num_steps), data)
    same_mathematics({name: host(fit()) for name, fit in fits.items()})  # this compiles them, too
    samples = interleaved(fits, int(rounds))
    return {name: [1e6 * s / int(num_steps) for s in seconds] for name, seconds in samples.items()}


def same_mathematics(losses: dict[str, Any]) -> None:
    """Stop unless minisvi starts with the very losses of the loop by hand, and NumPyro ends about
    where that ends.
    """
    import numpy as np

    for name in ("minisvi scan", "minisvi run"):
        np.testing.assert_allclose(
            losses[name][:50], losses["by hand"][:50], rtol=1e-3, err_msg=name
        )
    tails = {name: loss[-len(loss) // 10 :] for name, loss in losses.items()}
    expected = np.mean(tails["by hand"])
    tolerance = (
        10 * np.std(tails["by hand"]) + 0.01 * expected
    )  # chaos: the ends of long fits differ by their optimum
    for name, tail in tails.items():
        np.testing.assert_allclose(np.mean(tail), expected, rtol=0, atol=tolerance, err_msg=name)


def load(folder: str, example: str, number: int) -> tuple[Any, ...]:
    import jax.numpy as jnp
    import numpy as np

    with np.load(f"{folder}/{example}_{number}.npz") as arrays:
        return tuple(jnp.asarray(arrays[name]) for name in arrays.files)


CHILDREN = {
    "prepare": child_prepare,
    "import": child_import,
    "first": child_first,
    "fit": child_fit,
    "steady": child_steady,
}


# What is reported.


def judge(samples: Samples) -> list[dict[str, Any]]:
    goals = []
    for measure, example, above, below, sign, bound in GOALS:
        rounds = zip(
            samples[measure, example, above], samples[measure, example, below], strict=True
        )
        ratio = statistics.median(a / b for a, b in rounds)
        where = "" if example == "-" else f"{example}, "
        name = f"{where}{measure.rsplit(' ', 1)[0]}: {above} / {below} {sign} {bound:g}"
        met = ratio >= bound if sign == ">=" else ratio <= bound
        goals.append({"goal": name, "measured": significant(ratio), "met": met})
    return goals


def table(samples: Samples, goals: list[dict[str, Any]]) -> str:
    lines = [f"{'':30}{'example':9}{'contender':15}{'median':>10}   range"]
    for (measure, example, contender), values in samples.items():
        row = summary(values)
        low, high = row["range"]
        lines.append(
            f"{measure:30}{example:9}{contender:15}{row['median']:>10.4g}   {low:.4g} to {high:.4g}"
        )
    lines += ["", f"{'goal':70}{'measured':>10}"]
    lines += [
        f"{g['goal']:70}{g['measured']:>10.3g}   {'met' if g['met'] else 'MISSED'}" for g in goals
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="minisvi against NumPyro and a loop written by hand"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="one repeat of 200 steps; writes JSON only to --output"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="fresh processes for each cold figure"
    )
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the steady step")
    parser.add_argument(
        "--date", default=datetime.date.today().isoformat(), help="the date to record"
    )
    parser.add_argument(
        "--output", type=Path, help="default: results/versus_numpyro.json beside this script"
    )
    parser.add_argument(
        "--child", nargs="+", metavar="ARG", help="for this script's own use: one measurement"
    )
    options = parser.parse_args()
    if options.child:
        kind, *args = options.child
        print(json.dumps(CHILDREN[kind](*args)))
        return
    repeats, rounds, steps, cached = options.repeats, options.rounds, STEPS, ["minisvi", "numpyro"]
    if options.smoke:
        repeats, rounds, steps, cached = 1, 1, dict.fromkeys(STEPS, 200), ["minisvi"]
    samples, facts = measure(repeats, rounds, steps, cached)
    goals = judge(samples)
    print(table(samples, goals))
    if options.smoke:
        print(
            "\nA smoke run: it shows that everything runs; its fits are too short for "
            "its figures to mean anything."
        )
    output = options.output or (None if options.smoke else RESULTS)
    if output:
        settings = {"steps": steps, "repeats": repeats, "rounds": rounds}
        figures = [
            {"measure": measure, "example": example, "contender": contender} | summary(values)
            for (measure, example, contender), values in samples.items()
        ]
        report = {"date": options.date, "machine": machine(), **facts, "settings": settings}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(
            json.dumps(report | {"goals": goals, "figures": figures}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
