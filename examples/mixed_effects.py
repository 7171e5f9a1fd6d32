"""Mixed effects: 200 groups of unequal sizes, by minibatches of groups, beside the exact posterior.

Each group has an intercept and a slope of its own. They are local latents, and in the posterior
they depend on the globals: a guide that leaves this out is too sure of the globals. Run `python
examples/mixed_effects.py`; `--quick` takes few steps. The figure goes to `examples/figures/`.
"""

# %% Data: 1 to 12 observations a group, padded to 12 and masked, so that a row of the data is a
# group.
import argparse

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

GROUPS, LONGEST = 200, 12
PRIOR_SD, GROUP_SD, NOISE_SD = 10.0, np.array([1.0, 0.5]), 2.0
rng = np.random.default_rng(0)
mask = np.arange(LONGEST) < rng.integers(1, LONGEST + 1, size=(GROUPS, 1))
x = np.stack([np.ones((GROUPS, LONGEST)), rng.uniform(0, 3, (GROUPS, LONGEST))], axis=-1)
effects = np.array([3.0, -1.5]) + GROUP_SD * rng.normal(size=(GROUPS, 2))
y = np.einsum("gnd,gd->gn", x, effects) + NOISE_SD * rng.normal(size=(GROUPS, LONGEST))
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


model = Model(
    {"beta": real(2), "effects": local(real(2))}, log_likelihood=log_likelihood, prior=prior
)


# %% Fits by minibatches of 40 groups.
def index(index, *_):
    return index


parts = {
    "independent groups": full_rank(real(2)),
    "groups given beta": conditional(full_rank(real(2)), on={"beta": real(2)}),
}
optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
fits = {}
for name, part in parts.items():
    guide = product({"beta": full_rank(real(2)), "effects": per_row(part, GROUPS, index)})
    svi = SVI(model, guide, optimizer, ELBO(4, "sticking_the_landing"), Minibatches(40))
    fits[name] = guide, svi.run(jax.random.key(1), num_steps, *data).params

# %% The exact posterior of beta, and the evidence: with the effects integrated out y_g ~ Normal(x_g
# beta, V_g).
precision, weighted, log_evidence = np.eye(2) / PRIOR_SD**2, np.zeros(2), 0.0
for x_g, y_g, seen in zip(x, y, mask):
    x_g, y_g = x_g[seen], y_g[seen]
    v = (x_g * GROUP_SD**2) @ x_g.T + NOISE_SD**2 * np.eye(len(y_g))
    precision += x_g.T @ np.linalg.solve(v, x_g)
    weighted += x_g.T @ np.linalg.solve(v, y_g)
    log_evidence -= 0.5 * (y_g @ np.linalg.solve(v, y_g) + np.linalg.slogdet(2 * np.pi * v)[1])
cov = np.linalg.inv(precision)
loc = cov @ weighted
log_evidence += 0.5 * (loc @ weighted + np.linalg.slogdet(cov)[1]) - 2 * np.log(PRIOR_SD)

# And of the effects: Normal(c (x_g^T y_g / s^2 + beta / t^2), c) given beta, with c as below.
seen = x * mask[..., None]
c = np.linalg.inv(np.diag(GROUP_SD**-2) + np.einsum("gni,gnj->gij", seen, seen) / NOISE_SD**2)
pull = c / GROUP_SD**2
effects_sd = np.sqrt(np.diagonal(c + pull @ cov @ pull.transpose(0, 2, 1), axis1=1, axis2=2))


# %% The globals of each fit beside the exact ones.
def row(name, loc, cov, bound):
    sd = np.sqrt(np.diag(cov))
    beta = "".join(f"{m:10.3f} +- {s:.3f}" for m, s in zip(loc, sd))
    print(f"{name:20}{beta}{cov[0, 1] / sd.prod():13.3f}{bound:12.2f}{log_evidence - bound:9.2f}")


print(f"{'':20}{'intercept':>18}{'slope':>18}{'correlation':>15}{'ELBO':>10}{'gap':>9}")
draws = {}
for name, (guide, params) in fits.items():
    draws[name] = Posterior(model, guide, params, data).sample(jax.random.key(2), 4000)
    beta = draws[name]["beta"]
    elbo = jax.jit(
        lambda params, guide=guide: ELBO(1000)(jax.random.key(3), model, guide, params, *data)
    )(params)
    row(name, beta.mean(0), np.cov(beta.T), elbo)
row("exact", loc, cov, log_evidence)

# %% The figure: draws of the globals over the exact contours, and how sure each fit is of the
# groups.
figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
angle = np.linspace(0, 2 * np.pi, 200)
circle = np.linalg.cholesky(cov) @ np.stack([np.cos(angle), np.sin(angle)])
low, high = effects_sd[:, 0].min(), effects_sd[:, 0].max()
for name, draw in draws.items():
    axes[0].scatter(*draw["beta"][:1500].T, s=3, alpha=0.4, label=name)
    axes[1].scatter(effects_sd[:, 0], draw["effects"][:, :, 0].std(0), s=8, alpha=0.7, label=name)
for radius in (1, 2):
    axes[0].plot(
        *(loc[:, None] + radius * circle),
        color="black",
        lw=1,
        label="exact, 1 and 2 sd" if radius == 1 else None,
    )
axes[1].plot([low, high], [low, high], color="black", lw=1, label="equal")
plotting.decorate(axes[0], "Posterior of the globals", "intercept", "slope")
plotting.decorate(axes[1], "Sd of each group's intercept", "exact", "fit")
plotting.save(figure, "mixed_effects")
