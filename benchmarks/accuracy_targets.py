"""Posteriors with known answers: a minisvi model, its data, and the moments and the evidence that
are true.

Nine are targets of `inference_gym`, from which come the data, the structure and most of the truth.
Their densities are written again here, because most of the package's refuse float64; `check`
compares them with the package's own, and the log determinants with closed forms, at random points.

Means and standard deviations are those of `quantities(theta)`, a vector: the constrained latents,
flattened, unless the package says otherwise. Where a truth had to be computed, it is read from
results/accuracy_references.json, which `python benchmarks/field.py --references` makes; it says
how.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln
from jax.scipy.stats import norm

from minisvi import Model, interval, positive, real

REFERENCES = Path(__file__).parent / "results" / "accuracy_references.json"

SMALLER_RATE = 0.002  # of flows: at 0.01 their draws overflow on these targets

Theta = dict[str, Array]


def flat(theta: Theta) -> Array:
    """The latents as one vector, in the order of their names."""
    return jnp.concatenate([jnp.ravel(theta[name]) for name in sorted(theta)])


@dataclass(frozen=True, eq=False)
class Target:
    """A posterior and what is known of it; moments are vectors, like `quantities(theta)`."""

    model: Model
    data: tuple[Any, ...] = ()
    mean: np.ndarray | None = None
    sd: np.ndarray | None = None
    log_evidence: float | None = None
    source: str = "exact"  # where mean and sd come from
    quantities: Callable[[Theta], Array] = flat
    packaged: Callable[[Theta], Any] | None = None  # the package's log density, for `check`
    near: Theta | None = None  # a start for NUTS, if a neutral one fails
    score: Callable[[Theta, np.ndarray], dict[str, float]] | None = (
        None  # of draws and their weights, on test data
    )
    neutral: bool = True  # start guides at u = 0, not at uniform(-2, 2)
    budget: dict[str, int] = field(default_factory=dict)  # fewer steps where gradients are costly
    flow_rate: float | None = None  # of flows, where the usual one is too large

    @property
    def dim(self) -> int:
        return sum(int(np.prod(s.unconstrained.shape)) for s in jax.tree.leaves(self.model.latents))


# From inference_gym.


@cache
def gym() -> Any:
    import inference_gym.using_jax as package

    return package.targets


@cache
def gym_data() -> Any:
    gym()
    from inference_gym.dynamic.backend_jax.internal import data

    return data


def from_gym(package: Any, model: Model, **settings: Any) -> Target:
    """A target with the package's ground truth, quantities and density; leaves in the order of
    their names.
    """
    truth = package.sample_transformations["identity"]

    def value(theta: Theta) -> Any:
        if set(theta) == {"x"}:
            return theta["x"]
        kind = type(package.dtype)
        return dict(theta) if kind is dict else kind(**theta)

    def vector(tree: Any) -> Any:
        return [np.ravel(np.asarray(leaf, np.float64)) for leaf in _leaves(tree)]

    settings = {
        "mean": np.concatenate(vector(truth.ground_truth_mean)),
        "sd": np.concatenate(vector(truth.ground_truth_standard_deviation)),
        "source": "inference_gym",
        "packaged": lambda theta: package.unnormalized_log_prob(value(theta)),
    } | settings
    return Target(model, **settings)


def _leaves(tree: Any) -> list[Any]:
    return [tree[name] for name in sorted(tree)] if hasattr(tree, "keys") else [tree]


def banana() -> Target:
    """x ~ N(0, 10), y ~ N(0.03 (x^2 - 100), 1)."""

    def log_joint(theta: Theta) -> Array:
        x, y = theta["x"]
        return norm.logpdf(x, 0.0, 10.0) + norm.logpdf(y, 0.03 * (x**2 - 100.0))

    return from_gym(gym().Banana(), Model({"x": real(2)}, log_joint), log_evidence=0.0)


def ill_conditioned_gaussian() -> Target:
    """N(0, C), D = 100; 1 / eigenvalues of C are Gamma(0.5) draws, the axes random (the package's
    construction).
    """
    rng = np.random.RandomState(seed=10)
    eigenvalues = 1.0 / np.sort(rng.gamma(shape=0.5, scale=1.0, size=100))
    q, r = np.linalg.qr(rng.randn(100, 100))
    q *= np.sign(np.diag(r))
    covariance = (q * eigenvalues).dot(q.T)
    root = np.asarray(q.T / np.sqrt(eigenvalues)[:, None])  # root @ x is white
    log_norm = -0.5 * np.sum(np.log(2 * np.pi * eigenvalues))

    def log_joint(theta: Theta) -> Array:
        return log_norm - 0.5 * jnp.sum((jnp.asarray(root, float) @ theta["x"]) ** 2)

    sd = np.sqrt(np.diag(covariance))
    model = Model({"x": real(100)}, log_joint)
    return from_gym(gym().IllConditionedGaussian(), model, sd=sd, log_evidence=0.0, source="exact")


def funnel() -> Target:
    """v ~ N(0, 3), x_i ~ N(0, exp(v / 2)), D = 10. The sd of x, 9.49, lives in rare tails of v."""

    def log_joint(theta: Theta) -> Array:
        v, x = theta["x"][0], theta["x"][1:]
        return norm.logpdf(v, 0.0, 3.0) + jnp.sum(
            -0.5 * x**2 * jnp.exp(-v) - 0.5 * v - 0.5 * jnp.log(2 * jnp.pi)
        )

    return from_gym(gym().NealsFunnel(), Model({"x": real(10)}, log_joint), log_evidence=0.0)


SCHOOL_EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SCHOOL_ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools() -> Target:
    """The package's priors, N(0, 10) and log sd ~ N(5, 1), and centred effects."""

    def log_joint(theta: Theta, effects: Array, errors: Array) -> Array:
        mu, log_sd, school = theta["avg_effect"], theta["log_stddev"], theta["school_effects"]
        prior = norm.logpdf(mu, 0.0, 10.0) + norm.logpdf(log_sd, 5.0, 1.0)
        prior += jnp.sum(norm.logpdf(school, mu, jnp.exp(log_sd)))
        return prior + jnp.sum(norm.logpdf(effects, school, errors))

    model = Model(
        {"avg_effect": real(), "log_stddev": real(), "school_effects": real(8)}, log_joint
    )
    data = jnp.asarray(SCHOOL_EFFECTS, float), jnp.asarray(SCHOOL_ERRORS, float)
    return from_gym(gym().EightSchools(), model, data=data, log_evidence=-36.13082)


def item_response() -> Target:
    """400 students, 100 questions, D = 501: one-parameter logistic."""
    found = gym_data().synthetic_item_response_theory()
    student, question, correct = (
        np.asarray(found[f"train_{n}"]) for n in ("student_ids", "question_ids", "correct")
    )
    table, mask = np.zeros((2, 400, 100))
    table[student, question], mask[student, question] = correct, 1.0

    def log_joint(theta: Theta, table: Array, mask: Array) -> Array:
        mean, ability, difficulty = (
            theta[name]
            for name in ("mean_student_ability", "centered_student_ability", "question_difficulty")
        )
        prior = (
            norm.logpdf(mean, 0.75, 1.0)
            + jnp.sum(norm.logpdf(ability))
            + jnp.sum(norm.logpdf(difficulty))
        )
        logits = mean + ability[:, None] - difficulty[None, :]
        return prior + jnp.sum(mask * (table * logits - jax.nn.softplus(logits)))

    names = {
        "centered_student_ability": real(400),
        "mean_student_ability": real(),
        "question_difficulty": real(100),
    }
    data = jnp.asarray(table, float), jnp.asarray(mask, float)
    return from_gym(
        gym().SyntheticItemResponseTheory(),
        Model(names, log_joint),
        data=data,
        log_evidence=-16959.46,
        budget={"steps": 2_000, "particles": 4},
    )


def cox_process() -> Target:
    """Counts on a 10 x 10 grid, log intensity a Matern 3/2 process, D = 102. The jitter is 1e-6, in
    float32 1e-4.
    """
    found = gym_data().synthetic_log_gaussian_cox_process()
    places, extents, counts = (
        np.asarray(found[f"train_{n}"], np.float64) for n in ("locations", "extents", "counts")
    )
    distance = np.sqrt(np.sum((places[:, None] - places[None]) ** 2, -1))
    log_mean, log_extents = np.mean(np.log(counts) - np.log(extents)), np.log(extents)

    def log_joint(theta: Theta, counts: Array, log_extents: Array, distance: Array) -> Array:
        amplitude, length, f = theta["amplitude"], theta["length_scale"], theta["log_intensity"]
        prior = norm.logpdf(jnp.log(amplitude), -1.0, 0.5) - jnp.log(amplitude)
        prior += norm.logpdf(jnp.log(length), -1.0, 1.0) - jnp.log(length)
        r = jnp.sqrt(3.0) * distance / (length + 0.001)
        jitter = 1e-6 if f.dtype == jnp.float64 else 1e-4
        covariance = (amplitude + 0.001) ** 2 * (1 + r) * jnp.exp(-r) + jitter * jnp.eye(len(f))
        factor = jnp.linalg.cholesky(covariance)
        white = jax.scipy.linalg.solve_triangular(factor, f - log_mean, lower=True)
        prior += jnp.sum(norm.logpdf(white)) - jnp.sum(jnp.log(jnp.diag(factor)))
        log_rate = log_extents + f
        return prior + jnp.sum(counts * log_rate - jnp.exp(log_rate) - gammaln(counts + 1))

    model = Model(
        {"amplitude": positive(), "length_scale": positive(), "log_intensity": real(100)}, log_joint
    )
    data = tuple(jnp.asarray(v, float) for v in (counts, log_extents, distance))
    return from_gym(
        gym().SyntheticLogGaussianCoxProcess(),
        model,
        data=data,
        log_evidence=-490.53,
        budget={"steps": 2_000},
    )


def brownian_data() -> np.ndarray:
    """30 places of a Brownian motion; the middle ten are NaN: not observed."""
    return np.asarray(
        gym_data().brownian_motion_missing_middle_observations()["observed_locs"], np.float64
    )


def brownian_motion() -> Target:
    """Both scales unknown, the middle third not observed, D = 32. The package's truth is wrong for
    its density.
    """
    seen = brownian_data()
    mask, seen = ~np.isnan(seen), np.nan_to_num(seen)

    def log_joint(theta: Theta, seen: Array, mask: Array) -> Array:
        drift, noise, x = (
            theta["innovation_noise_scale"],
            theta["observation_noise_scale"],
            theta["locs"],
        )
        prior = sum(norm.logpdf(jnp.log(s), 0.0, 2.0) - jnp.log(s) for s in (drift, noise))
        prior += norm.logpdf(x[0], 0.0, drift) + jnp.sum(norm.logpdf(x[1:], x[:-1], drift))
        return prior + jnp.sum(jnp.where(mask, norm.logpdf(seen, x, noise), 0.0))

    names = {
        "innovation_noise_scale": positive(),
        "locs": real(30),
        "observation_noise_scale": positive(),
    }
    package = gym().BrownianMotionUnknownScalesMissingMiddleObservations(use_markov_chain=True)
    data = jnp.asarray(seen, float), jnp.asarray(mask)
    return from_gym(package, Model(names, log_joint), data=data, **reference("brownian_motion"))


@dataclass(frozen=True)
class LorenzData:
    """One coordinate of 30 places, some of which are masked; `scales` are those that the data were
    made with.
    """

    seen: Array
    mask: Array
    index: int
    step: float
    scales: tuple[float, float]  # of the innovations, of the observations


@cache
def lorenz_data() -> LorenzData:
    found = gym_data().convection_lorenz_bridge()
    mask = np.asarray(found["observation_mask"])
    # What is not observed is not a number, which the gradient of a `where` keeps.
    seen = np.where(mask, np.asarray(found["observed_values"], np.float64), 0.0)
    index, step = int(found["observation_index"]), float(found["step_size"])
    scales = float(found["innovation_scale"]), float(found["observation_scale"])
    return LorenzData(jnp.asarray(seen, float), jnp.asarray(mask), index, step, scales)


def log_lorenz(path: Array, drift: Any, noise: Any, data: LorenzData) -> Array:
    """log p(path, observations) given both scales, with Euler steps."""
    x, y, z = path[:-1].T
    slope = jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], axis=-1)
    moved = path[:-1] + data.step * slope
    log_path = jnp.sum(norm.logpdf(path[0]))
    log_path += jnp.sum(norm.logpdf(path[1:], moved, jnp.sqrt(data.step) * drift))
    terms = norm.logpdf(data.seen, path[:, data.index], noise)
    return log_path + jnp.sum(jnp.where(data.mask, terms, 0.0))


def lorenz() -> Target:
    """A noisy Lorenz system of 30 steps with one coordinate seen, both scales unknown, D = 92."""
    package = gym().ConvectionLorenzBridgeUnknownScales(use_markov_chain=True)
    path = next(name for name in package.dtype._fields if "scale" not in name)
    data = lorenz_data()

    def log_joint(theta: Theta) -> Array:
        drift, noise = theta["innovation_scale"], theta["observation_scale"]
        prior = sum(norm.logpdf(jnp.log(s), -1.0, 1.0) - jnp.log(s) for s in (drift, noise))
        return prior + log_lorenz(theta[path], drift, noise, data)

    names = {"innovation_scale": positive(), "observation_scale": positive(), path: real((30, 3))}
    truth = package.sample_transformations["identity"].ground_truth_mean
    near = {
        name: jnp.asarray(truth[name], float) for name in ("innovation_scale", "observation_scale")
    }
    near |= {path: jnp.asarray(truth["latents"], float)}
    # The package's truth calls the path "latents": put the quantities in the order of its names.
    order = lambda theta: flat({n if n != path else "latents": v for n, v in theta.items()})
    model = Model(names, log_joint)
    return from_gym(
        package,
        model,
        log_evidence=-30.0,
        near=near,
        quantities=order,
        flow_rate=SMALLER_RATE,
    )


def volatility_package(centered: bool) -> Any:
    """The base class, since the ready-made ones ignore `centered`, with the truth of the ready-made
    one.
    """
    ready, data = (
        gym().VectorizedStochasticVolatilityLogSP500Small,
        gym_data().sp500_log_returns(num_points=100),
    )

    class Package(gym().VectorizedStochasticVolatility):  # type: ignore[misc, name-defined]
        GROUND_TRUTH_MODULE = ready.GROUND_TRUTH_MODULE

    return Package(
        centered=centered, **{name: np.asarray(value, np.float32) for name, value in data.items()}
    )


def stochastic_volatility(centered: bool = True) -> Target:
    """100 log returns of the S&P 500, log volatility an AR(1) process, centred, D = 103."""
    returns = np.asarray(
        gym_data().sp500_log_returns(num_points=100)["centered_returns"], np.float64
    )

    def log_volatility(theta: Theta) -> Array:
        """Relative to the mean, of the form that is not centred."""
        persistence, scale, white = (
            theta[name]
            for name in (
                "persistence_of_volatility",
                "white_noise_shock_scale",
                "std_log_volatility",
            )
        )
        start = white[0] / jnp.sqrt(1 - persistence**2)
        step = lambda h, e: (persistence * h + e,) * 2
        return scale * jnp.concatenate([start[None], jax.lax.scan(step, start, white[1:])[1]])

    def log_joint(theta: Theta, returns: Array) -> Array:
        persistence, mean, scale = (
            theta[name]
            for name in (
                "persistence_of_volatility",
                "mean_log_volatility",
                "white_noise_shock_scale",
            )
        )
        prior = jax.scipy.stats.beta.logpdf((persistence + 1) / 2, 20.0, 1.5) - jnp.log(2.0)
        prior += jax.scipy.stats.cauchy.logpdf(mean, 0.0, 5.0)
        prior += jnp.log(2.0) + jax.scipy.stats.cauchy.logpdf(scale, 0.0, 2.0)
        if centered:
            h = theta["log_volatility"]
            prior += norm.logpdf(h[0], 0.0, scale / jnp.sqrt(1 - persistence**2))
            prior += jnp.sum(norm.logpdf(h[1:], persistence * h[:-1], scale))
        else:
            h = log_volatility(theta)
            prior += jnp.sum(norm.logpdf(theta["std_log_volatility"]))
        return prior + jnp.sum(norm.logpdf(returns, 0.0, jnp.exp(0.5 * (mean + h))))

    def quantities(theta: Theta) -> Array:
        """The package's: log volatility with its mean; in the order of the names."""
        h = theta["log_volatility"] if centered else log_volatility(theta)
        names = "mean_log_volatility", "persistence_of_volatility", "white_noise_shock_scale"
        known = {name: theta[name] for name in names}
        return flat(known | {"log_volatility": h + theta["mean_log_volatility"]})

    names = {
        "persistence_of_volatility": interval(-1.0, 1.0),
        "mean_log_volatility": real(),
        "white_noise_shock_scale": positive(),
        "log_volatility" if centered else "std_log_volatility": real(100),
    }
    return from_gym(
        volatility_package(centered),
        Model(names, log_joint),
        data=(jnp.asarray(returns, float),),
        quantities=quantities,
        # accuracy_references.stochastic_volatility: two runs, 222.963 and 222.955, each +- 0.012
        log_evidence=222.96,
        flow_rate=SMALLER_RATE,
    )


# From elsewhere.


def reference(name: str) -> dict[str, Any]:
    """Moments and evidence of the file, as settings of a target; none if they are not there yet."""
    found = json.loads(REFERENCES.read_text())["targets"].get(name) if REFERENCES.exists() else None
    if found is None:
        return {
            "mean": None,
            "sd": None,
            "log_evidence": None,
            "source": "missing: run --references",
        }
    kept = {"mean": np.array(found["mean"]), "sd": np.array(found["sd"])}
    return kept | {"log_evidence": found["log_evidence"], "source": found["how"]}


def breast_cancer() -> Target:
    """Logistic regression of 569 rows, standardised, with an intercept: D = 31, beta ~ N(0, I)."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import StandardScaler

    x, y = load_breast_cancer(return_X_y=True)
    x = np.column_stack([np.ones(len(x)), StandardScaler().fit_transform(x)])

    def log_likelihood(theta: Theta, x: Array, sign: Array) -> Array:
        return -jax.nn.softplus(-sign * (x @ theta["beta"]))

    model = Model(
        {"beta": real(31)},
        log_prior=lambda theta: jnp.sum(norm.logpdf(theta["beta"])),
        log_likelihood=log_likelihood,
    )
    data = jnp.asarray(x, float), jnp.asarray(2 * y - 1, float)
    return Target(model, data, **reference("breast_cancer"))


def gamma() -> Target:
    """The concentration of 1,000 Gamma draws (the first reference example): D = 1, known by
    quadrature.
    """
    key = jax.random.split(jax.random.PRNGKey(42))[1]
    z = jnp.asarray(jax.random.gamma(key, 2.0, (1000,), jnp.float32), float)

    def log_joint(theta: Theta, z: Array) -> Array:
        c = theta["concentration"]
        prior = 0.5 * jnp.log(2 / jnp.pi) - 0.5 * c**2
        return prior + jnp.sum((c - 1) * jnp.log(z) - z) - z.size * gammaln(c)

    model = Model({"concentration": positive()}, log_joint)
    return Target(model, (z,), np.array([1.99826]), np.array([0.03932]), -1590.66069, "quadrature")


def correlated_gaussian(dim: int = 30) -> Target:
    """N(m, C) with random correlations, scales over two decades and m away from the origin."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(dim, dim))
    sd, mean = np.exp(rng.uniform(np.log(0.1), np.log(10.0), dim)), 3.0 * rng.normal(size=dim)
    correlation = a @ a.T + 0.3 * dim * np.eye(dim)
    scale = sd / np.sqrt(np.diag(correlation))
    factor = np.linalg.cholesky(scale[:, None] * correlation * scale)
    inverse = np.linalg.inv(factor)

    def log_joint(theta: Theta) -> Array:
        white = jnp.asarray(inverse, float) @ (theta["x"] - jnp.asarray(mean, float))
        return jnp.sum(norm.logpdf(white)) - np.sum(np.log(np.diag(factor)))

    return Target(Model({"x": real(dim)}, log_joint), (), mean, sd, 0.0)


def two_moons() -> Target:
    """A 2-4-3-1 tanh network on 980 rows (the second reference example): judged by its predictions
    of 600 others.
    """
    from sklearn.datasets import make_moons
    from sklearn.model_selection import train_test_split

    x, y = make_moons(2000, noise=0.25, random_state=42)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=42)
    x, _, y, _ = train_test_split(x, y, test_size=0.3, random_state=42)
    shapes = {"b0": (4,), "b1": (3,), "b2": (1,), "k0": (2, 4), "k1": (4, 3), "k2": (3, 1)}

    def logits(w: Theta, x: Array) -> Array:
        hidden = jnp.tanh(jnp.tanh(x @ w["k0"] + w["b0"]) @ w["k1"] + w["b1"])
        return (hidden @ w["k2"] + w["b2"])[:, 0]

    def log_prior(w: Theta) -> Array:
        biases = sum(jnp.sum(norm.logpdf(w[n])) for n in ("b0", "b1", "b2"))
        return biases + sum(
            jnp.sum(jnp.log(2 / jnp.pi) - jnp.logaddexp(w[n], -w[n])) for n in ("k0", "k1", "k2")
        )

    def log_likelihood(w: Theta, x: Array, y: Array) -> Array:
        f = logits(w, x)
        return y * f - jax.nn.softplus(f)

    @jax.jit
    def predict(w: Theta, x: Array) -> Array:
        return jax.lax.map(lambda one: jax.nn.sigmoid(logits(one, x)), w)

    def score(draws: Theta, weights: np.ndarray) -> dict[str, float]:
        """Of the mean probability over the draws: log loss a row, area under the curve,
        accuracy.
        """
        from sklearn.metrics import log_loss, roc_auc_score

        p = weights @ np.asarray(predict(draws, jnp.asarray(x_test, float)), np.float64)
        return {
            "test_nll": float(log_loss(y_test, p)),
            "test_auc": float(roc_auc_score(y_test, p)),
            "test_accuracy": float(np.mean((p > 0.5) == y_test)),
        }

    model = Model(
        {n: real(s) for n, s in shapes.items()}, log_prior=log_prior, log_likelihood=log_likelihood
    )
    data = jnp.asarray(x, float), jnp.asarray(y, float)
    return Target(model, data, source="none: judged on test data", score=score, neutral=False)


TARGETS: dict[str, Callable[[], Target]] = {
    "banana": banana,
    "ill_conditioned_gaussian": ill_conditioned_gaussian,
    "funnel": funnel,
    "eight_schools": eight_schools,
    "item_response": item_response,
    "cox_process": cox_process,
    "brownian_motion": brownian_motion,
    "lorenz": lorenz,
    "stochastic_volatility": stochastic_volatility,
    "breast_cancer": breast_cancer,
    "gamma": gamma,
    "two_moons": two_moons,
    "correlated_gaussian": correlated_gaussian,
}


# Are the densities right?


def by_hand(target: Target, u: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], float]:
    """theta and the log determinant in closed form, from the supports' kinds alone, in NumPy."""
    theta, log_det = {}, 0.0
    for name, support in target.model.latents.items():
        kind, value = type(support.bijector).__name__, u[name]
        if kind == "Exp":
            theta[name], log_det = np.exp(value), log_det + np.sum(value)
        elif kind == "Sigmoid":
            low, high = support.bijector.low, support.bijector.high
            p = 1 / (1 + np.exp(-value))
            theta[name] = low + (high - low) * p
            log_det += np.sum(np.log((high - low) * p * (1 - p)))
        else:
            theta[name] = value
    return theta, float(log_det)


def check(name: str, points: int = 4) -> dict[str, float]:
    """The largest errors of `Model.log_density` at random points, in units of 1 + |log density|.

    Against the package's density with the log determinants by hand, which is a float32 computation
    for most; and against NumPyro's potential of the model that its guides and NUTS get.
    """
    from field_engines import with_numpyro

    target, rng = TARGETS[name](), np.random.default_rng(1)
    potential, errors = with_numpyro.potential(target), {"package": 0.0, "numpyro": 0.0}
    slope = jax.grad(target.model.log_density)
    for _ in range(points):
        u = {n: rng.uniform(-1, 1, s.unconstrained.shape) for n, s in target.model.latents.items()}
        theta, log_det = by_hand(target, u)
        point, values = (jax.tree.map(lambda v: jnp.asarray(v, float), tree) for tree in (u, theta))
        mine = float(target.model.log_density(point, *target.data))
        joint = float(target.model.joint(values, *target.data))
        theirs = packaged(target, theta) if target.packaged else joint
        errors["package"] = max(errors["package"], abs(mine - theirs - log_det) / (1 + abs(mine)))
        errors["numpyro"] = max(errors["numpyro"], abs(mine + potential(u)) / (1 + abs(mine)))
        if not all(
            np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope(point, *target.data))
        ):
            raise ArithmeticError(f"{name}: the gradient is not finite at {u}")
    return errors


def packaged(target: Target, theta: dict[str, np.ndarray]) -> float:
    """The package's log density, in float32 if it refuses float64."""
    assert target.packaged is not None
    try:
        return float(target.packaged({n: jnp.asarray(v, float) for n, v in theta.items()}))
    except TypeError:
        return float(target.packaged({n: jnp.asarray(v, jnp.float32) for n, v in theta.items()}))
