"""The measured variance of every gradient estimator, at equal numbers of density evaluations.

    python benchmarks/estimators.py            # all figures, benchmarks/results/estimators.json
    python benchmarks/estimators.py --smoke    # half a minute: does it run? It measures nothing

The guide is `mean_field`. Each estimate takes 16 draws, so 16 evaluations of log p. Targets: a
conjugate Gaussian away from the origin (D = 8), a logistic regression (D = 31) and eight schools (D
= 10). Points: where `guide.init` starts, where a fit ends, and for the Gaussian the exact
posterior.

The variance is the sum over all parameters of the variance of one estimate's gradient, with loc in
units of the sds of the fitted guide (d/d(loc / sd) = sd d/d loc) and log scale as it is, so that it
does not depend on the units of the latents. At the exact posterior of a Gaussian that of the plain
estimator is 3 D / K, which is checked. Its ratio to the plain estimator's is what an estimator
saves; errors are standard errors, over 20 blocks of the repeats. The gradients of the ELBO
estimators have one mean, which is checked; the other bounds have their own.

Signal to noise is |E g| / (sum Var g)^(1/2). As K grows that of the importance-weighted bound's
plain gradient falls as K^(-1/2) and that of its doubly reparameterised one rises as K^(1/2)
(Rainforth et al. 2018; Tucker et al. 2019), once K is large for the spread of the weights: `near`
is the fit moved by 0.1 sd and 0.1 in log scale, where for the Gaussian it is. At the start one draw
has all the weight, and K does not matter.
"""

import argparse
import datetime
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import machine, progress, significant, versions
from engines.targets import TARGETS, Target
from jax import Array
from jax.lax import stop_gradient

import minisvi
from minisvi import CUBO, ELBO, SVI, ForwardKL, ImportanceWeighted, Renyi

RESULTS = Path(__file__).parent / "results" / "estimators.json"
PACKAGES = ["jax", "jaxlib", "optax", "distrax", "numpy", "scipy", "scikit-learn"]
BLOCKS, NEAR = 20, 0.1
ELBOS = ("reparameterised", "sticking_the_landing", "closed_form_entropy", "closed_form_kl")
SCORE = "score_function, leave-one-out"


class Settings(NamedTuple):
    num_particles: int = 16
    num_repeats: int = 4_000
    fit_steps: int = 5_000
    signal_particles: tuple[int, ...] = (1, 8, 64)
    signal_repeats: int = 10_000
    draws: tuple[str, ...] = ("independent", "antithetic", "quasi")
    targets: tuple[str, ...] = tuple(TARGETS)


SMOKE = Settings(16, 100, 100, (1, 2), 100, ("independent", "quasi"), ("conjugate Gaussian",))


@dataclass(frozen=True)
class Stopped:
    """q with draws that carry no gradient, so that the score of q is all there is."""

    q: Any
    reparameterised = False

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Any, Array]:
        u = stop_gradient(self.q.sample_and_log_prob(seed=seed)[0])
        return u, self.q.log_prob(u)

    def log_prob(self, u: Any, /) -> Array:
        return self.q.log_prob(u)


def estimators(num: int, kinds_of_draws: tuple[str, ...]) -> dict[str, Any]:
    """The ELBO's by gradient and draws, then the other bounds'."""
    found: dict[str, Any] = {}
    for gradient in ELBOS:
        found |= {f"{gradient}, {draws}": ELBO(num, gradient, draws) for draws in kinds_of_draws}
    found[SCORE] = ELBO(num, "score_function")
    bounds = {
        "importance-weighted": ImportanceWeighted(num),
        "Renyi 0.5": Renyi(num, alpha=0.5),
        "CUBO": CUBO(num),
    }
    for name, bound in bounds.items():
        found |= {name: bound, f"{name}, doubly": replace(bound, gradient="doubly_reparameterised")}
    return found | {"forward KL": ForwardKL(num)}


class Problem:
    """A target with its guide, the points of its parameters, and the units of their gradients."""

    def __init__(self, target: Target, fit_steps: int) -> None:
        self.model, self.data = target.model, target.data
        self.guide = minisvi.mean_field(self.model.latents)
        self.stopped = minisvi.custom(
            self.guide.init, lambda params, *_: Stopped(self.guide.distribution(params))
        )
        start_key, fit_key = jax.random.split(jax.random.key(11))
        rate = optax.cosine_decay_schedule(0.05, fit_steps)
        svi = SVI(self.model, self.guide, optax.adam(rate), ELBO(16, "sticking_the_landing"))
        start = self.guide.init(start_key)
        fit = svi.run(fit_key, fit_steps, *self.data, params=start, progress_bar=False)
        self.points = {"start": start, "fit": fit.params}
        if target.posterior is not None:
            loc, variances = target.posterior
            self.points["exact"] = self.guide.init(start_key, loc=loc, cov=variances)
        self.sd = np.exp(np.asarray(fit.params["log_scale"], np.float64))
        near = {
            "loc": fit.params["loc"] + NEAR * self.sd,
            "log_scale": fit.params["log_scale"] + NEAR,
        }
        self.points["near"] = jax.tree.map(lambda x: jnp.asarray(x, float), near)

    def gradients(
        self, name: str, objective: Any, points: Iterable[str], num: int
    ) -> dict[str, np.ndarray]:
        """At each point, `num` gradients in units of the guide's sds: (num, parameters),
        float64.
        """
        guide = self.stopped if name == SCORE else self.guide

        def one(params: Any, key: Array, data: tuple[Any, ...]) -> Any:
            return jax.grad(lambda params: objective(key, self.model, guide, params, *data))(params)

        many = jax.jit(jax.vmap(one, (None, 0, None)))
        keys = jax.random.split(
            jax.random.key(7), (num // 100, 100)
        )  # 100 at a time, for the memory's sake
        found = {}
        for point in points:
            grads = [jax.device_get(many(self.points[point], some, self.data)) for some in keys]
            rows = [
                np.concatenate([g["loc"] * self.sd, g["log_scale"]], axis=1, dtype=np.float64)
                for g in grads
            ]
            found[point] = np.concatenate(rows)
        return found


def total_variance(gradients: np.ndarray) -> float:
    return float(np.sum(np.var(gradients, axis=0, ddof=1)))


def blocks(gradients: np.ndarray) -> np.ndarray:
    """The total variance within each of the blocks."""
    return np.array([total_variance(block) for block in np.array_split(gradients, BLOCKS)])


def compare(gradients: np.ndarray, plain: np.ndarray) -> dict[str, float]:
    """The total variance, its ratio to the plain estimator's and their standard errors."""
    values, plains = blocks(gradients), blocks(plain)
    variance, ratio = total_variance(gradients), total_variance(gradients) / total_variance(plain)
    error = lambda x: float(np.std(x, ddof=1)) / math.sqrt(BLOCKS)
    # Of a ratio of means, by its linearisation.
    found = {"variance": variance, "variance_se": error(values), "ratio": ratio}
    return found | {"ratio_se": error(values - ratio * plains) / total_variance(plain)}


def same_mean(name: str, gradients: np.ndarray, plain: np.ndarray) -> None:
    """Stop unless every component has the plain estimator's mean, within six standard errors and
    float32.
    """
    variance = (np.var(gradients, axis=0) + np.var(plain, axis=0)) / len(plain)
    size = np.sqrt(np.mean(plain**2))
    np.testing.assert_array_less(
        np.abs(gradients.mean(0) - plain.mean(0)), 6 * np.sqrt(variance) + 1e-4 * size, err_msg=name
    )


def signal_to_noise(gradients: np.ndarray) -> float | None:
    """|E g| / (sum Var g)^(1/2); None where the repeats cannot tell E g from zero."""
    noise = total_variance(gradients)
    signal = float(np.sum(gradients.mean(0) ** 2)) - noise / len(gradients)  # unbiased for |E g|^2
    return math.sqrt(signal / noise) if signal > noise / len(gradients) else None


def measure(target: str, settings: Settings) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    problem = Problem(TARGETS[target](), settings.fit_steps)
    variances, signals = [], []
    plain: dict[str, np.ndarray] = {}
    points = [point for point in ("start", "fit", "exact") if point in problem.points]
    for name, objective in estimators(settings.num_particles, settings.draws).items():
        found = problem.gradients(name, objective, points, settings.num_repeats)
        plain = plain or found
        for point, gradients in found.items():
            if isinstance(objective, ELBO):
                same_mean(f"{target}, {point}, {name}", gradients, plain[point])
            row = {"target": target, "point": point, "estimator": name}
            variances.append(row | compare(gradients, plain[point]))
    if "exact" in plain:
        exact_variance(plain["exact"], settings.num_particles)
    for num in settings.signal_particles:
        for name in ("reparameterised", "doubly_reparameterised"):
            objective = ImportanceWeighted(num, name)
            found = problem.gradients(
                name, objective, ("start", "near", "fit"), settings.signal_repeats
            )
            for point, gradients in found.items():
                row = {"target": target, "point": point, "gradient": name, "num_particles": num}
                signals.append(row | {"signal_to_noise": signal_to_noise(gradients)})
    return variances, signals


def exact_variance(plain: np.ndarray, num_particles: int) -> None:
    """Stop unless it is 3 D / K: there grad loc is -eps / sd and grad log scale 1 - eps^2."""
    values, expected = blocks(plain), 3 * (plain.shape[1] / 2) / num_particles
    np.testing.assert_allclose(
        values.mean(), expected, rtol=0.01, atol=6 * np.std(values) / math.sqrt(BLOCKS)
    )


# What is reported.


def variance_table(target: str, rows: list[dict[str, Any]]) -> str:
    rows = [row for row in rows if row["target"] == target]
    points = list(dict.fromkeys(row["point"] for row in rows))
    lines = [
        f"{target:38}" + "".join(f"{f'{point}: variance':>16}{'ratio':>19}" for point in points)
    ]
    for name in dict.fromkeys(row["estimator"] for row in rows):
        cells = [row for row in rows if row["estimator"] == name]
        lines.append(
            f"  {name:36}" + "".join(f"{c['variance']:>16.4g}{with_error(c):>19}" for c in cells)
        )
    return "\n".join(lines)


def with_error(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.3g} +- {row['ratio_se']:.1g}"


def signal_table(rows: list[dict[str, Any]]) -> str:
    nums = sorted({row["num_particles"] for row in rows})
    lines = [
        f"{'signal to noise, importance-weighted':64}"
        + "".join(f"{f'K = {n}':>10}" for n in nums)
        + "   slope"
    ]
    for key in dict.fromkeys((row["target"], row["point"], row["gradient"]) for row in rows):
        found = [
            r["signal_to_noise"] for r in rows if (r["target"], r["point"], r["gradient"]) == key
        ]
        cells = "".join(f"{'~ 0' if value is None else f'{value:.3g}':>10}" for value in found)
        slope = (
            math.log(found[-1] / found[-2]) / math.log(nums[-1] / nums[-2])
            if None not in found[-2:]
            else None
        )
        lines.append(f"  {', '.join(key):62}{cells}" + ("" if slope is None else f"{slope:>8.2f}"))
    return "\n".join(
        [*lines, "the slope: of log signal to noise against log K, over the last two K"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="the variance of minisvi's gradient estimators")
    parser.add_argument(
        "--smoke", action="store_true", help="small and short; writes JSON only to --output"
    )
    parser.add_argument(
        "--date", default=datetime.date.today().isoformat(), help="the date to record"
    )
    parser.add_argument(
        "--output", type=Path, help="default: results/estimators.json beside this script"
    )
    options = parser.parse_args()
    settings = SMOKE if options.smoke else Settings()
    variances, signals = [], []
    for target in settings.targets:
        for _ in progress(target, 1):
            found = measure(target, settings)
            variances += found[0]
            signals += found[1]
        print(variance_table(target, variances) + "\n", flush=True)
    print(signal_table(signals))
    if options.smoke:
        print("\nA smoke run: it shows that everything runs; its figures mean nothing.")
    output = options.output or (None if options.smoke else RESULTS)
    if output:
        report = {"date": options.date, "machine": machine(), "backend": jax.default_backend()}
        report |= {"versions": versions(PACKAGES), "settings": settings._asdict()}
        report |= {"variances": rounded(variances), "signals": rounded(signals)}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=1) + "\n")


def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: significant(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]


if __name__ == "__main__":
    main()
