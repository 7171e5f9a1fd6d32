"""A Gaussian process: how did the flow of the Nile change over a century?

    flow ~ Normal(0, K + noise^2 I),   K_ij = a^2 exp(-(x_i - x_j)^2 / (2 l^2))

The function itself is integrated out; a, l and noise have log-normal priors. The data are the
yearly flow at Aswan (Cobb 1978).
"""

# %% Data: every fifth year is held out.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import QUICK, compare, timed
from jax.scipy.linalg import solve_triangular
from plotting import save

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


# %% The model. A Gaussian process has no term per row.
def prior(theta):
    return {
        "a": dist.LogNormal(0.0, 0.7),
        "l": dist.LogNormal(0.0, 0.7),
        "noise": dist.LogNormal(0.0, 1.0),
    }


def kernel(theta, x1, x2):
    squares = ((x1[:, None] - x2) ** 2).sum(axis=-1)
    return theta["a"] ** 2 * jnp.exp(-squares / (2 * theta["l"] ** 2))


def factor(theta, x):
    return jnp.linalg.cholesky(kernel(theta, x, x) + theta["noise"] ** 2 * jnp.eye(len(x)))


def log_likelihood(theta, x, y):
    return dist.MultivariateNormal(scale_tril=factor(theta, x)).log_prob(y)


latents = {name: minisvi.positive() for name in ("a", "l", "noise")}
model = minisvi.Model(latents, prior=prior, log_likelihood=log_likelihood, per_row=False)

# %% The fit and its verdict, with NUTS beside it.
effort = {"num_draws": 1000, "seconds": 1.0} if QUICK else {}
args = jax.random.key(0), model, *seen
fit, seconds = timed(lambda: minisvi.fit(*args, progress_bar=False, **effort))
compare(fit, seconds, jax.random.key(1))


# %% Predictions of new flows, given those that were seen: the mean, and what is left to the noise.
def predict(key, theta, x_new, x, y):
    L = factor(theta, x)
    z = solve_triangular(L, y, lower=True)
    reach = solve_triangular(L, kernel(theta, x, x_new), lower=True)
    variance = theta["a"] ** 2 - (reach**2).sum(axis=0) + theta["noise"] ** 2
    return reach.T @ z + jnp.sqrt(variance.clip(0)) * jax.random.normal(key, variance.shape)


flows = fit.draws.predictive(jax.random.key(2), predict, 1000, time, *seen)
low, middle, high = 900 + 150 * np.quantile(flows, [0.05, 0.5, 0.95], axis=0)
inside = (low < flow) & (flow < high)
print(f"90 % intervals cover {inside[held_out].mean():.0%} of the {held_out.sum()} years held out")

# %% The picture: 90 % intervals of the flow, and the years that the fit has not seen.
figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
ax.fill_between(years, low, high, color="C0", alpha=0.25, lw=0, label="90 % of new flows")
ax.plot(years, middle, "C0", label="median")
ax.plot(years[~held_out], flow[~held_out], "k.", label="seen")
ax.plot(years[held_out], flow[held_out], "o", color="C1", mfc="none", label="held out")
ax.set(title="The Nile at Aswan", ylabel="flow (10^8 cubic metres a year)")
ax.legend(loc="upper right", ncols=2)
save(figure, "gaussian_process")

# %% For your own data: inputs of unit scale, and a length scale for each: divide x by theta["l"].
