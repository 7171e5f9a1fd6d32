"""Mixed effects: 200 groups of unequal sizes, by minibatches of groups, beside the exact posterior.

Each group has an intercept and a slope of its own. They are local latents, and in the posterior
they depend on the globals: a guide that leaves this out is too sure of the globals. Run `python
examples/mixed_effects.py`; `--quick` takes few steps. The figure goes to `examples/figures/`.
"""

# %% Data: 1 to 12 observations a group, padded to 12 and masked, so that a row of the data is a
# group.
import argparse
from functools import partial

import distrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import plotting
from jax.scipy.stats import norm

from minisvi import (
    ELBO,
    SVI,
    Minibatches,
    Model,
    Posterior,
    conditional,
    full_rank,
    local,
    per_row,
    product,
    real,
)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
num_steps = 500 if parser.parse_known_args()[0].quick else 6000

GROUPS = 200
LONGEST = 12
PRIOR_SD = 10.0
GROUP_SD = np.array([1.0, 0.5])
NOISE_SD = 2.0
rng = np.random.default_rng(0)
lengths = rng.integers(1, LONGEST + 1, size=(GROUPS, 1))
mask = np.arange(LONGEST) < lengths
ones = np.ones((GROUPS, LONGEST))
x = np.stack([ones, rng.uniform(0, 3, (GROUPS, LONGEST))], axis=-1)
effects = np.array([3.0, -1.5]) + GROUP_SD * rng.normal(size=(GROUPS, 2))
predictor = np.einsum("gnd,gd->gn", x, effects)
y = predictor + NOISE_SD * rng.normal(size=(GROUPS, LONGEST))
data = (np.arange(GROUPS), x, y, mask)


# %% Model: beta ~ Normal(0, 10), effects_g ~ Normal(beta, GROUP_SD), y_gn ~ Normal(x_gn .
# effects_g, NOISE_SD).
def prior(theta):
    return {
        "beta": distrax.Normal(0.0, PRIOR_SD),
        "effects": distrax.Normal(theta["beta"], GROUP_SD),
    }


def log_likelihood(theta, index, x, y, mask):
    predictor = jnp.einsum("gnd,gd->gn", x, theta["effects"])
    return jnp.sum(mask * norm.logpdf(y, predictor, NOISE_SD), axis=-1)


latents = {"beta": real(2), "effects": local(real(2))}
model = Model(latents, log_likelihood=log_likelihood, prior=prior)


# %% Fits by minibatches of 40 groups.
def index(index, *_):
    return index


parts = {
    "independent groups": full_rank(real(2)),
    "groups given beta": conditional(full_rank(real(2)), on={"beta": real(2)}),
}
optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
objective = ELBO(4, "sticking_the_landing")
fits = {}
for name, part in parts.items():
    guide = product({"beta": full_rank(real(2)), "effects": per_row(part, GROUPS, index)})
    svi = SVI(model, guide, optimizer, objective, Minibatches(40))
    result = svi.run(jax.random.key(1), num_steps, *data)
    fits[name] = guide, result.params

# %% The exact posterior of beta, and the evidence: with the effects integrated out y_g ~ Normal(x_g
# beta, V_g).
precision = np.eye(2) / PRIOR_SD**2
weighted = np.zeros(2)
log_evidence = 0.0
for i, seen in enumerate(mask):
    x_g = x[i, seen]
    y_g = y[i, seen]
    v = (x_g * GROUP_SD**2) @ x_g.T + NOISE_SD**2 * np.eye(len(y_g))
    solved = np.linalg.solve(v, y_g)
    precision += x_g.T @ np.linalg.solve(v, x_g)
    weighted += x_g.T @ solved
    _, log_det = np.linalg.slogdet(2 * np.pi * v)
    log_evidence -= 0.5 * (y_g @ solved + log_det)
cov = np.linalg.inv(precision)
loc = cov @ weighted
_, log_det = np.linalg.slogdet(cov)
log_evidence += 0.5 * (loc @ weighted + log_det) - 2 * np.log(PRIOR_SD)

# And that of the effects: Normal(c (x_g^T y_g / s^2 + beta / t^2), c) given beta, with c as below.
seen = x * mask[..., None]
information = np.einsum("gni,gnj->gij", seen, seen) / NOISE_SD**2
c = np.linalg.inv(np.diag(GROUP_SD**-2) + information)
pull = c / GROUP_SD**2
effects_cov = c + pull @ cov @ pull.transpose(0, 2, 1)
effects_sd = np.sqrt(np.diagonal(effects_cov, axis1=1, axis2=2))


# %% The globals of each fit beside the exact ones.
def row(name, loc, cov, bound):
    sd = np.sqrt(np.diag(cov))
    beta = "".join(f"{m:10.3f} +- {s:.3f}" for m, s in zip(loc, sd))
    correlation = cov[0, 1] / sd.prod()
    gap = log_evidence - bound
    print(f"{name:20}{beta}{correlation:13.3f}{bound:12.2f}{gap:9.2f}")


@partial(jax.jit, static_argnames="guide")
def elbo_of(guide, params):
    return ELBO(1000)(jax.random.key(3), model, guide, params, *data)


print(f"{'':20}{'intercept':>18}{'slope':>18}{'correlation':>15}{'ELBO':>10}{'gap':>9}")
draws = {}
for name, (guide, params) in fits.items():
    posterior = Posterior(model, guide, params, data)
    draws[name] = posterior.sample(jax.random.key(2), 4000)
    beta = draws[name]["beta"]
    row(name, beta.mean(0), np.cov(beta.T), elbo_of(guide, params))
row("exact", loc, cov, log_evidence)

# %% The figure: draws of the globals over the exact contours, and how sure each fit is of the
# groups.
figure, (of_globals, of_groups) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
intercept_sd = effects_sd[:, 0]
for name, draw in draws.items():
    intercept, slope = draw["beta"][:1500].T
    of_globals.scatter(intercept, slope, s=3, alpha=0.4, label=name)
    fitted_sd = draw["effects"][:, :, 0].std(0)
    of_groups.scatter(intercept_sd, fitted_sd, s=8, alpha=0.7, label=name)
angle = np.linspace(0, 2 * np.pi, 200)
ellipse = np.linalg.cholesky(cov) @ np.stack([np.cos(angle), np.sin(angle)])
for radius, label in ((1, "exact, 1 and 2 sd"), (2, None)):
    intercept, slope = loc[:, None] + radius * ellipse
    of_globals.plot(intercept, slope, color="black", lw=1, label=label)
ends = [intercept_sd.min(), intercept_sd.max()]
of_groups.plot(ends, ends, color="black", lw=1, label="equal")
plotting.decorate(of_globals, "Posterior of the globals", "intercept", "slope")
plotting.decorate(of_groups, "Sd of each group's intercept", "exact", "fit")
plotting.save(figure, "mixed_effects")
