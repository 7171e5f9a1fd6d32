"""Flax modules as latents: the same function, priors by path and shape, the module's own start."""

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.stats import norm
from problems import adam
from tiers import standing_for

from minisvi import SVI, Model, Posterior, bnn, mean_field

pytestmark = pytest.mark.foreign
X = jnp.linspace(-2.0, 3.0, 14).reshape(7, 2)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.List([nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(
            3, use_running_average=True, rngs=rngs
        )  # state that is no parameter
        self.out = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        for layer in self.hidden:
            x = jnp.tanh(layer(x))
        return self.out(self.norm(x))[:, 0]


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(jnp.tanh(nn.Dense(4)(x)))
        return nn.Dense(1)(x)[:, 0]


def prior(path, shape):
    if path.endswith("bias"):
        return distrax.Normal(0.0, 0.5)
    return (
        distrax.Normal(0.0, 1 / shape[0] ** 0.5)
        if "kernel" in path
        else distrax.Normal(jnp.ones(shape), 0.1)
    )


def nnx_network():
    module = NnxNet(nnx.Rngs(3))
    return bnn.from_nnx(module, prior), module


def linen_network():
    module = LinenNet()
    variables = module.init(jax.random.key(3), X)
    return bnn.from_linen(module, variables, prior), lambda x: module.apply(variables, x)


NETWORKS = {"nnx": nnx_network, "linen": linen_network}
SIZES = {"nnx": 12 + 15 + 6 + 4, "linen": 12 + 8 + 5}


@pytest.mark.parametrize("name", NETWORKS)
def test_apply_is_the_module_at_its_own_values(name):
    net, module = NETWORKS[name]()
    assert jnp.allclose(net.apply(net.initial, X), module(X), atol=1e-6)
    assert sum(leaf.size for leaf in jax.tree.leaves(net.initial)) == SIZES[name]
    doubled = jax.tree.map(lambda w: 2 * w, net.initial)
    assert not jnp.allclose(net.apply(doubled, X), module(X), atol=1e-2)
    assert jnp.allclose(net.apply(net.initial, X), module(X), atol=1e-6)  # apply is pure


@pytest.mark.parametrize("name", NETWORKS)
def test_log_prior_by_path_and_shape(name):
    net, _ = NETWORKS[name]()

    def term(path, w):
        last = path[-1].key
        loc, sd = {"bias": (0.0, 0.5), "kernel": (0.0, w.shape[0] ** -0.5), "scale": (1.0, 0.1)}[
            last
        ]
        return jnp.sum(norm.logpdf(w, loc, sd))

    expected = sum(jax.tree.leaves(jax.tree_util.tree_map_with_path(term, net.initial)))
    assert jnp.allclose(
        net.log_prior(net.initial), expected, rtol=1e-5
    )  # Flax's weights are float32


@pytest.mark.parametrize("name", standing_for(NETWORKS, "linen"))
def test_prior_draws(name, key):
    net, _ = NETWORKS[name]()
    draws = net.sample_prior(key, 4000)
    assert jax.tree.structure(draws) == jax.tree.structure(net.initial)

    def check(path, w, draw):
        loc, sd = {"bias": (0.0, 0.5), "kernel": (0.0, w.shape[0] ** -0.5), "scale": (1.0, 0.1)}[
            path[-1].key
        ]
        assert draw.shape == (4000, *w.shape)
        assert np.allclose(draw.mean(0), loc, atol=5 * sd / 4000**0.5)
        assert np.allclose(draw.std(0), sd, rtol=0.07)

    jax.tree_util.tree_map_with_path(check, net.initial, draws)
    predictions = jax.vmap(lambda w: net.apply(w, X))(draws)
    assert predictions.shape == (4000, 7)
    assert jnp.all(predictions.std(0) > 0.1)


@pytest.mark.whole
@pytest.mark.parametrize("name", NETWORKS)
def test_fit_from_the_modules_own_values(name, key):
    net, _ = NETWORKS[name]()
    truth = jax.tree.map(lambda w: w[0], net.sample_prior(jax.random.key(8), 1))
    y = net.apply(truth, X)
    model = Model(
        net.latents,
        log_prior=net.log_prior,
        log_likelihood=lambda w, x, y: norm.logpdf(y, net.apply(w, x), 0.1),
    )
    guide = mean_field(net.latents, scale=0.01)
    start = guide.init(key, loc=net.initial)
    result = SVI(model, guide, adam(0.01)).run(key, 3000, X, y, params=start, progress_bar=False)
    new = jnp.concatenate([X, X + 0.1])
    predictions = Posterior(model, guide, result.params).predictive(
        key, lambda key, w, x: net.apply(w, x), 200, new, batch_size=64
    )
    assert predictions.shape == (200, 14)
    assert jnp.max(jnp.abs(net.apply(net.initial, X) - y)) > 0.5
    assert np.sqrt(np.mean((predictions.mean(0)[:7] - y) ** 2)) < 0.1  # the noise
