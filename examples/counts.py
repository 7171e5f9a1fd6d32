"""Counts with exposure and too many zeros: does the treatment of flats keep cockroaches away?

    y_i ~ 0 with probability pi, else NegativeBinomial(mean days_i exp(x_i b), concentration phi)
    b ~ Normal((0, 0, 0), (2, 1, 1)),   pi ~ Beta(1, 2),   phi ~ LogNormal(0, 1)

A trap stands for days_i days, and so its expected catch is proportional to them: log(days_i) is
an offset. Some flats have no roaches at all. The mixture is summed in the likelihood, so that no
latent says which flats these are; afterwards the posterior does. The 400 flats are simulated.
"""

# %% Data, simulated from the model: x is 1, a standardised catch before, and the treatment.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, QUICK, compare, timed
from plotting import save

import minisvi

TRUTH = {"b": [0.2, 0.6, -0.5], "phi": 1.2, "pi": 0.25}
N = 60 if QUICK else 400
random = np.random.default_rng(0)
days = random.integers(3, 15, N).astype(float)
x = np.stack([np.ones(N), random.normal(size=N), random.integers(0, 2, N)], axis=1)
rate = random.gamma(TRUTH["phi"], days * np.exp(x @ TRUTH["b"]) / TRUTH["phi"])
y = random.poisson(rate) * (random.uniform(size=N) > TRUTH["pi"])


# %% The models: one without, and one with flats that have no roaches.
def prior(theta):
    return {
        "b": dist.Normal(0.0, jnp.array([2.0, 1.0, 1.0])),
        "phi": dist.LogNormal(0.0, 1.0),
    }


def prior_inflated(theta):
    return prior(theta) | {"pi": dist.Beta(1.0, 2.0)}


def catch(theta, days, x):
    return dist.NegativeBinomial2(days * jnp.exp(x @ theta["b"]), theta["phi"])


def log_likelihood(theta, days, x, y):
    return catch(theta, days, x).log_prob(y)


def log_likelihood_inflated(theta, days, x, y):
    has_roaches = jnp.log1p(-theta["pi"]) + log_likelihood(theta, days, x, y)
    has_none = jnp.where(y == 0, jnp.log(theta["pi"]), -jnp.inf)
    return jnp.logaddexp(has_roaches, has_none)


latents = {"b": minisvi.real(3), "phi": minisvi.positive()}
plain = minisvi.Model(latents, log_likelihood=log_likelihood, prior=prior)
latents = latents | {"pi": minisvi.unit_interval()}
model = minisvi.Model(latents, log_likelihood=log_likelihood_inflated, prior=prior_inflated)

# %% The fits and their verdicts, with NUTS beside the second.
data = (days, x, y)


def fitted(model):
    return minisvi.fit(jax.random.key(0), model, *data, progress_bar=False, **EFFORT)


fit, seconds = timed(lambda: fitted(model))
without = fit if QUICK else fitted(plain)
compare(fit, seconds, jax.random.key(1))
print(fit.summary())
print("truth:", TRUTH)
gain = fit.verdict.log_evidence - without.verdict.log_evidence
print(f"without inflation: {without.verdict.level}, and the evidence is {gain:.1f} nats less")


# %% A posterior predictive check: how many traps would stay empty, and how full would others be?
def new_traps(theta):
    phi = np.asarray(theta["phi"])[:, None]
    pi = np.asarray(theta.get("pi", 0.0)).reshape(-1, 1)
    mean = days * np.exp(np.asarray(theta["b"]) @ x.T)
    catches = random.poisson(random.gamma(phi, mean / phi))
    return catches * (random.uniform(size=catches.shape) > pi)


def histogram(catches):
    return np.array([np.bincount(np.minimum(row, 20), minlength=21) for row in catches])


bars, seen = np.arange(21), histogram([y])[0]
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
two = {"negative binomial": (without, "C1", -0.18), "with zero inflation": (fit, "C0", 0.18)}
for name, (one, colour, shift) in two.items():
    replicated = new_traps(one.draws.resample(jax.random.key(2), 2000).theta)
    low, high = np.quantile(histogram(replicated), [0.05, 0.95], axis=0)
    print(f"{name:20} traps with one: seen {seen[1]}, 90 % from {low[1]:.0f} to {high[1]:.0f}")
    left.vlines(bars + shift, low, high, color=colour, lw=4, alpha=0.5, label=name)
left.plot(seen, "kx", label="seen")
left.set(xlabel="roaches in a trap (20: or more)", ylabel="number of traps, square root scale")
left.set_yscale("function", functions=(np.sqrt, np.square))
left.set(xticks=bars[::5], title="Traps seen, and 90 % predictive intervals")
left.legend()


# %% Which empty traps stand in a flat without roaches? Those that should have caught many.
def of_empty(theta):
    p_none = jnp.exp(jnp.log(theta["pi"]) - log_likelihood_inflated(theta, *data))
    return catch(theta, days, x).mean[y == 0], p_none[y == 0]


right.plot(*fit.draws.map(of_empty).mean(), "o", ms=4)
right.set(xscale="log", ylim=(0, 1), xlabel="expected catch, if there are roaches")
right.set(ylabel="probability that there are none", title="The empty traps")
save(figure, "counts")

# %% For your own data: `days` is the exposure (ones, without any), and pi may depend on predictors:
# it is jax.nn.sigmoid(x @ theta["g"]) then, with a normal prior for g.
