"""Stochastic volatility: how much did a share price swing on each day, and what is tomorrow's risk?

    h_1 = mu + sd / sqrt(1 - phi^2) z_1,     h_t = mu + phi (h_{t-1} - mu) + sd z_t
    return_t ~ Normal(0, exp(h_t / 2)),      z_t ~ Normal(0, 1)
    mu ~ Normal(0, 1),   phi ~ Beta(20, 1.5),   sd ~ LogNormal(-1.5, 0.5)

The walk h is non-centred: its latents are the shocks z. The 300 daily returns, in per cent, are
simulated from this model with mu = 0.3, phi = 0.97 and sd = 0.25, so that the truth is known.
"""

# %% Data: simulated returns, and the volatility that made them.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, QUICK, compare, timed
from plotting import save

import minisvi

NUM_DAYS = 60 if QUICK else 300


# %% The model. The walk is a scan over the days.
def log_variances(theta):
    phi, shocks = theta["phi"], theta["sd"] * theta["z"]

    def day(deviation, shock):
        following = phi * deviation + shock
        return following, following

    first = shocks[0] / jnp.sqrt(1 - phi**2)  # of the stationary law
    deviations = jax.lax.scan(day, 0.0, shocks.at[0].set(first))[1]
    return theta["mu"] + deviations


def prior(theta):
    return {
        "mu": dist.Normal(0.0, 1.0),
        "phi": dist.Beta(20.0, 1.5),
        "sd": dist.LogNormal(-1.5, 0.5),
        "z": dist.Normal(0.0, 1.0),
    }


def volatilities(theta):
    return jnp.exp(log_variances(theta) / 2)


def of_interest(theta):
    return [theta["mu"], theta["phi"], theta["sd"], volatilities(theta)]


def log_likelihood(theta, returns):  # one number: the days are one walk
    return dist.Normal(0.0, volatilities(theta)).log_prob(returns).sum()


latents = {"mu": minisvi.real(), "phi": minisvi.unit_interval(), "sd": minisvi.positive()}
latents |= {"z": minisvi.real(NUM_DAYS)}
model = minisvi.Model(latents, prior=prior, log_likelihood=log_likelihood, per_row=False)

shock_key, return_key = jax.random.split(jax.random.key(7))
truth = {"mu": 0.3, "phi": 0.97, "sd": 0.25, "z": jax.random.normal(shock_key, NUM_DAYS)}
true_volatility = volatilities(truth)
returns = true_volatility * jax.random.normal(return_key, NUM_DAYS)

# %% The fit and its verdict, with NUTS beside it.
args = jax.random.key(0), model, returns
fit, seconds = timed(lambda: minisvi.fit(*args, progress_bar=False, **EFFORT))
print(fit)
of_nuts = compare(fit, seconds, jax.random.key(1), of_interest)


# %% The fit is not trusted, and a centred walk, whose latent is h, was not after 2,000 steps of its
# flow. So the rest of the analysis takes draws of NUTS.
theta = fit.draws.resample(jax.random.key(2), 1000).theta
if of_nuts is not None:
    theta = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[::4], of_nuts.theta)
volatility = np.asarray(jax.vmap(volatilities)(theta))
low, middle, high = np.quantile(volatility, [0.05, 0.5, 0.95], axis=0)
inside = np.mean((low < true_volatility) & (true_volatility < high))
print(f"{inside:.0%} of the true volatilities lie in their 90 % bands")


def new_returns(key, theta):  # those of the days seen, and tomorrow's
    h = log_variances(theta)
    normals = jax.random.normal(key, (len(h) + 2,))
    tomorrow = theta["mu"] + theta["phi"] * (h[-1] - theta["mu"]) + theta["sd"] * normals[0]
    return jnp.exp(jnp.append(h, tomorrow) / 2) * normals[1:]


replicated = np.asarray(jax.vmap(new_returns)(jax.random.split(jax.random.key(3), 1000), theta))
print(f"tomorrow's return: 5 % quantile {np.quantile(replicated[:, -1], 0.05):.1f} %")


# %% A posterior predictive check: do large returns follow on large returns, as in the data?
def clustering(series):
    return np.corrcoef(np.abs(series[:-1]), np.abs(series[1:]))[0, 1]


often = np.quantile([clustering(series) for series in replicated[:, :-1]], [0.05, 0.95])
print(f"clustering of |return|: {clustering(returns):.2f} seen, {often} replicated")

# %% The picture: the returns, and the volatility by day with its truth.
figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, 5), layout="constrained", sharex=True)
days = 1 + np.arange(NUM_DAYS)
top.vlines(days, 0, returns, color="black", lw=0.8)
top.set(ylabel="return (%)")
bottom.fill_between(days, low, high, color="C0", alpha=0.25, lw=0, label="90 % band")
bottom.plot(days, middle, color="C0", label="posterior median, by NUTS")
bottom.plot(days, true_volatility, color="C1", lw=1, label="truth")
bottom.set(xlabel="day", ylabel="volatility (%)", ylim=(0, None))
figure.legend(loc="outside lower center", ncols=3)
save(figure, "stochastic_volatility")

# %% For your own data: `returns` are 100 times the differences of log prices, less their mean. For
# returns with fatter tails put `dist.StudentT(df, 0.0, volatilities(theta))` in the likelihood.
