"""100,000 rows: which of ten features move the odds of a click, and do minibatches lose anything?

    click_i ~ Bernoulli(logistic(intercept + x_i . slope))
    intercept ~ Normal(0, 3),   slope_k ~ Normal(0, 1)

The rows are simulated, with features that are correlated, so that the truth is known. The posterior
is fitted three times: by `fit` on all rows, by `fit` with minibatches, and by SVI with minibatches.
"""

# %% Data. A tenth of the people click, and two of the features do nothing.
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from beside_nuts import QUICK, compare, timed
from plotting import save

import minisvi

ROWS, BATCH = (4000, 500) if QUICK else (100_000, 2000)
SLOPES = np.array([0.5, -0.4, 0.3, 0.2, -0.2, 0.1, 0.05, -0.05, 0.0, 0.0])
rng = np.random.default_rng(0)
x = 0.6 * rng.normal(size=(ROWS, 1)) + 0.8 * rng.normal(size=(ROWS, 10))
x = x.astype(np.float32)
chance = 1 / (1 + np.exp(2.5 - x @ SLOPES))
y = (rng.uniform(size=ROWS) < chance).astype(np.float32)


# %% The model. Its likelihood has one term for each row, as minibatches need it.
def prior(theta):
    return {"intercept": dist.Normal(0.0, 3.0), "slope": dist.Normal(0.0, 1.0)}


def logits(theta, x):
    return theta["intercept"] + x @ theta["slope"]


def log_likelihood(theta, x, y):
    return dist.Bernoulli(logits=logits(theta, x)).log_prob(y)


latents = {"intercept": minisvi.real(), "slope": minisvi.real(10)}
model = minisvi.Model(latents, prior=prior, log_likelihood=log_likelihood)


# %% Three fits. Each compiles its own programs, and the seconds hold that.
run_fit = partial(minisvi.fit, jax.random.key(0), model, x, y, progress_bar=False)
run_by_batches = partial(run_fit, batch_size=BATCH)
num_steps = 500 if QUICK else 5000
optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
guide = minisvi.full_rank(latents)
svi = minisvi.SVI(model, guide, optimizer, minisvi.ELBO(4), minisvi.Minibatches(BATCH))


def run_svi():
    result = svi.run(jax.random.key(1), num_steps, x, y, progress_bar=False)
    return minisvi.judge(jax.random.key(2), model, guide, result.params, x, y)


runs = {"fit, all rows": run_fit, "fit, minibatches": run_by_batches, "SVI, minibatches": run_svi}
fits, seconds = {}, {}
for name, run in runs.items():
    fits[name], seconds[name] = timed(run)

# %% NUTS beside the fit to all rows, and the minibatches beside that fit.
whole = fits["fit, all rows"]
compare(whole, seconds["fit, all rows"], jax.random.key(3))


def flat(theta):
    return jnp.append(theta["slope"], theta["intercept"])


numbers = {name: (flat(one.draws.mean()), flat(one.draws.sd())) for name, one in fits.items()}
mean, sd = numbers["fit, all rows"]
print(f"\n{'':18}{'seconds':>8}{'mean error, sd':>16}{'sd error':>10}  verdict")
for name, (its_mean, its_sd) in numbers.items():
    errors = jnp.max(jnp.abs(its_mean - mean) / sd), jnp.max(jnp.abs(its_sd / sd - 1))
    level = fits[name].verdict.level
    print(f"{name:18}{seconds[name]:8.1f}{errors[0]:16.3f}{errors[1]:10.3f}  {level}")

# %% A posterior predictive check: clicks among rows of like chance, seen and replicated.
BINS = 20
draws = whole.draws.resample(jax.random.key(4), 500)
predicted = np.asarray(jax.nn.sigmoid(logits(whole.draws.mean(), x)))
bins = np.argsort(np.argsort(predicted)) * BINS // ROWS


def clicks(key, theta, x):
    new = dist.Bernoulli(logits=logits(theta, x)).sample(key)
    return jax.ops.segment_sum(new, bins, BINS) / (ROWS // BINS)


replicated = draws.predictive(jax.random.key(5), clicks, 500, x)
low, high = np.quantile(replicated, [0.05, 0.95], axis=0)
rate, middle = (np.bincount(bins, one) / (ROWS // BINS) for one in (y, predicted))
inside = np.sum((low <= rate) & (rate <= high))
print(f"\nclicks of {inside} of {BINS} groups of rows lie in the 90 % interval of replicated ones")

# %% The picture: the slopes by each fit over the truth, and the clicks.
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
places = np.arange(10)
for shift, (name, (its_mean, its_sd)) in zip((-0.25, 0.0, 0.25), numbers.items()):
    middles, half = its_mean[:-1] - SLOPES, 1.645 * its_sd[:-1]
    left.errorbar(places + shift, middles, half, fmt="o", ms=3, label=name)
left.axhline(0.0, color="black", lw=1)
left.set(xlabel="true slope of the feature", ylabel="slope - truth, 90 % interval")
left.set_xticks(places, SLOPES)
right.vlines(middle, low, high, color="C0", lw=5, alpha=0.4, label="replicated, 90 %")
right.plot(middle, rate, "x", color="black", label="seen")
right.set(xlabel="predicted chance of a click, in 20 groups", ylabel="rate of clicks")
left.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
right.legend(frameon=False)
save(figure, "many_rows")

# %% For your own data: x and y, a prior in the units of x, and `ROWS` and `BATCH` out of the data.
