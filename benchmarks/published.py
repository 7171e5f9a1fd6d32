"""Numbers of papers beside those of `minisvi.fit`, on posteriors that can be rebuilt here.

    python benchmarks/published.py                        # all targets, results/published.json
    python benchmarks/published.py --pines pines.csv      # the Cox process too: see below
    python benchmarks/published.py --targets funnel       # one of them
    python benchmarks/published.py --smoke                # does it run? Eight schools alone
    python benchmarks/published.py --table                # the file's table again

The targets:

- funnel (Neal 2003), D = 10: log Z is 0.
- Brownian motion with both scales unknown and the middle third missing, D = 32, of inference_gym.
  log Z is 1.188, by quadrature (`accuracy_references.py`).
- Lorenz bridge with known scales, D = 90, of inference_gym.
- eight schools of posteriordb, not centred, D = 10: mu ~ N(0, 5), tau half-Cauchy of scale 5.
- log-Gaussian Cox process of 126 Finnish pine saplings on a 40 x 40 grid, D = 1,600 (Moller et al.
  1998). No package has the data: `--pines` wants the 126 rows x,y in the unit square that the
  public repositories below have.

The numbers of papers are read from result files in public repositories: those of CMCD, LDVI, UHA,
MFVI, SMC, AFT and CRAFT from shreyaspadhy/CMCD, `src/notebooks/plotting_rebuttal.ipynb`, with 256
annealing steps; those of DDS and PIS from franciscovargas/
denoising_diffusion_samplers, `dds_data/results`, means over 30 seeds at the best number of steps,
with the spread over seeds;
posteriordb's from stan-dev/posteriordb, with the Monte Carlo error of its mean.

Traps:

- Lorenz: the published ELBOs of about -1157 sit in a poorer optimum, in which starts of minisvi's
  mean field with few draws end too. One of ours that left it had an ELBO of -29. A difference of a
  thousand nats is therefore one of optima and not of families. Such an answer is not trusted by its
  own verdict, because its weights do not carry the other optima.
- Funnel: the published code clips the first coordinate at 11, of which the posterior has a share of
  1e-4. The sds of the others live in such tails, and so this table does not compare them.
- Brownian motion: the ELBO depends on the map to the positive scales, here exp; log Z does not.
- An ELBO is a bound, and log Z an estimate: one above the truth is not better. An estimate of log Z
  from importance weights is low in the median where its k-hat is high, whatever its standard error.
- German credit is not here. Its data are downloaded by the packages that know them, and the
  published code leaves the prior out, so that its log Z of -504.5 is of another posterior.
"""

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from common import machine, versions

RESULTS = Path(__file__).parent / "results" / "published.json"
PACKAGES = ["jax", "jaxlib", "optax", "inference_gym", "numpy"]

Record = dict[str, Any]


class Number(NamedTuple):
    """A figure of a paper; `error` is its standard error or the spread over seeds, as given."""

    target: str
    quantity: str
    method: str
    value: float
    error: float | None = None


PUBLISHED = (
    Number("funnel", "log Z", "truth", 0.0),
    Number("funnel", "log Z", "CRAFT", -0.119),
    Number("funnel", "log Z", "DDS", -0.176, 0.068),
    Number("funnel", "log Z", "PIS", -0.268, 0.073),
    Number("funnel", "log Z", "SMC, 256", -0.184),
    Number("funnel", "log Z", "MFVI", -1.32),
    Number("funnel", "ELBO", "SMC, 256", -0.213),
    Number("funnel", "ELBO", "CMCD", -0.230),
    Number("funnel", "ELBO", "AFT", -0.243),
    Number("brownian_motion", "log Z", "truth", 1.188),
    Number("brownian_motion", "log Z", "SMC, 256", 1.131),
    Number("brownian_motion", "log Z", "DDS", 1.047, 0.156),
    Number("brownian_motion", "log Z", "PIS", 1.020, 0.124),
    Number("brownian_motion", "log Z", "MFVI", -0.352),
    Number("brownian_motion", "ELBO", "LDVI", 0.847),
    Number("brownian_motion", "ELBO", "CMCD", 0.835),
    Number("brownian_motion", "ELBO", "UHA", 0.611),
    Number("brownian_motion", "ELBO", "SMC, 256", -0.128),
    Number("lorenz_bridge", "ELBO", "CMCD", -1157.3),
    Number("lorenz_bridge", "ELBO", "LDVI", -1160.0),
    Number("lorenz_bridge", "ELBO", "UHA", -1166.1),
    Number("lorenz_bridge", "ELBO", "SMC, 256", -3746.0),
    Number("lorenz_bridge", "log Z", "SMC, 256", -2812.0),
    Number("eight_schools", "mean of mu", "posteriordb, NUTS", 4.4105, 0.0330),
    Number("eight_schools", "mean of tau", "posteriordb, NUTS", 3.6021, 0.0319),
    Number("eight_schools", "mean of school 1", "posteriordb, NUTS", 6.1505, 0.0557),
    Number("cox_process", "log Z", "PIS", 506.34, 0.63),
    Number("cox_process", "log Z", "DDS", 503.01, 0.77),
    Number("cox_process", "log Z", "MCD with ULA", 509.03),
    Number("cox_process", "ELBO", "MCD with ULA", 498.81, 0.23),
)
LEFT_OUT = "German credit is skipped: no package has its data."
TARGETS = tuple(dict.fromkeys(number.target for number in PUBLISHED))


# Targets. Each is a model, its data, and the scalars whose means are compared.


class Posed(NamedTuple):
    model: Any
    data: tuple[Any, ...]
    scalars: dict[str, Callable[[Any], Any]]


def from_accuracy(name: str) -> Posed:
    import accuracy_targets

    target = accuracy_targets.TARGETS[name]()
    return Posed(target.model, target.data, {})


def lorenz_bridge() -> Posed:
    """The path given both scales."""
    from accuracy_targets import log_lorenz, lorenz_data

    from minisvi import Model, real

    data = lorenz_data()
    drift, noise = data.scales
    model = Model({"path": real((30, 3))}, lambda t: log_lorenz(t["path"], drift, noise, data))
    return Posed(model, (), {})


def eight_schools() -> Posed:
    """Not centred, with posteriordb's priors."""
    import jax.numpy as jnp
    from accuracy_targets import SCHOOL_EFFECTS, SCHOOL_ERRORS
    from jax.scipy.stats import cauchy, norm

    from minisvi import Model, positive, real

    def effect(theta: Any) -> Any:
        return theta["mu"][..., None] + theta["tau"][..., None] * theta["white"]

    def log_joint(theta: Any, effects: Any, errors: Any) -> Any:
        prior = norm.logpdf(theta["mu"], 0.0, 5.0) + jnp.sum(norm.logpdf(theta["white"]))
        prior += jnp.log(2.0) + cauchy.logpdf(theta["tau"], 0.0, 5.0)
        return prior + jnp.sum(norm.logpdf(effects, effect(theta), errors))

    model = Model({"mu": real(), "tau": positive(), "white": real(8)}, log_joint)
    data = jnp.asarray(SCHOOL_EFFECTS, float), jnp.asarray(SCHOOL_ERRORS, float)
    scalars = {
        "mean of mu": lambda theta: theta["mu"],
        "mean of tau": lambda theta: theta["tau"],
        "mean of school 1": lambda theta: effect(theta)[..., 0],
    }
    return Posed(model, data, scalars)


def cox_process(pines: Path, size: int = 40) -> Posed:
    """log intensity f ~ N(log 126 - 1.91 / 2, K), K = 1.91 exp(-33 |s - s'|) over a size x size
    grid of the unit square, and counts Poisson(exp(f) / size^2) without their factorials, as in
    the published density. The latents are white: f = mean + L white.
    """
    import jax.numpy as jnp
    import numpy as np
    from jax.scipy.stats import norm

    from minisvi import Model, real

    cells = np.minimum(np.floor(np.loadtxt(pines, delimiter=",") * size), size - 1).astype(int)
    counts = np.zeros((size, size))
    np.add.at(counts, tuple(cells.T), 1.0)
    places = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"), -1).reshape(-1, 2)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) / size
    factor = np.linalg.cholesky(1.91 * np.exp(-33.0 * distance))
    mean = np.log(126.0) - 0.5 * 1.91

    def log_joint(theta: Any, counts: Any, factor: Any) -> Any:
        f = mean + factor @ theta["white"]
        return jnp.sum(norm.logpdf(theta["white"])) + jnp.sum(counts * f - jnp.exp(f) / size**2)

    model = Model({"white": real(size**2)}, log_joint)
    return Posed(model, (jnp.asarray(counts.ravel()), jnp.asarray(factor)), {})


def posed(target: str, pines: Path | None) -> Posed | str:
    """The target, or the reason why it is skipped."""
    if target == "cox_process":
        return cox_process(pines) if pines else "no package has the data: --pines FILE"
    own = {"lorenz_bridge": lorenz_bridge, "eight_schools": eight_schools}
    return own[target]() if target in own else from_accuracy(target)


# What minisvi says.


def ours(target: Posed, seed: int) -> Record:
    """ELBO, log Z and means of `minisvi.fit`, each with its standard error."""
    import jax

    import minisvi

    begin = time.perf_counter()
    fit = minisvi.fit(jax.random.key(seed), target.model, *target.data, progress_bar=False)
    seconds = time.perf_counter() - begin
    said = fit.verdict
    quantities = {
        "ELBO": [said.elbo, said.elbo_se],
        "log Z": [said.log_evidence, said.log_evidence_se],
    }
    for name, scalar in target.scalars.items():
        quantities[name] = mean_of(fit.draws, scalar)
    return {
        "quantities": {name: [float(v) for v in pair] for name, pair in quantities.items()},
        "verdict": said.level,
        "reason": said.reason,
        "k_hat": float(said.khat),
        "stages": [stage.name for stage in fit.stages],
        "seconds": seconds,
    }


def mean_of(draws: Any, scalar: Callable[[Any], Any]) -> list[float]:
    """Weighted mean of a scalar of theta, and its standard error."""
    from minisvi.posterior.diagnostics import weighted_mcse, weighted_moments

    values = scalar(draws.theta)
    mean, sd = weighted_moments(values, draws.log_weights)
    return [mean, sd * weighted_mcse(values, draws.log_weights)]


def run(options: argparse.Namespace) -> Record:
    report = {
        "date": options.date,
        "machine": machine(),
        "versions": versions(PACKAGES),
        "published": [number._asdict() for number in PUBLISHED],
        "ours": kept(options.output),
    }
    for target in options.targets:
        found = posed(target, options.pines)
        if isinstance(found, str):
            report["ours"][target] = {"skipped": found}
        else:
            report["ours"][target] = ours(found, options.seed)
        print(f"{target}: {report['ours'][target]}", file=sys.stderr, flush=True)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(report, indent=1) + "\n")
    return report


def kept(output: Path | None) -> Record:
    """What an earlier run has of the other targets."""
    if output is None or not output.exists():
        return {}
    return json.loads(output.read_text())["ours"]


# The table.


def table(report: Record) -> str:
    """Markdown: ours stands beside each figure of a paper, with its standard error."""
    lines = ["| target | quantity | paper | its value | minisvi.fit | verdict |"]
    lines.append("|---|---|---|---:|---:|---|")
    shown: set[tuple[str, str]] = set()
    for number in (Number(**entry) for entry in report["published"]):
        found = report["ours"].get(number.target, {"skipped": "not run"})
        is_first = (number.target, number.quantity) not in shown
        shown.add((number.target, number.quantity))
        lines.append(line(number, found, is_first))
    return "\n".join([*lines, "", LEFT_OUT])


def line(number: Number, found: Record, is_first: bool) -> str:
    theirs = with_error(number.value, number.error)
    mine = verdict = ""
    if is_first:
        mine, verdict = of_ours(number.quantity, found)
    name = number.target.replace("_", " ") if is_first else ""
    quantity = number.quantity if is_first else ""
    return f"| {name} | {quantity} | {number.method} | {theirs} | {mine} | {verdict} |"


def of_ours(quantity: str, found: Record) -> tuple[str, str]:
    if "skipped" in found:
        return "", f"skipped: {found['skipped']}"
    return with_error(*found["quantities"][quantity]), found["verdict"]


def with_error(value: float, error: float | None) -> str:
    return f"{value:.3f}" if error is None else f"{value:.3f} +- {error:.3f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="figures of papers beside those of minisvi.fit")
    parser.add_argument("--targets", help="some of the targets, by commas")
    parser.add_argument("--pines", type=Path, help="the data of the Cox process, 126 rows x,y")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one target; no file unless --output")
    parser.add_argument("--table", action="store_true", help="print the table of the file")
    parser.add_argument("--date", default=datetime.date.today().isoformat())
    parser.add_argument("--output", type=Path, help="default: results/published.json")
    options = parser.parse_args()
    default = ("eight_schools",) if options.smoke else TARGETS
    options.targets = tuple(options.targets.split(",")) if options.targets else default
    options.output = options.output or (None if options.smoke else RESULTS)
    return options


def main() -> None:
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    options = parse()
    if options.table:
        print(table(json.loads(options.output.read_text())))
    else:
        print(table(run(options)))


if __name__ == "__main__":
    main()
