"""Gaussian processes: how did the Nile's flow change, and which tumours are malignant?

    regression       flow ~ Normal(0, K + noise^2 I): the function f is integrated out
    classification   f = L z,  K = L L^T,  z_i ~ Normal(0, 1),  malignant_i ~ Bernoulli(logit f_i)

K_ij = a^2 exp(-|x_i - x_j|^2 / (2 l^2)); a, l and noise have log-normal priors; z is f whitened.
Run it with OPENBLAS_NUM_THREADS=1: small Cholesky factors by many threads can take minutes.
"""

# %% Data: the Nile at Aswan (Cobb 1978), every fifth year held out; scikit-learn's breast tumours.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, QUICK, compare, timed
from jax.scipy.linalg import solve_triangular
from plotting import save
from sklearn.datasets import load_breast_cancer

import minisvi

NILE = """
1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140
1100 1210 1150 1250 1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969
831 726 456 824 702 1120 1100 832 764 821 768 845 864 862 698 845 744 796 1040 759
781 865 845 944 984 897 822 1010 771 676 649 846 812 742 801 1040 860 874 848 890
744 749 838 1050 918 986 797 923 975 815 1020 906 901 1170 912 746 919 718 714 740
"""
years, flow = np.arange(1871, 1971), np.array(NILE.split(), float)
held_out = years % 5 == 0
time = (years[:, None] - 1920) / 30
seen = time[~held_out], (flow[~held_out] - 900) / 150
num_train = 20 if QUICK else 60
cancers = load_breast_cancer()
shuffled = np.random.default_rng(0).permutation(len(cancers.target))
tumours = (cancers.data[shuffled, :2] - [14.0, 19.0]) / [3.5, 4.3]  # radius, texture: about (0, 1)
malignant = 1 - cancers.target[shuffled]
train = tumours[:num_train], malignant[:num_train]

# %% The models. In float32 K of near inputs has no Cholesky factor without a jitter, here 1e-4 a^2.
SCALES = {"a": dist.LogNormal(0.0, 0.7), "l": dist.LogNormal(0.0, 0.7)}


def kernel(theta, x1, x2):
    squares = ((x1[:, None] - x2) ** 2).sum(axis=-1)
    return theta["a"] ** 2 * jnp.exp(-squares / (2 * theta["l"] ** 2))


def factor(theta, x):
    variance = theta["noise"] ** 2 if "noise" in theta else 1e-4 * theta["a"] ** 2
    return jnp.linalg.cholesky(kernel(theta, x, x) + variance * jnp.eye(len(x)))


def flow_prior(theta):
    return SCALES | {"noise": dist.LogNormal(0.0, 1.0)}


def regression(theta, x, y):
    return dist.MultivariateNormal(scale_tril=factor(theta, x)).log_prob(y)


def class_prior(theta):
    return SCALES | {"z": dist.Normal(0.0, 1.0)}


def classification(theta, x, y):
    return dist.Bernoulli(logits=factor(theta, x) @ theta["z"]).log_prob(y).sum()


# %% Both fits and their verdicts, with NUTS beside them. A Gaussian process has no rows.
def fitted(prior, likelihood, more, data):
    latents = {"a": minisvi.positive(), "l": minisvi.positive()} | more
    model = minisvi.Model(latents, prior=prior, log_likelihood=likelihood, per_row=False)
    args = jax.random.key(0), model, *data
    fit, seconds = timed(lambda: minisvi.fit(*args, progress_bar=False, **EFFORT))
    compare(fit, seconds, jax.random.key(1))
    return fit


flow_fit = fitted(flow_prior, regression, {"noise": minisvi.positive()}, seen)
class_fit = fitted(class_prior, classification, {"z": minisvi.real(num_train)}, train)


# %% Predictions at new inputs: f given its values L z, with the noise of new flows.
def predict(key, theta, x_new, x, y):
    L = factor(theta, x)
    z = theta["z"] if "z" in theta else solve_triangular(L, y, lower=True)
    reach = solve_triangular(L, kernel(theta, x, x_new), lower=True)
    variance = theta["a"] ** 2 - (reach**2).sum(axis=0) + theta.get("noise", 0.0) ** 2
    return reach.T @ z + jnp.sqrt(variance.clip(0)) * jax.random.normal(key, variance.shape)


flows = flow_fit.draws.predictive(jax.random.key(2), predict, 1000, time, *seen)
low, middle, high = 900 + 150 * np.quantile(flows, [0.05, 0.5, 0.95], axis=0)
inside = (low < flow) & (flow < high)
print(f"90 % intervals cover {inside[held_out].mean():.0%} of the {held_out.sum()} years held out")
axis = np.linspace(-2.5, 5.0, 30)
grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
x_new = np.concatenate([grid, tumours[num_train:]])
logits = class_fit.draws.predictive(jax.random.key(3), predict, 500, x_new, *train)
p = np.asarray(jax.nn.sigmoid(logits).mean(axis=0))
right = (p[len(grid) :] > 0.5) == malignant[num_train:]
print(f"{right.mean():.0%} of the {len(right)} tumours held out are classed right")

# %% The picture: 90 % intervals of the flow, and the probability that a tumour is malignant.
figure, (nile, plane) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
nile.fill_between(years, low, high, color="C0", alpha=0.25, lw=0, label="90 % of new flows")
nile.plot(years, middle, "C0", years[~held_out], flow[~held_out], "k.")
nile.plot(years[held_out], flow[held_out], "o", color="C1", mfc="none", label="held out")
nile.set(title="the Nile at Aswan, a year a point", ylabel="flow (10^8 cubic metres a year)")
nile.legend(loc="upper right", frameon=False)
shading = plane.contourf(axis, axis, p[: len(grid)].reshape(30, 30), 10, cmap="coolwarm")
figure.colorbar(shading, label="probability of being malignant")
plane.scatter(*train[0].T, c=train[1], s=14, cmap="coolwarm", edgecolor="black", lw=0.5)
plane.set(xlabel="mean radius (sd)", ylabel="mean texture (sd)", title="tumours, red: malignant")
save(figure, "gaussian_process")

# %% For your own data: inputs of unit scale, and a length scale for each: divide x by theta["l"].
