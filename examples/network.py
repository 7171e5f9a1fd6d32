"""A Bayesian regression network: how hard is the head braked in a crash, and how sure is that?

    y_i ~ Normal(mean(t_i), sd(t_i)),   (mean, log sd) = network(t_i; w),   in scaled units
    w ~ Normal(0, 3) in the first layer, Normal(0, 1) in the second

The network has 16 tanh units. The data are 133 measurements of a simulated motorcycle accident
(Silverman 1985; `mcycle` of R's MASS), in ms and in g. Predictions are judged, each row by a fit
that has not seen it, and functions are compared with those of NUTS. Weights are not.
"""

# %% Data, scaled.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from beside_nuts import QUICK, differences, nuts, quality, timed
from flax import nnx
from plotting import save

import minisvi
from minisvi import bnn

DATA = """
2.4 0 2.6 -1.3 3.2 -2.7 3.6 0 4 -2.7 6.2 -2.7 6.6 -2.7 6.8 -1.3 7.8 -2.7 8.2 -2.7 8.8 -1.3 8.8 -2.7
9.6 -2.7 10 -2.7 10.2 -5.4 10.6 -2.7 11 -5.4 11.4 0 13.2 -2.7 13.6 -2.7 13.8 0 14.6 -13.3 14.6 -5.4
14.6 -5.4 14.6 -9.3 14.6 -16 14.6 -22.8 14.8 -2.7 15.4 -22.8 15.4 -32.1 15.4 -53.5 15.4 -54.9 15.6
-40.2 15.6 -21.5 15.8 -21.5 15.8 -50.8 16 -42.9 16 -26.8 16.2 -21.5 16.2 -50.8 16.2 -61.7 16.4 -5.4
16.4 -80.4 16.6 -59 16.8 -71 16.8 -91.1 16.8 -77.7 17.6 -37.5 17.6 -85.6 17.6 -123.1 17.6 -101.9
17.8 -99.1 17.8 -104.4 18.6 -112.5 18.6 -50.8 19.2 -123.1 19.4 -85.6 19.4 -72.3 19.6 -127.2 20.2
-123.1 20.4 -117.9 21.2 -134 21.4 -101.9 21.8 -108.4 22 -123.1 23.2 -123.1 23.4 -128.5 24 -112.5
24.2 -95.1 24.2 -81.8 24.6 -53.5 25 -64.4 25 -57.6 25.4 -72.3 25.4 -44.3 25.6 -26.8 26 -5.4 26.2
-107.1 26.2 -21.5 26.4 -65.6 27 -16 27.2 -45.6 27.2 -24.2 27.2 9.5 27.6 4 28.2 12 28.4 -21.5 28.4
37.5 28.6 46.9 29.4 -17.4 30.2 36.2 31 75 31.2 8.1 32 54.9 32 48.2 32.8 46.9 33.4 16 33.8 45.6 34.4
1.3 34.8 75 35.2 -16 35.2 -54.9 35.4 69.6 35.6 34.8 35.6 32.1 36.2 -37.5 36.2 22.8 38 46.9 38 10.7
39.2 5.4 39.4 -1.3 40 -21.5 40.4 -13.3 41.6 30.8 41.6 -10.7 42.4 29.4 42.8 0 42.8 -10.7 43 14.7 44
-1.3 44.4 0 45 10.7 46.6 10.7 47.8 -26.8 47.8 -14.7 48.8 -13.3 50.6 0 52 10.7 53.2 -14.7 55 -2.7 55
10.7 55.4 -2.7 57.6 10.7
"""
times, accelerations = np.array(DATA.split(), np.float32).reshape(-1, 2).T
SCALE = accelerations.std()
t, y = (times - 25.0) / 10.0, accelerations / SCALE


# %% The model.
def prior(path, shape):
    return dist.Normal(0.0, 3.0 if path.startswith("layers.0") else 1.0)


def response(w, t):
    mean, log_sd = net.apply(w, t[:, None]).T
    return dist.Normal(mean, jnp.exp(log_sd))


def log_likelihood(w, t, y):
    return response(w, t).log_prob(y)


def new_y(key, w, t):
    return response(w, t).sample(key)


rngs = nnx.Rngs(0)
layers = nnx.Linear(1, 16, rngs=rngs), jnp.tanh, nnx.Linear(16, 2, rngs=rngs)
net = bnn.from_nnx(nnx.Sequential(*layers), prior)
model = minisvi.Model(net.latents, log_prior=net.log_prior, log_likelihood=log_likelihood)

# %% A mean field by SVI, the best of four starts.
num_steps = 300 if QUICK else 5000
optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
svi = minisvi.SVI(model, minisvi.mean_field(model), optimizer, minisvi.ELBO(8))


def run(rows):
    options = {"num_restarts": 4, "progress_bar": False}
    result = svi.run(jax.random.key(0), num_steps, t[rows], y[rows], **options)
    return minisvi.Posterior(model, svi.guide, result.params)


def interval(posterior, t):
    new = posterior.predictive(jax.random.key(1), new_y, 4000, t)
    return np.quantile(new, [0.05, 0.95], axis=0) * SCALE


# %% The check: 90 % intervals of rows that were left out, a seventh at a time.
fold = np.arange(len(t)) % 7
low, high = np.zeros_like(y), np.zeros_like(y)
for k in range(0 if QUICK else 7):
    low[fold == k], high[fold == k] = interval(run(fold != k), t[fold == k])
inside = (low <= accelerations) & (accelerations <= high)
for begin, end in ((0, 15), (15, 28), (28, 60), (0, 60)):
    part = (begin <= times) & (times < end)
    width = np.mean(high[part] - low[part])
    print(f"{begin:2} to {end} ms: {inside[part].mean():.0%} of {part.sum()} rows, {width:.0f} g")

# %% All rows, the verdict on the weights, and functions beside those of NUTS.
posterior, seconds = timed(lambda: run(fold >= 0))
fit = model, svi.guide, posterior.params
verdict = minisvi.judge(jax.random.key(2), *fit, t, y, num_draws=2000).verdict
print(f"verdict on the weights: {verdict.level}: {verdict.reason}\nseconds of SVI: {seconds:.1f}")
grid = np.linspace(t.min(), t.max(), 200)
over_draws = jax.vmap(net.apply, (0, None))
figure, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
at = grid * 10 + 25
ax.fill_between(at, *interval(posterior, grid), alpha=0.3, label="90 % of new rows, SVI")
q = over_draws(posterior.sample(jax.random.key(3), 4000), grid[:, None])
ax.plot(at, q[..., 0].mean(axis=0) * SCALE, label="mean, SVI")
if not QUICK:
    reference = nuts(jax.random.key(4), model, t, y)
    p = jax.vmap(over_draws, (0, None))(reference.theta, grid[:, None])
    print(f"seconds of NUTS: {reference.seconds:.1f}, r-hat of functions {quality([p])[0]:.3f}")
    for k, name in enumerate(("mean", "log sd")):
        errors = differences(q[..., k].mean(axis=0), q[..., k].std(axis=0), p[..., k])
        print(f"{name}: largest error of its mean {errors[0]:.2f} sd, of its sd {errors[1]:.2f}")
    ax.plot(at, p[..., 0].mean(axis=(0, 1)) * SCALE, "k--", lw=1, label="mean, NUTS")
ax.plot(times, accelerations, ".", color="black", label="measured")
ax.set(xlabel="ms after the impact", ylabel="acceleration of the head, g")
ax.legend(frameon=False)
save(figure, "network")

# %% For your own data: features and targets, scaled; more units; `Minibatches` for many rows.
