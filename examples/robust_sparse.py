"""Robust and sparse regression: which measurements foretell diabetes, with some rows spoiled?

    y_i ~ StudentT(nu, a + x_i b, sigma),   a ~ Normal(0, 1),   sigma ~ HalfNormal(1)
    nu ~ Gamma(2, 0.1),   tau ~ HalfNormal(0.1)
    horseshoe: b_j = z_j c_j / sqrt(1 + c_j^2),  c_j = tau l_j,  z_j ~ N(0, 1),  l_j ~ HalfCauchy(1)
    Student:   b_j ~ StudentT(3, 0, tau)

Heavy tails keep outliers from pulling the line, and a sparse prior lets few coefficients be large
and pulls the rest to zero: the regularised horseshoe (Piironen and Vehtari 2017), or where its fit
is not trusted, one with lighter tails. The data are scikit-learn's diabetes, 442 patients. To have
a check, 10 columns of noise are added, and 22 rows are spoiled: y moves by 4 to 8 sds, up or down.
"""

# %% Data, standardised; `clean` is y before it is spoiled.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, QUICK, compare, timed
from plotting import save
from sklearn.datasets import load_diabetes

import minisvi

random = np.random.default_rng(0)
table = load_diabetes(scaled=False)
N, D = len(table.target), 20
names = table.feature_names + [f"noise {i}" for i in range(1, 11)]
x = np.concatenate([table.data, random.normal(size=(N, 10))], axis=1)
x = (x - x.mean(axis=0)) / x.std(axis=0)
clean = (table.target - table.target.mean()) / table.target.std()
spoiled = np.arange(N) < 22
sign = random.choice([-1.0, 1.0], size=N)
y = clean + spoiled * sign * random.uniform(4.0, 8.0, size=N)


# %% The models, of which the horseshoe is non-centred.
def prior_of_rest(theta):
    return {
        "a": dist.Normal(0.0, 1.0),
        "sigma": dist.HalfNormal(1.0),
        "nu": dist.Gamma(2.0, 0.1),
        "tau": dist.HalfNormal(0.1),
    }


def prior_horseshoe(theta):
    return prior_of_rest(theta) | {"z": dist.Normal(0.0, 1.0), "l": dist.HalfCauchy(1.0)}


def prior_student(theta):
    return prior_of_rest(theta) | {"b": dist.StudentT(3.0, 0.0, theta["tau"])}


def coefficients(theta):
    c = theta["tau"] * theta.get("l", 0.0)
    return theta["b"] if "b" in theta else theta["z"] * c / jnp.sqrt(1 + c**2)


def line(theta, x):
    return dist.StudentT(theta["nu"], theta["a"] + x @ coefficients(theta), theta["sigma"])


def log_likelihood(theta, x, y):
    return line(theta, x).log_prob(y)


rest = {"a": minisvi.real()} | {name: minisvi.positive() for name in ["sigma", "nu", "tau"]}
of_horseshoe = rest | {"z": minisvi.real(D), "l": minisvi.positive(D)}
horseshoe = minisvi.Model(of_horseshoe, prior=prior_horseshoe, log_likelihood=log_likelihood)
of_student = rest | {"b": minisvi.real(D)}
student = minisvi.Model(of_student, prior=prior_student, log_likelihood=log_likelihood)


# %% The fits and their verdicts, with NUTS beside them.
def answers(theta):
    return {"b": coefficients(theta), "sigma": theta["sigma"], "nu": theta["nu"]}


key, num_samples = jax.random.key(0), 200 if QUICK else 2000
for model in [student] if QUICK else [horseshoe, student]:
    fit, seconds = timed(
        lambda model=model: minisvi.fit(key, model, x, y, progress_bar=False, **EFFORT)
    )
    compare(fit, seconds, jax.random.key(1), answers)


# %% A posterior predictive check: would so many rows lie beyond 4? Ours do not come from any t.
def new_rows(key, theta, x):
    return line(theta, x).sample(key)


replicated = fit.draws.predictive(jax.random.key(2), new_rows, num_samples, x)
beyond = (np.abs(np.asarray(replicated)) > 4).sum(axis=1)
print(f"beyond: {(np.abs(y) > 4).sum()} seen, {np.quantile(beyond, [0.05, 0.95])} replicated")

# %% Least squares, to compare with: how far is each fit's line from that of the clean rows?
own = {"clean": np.linalg.lstsq(x, clean)[0], "spoiled": np.linalg.lstsq(x, y)[0]}
b = np.asarray(fit.draws.resample(jax.random.key(3), num_samples).theta["b"])
for name, estimate in (own | {"robust": b.mean(axis=0)}).items():
    of_noise = np.sqrt(np.mean(estimate[10:] ** 2))
    distance = np.std(x @ (estimate - own["clean"]))
    print(f"{name:8} line {distance:.3f} from clean, coefficients of noise {of_noise:.3f}")

# %% The picture.
figure, ax = plt.subplots(figsize=(7, 5.5), layout="constrained")
row = np.arange(D)
ax.hlines(row, *np.quantile(b, [0.05, 0.95], axis=0), color="C0", lw=4, alpha=0.4)
ax.plot(b.mean(axis=0), row, "o", color="C0", label="robust and sparse: mean, 90 %")
for marker, (name, estimate) in zip(["kx", "C1d"], own.items()):
    ax.plot(estimate, row, marker, mfc="none", label=f"least squares, {name} rows")
ax.axvline(0.0, color="grey", lw=1, ls=":")
ax.set(yticks=row, yticklabels=names, title="What foretells diabetes, with outliers")
ax.set_xlabel("coefficient, sds of y a sd of x")
ax.invert_yaxis()
ax.legend(loc="lower right", fontsize=8)
save(figure, "robust_sparse")

# %% For your own data: standardise x and y; tau's 0.1 is the size of a typical coefficient.
