"""The table of families: a new guide costs one line here and meets every property of
`test_families.py`.
"""

from functools import lru_cache, partial

import distrax
import jax
import jax.numpy as jnp
import paramax
import pytest
from flowjax.bijections import Affine
from flowjax.distributions import StandardNormal, Transformed
from jax.tree_util import tree_map_with_path
from tensorflow_probability.substrates.jax import distributions as tfd

import minisvi
from minisvi import (
    block,
    conditional,
    full_rank,
    low_rank,
    mean_field,
    mixture,
    positive,
    product,
    real,
)
from minisvi.guides.whitened import Whitened

# D = 1, 2, 3 unconstrained, and a nested tree with a simplex, D = 5.
TREES = {
    1: {"a": real()},
    2: {"a": real(), "b": real()},
    3: {"a": real(2), "b": real()},
    5: {"a": real(2), "b": {"c": positive(), "d": minisvi.simplex(3)}},
}


# Functions of the module, so that guides around them pickle.
def small_weights(key, num_inputs):
    return jax.random.normal(key, (4, num_inputs))


def small_apply(w, x):
    return jnp.tanh(w @ x)


def three_weights(key):
    return jax.random.normal(key, (3,))


def three_features(w, v):
    return jnp.tanh(w * v[0])


SMALL_NETWORK = small_weights, small_apply
FEATURES = three_weights, three_features


def by_name(latents):
    return [[".".join(name.split("."))] for name in minisvi.tools.checks.named_leaves(latents)]


def structured(latents, **options):
    """The first latent at full rank, and every other part conditional on it."""
    on = {"a": latents["a"]}
    rest = {
        n: conditional(mean_field(part), on, **options) for n, part in latents.items() if n != "a"
    }
    return product({"a": full_rank(latents["a"])} | rest)


def normals(latents, family):
    """A guide of one's own: a tree of Distrax or TFP normals."""
    like = minisvi.model.trees.unconstrained_like(latents)

    def distribution(params, *_):
        return jax.tree.map(
            lambda p: family(p["loc"], jnp.exp(p["log_scale"])), params, is_leaf=is_normal
        )

    def init(key):
        loc = minisvi.model.trees.unravel(latents, minisvi.model.trees.start(latents, key))
        return jax.tree.map(
            lambda m, s: {"loc": m, "log_scale": jnp.zeros(s.shape, s.dtype)}, loc, like
        )

    return minisvi.custom(init, distribution)


def is_normal(node):
    return isinstance(node, dict) and "log_scale" in node


class FromFlowjax:
    """A FlowJAX distribution of the flat vector, whose key comes first and whose parameters may be
    wrapped.
    """

    def __init__(self, latents, q):
        self.latents, self.q = latents, paramax.unwrap(q)

    def sample_and_log_prob(self, *, seed):
        x, log_q = self.q.sample_and_log_prob(seed)
        return minisvi.model.trees.unravel(self.latents, x), log_q

    def log_prob(self, u):
        return self.q.log_prob(minisvi.model.trees.ravel(self.latents, u))


def flowjax_affine(latents):
    size = minisvi.model.trees.spec(latents).shape

    def init(key):
        return {"loc": minisvi.model.trees.start(latents, key), "log_scale": jnp.zeros(size)}

    def distribution(params, *_):
        bijection = Affine(params["loc"], jnp.exp(params["log_scale"]))
        return FromFlowjax(latents, Transformed(StandardNormal(size), bijection))

    return minisvi.custom(init, distribution)


class Correlated(Whitened):
    """Whitened by a Gaussian off the origin with unequal, correlated scales, whatever the start
    asked for.
    """

    def init(self, key, /, loc=None, cov=None):
        size = minisvi.model.trees.spec(self.latents).shape[0]
        scales = jnp.linspace(0.5, 2.0, size)
        cov = (0.5 * jnp.ones((size, size)) + 0.5 * jnp.eye(size)) * scales[:, None] * scales[None]
        return super().init(
            key, loc=minisvi.model.trees.unravel(self.latents, 1.5 * jnp.ones(size)), cov=cov
        )


# name: the guide over a tree of latents
FAMILIES = {
    "mean_field": mean_field,
    "student_t": lambda latents: mean_field(latents, df=4.0),
    "full_rank": full_rank,
    "low_rank": lambda latents: low_rank(latents, rank=1),
    "block": lambda latents: block(latents, by_name(latents)),
    "mixture": lambda latents: mixture(mean_field(latents), 3),
    "product": lambda latents: product({name: full_rank(part) for name, part in latents.items()}),
    "conditional": structured,
    "conditional by a network": lambda latents: structured(latents, network=FEATURES),
    "product of mixtures": lambda latents: product(
        {n: mixture(mean_field(p), 2) for n, p in latents.items()}
    ),
    "affine_coupling": lambda latents: minisvi.affine_coupling(
        full_rank(latents), 2, SMALL_NETWORK
    ),
    "spline_coupling": lambda latents: minisvi.spline_coupling(
        mean_field(latents), 2, SMALL_NETWORK
    ),
    "inverse_autoregressive": lambda latents: minisvi.inverse_autoregressive(
        mean_field(latents), 2, 4
    ),
    "flow over a mixture": lambda latents: minisvi.affine_coupling(
        mixture(mean_field(latents), 2), 2, SMALL_NETWORK
    ),
    "whitened full_rank": lambda latents: Correlated(full_rank(latents)),
    "whitened low_rank": lambda latents: Correlated(low_rank(latents, rank=1), diagonal=True),
    "whitened affine_coupling": lambda latents: Correlated(
        minisvi.affine_coupling(full_rank(latents), 2, SMALL_NETWORK)
    ),
    "custom distrax": lambda latents: normals(latents, distrax.Normal),
    "custom tfp": lambda latents: normals(latents, tfd.Normal),
    "custom flowjax": flowjax_affine,
}
FOREIGN = [
    n
    for n in FAMILIES
    if any(word in n for word in ("custom", "coupling", "autoregressive", "flow"))
]
FLOWS = [n for n in FAMILIES if "layer" in repr(FAMILIES[n](TREES[3]))]


def marked(name, *more, marks=()):
    """A pytest parameter, `foreign` where it is."""
    return pytest.param(
        name, *more, marks=[*marks, *([pytest.mark.foreign] if name in FOREIGN else [])]
    )


NAMES = [marked(name) for name in FAMILIES]
# One of each kind, which runs by default.
KINDS = [
    "mean_field",
    "full_rank",
    "low_rank",
    "mixture",
    "conditional",
    "affine_coupling",
    "whitened full_rank",
    "custom distrax",
]
# For the tests that take a flow some ten seconds each.
FLOWS_SLOW = [marked(name, marks=[pytest.mark.slow] if name in FLOWS else []) for name in FAMILIES]


def members_of(name, dimension, key, spread=1.0):
    """(guide, latents, params) away from the start: off the origin, with unequal scales."""
    return _members_of(name, dimension, tuple(jax.random.key_data(key).tolist()), spread)


@lru_cache
def _members_of(name, dimension, seed, spread):
    latents = TREES[dimension]
    guide = FAMILIES[name](latents)

    def move(keys, path, leaf):
        noise, last = jax.random.normal(next(keys), leaf.shape, leaf.dtype), str(path[-1])
        if "factor" in last:  # of `whitened`, which no fit changes
            return leaf
        if "readout" in str(path):
            return leaf + 0.1 * noise
        if "loc" in last:
            return 2.0 + spread * noise
        if "log_scale" in last:
            return (
                jnp.linspace(-1.2, 0.4, leaf.size, dtype=leaf.dtype).reshape(leaf.shape)
                + 0.1 * noise
            )
        if leaf.ndim > 1 and "scale_tril" in str(path):
            # Stacked or not, the last two axes are the factor's.
            return 0.4 * noise + jnp.diag(jnp.linspace(-1.2, 0.4, leaf.shape[-1], dtype=leaf.dtype))
        return (
            leaf + (0.1 if "spline" in name else 0.3) * noise
        )  # a spline has 25 numbers a coordinate

    @jax.jit
    def moved(key):
        init_key, noise_key = jax.random.split(key)
        params = guide.init(init_key)
        keys = iter(jax.random.split(noise_key, len(jax.tree.leaves(params))))
        return tree_map_with_path(partial(move, keys), params)

    return guide, latents, moved(jax.random.wrap_key_data(jnp.array(seed, jnp.uint32)))
