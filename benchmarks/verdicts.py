"""Is the verdict right? `minisvi.fit`'s and `minisvi.judge`'s, against the truth, over some
hundreds of answers.

    python benchmarks/verdicts.py            # all fits, results/verdicts.json, and the tables
    python benchmarks/verdicts.py --smoke    # two targets, one seed: does all run?
    python benchmarks/verdicts.py --targets gamma,funnel --seeds 2
    python benchmarks/verdicts.py --table    # the file's tables again

Thirteen posteriors whose moments are known, and for each seed these answers:

- fit: `minisvi.fit`, nothing spoiled;
- fitted: a Gaussian guide fitted by Adam, judged by `minisvi.judge` (full rank for even seeds, mean
  field for odd);
- stopped early: its parameters at 30, 60, 90, 95 or 98 % of the way from a start;
- scale halved; and mean off by 0.3 sd of q in every coordinate, signs at random;
- a mode missed: the two-mode target alone, a guide at one of its modes.

Guides are judged beside the optima of eight restarts of the deterministic fit, as `minisvi.fit` has
them.

The truth of an answer is that of its draws with their weights, which is what a user gets:
"accurate" if mean_err and sd_err (root mean squares over the quantities, as in field.py) are at
most 0.03; "bad" if any quantity's mean is off by more than 0.1 reference sd or its sd by more than
a tenth; "middle" otherwise. A verdict sees nothing of it.

Everything runs in one process, so that each target and family compiles once. A false good is a
"good" that is bad.
"""

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from accuracy_targets import (
    SCHOOL_EFFECTS,
    SCHOOL_ERRORS,
    TARGETS,
    Target,
    Theta,
)
from common import machine, versions
from field_cells import tidy
from field_engines.figures import moments
from field_table import short
from jax import Array
from jax.scipy.stats import norm

import minisvi
from minisvi import SVI, Model, positive, real

RESULTS = Path(__file__).parent / "results" / "verdicts.json"
PACKAGES = ["jax", "jaxlib", "optax", "inference_gym", "scikit-learn", "numpy"]
LEVELS = ("good", "bulk good, tails unverified", "not trusted")
TRUTHS = ("accurate", "middle", "bad")
ACCURATE, BAD = 0.03, 0.1
SAID = ("level", "reason", "khat", "ess", "tail", "unseen", "error", "unreached", "num_draws")
SPOILINGS = ("fit", "fitted", "stopped early", "scale halved", "mean off", "mode missed")
SHARES = (0.6, 0.9, 0.95, 0.3, 0.98)  # of the way from the start to the fit, by seed
STEPS = 4_000  # of Adam, for the guides that are spoiled
OPTIMIZER = optax.adam(optax.exponential_decay(0.02, STEPS, 0.01))

Record = dict[str, Any]


# Targets beside those of field.py; all are cheap, and their moments are exact or by quadrature.


def hierarchy(
    effects: np.ndarray, errors: np.ndarray, mu_sd: float, log_prior: Callable[[Any], Any]
) -> Any:
    """Moments of (mu, tau, theta) for y_j ~ N(theta_j, s_j), theta_j ~ N(mu, tau), mu ~ N(0,
    mu_sd), by quadrature.

    Given tau all is Gaussian; `log_prior` is the log density of log tau, over which the trapezoid
    rule goes.
    """
    log_tau = np.linspace(-16.0, 8.0, 24_001)[:, None]
    tau = np.exp(log_tau)
    spread = tau**2 + errors**2
    precision = 1 / mu_sd**2 + np.sum(1 / spread, 1)
    mu, mu_var = np.sum(effects / spread, 1) / precision, 1 / precision
    log_p = log_prior(log_tau[:, 0]) - 0.5 * np.sum(effects**2 / spread + np.log(spread), 1)
    log_p += 0.5 * mu**2 * precision + 0.5 * np.log(mu_var)
    weights = np.exp(log_p - log_p.max())
    pull = errors**2 / spread  # theta = pull * mu + (1 - pull) * y + noise
    theta = pull * mu[:, None] + (1 - pull) * effects
    theta_var = tau**2 * pull + pull**2 * mu_var[:, None]
    first = np.column_stack([mu, tau, theta])
    second = np.column_stack([mu**2 + mu_var, tau**2, theta**2 + theta_var])
    mean = weights @ first / weights.sum()
    return mean, np.sqrt(weights @ second / weights.sum() - mean**2)


def half_cauchy(tau: Any, scale: float) -> Any:
    """Its log density, up to a constant."""
    return -jnp.log1p((tau / scale) ** 2)


def eight_schools(centered: bool) -> Target:
    """Rubin (1981) with mu ~ N(0, 5), tau ~ HalfCauchy(5); centred, a funnel."""
    data = jnp.asarray(SCHOOL_EFFECTS, float), jnp.asarray(SCHOOL_ERRORS, float)
    to_log = lambda log_tau: np.asarray(half_cauchy(np.exp(log_tau), 5.0)) + log_tau
    return _groups(data, 5.0, centered, lambda tau: half_cauchy(tau, 5.0), to_log)


def small_hierarchy() -> Target:
    """Six groups of five rows, well known: y ~ N(theta_j, 1), theta_j ~ N(mu, tau), log tau ~ N(0,
    1), mu ~ N(0, 5).
    """
    rng = np.random.default_rng(5)
    means = np.mean(1.0 + 1.5 * rng.normal(size=(6, 1)) + rng.normal(size=(6, 5)), axis=1)
    data = jnp.asarray(means, float), jnp.full(6, 5**-0.5, float)
    to_log = lambda log_tau: -0.5 * log_tau**2
    return _groups(data, 5.0, True, lambda tau: norm.logpdf(jnp.log(tau)) - jnp.log(tau), to_log)


def _groups(
    data: Any, mu_sd: float, centered: bool, log_prior: Callable[[Any], Any], to_log: Any
) -> Target:
    def theta_of(theta: Theta) -> Array:
        return theta["theta"] if centered else theta["mu"] + theta["tau"] * theta["theta"]

    def log_joint(theta: Theta, effects: Array, errors: Array) -> Array:
        prior = norm.logpdf(theta["mu"], 0.0, mu_sd) + log_prior(theta["tau"])
        loc, scale = (theta["mu"], theta["tau"]) if centered else (0.0, 1.0)
        prior += jnp.sum(norm.logpdf(theta["theta"], loc, scale))
        return prior + jnp.sum(norm.logpdf(effects, theta_of(theta), errors))

    mean, sd = hierarchy(np.asarray(data[0]), np.asarray(data[1]), mu_sd, to_log)
    latents = {"mu": real(), "tau": positive(), "theta": real(len(data[0]))}
    quantities = lambda t: jnp.concatenate([t["mu"][None], t["tau"][None], theta_of(t)])
    return Target(
        Model(latents, log_joint), data, mean, sd, source="quadrature", quantities=quantities
    )


MODES = np.array([[-3.0, 0.0], [3.0, 1.0]])
MODE_SDS, MODE_SHARES = np.array([0.6, 0.8]), np.array([0.6, 0.4])


def two_modes() -> Target:
    """Two Gaussians eight sd apart, 60 and 40 %."""
    mean = MODE_SHARES @ MODES
    sd = np.sqrt(MODE_SHARES @ (MODES**2 + MODE_SDS[:, None] ** 2) - mean**2)

    def log_joint(theta: Theta) -> Array:
        parts = [
            jnp.log(share) + jnp.sum(norm.logpdf(theta["x"], jnp.asarray(mode, float), scale))
            for share, mode, scale in zip(MODE_SHARES, MODES, MODE_SDS, strict=True)
        ]
        return jax.nn.logsumexp(jnp.stack(parts))

    return Target(Model({"x": real(2)}, log_joint), (), mean, sd, 0.0)


def poisson_regression() -> Target:
    """60 counts, an intercept and two slopes, N(0, 1) priors; moments on a grid of 81^3 around the
    mode.
    """
    rng = np.random.default_rng(2)
    x = np.column_stack([np.ones(60), rng.normal(size=(60, 2))])
    y = rng.poisson(np.exp(x @ np.array([0.5, 0.4, -0.6])))

    def log_joint(theta: Theta, x: Array, y: Array) -> Array:
        log_rate = x @ theta["beta"]
        return jnp.sum(norm.logpdf(theta["beta"])) + jnp.sum(y * log_rate - jnp.exp(log_rate))

    beta = np.zeros(3)
    for _ in range(50):  # Newton, to the mode
        rate = np.exp(x @ beta)
        hessian = (x * rate[:, None]).T @ x + np.eye(3)
        beta = beta + np.linalg.solve(hessian, x.T @ (y - rate) - beta)
    factor = np.linalg.cholesky(np.linalg.inv(hessian))
    steps = np.linspace(-8.0, 8.0, 81)
    grid = beta + np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3) @ factor.T
    log_p = np.concatenate(
        [
            b @ (x.T @ y) - np.exp(b @ x.T).sum(1) - 0.5 * np.sum(b**2, 1)
            for b in np.array_split(grid, 50)
        ]
    )
    weights = np.exp(log_p - log_p.max())
    mean = weights @ grid / weights.sum()
    sd = np.sqrt(weights @ (grid - mean) ** 2 / weights.sum())
    data = jnp.asarray(x, float), jnp.asarray(y, float)
    return Target(Model({"beta": real(3)}, log_joint), data, mean, sd, source="quadrature")


def student_t(dim: int = 5, df: float = 7.0) -> Target:
    """Multivariate t of 7 degrees of freedom, equicorrelated at 0.5: tails that no Gaussian
    covers.
    """
    scale = 0.5 * np.eye(dim) + 0.5
    inverse, loc = np.linalg.inv(np.linalg.cholesky(scale)), np.arange(dim, dtype=float)

    def log_joint(theta: Theta) -> Array:
        white = jnp.asarray(inverse, float) @ (theta["x"] - jnp.asarray(loc, float))
        return -0.5 * (df + dim) * jnp.log1p(jnp.sum(white**2) / df)

    return Target(Model({"x": real(dim)}, log_joint), (), loc, np.full(dim, np.sqrt(df / (df - 2))))


CASES: dict[str, Callable[[], Target]] = {
    **{
        name: TARGETS[name]
        for name in (
            "breast_cancer",
            "gamma",
            "banana",
            "funnel",
            "correlated_gaussian",
            "eight_schools",
            "brownian_motion",
        )
    },
    "eight_schools_noncentred": lambda: eight_schools(False),
    "eight_schools_centred": lambda: eight_schools(True),
    "two_modes": two_modes,
    "poisson_regression": poisson_regression,
    "small_hierarchy": small_hierarchy,
    "student_t": student_t,
}


# Guides that are not what they should be. All are Gaussian: `loc`, and `log_scale` or `scale_tril`.


@cache
def engine(case: str, family: str) -> tuple[Target, SVI]:
    """One of each, so that records are equal and nothing compiles twice."""
    target = target_of(case)
    guide = getattr(minisvi, family)(target.model.latents)
    return target, SVI(
        target.model, guide, OPTIMIZER, minisvi.ELBO(8, gradient="sticking_the_landing")
    )


@cache
def target_of(case: str) -> Target:
    return CASES[case]()


@cache
def fitted(case: str, family: str, seed: int) -> tuple[Any, Any]:
    """Parameters of a random start, and of the fit from it."""
    target, svi = engine(case, family)
    start_key, fit_key = jax.random.split(jax.random.key(seed))
    start = svi.guide.init(start_key)
    found = svi.run(
        fit_key, STEPS, *target.data, params=start, progress_bar=False, on_failure="return"
    )
    return start, found.params


@cache
def optima(case: str, seed: int) -> Any:
    """Where eight starts of the deterministic fit end: the restarts that a verdict may look at."""
    target = target_of(case)
    return minisvi.deterministic(
        jax.random.key(seed), target.model, *target.data, max_draws=32
    ).optima


def halved(params: Any) -> Any:
    """Every scale times a half."""
    if "log_scale" in params:
        return params | {"log_scale": params["log_scale"] - jnp.log(2.0)}
    tril = params["scale_tril"]
    below, log_diagonal = jnp.tril(tril, -1), jnp.diag(jnp.diagonal(tril))
    return params | {"scale_tril": 0.5 * below + log_diagonal - jnp.log(2.0) * jnp.eye(len(tril))}


def marginal_sd(params: Any) -> Array:
    if "log_scale" in params:
        return jnp.exp(params["log_scale"])
    tril = params["scale_tril"]
    factor = jnp.tril(tril, -1) + jnp.diag(jnp.exp(jnp.diagonal(tril)))
    return jnp.sqrt(jnp.sum(factor**2, axis=1))


def moved(params: Any, seed: int) -> Any:
    """The mean off by 0.3 marginal sd in every coordinate."""
    signs = jax.random.rademacher(
        jax.random.key(1_000 + seed), params["loc"].shape, params["loc"].dtype
    )
    return params | {"loc": params["loc"] + 0.3 * signs * marginal_sd(params)}


def at_a_mode(params: Any, seed: int) -> Any:
    """q is one of the two Gaussians, exactly."""
    mode = seed % 2
    log_sd = jnp.full(2, np.log(MODE_SDS[mode]))
    scale = {"log_scale": log_sd} if "log_scale" in params else {"scale_tril": jnp.diag(log_sd)}
    return {"loc": jnp.asarray(MODES[mode], float)} | scale


def spoiled(spoiling: str, case: str, family: str, seed: int) -> Any:
    """Parameters of a guide that is not what it should be (and of one that is)."""
    start, params = fitted(case, family, seed)
    if spoiling == "stopped early":
        share = SHARES[seed % len(SHARES)]
        return jax.tree.map(lambda a, b: (1 - share) * a + share * b, start, params)
    change = {
        "fitted": lambda: params,
        "scale halved": lambda: halved(params),
        "mean off": lambda: moved(params, seed),
        "mode missed": lambda: at_a_mode(params, seed),
    }
    return change[spoiling]()


# One answer, its verdict and its truth.


def answer(spoiling: str, case: str, seed: int) -> Record:
    family, key = ("full_rank", "mean_field")[seed % 2], jax.random.key(10_000 + seed)
    begin = time.perf_counter()
    if spoiling == "fit":
        target, family = target_of(case), ""
        found = minisvi.fit(key, target.model, *target.data, progress_bar=False)
    else:
        target, svi = engine(case, family)
        params = spoiled(spoiling, case, family, seed)
        found = minisvi.judge(
            key, target.model, svi.guide, params, *target.data, optima=optima(case, seed)
        )
    log_weights = np.asarray(found.draws.log_weights, np.float64)
    errors = moments(target, jax.device_get(found.draws.theta), np.exp(log_weights))
    said = {name: getattr(found.verdict, name) for name in SAID}
    what = {"target": case, "spoiling": spoiling, "family": family, "seed": seed}
    return what | said | {"truth": truth(errors), "seconds": time.perf_counter() - begin} | errors


def truth(errors: Record) -> str:
    """Not a number is bad."""
    worst = max(errors["mean_err_max"], errors["sd_err_max"])
    if not worst <= BAD:
        return "bad"
    return "accurate" if max(errors["mean_err"], errors["sd_err"]) <= ACCURATE else "middle"


def run(cases: list[str], seeds: range, save: Callable[[list[Record]], None]) -> list[Record]:
    """All answers of a target, then the next target, whose compilations replace the last one's;
    saved after each.
    """
    records: list[Record] = []
    for case in cases:
        for spoiling in SPOILINGS:
            if spoiling == "mode missed" and case != "two_modes":
                continue
            for seed in seeds:
                records.append(attempt(spoiling, case, seed))
                kept = {
                    n: records[-1].get(n)
                    for n in ("level", "truth", "mean_err_max", "sd_err_max", "seconds")
                }
                print(f"{case}, {spoiling}, {seed}: {kept}", file=sys.stderr, flush=True)
        save(records)
        fitted.cache_clear()
        optima.cache_clear()
        jax.clear_caches()
    return records


def attempt(spoiling: str, case: str, seed: int) -> Record:
    """A crash is a record too: it gives no verdict, and is counted apart."""
    try:
        return answer(spoiling, case, seed)
    except Exception as error:
        what = {
            "target": case,
            "spoiling": spoiling,
            "seed": seed,
            "level": "crashed",
            "truth": "none",
        }
        return what | {"reason": f"{type(error).__name__}: {error}"[:500]}


# What is reported.


def confusion(records: list[Record]) -> dict[str, dict[str, int]]:
    count = lambda level, truth: sum(r["level"] == level and r["truth"] == truth for r in records)
    return {level: {truth: count(level, truth) for truth in TRUTHS} for level in LEVELS}


def rates(records: list[Record]) -> Record:
    """False good: of all that are called good, the share that is bad. Good when accurate: of all
    that are accurate.
    """
    counted = confusion(records)
    good, accurate = sum(counted["good"].values()), sum(row["accurate"] for row in counted.values())
    return {
        "answers": len(records),
        "crashed": sum(r["level"] == "crashed" for r in records),
        "called_good": good,
        "false_good": counted["good"]["bad"],
        "false_good_rate": counted["good"]["bad"] / good if good else None,
        "bad": sum(row["bad"] for row in counted.values()),
        "accurate": accurate,
        "good_when_accurate_rate": counted["good"]["accurate"] / accurate if accurate else None,
    }


def tables(records: list[Record]) -> str:
    parts = [table("all", records)]
    parts += [
        table(s, chosen)
        for s in SPOILINGS
        if (chosen := [r for r in records if r["spoiling"] == s])
    ]
    return "\n\n".join([*parts, false_goods(records)])


def table(name: str, records: list[Record]) -> str:
    lines = [f"| {name} | " + " | ".join(TRUTHS) + " |", "|---|" + "---:|" * len(TRUTHS)]
    lines += [
        f"| {level} | " + " | ".join(map(str, row.values())) + " |"
        for level, row in confusion(records).items()
    ]
    found = rates(records)
    percent = lambda rate: "–" if rate is None else f"{100 * rate:.1f} %"  # noqa: RUF001
    lines += [
        "",
        f"{found['answers']} answers, {found['crashed']} crashed; false good: "
        f"{found['false_good']} of "
        f"{found['called_good']} ({percent(found['false_good_rate'])}); good when accurate: "
        f"{percent(found['good_when_accurate_rate'])} of {found['accurate']}",
    ]
    return "\n".join(lines)


def false_goods(records: list[Record]) -> str:
    lines = ["Called good with an error above 0.1:"]
    for r in records:
        if r["level"] == "good" and r["truth"] == "bad":
            errors = f"mean {short(r['mean_err_max'])}, sd {short(r['sd_err_max'])}"
            lines.append(
                f"- {r['target']}, {r['spoiling']}, {r['family']}, seed {r['seed']}: "
                f"{errors}; {r['reason']}"
            )
    crashes = [
        f"- {r['target']}, {r['spoiling']}, seed {r['seed']}: {r['reason']}"
        for r in records
        if "family" not in r
    ]
    return "\n".join(
        lines
        + (["- none"] if len(lines) == 1 else [])
        + (["Crashed:", *crashes] if crashes else [])
    )


def check() -> None:
    """Print what is known of each target, and the quadrature of hierarchies on the package's eight
    schools.
    """
    for case in CASES:
        target = target_of(case)
        assert target.mean is not None
        assert target.sd is not None
        print(
            f"{case:26} D {target.dim:3} mean {np.round(target.mean[:4], 4)} sd "
            f"{np.round(target.sd[:4], 4)}"
        )
    package = TARGETS["eight_schools"]()
    mean, sd = hierarchy(
        SCHOOL_EFFECTS, SCHOOL_ERRORS, 10.0, lambda log_tau: -0.5 * (log_tau - 5.0) ** 2
    )
    rows = [0, *range(2, 10)]  # without the scale, which the package has in logs
    shift = (mean[rows] - package.mean[rows]) / package.sd[rows]
    print(
        "eight schools, package's priors: mean off by",
        np.abs(shift).max(),
        "sd ratios",
        sd[rows] / package.sd[rows],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="minisvi's verdicts against the truth")
    parser.add_argument(
        "--smoke", action="store_true", help="two targets, one seed; no file unless --output"
    )
    parser.add_argument("--targets", help=f"some of {', '.join(CASES)}, by commas")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument(
        "--first-seed",
        type=int,
        default=700,
        help="the rule was chosen by what 0 to 12, 100 to 109, 300 to 359, 500 to 504 and 600 "
        "to 609 showed",
    )
    parser.add_argument("--table", action="store_true", help="print the tables of the file")
    parser.add_argument(
        "--check",
        action="store_true",
        help="print the targets' moments, and a check of a quadrature",
    )
    parser.add_argument(
        "--date", default=datetime.date.today().isoformat(), help="the date to record"
    )
    parser.add_argument(
        "--output", type=Path, help="default: results/verdicts.json beside this script"
    )
    options = parser.parse_args()
    output = options.output or (None if options.smoke else RESULTS)
    if options.check:
        return check()
    if options.table:
        return print(tables(json.loads((output or RESULTS).read_text())["records"]))
    if not (hasattr(minisvi, "fit") and hasattr(minisvi, "judge")):
        raise SystemExit("this minisvi has no `fit` and `judge`")
    cases = (
        options.targets.split(",")
        if options.targets
        else ["gamma", "two_modes"]
        if options.smoke
        else list(CASES)
    )
    seeds = range(options.first_seed, options.first_seed + (1 if options.smoke else options.seeds))
    print(tables(run(cases, seeds, partial(write, output, options.date))))
    return None


def write(output: Path | None, date: str, records: list[Record]) -> None:
    """The file as far as it has come; infinite and undefined errors as strings, for which JSON has
    no number.
    """
    if output is None:
        return
    report = {"date": date, "machine": machine(), "versions": versions(PACKAGES)}
    report |= {
        "precision": "float64" if jax.config.jax_enable_x64 else "float32",
        "rates": rates(records),
    }
    report |= {"confusion": confusion(records), "records": [tidy(record) for record in records]}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
