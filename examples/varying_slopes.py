"""Varying slopes: how fast do jaws grow in girls and in boys, and has each child its own pace?

    distance_ij ~ Normal(a_j + b_j (age_i - 11), sigma)
    (a_j, b_j) = mean of the sex of j + tau * (L z_j),   z_j ~ Normal(0, I)
    L ~ LKJCholesky(2),   tau ~ HalfNormal((3, 1)),   sigma ~ HalfNormal(2)

This is the non-centred form, with latents z. The centred form has the lines (a_j, b_j) themselves
as latents. Both are one model, and the verdict tells which of them can be fitted. Distances in
the jaw, in mm, of 11 girls and 16 boys at the ages 8, 10, 12, 14 (Potthoff and Roy 1964).
"""

# %% Data: the girls first.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, QUICK, compare, timed
from plotting import save

import minisvi

DISTANCES = """
21 20 21.5 23  21 21.5 24 25.5  20.5 24 24.5 26  23.5 24.5 25 26.5  21.5 23 22.5 23.5
20 21 21 22.5  21.5 22.5 23 25  23 23 23.5 24  20 21 22 21.5  16.5 19 19 19.5  24.5 25 28 28
26 25 29 31  21.5 22.5 23 26.5  23 22.5 24 27.5  25.5 27.5 26.5 27  20 23.5 22.5 26
24.5 25.5 27 28.5  22 22 24.5 26.5  24 21.5 24.5 25.5  23 20.5 31 26  27.5 28 31 31.5
23 23 23.5 25  21.5 23.5 24 28  17 24.5 26 29.5  22.5 25.5 25.5 26  23 24.5 26 30
22 21.5 23.5 25"""
distance = np.array(DISTANCES.split(), float).reshape(-1, 4)
sex = (np.arange(27) >= 11).astype(int)
if QUICK:
    distance, sex = distance[8:14], sex[8:14]
age = np.array([8.0, 10.0, 12.0, 14.0]) - 11.0


# %% The model, twice: `lines` gives each child's intercept and slope.
def prior_of_rest(theta):
    return {
        "mean": dist.Normal(jnp.array([24.0, 0.7]), jnp.array([5.0, 1.0])),
        "tau": dist.HalfNormal(jnp.array([3.0, 1.0])),
        "L": dist.LKJCholesky(2, 2.0),
        "sigma": dist.HalfNormal(2.0),
    }


def prior_of_lines(theta):
    factor = theta["tau"][:, None] * theta["L"]
    lines = dist.MultivariateNormal(theta["mean"][sex], scale_tril=factor)
    return prior_of_rest(theta) | {"lines": lines}


def of_lines(theta, distance):
    expected = theta["lines"][:, :1] + theta["lines"][:, 1:] * age
    return dist.Normal(expected, theta["sigma"]).log_prob(distance).sum(axis=1)


def prior_of_z(theta):
    return prior_of_rest(theta) | {"z": dist.Normal(0.0, 1.0)}


def lines(theta):
    factor = theta["tau"][:, None] * theta["L"]
    return theta["mean"][sex] + theta["z"] @ factor.T


def of_z(theta, distance):
    return of_lines(theta | {"lines": lines(theta)}, distance)


each = minisvi.real((len(distance), 2))
rest = {"mean": minisvi.real((2, 2)), "tau": minisvi.positive(2), "sigma": minisvi.positive()}
rest |= {"L": minisvi.corr_cholesky((2, 2))}
models = {
    "centred": minisvi.Model(rest | {"lines": each}, prior=prior_of_lines, log_likelihood=of_lines),
    "non-centred": minisvi.Model(rest | {"z": each}, prior=prior_of_z, log_likelihood=of_z),
}


# %% The two fits and their verdicts, each with NUTS on the same density beside it.
def shared(theta):
    return [theta["mean"], theta["tau"], theta["sigma"], theta["L"]]


fits, key = {}, jax.random.key(0)
for name in list(models)[QUICK:]:
    fits[name], seconds = timed(
        lambda name=name: minisvi.fit(key, models[name], distance, progress_bar=False, **EFFORT)
    )
    print(f"\n{name}, log evidence {fits[name].verdict.log_evidence:.2f} nats")
    compare(fits[name], seconds, jax.random.key(1), shared)
    tau = fits[name].draws.map(lambda theta: theta["tau"][1])
    print(f"sd of the children's rates: {tau.mean():.3f} +- {tau.sd():.3f} mm a year")

# %% The answer, and a posterior predictive check: would the children's own slopes spread so far?
theta = fits["non-centred"].draws.resample(jax.random.key(2), 2000).theta
line, mean, sigma = np.asarray(jax.vmap(lines)(theta)), theta["mean"], theta["sigma"]
faster = np.asarray(mean[:, 1, 1] - mean[:, 0, 1])
print(f"\nboys grow faster by {faster.mean():.2f} +- {faster.std():.2f} mm a year")
own = distance @ age / (age @ age)
noise = np.random.default_rng(3).normal(size=line.shape[:2]) * sigma[:, None]
spread = (line[..., 1] + noise / np.sqrt(age @ age)).std(axis=1)
print(f"sd of own slopes: {own.std():.2f} seen, {np.quantile(spread, [0.05, 0.95])} replicated")

# %% The picture: each child's rate is pulled to the mean of its sex.
figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
low, high = np.quantile(line[..., 1], [0.05, 0.95], axis=0)
for i, name in enumerate(["girls", "boys"]):
    child = np.flatnonzero(sex == i)
    ax.vlines(child, low[child], high[child], color=f"C{i}", lw=3, alpha=0.4)
    ax.plot(child, line[:, child, 1].mean(axis=0), "o", color=f"C{i}", label=f"{name}: mean, 90 %")
    ax.hlines(mean[:, i, 1].mean(), child[0] - 0.4, child[-1] + 0.4, color=f"C{i}", ls=":")
ax.plot(own, "kx", label="least squares, child by child")
ax.set(xlabel="child", ylabel="growth, mm a year", title="The growth of 27 jaws")
ax.legend()
save(figure, "varying_slopes")

# %% For your own data: `sex` is what the mean of a line depends on. Fit both forms: they are one
# model, and so their evidences must agree. The larger is nearer, whatever the verdict of the other.
