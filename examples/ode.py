"""An ordinary differential equation: what drives the cycle of hares and lynxes, and how far ahead?

    d log h / dt = a - b l,    d log l / dt = -c + d h                     (Lotka and Volterra)
    log hares_t ~ Normal(log h(t), sd_h),    log lynxes_t ~ Normal(log l(t), sd_l)
    a, b, c, d ~ LogNormal(-0.5, 0.5),   h(0), l(0) ~ LogNormal(0, 1),   sd ~ LogNormal(-1, 1)

h and l are in units of the mean catch, so that all of these are near one. The data are pelts that
the Hudson's Bay Company collected, in thousands (Elton and Nicholson 1942, as in Howard 2009).
"""

# %% Data: two series of 21 years.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, compare, timed
from plotting import save

import minisvi

YEARS = np.arange(1900, 1921)
HARES = (
    *(30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1),
    *(40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7),
)
LYNXES = (
    *(4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4),
    *(8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6),
)
pelts = np.column_stack([HARES, LYNXES])
unit = pelts.mean(axis=0)
log_pelts = jnp.log(pelts / unit)
STEPS_A_YEAR = 4


# %% The model. Runge and Kutta's fourth-order rule, in logarithms: no population falls below zero.
def slope(theta, log_state):
    hares, lynxes = jnp.exp(log_state)
    growth, predation, death, feeding = theta["rates"]
    return jnp.stack([growth - predation * lynxes, feeding * hares - death])


def trajectory(theta, num_years):
    h = 1.0 / STEPS_A_YEAR

    def step(state, _):
        k1 = slope(theta, state)
        k2 = slope(theta, state + h / 2 * k1)
        k3 = slope(theta, state + h / 2 * k2)
        k4 = slope(theta, state + h * k3)
        following = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return following, state

    num_steps = num_years * STEPS_A_YEAR
    states = jax.lax.scan(step, jnp.log(theta["start"]), length=num_steps)[1]
    return states[::STEPS_A_YEAR]


def prior(theta):
    return {
        "rates": dist.LogNormal(-0.5, 0.5),
        "start": dist.LogNormal(0.0, 1.0),
        "sd": dist.LogNormal(-1.0, 1.0),
    }


def log_likelihood(theta, log_pelts):  # one number: the years are one solution
    mean = trajectory(theta, len(log_pelts))
    return dist.Normal(mean, theta["sd"]).log_prob(log_pelts).sum()


latents = {"rates": minisvi.positive(4), "start": minisvi.positive(2), "sd": minisvi.positive(2)}
model = minisvi.Model(latents, prior=prior, log_likelihood=log_likelihood, per_row=False)

# %% The fit and its verdict, with NUTS beside it.
fit, seconds = timed(
    lambda: minisvi.fit(jax.random.key(0), model, log_pelts, progress_bar=False, **EFFORT)
)
print(fit)
print(fit.summary())
compare(fit, seconds, jax.random.key(1))

# %% A posterior predictive check, and ten years on: new catches and the solutions behind them.
NUM_YEARS = len(YEARS) + 10


def new_pelts(key, theta):
    mean = trajectory(theta, NUM_YEARS)
    return dist.Normal(mean, theta["sd"]).sample(key)


replicated = unit * np.exp(fit.draws.predictive(jax.random.key(2), new_pelts, 2000))
low, middle, high = np.quantile(replicated, [0.05, 0.5, 0.95], axis=0)
seen = len(YEARS)
inside = (low[:seen] < pelts) & (pelts < high[:seen])
for name, share in zip(("hares", "lynxes"), inside.mean(axis=0)):
    print(f"{name:7} {share:.2f} of the catches lie in the 90 % bands of new ones")

# %% The picture: both series, bands of the populations and of new catches, and ten years on.
figure, axes = plt.subplots(2, 1, figsize=(7, 5.5), layout="constrained", sharex=True)
years = YEARS[0] + np.arange(NUM_YEARS)
for i, (ax, name) in enumerate(zip(axes, ("hare pelts", "lynx pelts"))):
    ax.fill_between(years, low[:, i], high[:, i], color=f"C{i}", alpha=0.25, lw=0)
    ax.plot(years, middle[:, i], color=f"C{i}")
    ax.plot(YEARS, pelts[:, i], "ko", ms=4)
    ax.axvline(1920.5, color="grey", ls=":")
    ax.set(ylabel=f"{name} (thousands)", ylim=(0, None))
axes[0].set_title("catches, median and 90 % band of new catches")
save(figure, "ode")

# %% For your own data: `slope` is your equations, in whichever logarithms keep the states positive,
# and units in which the rates are near one. Halve the steps and see whether the answer stays.
# Observations between two years want more steps a year and another stride.
