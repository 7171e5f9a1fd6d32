"""Survival with censoring: how much longer does the drug 6-MP keep leukaemia away?

    T_i ~ Weibull(shape k, scale exp(b_0 + b_1 drug_i))
    log_likelihood: log f(t_i) of a relapse that was seen, log S(t_i) of a patient still well at t_i
    b ~ Normal((2, 0), 1.5),   k ~ LogNormal(0, 0.5)

A patient who is well at the end of the study tells only that T_i > t_i. Weeks of remission of 42
children, half of them on the drug (Freireich et al. 1963); a plus sign marks those who were well.
"""

# %% Data.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, compare, timed
from plotting import save

import minisvi

DRUG = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"
PLACEBO = "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"
texts = f"{DRUG} {PLACEBO}".split()
weeks = np.array([float(text.rstrip("+")) for text in texts])
relapsed = np.array(["+" not in text for text in texts])
drug = np.arange(42) < 21


# %% The model.
def prior(theta):
    return {
        "b": dist.Normal(jnp.array([2.0, 0.0]), 1.5),
        "shape": dist.LogNormal(0.0, 0.5),
    }


def remission(theta, drug):
    return dist.Weibull(jnp.exp(theta["b"][0] + theta["b"][1] * drug), theta["shape"])


def log_survival(theta, weeks, drug):
    return -((weeks / remission(theta, drug).scale) ** theta["shape"])


def log_likelihood(theta, weeks, relapsed, drug):
    density = remission(theta, drug).log_prob(weeks)
    return jnp.where(relapsed, density, log_survival(theta, weeks, drug))


latents = {"b": minisvi.real(2), "shape": minisvi.positive()}
model = minisvi.Model(latents, log_likelihood=log_likelihood, prior=prior)
data = (weeks, relapsed, drug)

# %% The fit and its verdict, with NUTS beside it.
fit, seconds = timed(
    lambda: minisvi.fit(jax.random.key(0), model, *data, progress_bar=False, **EFFORT)
)
compare(fit, seconds, jax.random.key(1))


# %% The answer: Weibull times are proportional hazards, with the ratio exp(-shape b_1).
def answers(theta):
    median = jnp.log(2.0) ** (1 / theta["shape"]) * jnp.exp(theta["b"][0])
    return {
        "hazard ratio": jnp.exp(-theta["shape"] * theta["b"][1]),
        "median, placebo": median,
        "median, drug": median * jnp.exp(theta["b"][1]),
    }


print(fit.draws.map(answers).summary())


# %% The posterior predictive check is the Kaplan-Meier curve, which knows of no Weibull: would new
# groups of 21 patients, of whom none goes out of sight, come near it in each week?
def kaplan_meier(weeks, relapsed, grid):
    """The share that is still well: the product, over relapses, of (1 - 1 / those at risk)."""
    order = np.lexsort((~relapsed, weeks))
    at_risk = np.arange(len(weeks), 0, -1)
    steps = np.where(relapsed[order], 1 - 1 / at_risk, 1.0)
    share = np.concatenate([[1.0], np.cumprod(steps)])
    return share[np.searchsorted(weeks[order], grid, side="right")]


theta = fit.draws.resample(jax.random.key(2), 2000).theta
grid = np.linspace(0.0, 35.0, 200)


def survival_curve(theta, drug):
    return jnp.exp(log_survival(theta, grid, drug))


figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
for colour, name, on_drug in [("C1", "placebo", False), ("C0", "6-MP", True)]:
    group = drug == on_drug
    curves = jax.vmap(survival_curve, (0, None))(theta, on_drug)
    low, mid, high = np.quantile(curves, [0.05, 0.5, 0.95], axis=0)
    seen = kaplan_meier(weeks[group], relapsed[group], grid)
    replicated = np.random.default_rng(3).binomial(21, curves) / 21
    least, most = np.quantile(replicated, [0.05, 0.95], axis=0)
    inside = np.mean((least <= seen) & (seen <= most))
    print(
        f"{name}: Kaplan-Meier is inside the 90 % predictive interval in {inside:.0%} of the weeks"
    )
    ax.fill_between(grid, low, high, color=colour, alpha=0.25, lw=0)
    ax.plot(grid, mid, color=colour, label=f"{name}: posterior, 90 % band")
    ax.step(grid, seen, color=colour, ls="--", where="post", label=f"{name}: Kaplan-Meier")
    well = group & ~relapsed
    height = kaplan_meier(weeks[group], relapsed[group], weeks[well])
    ax.plot(weeks[well], height, "|", color=colour, ms=9)
ax.plot([], [], "|", color="grey", ms=9, label="still well, then out of sight")
ax.set(xlabel="weeks", ylabel="share still in remission", ylim=(0, 1.02), xlim=(0, 35.5))
ax.set_title("Remission of leukaemia under 6-MP and placebo")
ax.legend(loc="upper right", fontsize=8)
save(figure, "survival")

# %% For your own data: `drug` may be a matrix x of predictors, with x @ b in the scale. A patient
# who was seen again only after the relapse, by week t, has the term log(1 - S(t)).
