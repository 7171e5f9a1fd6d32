"""Yesterday's posterior as today's prior, on a stream whose truth drifts.

Every day brings 300 rows of a logistic regression whose weights walk at random. Three ways to
follow them: all days count alike, the past counts for less each day, each day alone. Run `python
examples/drifting_stream.py`; `--quick` takes few days.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm

from minisvi import ELBO, SVI, Model, Posterior, full_rank, real, with_prior

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="few days, to see that it runs")
num_days = 3 if parser.parse_known_args()[0].quick else 20

ROWS = 300
DRIFT = 0.15  # the sd of a day's step
rng = np.random.default_rng(0)
start = np.array([[1.0, -1.0, 0.5]])
steps = DRIFT * rng.normal(size=(num_days - 1, 3))
truth = np.cumsum(np.concatenate([start, steps]), axis=0)
days = []
for w in truth:
    x = rng.normal(size=(ROWS, 3)).astype(np.float32)
    probability = 1 / (1 + np.exp(-x @ w))
    days.append((x, rng.random(ROWS) < probability))


def log_prior(theta):
    return jnp.sum(norm.logpdf(theta["w"], 0.0, 2.0))


def log_likelihood(theta, x, y):
    logits = x @ theta["w"]
    return jnp.where(y, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))


first = Model({"w": real(3)}, log_prior=log_prior, log_likelihood=log_likelihood)
guide = full_rank(first.latents)
optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 400))

print(f"{'':28}{'error':>10}{'posterior sd':>14}{'truth within 2 sd':>20}")
weights = {"all days alike": 1.0, "the past counts 0.6 a day": 0.6, "each day alone": None}
for name, weight in weights.items():
    model = first
    errors = []
    sds = []
    for (x, y), w in zip(days, truth):
        svi = SVI(model, guide, optimizer, ELBO(8, "sticking_the_landing"))
        params = svi.run(jax.random.key(0), 400, x, y, progress_bar=False).params
        posterior = Posterior(model, guide, params)
        mean = posterior.mean(jax.random.key(1))["w"]
        errors.append(np.asarray(mean) - w)
        sds.append(np.asarray(posterior.sd(jax.random.key(1))["w"]))
        if weight is not None:
            model = with_prior(first, guide, params, weight)
    error = np.abs(errors)
    sd = np.array(sds)
    root_mean_square = np.sqrt((error**2).mean())
    covered = (error < 2 * sd).mean()
    print(f"{name:28}{root_mean_square:10.3f}{sd.mean():14.3f}{covered:20.2f}")
