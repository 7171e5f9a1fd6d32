"""Each guide family and bound that minisvi and NumPyro share: the time of a step, in one run, and
what it is made of.

    python benchmarks/families.py            # all figures, benchmarks/results/families.json
    python benchmarks/families.py --smoke    # a minute: does it run? It measures nothing

The problem is one latent vector w ~ N(0, I) of D coordinates, seen once each through y_i ~ N(w_i,
2), so that a step is the guide's, the bound's and the optimiser's. Adam 1e-3 from optax on both
sides, the same start, float32. `numpyro` is `svi.update` and `numpyro stable` `svi.stable_update`,
which drops a step that is not finite, as minisvi always does; both in a scan that is jitted once,
as is minisvi's `svi.scan`. Contenders take turns within a round, and a ratio is the median of the
rounds' ratios, because the speed of a machine drifts.

At a million dimensions, in turns with the steps:

- the floor: one read and one write of the parameters, Adam's moments and the gradient at the speed
  of x + 1 over a donated array of 256 MB;
- the pieces: the step without its check that it is finite, the same with its draws given, the
  optimiser alone, and so on; and random numbers alone. What a piece costs is a difference, taken
  round by round.

The slope is that of log time against log D: 1 is linear, and less where the cost of starting
kernels counts; where the state outgrows a cache it is more for a while.
"""

import argparse
import datetime
import json
import math
import statistics
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from common import interleaved, machine, progress, significant, summary, versions
from engines import pairs, pieces

RESULTS = Path(__file__).parent / "results" / "families.json"
PACKAGES = ["jax", "jaxlib", "optax", "distrax", "numpyro", "numpy"]
SHARED = [(family, "ELBO") for family in pairs.FAMILIES]
SHARED += [("mean_field", bound) for bound in pairs.BOUNDS if bound != "ELBO"]
FLOOR_GOAL = 1.5

Case = tuple[str, str, int]  # family, bound, D
Samples = dict[str, list[float]]  # contender: seconds of a step, one a round


class Settings(NamedTuple):
    dims: tuple[int, ...] = (10, 100, 1_000)  # of all families and bounds
    growing: tuple[str, ...] = ("mean_field", "low_rank")  # families that go further
    further: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    rounds: int = 15
    big_rounds: int = 7  # of contenders at the largest D
    effort: float = 0.5  # how many steps a call takes
    copy_size: int = 64_000_000  # floats
    engines: tuple[str, ...] = tuple(pairs.ENGINES)

    @property
    def big(self) -> int:
        return self.further[-1]

    @property
    def cases(self) -> list[Case]:
        shared = [(family, bound, dim) for family, bound in SHARED for dim in self.dims]
        return shared + [(family, "ELBO", dim) for family in self.growing for dim in self.further]


SMOKE = Settings((10,), ("mean_field",), (100,), 1, 1, 0.0, 100_000, ("minisvi", "numpyro"))


def num_steps(family: str, dim: int, effort: float) -> int:
    """So many that a call takes some tenths of a second."""
    return min(max(int(effort * 5e7 / (pairs.num_params(family, dim) + 5_000)), 10), 10_000)


def race(case: Case, settings: Settings) -> Samples:
    family, bound, dim = case
    steps = num_steps(family, dim, settings.effort)
    calls = {name: pairs.ENGINES[name](family, bound, dim, steps) for name in settings.engines}
    same_mathematics({name: np.asarray(call()[:20], np.float64) for name, call in calls.items()})
    samples = interleaved(calls, settings.big_rounds if dim == settings.big else settings.rounds)
    jax.clear_caches()
    return {name: [value / steps for value in values] for name, values in samples.items()}


def same_mathematics(losses: dict[str, Any]) -> None:
    """Stop unless the first losses of all have the same mean, within five standard errors and
    float32.
    """
    expected = losses["minisvi"]
    for name, loss in losses.items():
        error = math.sqrt((np.var(expected) + np.var(loss)) / len(loss))
        np.testing.assert_allclose(
            loss.mean(), expected.mean(), rtol=1e-4, atol=5 * error, err_msg=name
        )


def dissect(family: str, settings: Settings) -> Samples:
    """Seconds of a step's pieces, and of a `byte` read or written."""
    steps = num_steps(family, settings.big, settings.effort)
    copy, num_bytes = pieces.copy(settings.copy_size)
    calls = pieces.step(family, settings.big, steps)
    if family == settings.growing[0]:
        calls |= pieces.random_numbers(settings.big, steps)
    samples = interleaved(calls | {"byte": copy}, settings.rounds)
    jax.clear_caches()
    per_call = dict.fromkeys(calls, steps) | {"byte": num_bytes}
    return {name: [value / per_call[name] for value in values] for name, values in samples.items()}


def measure(settings: Settings) -> tuple[dict[Case, Samples], dict[str, Samples]]:
    """Of each case its contenders, and of each growing family its pieces."""
    races, dissected = {}, {}
    for case in settings.cases:
        for _ in progress(f"{case[0]}, {case[1]}, D = {case[2]:,}", 1):
            races[case] = race(case, settings)
    for family in settings.growing:
        for _ in progress(f"pieces, {family}", 1):
            dissected[family] = dissect(family, settings)
    return races, dissected


# What is reported.


def ratio(above: list[float], below: list[float]) -> float:
    return significant(statistics.median(a / b for a, b in zip(above, below, strict=True)))


def floor_ratio(family: str, dim: int, samples: Samples) -> float:
    """The whole step over one read and write, round by round."""
    num_bytes = pieces.step_bytes(pairs.num_params(family, dim))
    return ratio(samples["whole step"], [num_bytes * seconds for seconds in samples["byte"]])


def slopes(races: dict[Case, Samples], family: str) -> dict[str, float]:
    """d log time / d log D of minisvi's step, from one D to the next, and over the last two steps
    of D.
    """
    times = {
        d: statistics.median(s["minisvi"])
        for (f, bound, d), s in races.items()
        if f == family and bound == "ELBO"
    }
    dims = sorted(times)
    spans = [*pairwise(dims), (dims[-3], dims[-1])] if len(dims) > 2 else list(pairwise(dims))
    return {
        f"{c:,} to {d:,}": significant(math.log(times[d] / times[c]) / math.log(d / c))
        for c, d in dict.fromkeys(spans)
    }


def judge(
    races: dict[Case, Samples], dissected: dict[str, Samples], big: int
) -> list[dict[str, Any]]:
    goals = []

    def goal(name: str, measured: float, met: bool) -> None:
        goals.append({"goal": name, "measured": significant(measured), "met": met})

    for (family, bound, dim), (ours, *rivals) in (
        (case, samples.items()) for case, samples in races.items()
    ):
        for rival, values in rivals:
            measured = ratio(ours[1], values)
            goal(f"{family}, {bound}, D = {dim:,}: minisvi / {rival} <= 1", measured, measured <= 1)
    for family, samples in dissected.items():
        measured = floor_ratio(family, big, samples)
        goal(
            f"{family}, D = {big:,}: step / one read and write <= {FLOOR_GOAL}",
            measured,
            measured <= FLOOR_GOAL,
        )
    return goals


def race_table(races: dict[Case, Samples], growing: Iterable[str]) -> str:
    names = list(next(iter(races.values())))
    lines = [
        f"{'microseconds a step':34}{'D':>10}"
        + "".join(f"{name:>16}" for name in names)
        + "   minisvi's ratio"
    ]
    for (family, bound, dim), samples in races.items():
        medians = "".join(
            f"{1e6 * statistics.median(values):>16.5g}" for values in samples.values()
        )
        ours, *rivals = samples.values()
        ratios = "".join(f"{ratio(ours, rival):>8.2f}" for rival in rivals)
        lines.append(f"{family + ', ' + bound:34}{dim:>10,}{medians}{ratios}")
    for family in growing:
        found = ", ".join(
            f"{slope:.2f} from {span}" for span, slope in slopes(races, family).items()
        )
        lines.append(f"slope of log time against log D, {family}: {found}")
    return "\n".join(lines)


def pieces_table(family: str, dim: int, samples: Samples) -> str:
    medians = {name: statistics.median(values) for name, values in samples.items()}
    speed, params = medians.pop("byte"), pairs.num_params(family, dim)
    num_bytes = pieces.step_bytes(params)
    lines = [
        f"{family}, D = {dim:,}: {params:,} parameters; one read and write is "
        f"{num_bytes / 1e6:.3g} MB, "
        f"at {1e-9 / speed:.3g} GB/s {1e3 * num_bytes * speed:.3g} ms: the floor"
    ]
    for name, seconds in medians.items():
        lines.append(
            f"  {name:45}{1e3 * seconds:>9.4g} ms{seconds / (num_bytes * speed):>9.2f} floors"
        )
    return "\n".join([*lines, f"  shares of the whole step: {shares(samples)}"])


def shares(samples: Samples) -> str:
    """Medians of what each round says, since a machine's speed drifts; they need not sum to
    100 %.
    """
    whole, unchecked, drawn, descent = (np.array(values) for values in list(samples.values())[:4])
    parts = {
        "check": whole - unchecked,
        "draws": unchecked - drawn,
        "gradient": drawn - descent,
        "optimiser": descent,
    }
    return ", ".join(
        f"{name} {100 * np.median(part / whole):.0f} %" for name, part in parts.items()
    )


def goal_table(goals: list[dict[str, Any]]) -> str:
    lines = [f"{'goal':80}{'measured':>10}"]
    lines += [
        f"{g['goal']:80}{g['measured']:>10.3g}   {'met' if g['met'] else 'MISSED'}" for g in goals
    ]
    return "\n".join(lines)


def figures(races: dict[Case, Samples], dissected: dict[str, Samples], big: int) -> dict[str, Any]:
    steps = [
        {"family": family, "bound": bound, "dim": dim, "contender": name, "unit": "us a step"}
        | summary([1e6 * value for value in values])
        for (family, bound, dim), samples in races.items()
        for name, values in samples.items()
    ]
    split = [
        {
            "family": family,
            "dim": big,
            "piece": name,
            "unit": "ps a byte" if name == "byte" else "us a step",
        }
        | summary([(1e12 if name == "byte" else 1e6) * value for value in values])
        for family, samples in dissected.items()
        for name, values in samples.items()
    ]
    return {
        "figures": steps,
        "pieces": split,
        "slopes": {family: slopes(races, family) for family in dissected},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="minisvi against NumPyro, family by family")
    parser.add_argument(
        "--smoke", action="store_true", help="small and short; writes JSON only to --output"
    )
    parser.add_argument(
        "--date", default=datetime.date.today().isoformat(), help="the date to record"
    )
    parser.add_argument(
        "--output", type=Path, help="default: results/families.json beside this script"
    )
    options = parser.parse_args()
    settings = SMOKE if options.smoke else Settings()
    races, dissected = measure(settings)
    goals = judge(races, dissected, settings.big)
    print(
        race_table(races, dissected),
        *(pieces_table(f, settings.big, s) for f, s in dissected.items()),
        sep="\n\n",
    )
    if options.smoke:
        print("\nA smoke run: it shows that everything runs; its figures mean nothing.")
    else:
        print("\n" + goal_table(goals))
    output = options.output or (None if options.smoke else RESULTS)
    if output:
        report = {"date": options.date, "machine": machine(), "backend": jax.default_backend()}
        report |= {"versions": versions(PACKAGES), "settings": settings._asdict(), "goals": goals}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(
            json.dumps(report | figures(races, dissected, settings.big), indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
