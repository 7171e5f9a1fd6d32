"""Forecasting: how many airline passengers in the next two years, and are the intervals right?

    log y_t = level_{t-1} + trend_{t-1} + season_{t-12} + e_t,     e_t ~ Normal(0, sd)
    level_t = level_{t-1} + trend_{t-1} + alpha e_t
    trend_t = trend_{t-1} + beta e_t,      season_t = season_{t-12} + gamma e_t

In innovations form (additive Holt and Winters, Hyndman et al. 2008) one error a month drives all
states, so that the likelihood is exact. The data are of Box and Jenkins (1970), in thousands.
"""

# %% Data: ten years to fit, two years to be judged by.
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, compare, timed
from plotting import save

import minisvi

PASSENGERS = """
112 118 132 129 121 135 148 148 136 119 104 118 115 126 141 135 125 149 170 170 158 133 114 140
145 150 178 163 172 178 199 199 184 162 146 166 171 180 193 181 183 218 230 242 209 191 172 194
196 196 236 235 229 243 264 272 237 211 180 201 204 188 235 227 234 264 302 293 259 229 203 229
242 233 267 269 270 315 364 347 312 274 237 278 284 277 317 313 318 374 413 405 355 306 271 306
315 301 356 348 355 422 465 467 404 347 305 336 340 318 362 348 363 435 491 505 404 359 310 337
360 342 406 396 420 472 548 559 463 407 362 405 417 391 419 461 472 535 622 606 508 461 390 432
"""
passengers = np.array(PASSENGERS.split(), float)
PERIOD, HORIZON = 12, 24
unit = passengers[:PERIOD].mean()
log_seen = jnp.log(passengers[:-HORIZON] / unit)


# %% The model. Only 0 < beta < alpha and 0 < gamma < 1 - alpha forget the start, hence fractions.
def prior(theta):
    return {
        "fractions": dist.Beta(jnp.array([2.0, 1.0, 2.0]), jnp.array([2.0, 9.0, 2.0])),
        "sd": dist.LogNormal(-3.0, 1.0),
        "start": dist.Normal(0.0, jnp.array([0.3, 0.03])),
        "season": dist.Normal(0.0, 0.3),
    }


def expected(states):
    level, trend, season = states
    return level + trend + season[0]


def follow(theta, states, log_y):
    level, trend, season = states
    alpha, of_alpha, of_rest = theta["fractions"]
    error = log_y - expected(states)
    new_trend = trend + alpha * of_alpha * error
    new_season = jnp.append(season[1:], season[0] + (1 - alpha) * of_rest * error)
    return (level + trend + alpha * error, new_trend, new_season), error


def filtered(theta, log_y):
    season = jnp.append(theta["season"], -theta["season"].sum())  # of the first year
    return jax.lax.scan(partial(follow, theta), (*theta["start"], season), log_y)


def log_likelihood(theta, log_y):  # one number: each month leans on all months before
    errors = filtered(theta, log_y)[1]
    return dist.Normal(0.0, theta["sd"]).log_prob(errors).sum()


latents = {"fractions": minisvi.unit_interval(3), "sd": minisvi.positive()}
latents |= {"start": minisvi.real(2), "season": minisvi.real(PERIOD - 1)}
model = minisvi.Model(latents, prior=prior, log_likelihood=log_likelihood, per_row=False)

# %% The fit and its verdict, with NUTS beside it.
fit, seconds = timed(
    lambda: minisvi.fit(jax.random.key(0), model, log_seen, progress_bar=False, **EFFORT)
)
print(fit)
compare(fit, seconds, jax.random.key(1))


# %% The forecast: from each draw's last states on, with new errors.
def forecast(key, theta, log_y):
    last_states = filtered(theta, log_y)[0]
    errors = theta["sd"] * jax.random.normal(key, (HORIZON,))

    def month(states, error):
        log_y = expected(states) + error
        return follow(theta, states, log_y)[0], log_y

    return jax.lax.scan(month, last_states, errors)[1]


futures = unit * np.exp(fit.draws.predictive(jax.random.key(2), forecast, 2000, log_seen))
held_out = passengers[-HORIZON:]
median = np.median(futures, axis=0)
last_year = np.tile(passengers[-HORIZON - PERIOD : -HORIZON], HORIZON // PERIOD)
errors = [np.abs(guess - held_out).mean() for guess in (median, last_year)]
print("mean absolute error: {:.1f} thousand, the last year again {:.1f}".format(*errors))

# %% The picture: the last years seen, the forecast with its intervals, and what came.
figure, ax = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
years = 1949 + np.arange(len(passengers)) / PERIOD
for share, label in {0.95: "50, 80 and 95 % intervals", 0.8: None, 0.5: None}.items():
    low, high = np.quantile(futures, [0.5 - share / 2, 0.5 + share / 2], axis=0)
    inside = (low < held_out) & (held_out < high)
    print(f"{share:.0%} intervals cover {inside.mean():.0%} of the {HORIZON} months held out")
    ax.fill_between(years[-HORIZON:], low, high, color="C0", alpha=0.2, lw=0, label=label)
ax.plot(years[-HORIZON:], median, color="C0", label="median")
ax.plot(years[:-HORIZON], passengers[:-HORIZON], color="black", lw=1, label="seen by the fit")
ax.plot(years[-HORIZON:], held_out, "o", color="C1", ms=4, label="held out")
ax.set(xlim=(1954, 1961), ylim=(150, None), ylabel="passengers a month (thousands)")
ax.legend(loc="upper left", frameon=False)
save(figure, "forecasting")

# %% For your own data: weeks with a yearly season have PERIOD = 52, days with a weekly one 7. Leave
# out the logarithm where the season does not grow with the level.
