"""Models with known answers, and the two reference examples."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import gammaln
from jax.scipy.stats import norm

import minisvi
from minisvi import Model, positive, real
from minisvi.guides.foreign import is_distribution
from minisvi.guides.joint import Joint

# Optimisers and models that are equal share a compilation, which is most of a test's time: so equal
# rates give one optimiser, and the models are made of functions of this file.


@cache
def adam(rate, num_steps=None):
    """Adam, at a rate that falls by a cosine if a number of steps is given."""
    return optax.adam(rate if num_steps is None else optax.cosine_decay_schedule(rate, num_steps))


# A conjugate Gaussian away from the origin with unequal scales: w ~ N(m, diag(s^2)), x_n ~ N(w,
# diag(t^2)), N rows.
PRIOR_LOC, PRIOR_SD = np.array([3.0, -20.0, 0.5]), np.array([2.0, 10.0, 0.1])
NOISE_SD, NUM_ROWS = np.array([0.5, 30.0, 0.2]), 7


def conjugate_data(num_rows=NUM_ROWS):
    eps = np.random.default_rng(3).normal(size=(num_rows, 3))
    return jnp.asarray(np.array([4.0, -35.0, 0.4]) + NOISE_SD * eps)


def conjugate_log_prior(w):
    return jnp.sum(norm.logpdf(w["w"], jnp.asarray(PRIOR_LOC), jnp.asarray(PRIOR_SD)))


def conjugate_log_likelihood(w, x):
    return jnp.sum(norm.logpdf(x, w["w"][None], jnp.asarray(NOISE_SD)[None]), axis=-1)


def conjugate_model():
    return Model(
        {"w": real(3)}, log_prior=conjugate_log_prior, log_likelihood=conjugate_log_likelihood
    )


def conjugate_posterior(x):
    """Posterior location and sd, (3,) each, and log evidence, in numpy float64."""
    x = np.asarray(x, np.float64)
    precision = 1 / PRIOR_SD**2 + len(x) / NOISE_SD**2
    loc = (PRIOR_LOC / PRIOR_SD**2 + x.sum(0) / NOISE_SD**2) / precision
    log_normal = lambda value, mean, sd: (
        -0.5 * ((value - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))
    )
    # log p(x) = log p(w) + log p(x | w) - log p(w | x) at any w.
    log_evidence = log_normal(loc, PRIOR_LOC, PRIOR_SD) + log_normal(x, loc, NOISE_SD).sum(0)
    return loc, precision**-0.5, (log_evidence - log_normal(loc, loc, precision**-0.5)).sum()


def reference_keys():
    """The talk's numbered subkeys 1, 2, ..., of PRNGKey(42)."""
    key, keys = jax.random.PRNGKey(42), [None]
    for _ in range(12):
        key, subkey = jax.random.split(key)
        keys.append(subkey)
    return keys


def gamma_data():
    return jnp.asarray(jax.random.gamma(reference_keys()[1], 2.0, (1000,), jnp.float32), float)


def gamma_log_joint(theta, z):
    c = theta["concentration"]
    log_prior = 0.5 * jnp.log(2 / jnp.pi) - 0.5 * c**2
    return log_prior + jnp.sum((c - 1) * jnp.log(z) - z) - z.size * gammaln(c)


def gamma_model():
    return Model({"concentration": positive()}, gamma_log_joint)


class Normal:
    """Written as NumPyro computes it, to the same rounding."""

    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def sample_and_log_prob(self, *, seed):
        eps = jax.random.normal(seed, jnp.shape(self.loc))
        return self.loc + self.scale * eps, -0.5 * eps**2 - jnp.log(self.scale) - 0.5 * jnp.log(
            2 * jnp.pi
        )

    def log_prob(self, x):
        return norm.logpdf(x, self.loc, self.scale)


class SoftLaplace:
    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def log_prob(self, x):
        t = (x - self.loc) / self.scale
        return jnp.log(2 / jnp.pi) - jnp.log(self.scale) - jnp.logaddexp(t, -t)

    def sample_and_log_prob(self, *, seed):
        u = jax.random.uniform(seed, jnp.shape(self.loc), minval=jnp.finfo(float).tiny)
        x = self.loc + self.scale * jnp.log(jnp.tan(0.5 * jnp.pi * u))
        return x, self.log_prob(x)


class NumpyroKeys(Joint):
    """Independent parts drawn with NumPyro's keys: the guide's half of the particle's key, then one
    split a site.
    """

    def sample_and_log_prob(self, *, seed):
        parts, treedef = jax.tree.flatten(self.parts, is_leaf=is_distribution)
        _, key = jax.random.split(seed)
        draws, log_q = [], 0.0
        for part in parts:
            key, site_key = jax.random.split(key)
            draw, log_prob = part.sample_and_log_prob(seed=site_key)
            draws.append(draw)
            log_q += jnp.sum(log_prob)
        return jax.tree.unflatten(treedef, draws), log_q


class NumpyroGuide:
    """Normal or SoftLaplace for each leaf, `params` {leaf: {loc, log_scale}}, drawn in NumPyro's
    key order.
    """

    constrained = False

    def __init__(self, start, kinds):
        self.start, self.kinds = start, kinds

    def init(self, key):
        del key
        return self.start

    def distribution(self, params, *data):
        del data
        return NumpyroKeys(
            {n: self.kinds[n](p["loc"], jnp.exp(p["log_scale"])) for n, p in params.items()}
        )


# Site names in the order of the talk's guide, which is also their sorted order.
MOONS_SHAPES = {"b0": (4,), "b1": (3,), "b2": (1,), "k0": (2, 4), "k1": (4, 3), "k2": (3, 1)}
MOONS_SEEDS = {"b0": 42, "b1": 43, "b2": 44, "k0": 1, "k1": 2, "k2": 3}


def moons():
    """(x, y) of train, validation and test: 980, 420 and 600 rows."""
    from sklearn.datasets import make_moons
    from sklearn.model_selection import train_test_split

    x, y = make_moons(2000, noise=0.25, random_state=42)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=42)
    x, x_val, y, y_val = train_test_split(x, y, test_size=0.3, random_state=42)
    pairs = (x, y), (x_val, y_val), (x_test, y_test)
    return [tuple(jnp.asarray(a, float) for a in pair) for pair in pairs]


def moons_logits(w, x):
    h = jnp.tanh(x @ w["k0"] + w["b0"][None])
    h = jnp.tanh(h @ w["k1"] + w["b1"][None])
    return (h @ w["k2"] + w["b2"][None])[:, 0]


def moons_log_prior(w):
    normal = sum(jnp.sum(norm.logpdf(w[n])) for n in w if n[0] == "b")
    return normal + sum(jnp.sum(SoftLaplace(0.0, 1.0).log_prob(w[n])) for n in w if n[0] == "k")


def moons_log_likelihood(w, x, y):
    logits = moons_logits(w, x)
    return y * logits - jax.nn.softplus(logits)


def moons_model():
    latents = {name: real(shape) for name, shape in MOONS_SHAPES.items()}
    return Model(latents, log_prior=moons_log_prior, log_likelihood=moons_log_likelihood)


def moons_start():
    """The deck's initial loc and scale of each site."""

    def site(name, shape):
        key, loc_key = jax.random.split(jax.random.PRNGKey(MOONS_SEEDS[name]))
        _, scale_key = jax.random.split(key)
        return jax.random.uniform(loc_key, shape), jax.random.uniform(scale_key, shape)

    return {name: site(name, shape) for name, shape in MOONS_SHAPES.items()}


@cache
def moons_deck_optimizer():
    schedule = optax.linear_onecycle_schedule(
        8000, peak_value=0.008, pct_start=0.2, pct_final=0.8, div_factor=3, final_div_factor=4
    )
    plateau = optax.contrib.reduce_on_plateau(factor=0.1, patience=10, accumulation_size=100)
    return optax.chain(optax.adam(schedule), plateau)


@cache
def moons_deck():
    """The deck's recipe in NumPyro's key order."""
    start = {
        n: {"loc": loc, "log_scale": jnp.log(scale)} for n, (loc, scale) in moons_start().items()
    }
    kinds = {n: Normal if n[0] == "b" else SoftLaplace for n in MOONS_SHAPES}
    return minisvi.SVI(moons_model(), NumpyroGuide(start, kinds), moons_deck_optimizer())
