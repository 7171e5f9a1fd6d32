"""Robust and sparse regression: which measurements foretell diabetes, with some rows spoiled?

    y_i ~ StudentT(nu, a + x_i b, sigma),   a ~ Normal(0, 1),   sigma ~ HalfNormal(1)
    nu ~ Gamma(2, 0.1),   b_j = z_j tau lambda_j / sqrt(1 + (tau lambda_j)^2)
    z_j ~ Normal(0, 1),   lambda_j ~ HalfCauchy(1),   tau ~ HalfCauchy(0.1)

Heavy tails keep outliers from pulling the line, and the regularised horseshoe (Piironen and
Vehtari 2017) lets few coefficients be large and pulls the rest to zero. The data are the 442
patients of scikit-learn's diabetes. To have a check, 10 columns of noise are added to the 10
measurements, and 22 rows are spoiled: their y is moved by 4 to 8 sds, up or down.
"""

# %% Data, standardised; `clean` is y before it is spoiled.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import QUICK, compare, timed
from plotting import save
from sklearn.datasets import load_diabetes

import minisvi

random = np.random.default_rng(0)
table = load_diabetes(scaled=False)
N, D = len(table.target), 20
x = np.concatenate([table.data, random.normal(size=(N, 10))], axis=1)
x = (x - x.mean(axis=0)) / x.std(axis=0)
clean = (table.target - table.target.mean()) / table.target.std()
spoiled = np.arange(N) < 22
sign = random.choice([-1.0, 1.0], size=N)
y = clean + spoiled * sign * random.uniform(4.0, 8.0, size=N)


# %% The models: least squares with a weak prior, and the robust and sparse one.
def prior_plain(theta):
    return {"a": dist.Normal(0.0, 1.0), "sigma": dist.HalfNormal(1.0), "b": dist.Normal(0.0, 1.0)}


def normal(theta, x, y):
    return dist.Normal(theta["a"] + x @ theta["b"], theta["sigma"]).log_prob(y)


def prior(theta):
    return {
        "a": dist.Normal(0.0, 1.0),
        "sigma": dist.HalfNormal(1.0),
        "nu": dist.Gamma(2.0, 0.1),
        "tau": dist.HalfCauchy(0.1),
        "lambda": dist.HalfCauchy(1.0),
        "z": dist.Normal(0.0, 1.0),
    }


def coefficients(theta):
    width = theta["tau"] * theta["lambda"]
    return theta["z"] * width / jnp.sqrt(1 + width**2)


def line(theta, x):
    return dist.StudentT(theta["nu"], theta["a"] + x @ coefficients(theta), theta["sigma"])


def student(theta, x, y):
    return line(theta, x).log_prob(y)


shared = {"a": minisvi.real(), "sigma": minisvi.positive()}
plain = minisvi.Model(shared | {"b": minisvi.real(D)}, prior=prior_plain, log_likelihood=normal)
sparse = {"lambda": minisvi.positive(D), "z": minisvi.real(D), "tau": minisvi.positive()}
latents = shared | sparse | {"nu": minisvi.positive()}
model = minisvi.Model(latents, prior=prior, log_likelihood=student)

# %% The fits and their verdicts, with NUTS beside the second.
limits = {"num_draws": 2000, "seconds": 1} if QUICK else {}


def fitted(model, y):
    return minisvi.fit(jax.random.key(0), model, x, y, progress_bar=False, **limits)


def answers(theta):
    return {"b": coefficients(theta), "sigma": theta["sigma"], "nu": theta["nu"]}


of_clean, of_spoiled = fitted(plain, clean), fitted(plain, y)
fit, seconds = timed(lambda: fitted(model, y))
print(fit)
compare(fit, seconds, jax.random.key(1), answers)
