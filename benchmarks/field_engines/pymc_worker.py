"""PyMC and pymc-extras, in their own environment, on native PyMC models.

ADVI and full-rank ADVI have PyMC's own optimizer and 30,000 steps of one draw, as PyMC's examples
have them; DADVI has its 30 fixed draws, and Pathfinder its four paths. All else is the default. The
order of the random variables is that of the target's latents as one vector.
"""

import logging
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pymc as pm
from pymc_extras.inference import fit_dadvi, fit_pathfinder
from worker import NUM_DRAWS, Found, gaussian, serve

STEPS = 30_000

Data = dict[str, np.ndarray]


# Models.


def gamma(data: Data) -> None:
    concentration = pm.HalfNormal("concentration", 1.0)
    pm.Gamma("z", alpha=concentration, beta=1.0, observed=data["z"])


def eight_schools(data: Data) -> None:
    mean = pm.Normal("avg_effect", 0.0, 10.0)
    log_sd = pm.Normal("log_stddev", 5.0, 1.0)
    school = pm.Normal("school_effects", mean, pm.math.exp(log_sd), shape=8)
    pm.Normal("effects", school, data["errors"], observed=data["effects"])


def breast_cancer(data: Data) -> None:
    beta = pm.Normal("beta", 0.0, 1.0, shape=31)
    pm.Bernoulli("y", logit_p=data["x"] @ beta, observed=data["sign"] > 0)


def funnel(data: Data) -> None:
    v = pm.Normal("v", 0.0, 3.0)
    pm.Normal("x", 0.0, pm.math.exp(v / 2), shape=9)


def banana(data: Data) -> None:
    x = pm.Normal("x", 0.0, 10.0)
    pm.Normal("y", 0.03 * (x**2 - 100.0), 1.0)


def any_gaussian(data: Data) -> None:
    pm.MvNormal("x", data["mean"], tau=data["root"].T @ data["root"])


MODELS: dict[str, tuple[Callable[[Data], None], list[str]]] = {
    "gamma": (gamma, ["concentration"]),
    "eight_schools": (eight_schools, ["avg_effect", "log_stddev", "school_effects"]),
    "breast_cancer": (breast_cancer, ["beta"]),
    "funnel": (funnel, ["v", "x"]),
    "banana": (banana, ["x", "y"]),
    "ill_conditioned_gaussian": (any_gaussian, ["x"]),
    "correlated_gaussian": (any_gaussian, ["x"]),
}


def model_of(name: str, data: Data) -> pm.Model:
    with pm.Model() as model:
        MODELS[name][0](data)
    return model


# Fits.


def make(name: str, method: str, data: Data, effort: float) -> Callable[[int], Found]:
    return METHODS[method](name, model_of(name, data), effort)


def advi(method: str, name: str, model: pm.Model, effort: float) -> Callable[[int], Found]:
    steps = math.ceil(effort * STEPS)

    def fit(seed: int) -> Found:
        with model:
            approximation = pm.fit(steps, method=method, random_seed=seed, progressbar=False)
        draws = approximation.sample(NUM_DRAWS, random_seed=seed)
        of_q = partial(of_approximation, name, approximation, seed)
        figures = {"steps": steps, "particles": 1, "rate": 0.001}
        return Found(flat(name, draws.posterior), "", figures, of_q)

    return fit


def of_approximation(name: str, approximation: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws u of the fitted Gaussian and log q, with the variables in the order of the target."""
    places = {value: entry[1] for value, entry in approximation.ordering.items()}
    order = np.concatenate([np.r_[places[value]] for value in value_names(name, places)])
    mean, covariance = approximation.mean.eval(), approximation.cov.eval()
    return gaussian(seed, mean[order], np.linalg.cholesky(covariance[np.ix_(order, order)]))()


def value_names(name: str, known: Any) -> list[str]:
    """What PyMC calls the unconstrained variables: `_log__` is added to a positive one."""
    return [latent if latent in known else f"{latent}_log__" for latent in MODELS[name][1]]


def dadvi(name: str, model: pm.Model, effort: float) -> Callable[[int], Found]:
    del effort  # a trust-region method ends by itself

    def fit(seed: int) -> Found:
        found = fit_dadvi(model=model, n_draws=NUM_DRAWS, random_seed=seed, progressbar=False)
        return Found(flat(name, found.posterior))

    return fit


def pathfinder(name: str, model: pm.Model, effort: float) -> Callable[[int], Found]:
    """Four paths in worker processes, one a core, as is the default; resampled by PSIS."""
    del effort  # L-BFGS ends by itself

    def fit(seed: int) -> Found:
        found = fit_pathfinder(
            model=model,
            num_draws=NUM_DRAWS,
            num_draws_per_path=NUM_DRAWS // 4,
            random_seed=seed,
            progressbar=False,
            display_summary=False,
        )
        return Found(flat(name, found.posterior), said_by(found))

    return fit


def said_by(found: Any) -> str:
    """The k-hat that Pathfinder keeps with its draws, if it does."""
    for group in found.groups():
        for variable in found[group].data_vars:
            if "pareto" in variable:
                return f"k-hat {float(np.nanmax(found[group][variable])):.2f}"
    return ""


def flat(name: str, posterior: Any) -> np.ndarray:
    """Draws of all variables as one matrix (S, D)."""
    leaves = [posterior[latent].to_numpy() for latent in MODELS[name][1]]
    size = leaves[0].shape[0] * leaves[0].shape[1]
    return np.concatenate([leaf.reshape(size, -1) for leaf in leaves], axis=1)


METHODS: dict[str, Callable[..., Callable[[int], Found]]] = {
    "ADVI": partial(advi, "advi"),
    "full-rank ADVI": partial(advi, "fullrank_advi"),
    "DADVI": dadvi,
    "Pathfinder": pathfinder,
}


# The check of densities.


def log_density(name: str, data: Data) -> np.ndarray:
    model = model_of(name, data)
    compiled = model.compile_logp()
    return np.array([float(compiled(point_of(name, model, u))) for u in data["points"]])


def point_of(name: str, model: pm.Model, u: np.ndarray) -> dict[str, np.ndarray]:
    shapes = {key: np.shape(value) for key, value in model.initial_point().items()}
    names = value_names(name, shapes)
    ends = np.cumsum([math.prod(shapes[value]) for value in names])
    parts = np.split(u, ends[:-1])
    return {value: part.reshape(shapes[value]) for value, part in zip(names, parts, strict=True)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("pymc").setLevel(logging.ERROR)
    serve(make, log_density)
