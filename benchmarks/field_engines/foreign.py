"""Engines that live in an environment of their own: Pyro with torch, and PyMC with PyTensor.

The environment is `benchmarks/.environments/NAME`, which git ignores. A worker there
(`pyro_worker`, `pymc_worker`) has its own model of the target. It gets the data and a few points,
and gives back draws, seconds and the log density at these points, by which the two models are
compared.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import jax
import numpy as np
from accuracy_targets import Target
from field_engines.figures import Answer, Figures, SkippedError, log_density, of_q

from minisvi.model import trees

ENVIRONMENTS = Path(__file__).parents[1] / ".environments"
PACKAGES = {"pyro": ["pyro-ppl"], "pymc": ["pymc", "pymc-extras"]}
INSTALL_LIMIT = 600  # seconds
MODELLED = (
    "banana",
    "ill_conditioned_gaussian",
    "funnel",
    "eight_schools",
    "breast_cancer",
    "gamma",
    "correlated_gaussian",
)  # the targets of which the workers have a model
SAME_DENSITY = 1e-8  # of two models, in units of 1 + |log density|


# Environments.


def python_of(environment: str) -> Path:
    """Its interpreter. SkippedError where it was not made, or could not be."""
    place = ENVIRONMENTS / environment
    if (place / "failed").exists():
        raise SkippedError((place / "failed").read_text())
    if not (place / "ready").exists():
        raise SkippedError(f"no environment {environment}: field.py --environments makes it")
    return place / "bin" / "python"


def make(environment: str) -> str:
    """Install the packages in a new environment, unless it is there; what came of it, in words."""
    place = ENVIRONMENTS / environment
    if (place / "ready").exists():
        return "ready"
    venv.create(place, with_pip=True, clear=True)
    command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    try:
        subprocess.run(command + PACKAGES[environment], check=True, timeout=INSTALL_LIMIT)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        (place / "failed").write_text(f"{environment} was not installed: {type(error).__name__}")
        return (place / "failed").read_text()
    (place / "ready").touch()
    return "ready"


# One cell.


def calls(
    environment: str, method: str, name: str, target: Target, seeds: list[int], effort: float
) -> list[tuple[Answer, float]]:
    """The answers of a fit for each seed in one process of the environment, and their seconds."""
    if name not in MODELLED:
        raise SkippedError("no model written")
    python = python_of(environment)
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.npz", Path(folder) / "found.npz"
        np.savez(given, **data_of(name, target), points=points_of(target))
        work(python, environment, [name, method, json.dumps(seeds), str(effort), given, found])
        with np.load(found) as file:
            arrays = dict(file)
    check_density(target, arrays["log_density"])
    done = [call for call in range(len(seeds)) if f"seconds{call}" in arrays]
    return [(answer_of(target, arrays, call), float(arrays[f"seconds{call}"])) for call in done]


def work(python: Path, environment: str, arguments: list[Any]) -> None:
    """Run the worker of the environment, whose last words become the error."""
    worker = Path(__file__).with_name(f"{environment}_worker.py")
    command = [str(part) for part in [python, worker, *arguments]]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=kept, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def data_of(name: str, target: Target) -> dict[str, np.ndarray]:
    """The data by the names that the workers' models know; of a Gaussian, its mean and the root R
    of its precision R' R.
    """
    if name.endswith("gaussian"):
        density, origin = log_density(target), np.zeros(target.dim)
        precision = -np.asarray(jax.hessian(density)(origin))
        mean = np.linalg.solve(precision, np.asarray(jax.grad(density)(origin)))
        return {"mean": mean, "root": np.linalg.cholesky(precision).T}
    names = {
        "gamma": ["z"],
        "eight_schools": ["effects", "errors"],
        "breast_cancer": ["x", "sign"],
    }
    return dict(zip(names.get(name, []), map(np.asarray, target.data), strict=True))


def points_of(target: Target) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1.0, 1.0, (4, target.dim))


def check_density(target: Target, theirs: np.ndarray) -> None:
    """Stop unless the worker's model has our density at the points."""
    ours = np.asarray(jax.vmap(log_density(target))(points_of(target)), np.float64)
    difference = np.max(np.abs(ours - theirs) / (1 + np.abs(ours)))
    if not difference < SAME_DENSITY:
        raise ArithmeticError(f"expected the same density; got one off by {difference:.1e}")


def answer_of(target: Target, arrays: dict[str, np.ndarray], call: int) -> Answer:
    """The worker's draws of theta, (S, D) in the order of the latents' names."""
    figures: Figures = json.loads(str(arrays[f"figures{call}"]))
    latents = target.model.latents
    theta = jax.vmap(lambda vector: trees.unravel(latents, vector))(arrays[f"theta{call}"])
    judge = None
    if f"log_q{call}" in arrays:
        judge = lambda: of_q(target, arrays[f"u{call}"], arrays[f"log_q{call}"])
    return Answer(jax.device_get(theta), None, str(arrays[f"said{call}"]), figures, judge)
