"""A Bayesian regression network: how hard is the head braked in a crash, and how sure is that?

    y_i ~ Normal(mean(t_i), sd(t_i)),   (mean, log sd) = network(t_i; w),   in scaled units
    w ~ Normal(0, 3) in the first layer, Normal(0, 1) in the second

The data are 133 times (ms) and accelerations (g) of a simulated motorcycle accident (Silverman
1985, R's `mcycle`). Held-out rows judge the predictions. The weights have many modes, and so the
functions, not the weights, are compared with those of NUTS.
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

TENTHS = """
24 0 26 -13 32 -27 36 0 40 -27 62 -27 66 -27 68 -13 78 -27 82 -27 88 -13 88 -27 96 -27 100 -27 102
-54 106 -27 110 -54 114 0 132 -27 136 -27 138 0 146 -133 146 -54 146 -54 146 -93 146 -160 146 -228
148 -27 154 -228 154 -321 154 -535 154 -549 156 -402 156 -215 158 -215 158 -508 160 -429 160 -268
162 -215 162 -508 162 -617 164 -54 164 -804 166 -590 168 -710 168 -911 168 -777 176 -375 176 -856
176 -1231 176 -1019 178 -991 178 -1044 186 -1125 186 -508 192 -1231 194 -856 194 -723 196 -1272 202
-1231 204 -1179 212 -1340 214 -1019 218 -1084 220 -1231 232 -1231 234 -1285 240 -1125 242 -951 242
-818 246 -535 250 -644 250 -576 254 -723 254 -443 256 -268 260 -54 262 -1071 262 -215 264 -656 270
-160 272 -456 272 -242 272 95 276 40 282 120 284 -215 284 375 286 469 294 -174 302 362 310 750 312
81 320 549 320 482 328 469 334 160 338 456 344 13 348 750 352 -160 352 -549 354 696 356 348 356 321
362 -375 362 228 380 469 380 107 392 54 394 -13 400 -215 404 -133 416 308 416 -107 424 294 428 0
428 -107 430 147 440 -13 444 0 450 107 466 107 478 -268 478 -147 488 -133 506 0 520 107 532 -147
550 -27 550 107 554 -27 576 107
"""
times, accelerations = np.array(TENTHS.split(), np.float32).reshape(-1, 2).T / 10
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

# %% A mean field by SVI, the best of four starts. A full-rank guide ran away at this rate.
num_steps = 300 if QUICK else 5000
optimizer = optax.adam(optax.cosine_decay_schedule(0.02, num_steps))
svi = minisvi.SVI(model, minisvi.mean_field(model), optimizer, minisvi.ELBO(8))


def run(rows):
    options = {"num_restarts": 1 if QUICK else 4, "progress_bar": False}
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
