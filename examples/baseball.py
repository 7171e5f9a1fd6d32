"""Hierarchical binomial: how well do 18 batters hit, judged by their first 45 times at bat?

    hits_j ~ Binomial(at_bats_j, logistic(mu + tau z_j)),   z_j ~ Normal(0, 1)
    mu ~ Normal(-1, 1),   tau ~ HalfNormal(1)

The latent skills are pulled towards their common mean, and predict the rest of the season better
than each batter's own average does. The data are of Efron and Morris (1975, table 1).
"""

# %% Data.
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, compare, timed
from plotting import save

import minisvi

AT_BATS = 45
BATTERS = (
    *("Clemente", "F. Robinson", "F. Howard", "Johnstone", "Berry", "Spencer", "Kessinger"),
    *("Alvarado", "Santo", "Swoboda", "Unser", "Williams", "Scott", "Petrocelli"),
    *("E. Rodriguez", "Campaneris", "Munson", "Alvis"),
)
HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])
SEASON_AVERAGE = np.array(
    [
        *[0.346, 0.298, 0.276, 0.222, 0.273, 0.270, 0.263, 0.210, 0.269],
        *[0.230, 0.264, 0.256, 0.303, 0.264, 0.226, 0.285, 0.316, 0.200],
    ]
)


# %% The model. A non-centred hierarchy: the skills are written in units of their spread.
def prior(theta):
    return {
        "mu": dist.Normal(-1.0, 1.0),
        "tau": dist.HalfNormal(1.0),
        "z": dist.Normal(0.0, 1.0),
    }


def logits(theta):
    return theta["mu"] + theta["tau"] * theta["z"]


def log_likelihood(theta, hits):
    return dist.Binomial(AT_BATS, logits=logits(theta)).log_prob(hits)


latents = {"mu": minisvi.real(), "tau": minisvi.positive(), "z": minisvi.real(len(HITS))}
model = minisvi.Model(latents, log_likelihood=log_likelihood, prior=prior)

# %% The fit and its verdict, with NUTS beside it.
fit, seconds = timed(
    lambda: minisvi.fit(jax.random.key(0), model, HITS, progress_bar=False, **EFFORT)
)


def skills(theta):
    return {"mu": theta["mu"], "tau": theta["tau"], "skill": jax.nn.sigmoid(logits(theta))}


compare(fit, seconds, jax.random.key(1), skills)

# %% A posterior predictive check: would such batters have spread so far?
draws = fit.draws.resample(jax.random.key(2), 2000)
skill = jax.vmap(skills)(draws.theta)["skill"]
replicated = np.random.default_rng(3).binomial(AT_BATS, np.asarray(skill))
spreads = replicated.std(axis=1)
print(f"sd of hits: {HITS.std():.2f} seen, {np.quantile(spreads, [0.05, 0.95])} replicated")

# %% The rest of the season, which the model has not seen.
mean = np.asarray(skill).mean(axis=0)
own = HITS / AT_BATS
errors = {"own average": own, "common mean": own.mean(), "hierarchy": mean}
for name, prediction in errors.items():
    rmse = np.sqrt(np.mean((prediction - SEASON_AVERAGE) ** 2))
    print(f"{name:14} RMSE over the season {rmse:.4f}")

# %% The picture: averages, shrunk skills with 90 % intervals, and the season.
figure, ax = plt.subplots(figsize=(7, 5.5), layout="constrained")
batters = np.arange(len(HITS))[::-1]
low, high = np.quantile(np.asarray(skill), [0.05, 0.95], axis=0)
ax.hlines(batters, low, high, color="C0", lw=3, alpha=0.4)
ax.plot(mean, batters, "o", color="C0", label="posterior mean, 90 % interval")
ax.plot(own, batters, "x", color="C1", label="first 45 at bats")
ax.plot(SEASON_AVERAGE, batters, "d", color="C2", mfc="none", label="rest of the season")
ax.axvline(own.mean(), color="grey", lw=1, ls=":")
ax.set(xlabel="batting average", title="Batting averages are pulled together")
ax.set_yticks(batters, BATTERS)
figure.legend(loc="outside lower center", ncols=3)
save(figure, "baseball")

# %% For your own data: hits and trials are arrays of one length, and `AT_BATS` may be an array.
