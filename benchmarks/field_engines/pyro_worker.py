"""Pyro, in its own environment: `SVI` with two autoguides.

The model is a torch density on the supports of the target, given as one `pyro.factor`. Pyro runs
eagerly, and so a fit has one particle a step, which is Pyro's default, and `ClippedAdam` decays the
rate, as its tips on SVI have it.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import ImproperUniform, Normal, constraints
from pyro.infer import SVI, Trace_ELBO, autoguide
from pyro.optim import ClippedAdam
from torch.nn.functional import softplus
from worker import NUM_DRAWS, Found, gaussian, serve

STEPS, RATE, DECAY = 5_000, 0.02, 0.01

Theta = dict[str, torch.Tensor]
Data = dict[str, torch.Tensor]


# Densities, in the order of the latents' names.


def normal(value: Any, loc: Any, scale: Any) -> torch.Tensor:
    return Normal(torch.as_tensor(loc), torch.as_tensor(scale)).log_prob(value)


def gamma(theta: Theta, data: Data) -> torch.Tensor:
    c, z = theta["concentration"], data["z"]
    prior = math.log(2.0) + normal(c, 0.0, 1.0)
    return prior + torch.sum((c - 1) * torch.log(z) - z) - len(z) * torch.lgamma(c)


def eight_schools(theta: Theta, data: Data) -> torch.Tensor:
    mean, log_sd, school = theta["avg_effect"], theta["log_stddev"], theta["school_effects"]
    prior = normal(mean, 0.0, 10.0) + normal(log_sd, 5.0, 1.0)
    prior = prior + normal(school, mean, torch.exp(log_sd)).sum()
    return prior + Normal(school, data["errors"]).log_prob(data["effects"]).sum()


def breast_cancer(theta: Theta, data: Data) -> torch.Tensor:
    logits = data["sign"] * (data["x"] @ theta["beta"])
    return normal(theta["beta"], 0.0, 1.0).sum() - softplus(-logits).sum()


def funnel(theta: Theta, data: Data) -> torch.Tensor:
    v, x = theta["x"][0], theta["x"][1:]
    return normal(v, 0.0, 3.0) + normal(x, 0.0, torch.exp(v / 2)).sum()


def banana(theta: Theta, data: Data) -> torch.Tensor:
    x, y = theta["x"]
    return normal(x, 0.0, 10.0) + normal(y, 0.03 * (x**2 - 100.0), 1.0)


def any_gaussian(theta: Theta, data: Data) -> torch.Tensor:
    white = data["root"] @ (theta["x"] - data["mean"])
    return normal(white, 0.0, 1.0).sum() + torch.log(torch.abs(torch.diag(data["root"]))).sum()


REAL, POSITIVE = constraints.real, constraints.positive
MODELS: dict[str, tuple[Callable[..., torch.Tensor], dict[str, Any]]] = {
    "gamma": (gamma, {"concentration": POSITIVE}),
    "eight_schools": (
        eight_schools,
        {"avg_effect": REAL, "log_stddev": REAL, "school_effects": REAL},
    ),
    "breast_cancer": (breast_cancer, {"beta": REAL}),
    "funnel": (funnel, {"x": REAL}),
    "banana": (banana, {"x": REAL}),
    "ill_conditioned_gaussian": (any_gaussian, {"x": REAL}),
    "correlated_gaussian": (any_gaussian, {"x": REAL}),
}
SIZES = {
    "gamma": {"concentration": ()},
    "eight_schools": {"avg_effect": (), "log_stddev": (), "school_effects": (8,)},
    "breast_cancer": {"beta": (31,)},
    "funnel": {"x": (10,)},
    "banana": {"x": (2,)},
    "ill_conditioned_gaussian": {"x": (100,)},
    "correlated_gaussian": {"x": (30,)},
}


def tensors(data: dict[str, np.ndarray]) -> Data:
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in data.items()}


def model_of(name: str, data: Data) -> Callable[[], None]:
    density, supports = MODELS[name]

    def model() -> None:
        theta = {
            latent: pyro.sample(latent, ImproperUniform(support, (), SIZES[name][latent]))
            for latent, support in supports.items()
        }
        pyro.factor("log_joint", density(theta, data))

    return model


def make(
    name: str, method: str, data: dict[str, np.ndarray], effort: float
) -> Callable[[int], Found]:
    model = model_of(name, tensors(data))
    steps = math.ceil(effort * STEPS)
    to_zero = autoguide.initialization.init_to_value(
        values={latent: origin(name, latent) for latent in SIZES[name]}
    )

    def fit(seed: int) -> Found:
        pyro.set_rng_seed(seed)
        pyro.clear_param_store()
        guide = getattr(autoguide, method)(model, init_loc_fn=to_zero)
        optimizer = ClippedAdam({"lr": RATE, "lrd": DECAY ** (1 / steps)})
        svi = SVI(model, guide, optimizer, Trace_ELBO())
        for _ in range(steps):
            svi.step()
        loc, factor = moments_of(name, method, guide)
        draws = loc + torch.randn(NUM_DRAWS, len(loc)) @ factor.T
        theta = constrained(name, draws).detach().numpy()
        figures = {"steps": steps, "particles": 1, "rate": RATE}
        of_q = gaussian(seed, loc.detach().numpy(), factor.detach().numpy())
        return Found(theta, "", figures, of_q)

    return fit


def origin(name: str, latent: str) -> torch.Tensor:
    """u = 0."""
    zeros = torch.zeros(SIZES[name][latent])
    return torch.exp(zeros) if MODELS[name][1][latent] is POSITIVE else zeros


def moments_of(name: str, method: str, guide: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and factor of the guide over u."""
    if method == "AutoMultivariateNormal":
        posterior = guide.get_posterior()
        return posterior.loc, posterior.scale_tril
    pairs = [guide._get_loc_and_scale(latent) for latent in SIZES[name]]
    loc = torch.cat([loc.reshape(-1) for loc, _ in pairs])
    return loc, torch.diag(torch.cat([scale.reshape(-1) for _, scale in pairs]))


def constrained(name: str, u: torch.Tensor) -> torch.Tensor:
    """A target has either one positive latent or none."""
    return torch.exp(u) if POSITIVE in MODELS[name][1].values() else u


def log_density(name: str, data: dict[str, np.ndarray]) -> np.ndarray:
    """At the points u, with the log determinant of the exponential."""
    density, values = MODELS[name][0], tensors(data)
    return np.array([float(of_point(name, density, values, u)) for u in values["points"]])


def of_point(name: str, density: Any, data: Data, u: torch.Tensor) -> torch.Tensor:
    sizes = [math.prod(shape) for shape in SIZES[name].values()]
    parts = torch.split(constrained(name, u), sizes)
    theta = {
        latent: part.reshape(shape)
        for (latent, shape), part in zip(SIZES[name].items(), parts, strict=True)
    }
    log_det = u.sum() if POSITIVE in MODELS[name][1].values() else 0.0
    return density(theta, data) + log_det


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    serve(make, log_density)
