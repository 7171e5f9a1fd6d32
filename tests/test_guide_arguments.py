"""What guides are made of: latents or the model that has them, networks by a function or a tree,
and pickles.
"""

import pickle

import jax
import jax.numpy as jnp
import pytest
from families import FAMILIES, TREES
from flax import nnx
from jax.scipy.stats import norm
from problems import adam

import minisvi
from minisvi import SVI, Model, amortised, bnn, conditional, full_rank, mean_field, product, real

LATENTS = TREES[3]
MODEL = Model(LATENTS, lambda theta: -jnp.sum(theta["a"] ** 2) - theta["b"] ** 2)
FINITE = Model({"z": minisvi.finite(3)}, lambda theta: theta["z"])
OF_LATENTS = {
    "mean_field": mean_field,
    "full_rank": full_rank,
    "low_rank": lambda latents: minisvi.low_rank(latents, 2),
    "block": lambda latents: minisvi.block(latents, [["a"], ["b"]]),
    "delta": minisvi.delta,
}
# `custom` holds closures of its user.
PICKLED = [name for name in FAMILIES if "custom" not in name]
DEFAULTS = {
    "affine_coupling": minisvi.affine_coupling,
    "spline_coupling": lambda guide: minisvi.spline_coupling(guide, num_bins=4, bound=3.0),
    "inverse_autoregressive": minisvi.inverse_autoregressive,
}


@pytest.mark.parametrize("make", OF_LATENTS.values(), ids=OF_LATENTS)
def test_a_family_takes_the_model_in_place_of_its_latents(make):
    assert make(MODEL) == make(LATENTS)


def test_categoricals_take_the_model_too():
    assert minisvi.categorical(FINITE) == minisvi.categorical(FINITE.latents)


def test_what_has_no_latents_is_refused():
    for wrong in ({"a": 3}, mean_field(LATENTS)):
        with pytest.raises(
            TypeError, match=r"latent `\w+`: expected a support, such as minisvi.real\(\)"
        ):
            mean_field(wrong)
    for make in (
        lambda on: conditional(mean_field(real()), on),
        lambda on: amortised(mean_field(real()), len, len, on),
    ):
        with pytest.raises(TypeError, match=r"expected `on` as a dict of latents, .*; got 'a'"):
            make("a")
        with pytest.raises(TypeError, match=r"expected a support.*; got MeanField"):
            make({"a": mean_field(real())})


def unpickled(guide):
    return pickle.loads(pickle.dumps(guide))


@pytest.mark.parametrize("name", PICKLED)
def test_an_unpickled_guide_is_the_guide(name):
    guide = FAMILIES[name](LATENTS)
    assert unpickled(guide) == guide
    assert hash(unpickled(guide)) == hash(guide)


@pytest.mark.parametrize("make", DEFAULTS.values(), ids=DEFAULTS)
def test_an_unpickled_flow_with_its_own_network_is_the_flow(make):
    guide = make(mean_field(LATENTS))
    assert unpickled(guide) == guide == make(mean_field(LATENTS))


class Encoder(nnx.Module):
    def __init__(self, num_inputs, rngs):
        self.linear = nnx.Linear(num_inputs, 2, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


INITIAL, APPLY = bnn.pure(Encoder(1, nnx.Rngs(3)))


def encode(weights, x):
    loc, log_scale = jnp.split(APPLY(weights, x[:, None]), 2, axis=1)
    return {"loc": loc, "log_scale": log_scale}


def encoder(init):
    return product({"z": amortised(mean_field(real()), init, encode)})


def test_an_encoder_from_a_tree_is_that_from_a_function(key):
    by_tree, by_function = encoder(INITIAL), encoder(lambda key: INITIAL)
    model = Model(
        {"z": minisvi.local(real())},
        log_prior=lambda theta: jnp.zeros(()),
        log_likelihood=lambda theta, x: norm.logpdf(theta["z"]) + norm.logpdf(x, theta["z"]),
    )
    x = jnp.array([1.0, -2.0])
    results = [
        SVI(model, guide, adam(0.1)).run(key, 2, x, progress_bar=False)
        for guide in (by_tree, by_function)
    ]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, results[0].params, results[1].params))


def test_guides_around_one_tree_share_their_compilations():
    again = jax.tree.map(lambda leaf: leaf, INITIAL)  # another dict of the same arrays
    assert encoder(INITIAL) == encoder(again)
    assert hash(encoder(INITIAL)) == hash(encoder(again))
    assert encoder(INITIAL) != encoder(jax.tree.map(jnp.array, INITIAL))


def test_a_network_is_a_pair_whose_first_may_be_a_tree(key):
    flow = minisvi.affine_coupling(
        mean_field(LATENTS), 2, network=bnn.pure(Encoder(3, nnx.Rngs(3)))
    )
    kernel = flow.init(key)["layers"]["network"]["linear"]["kernel"]
    assert kernel.shape == (2, 3, 2)
    assert jnp.array_equal(kernel[0], kernel[1])
    part = conditional(mean_field(real()), {"a": real()}, network=bnn.pure(Encoder(1, nnx.Rngs(3))))
    assert jax.tree.structure(part.init(key)["network"]) == jax.tree.structure(INITIAL)


@pytest.mark.parametrize("init", [3, {"w": 1.0}, None, {}])
def test_weights_that_are_neither_a_function_nor_arrays_are_refused(init):
    with pytest.raises(
        TypeError,
        match=r"`init`: expected a function that returns weights, or a tree of arrays; got",
    ):
        encoder(init)


@pytest.mark.parametrize("network", [3, INITIAL, (INITIAL, INITIAL)])
def test_what_is_no_network_is_refused(network):
    with pytest.raises(
        TypeError, match=r"`network`: expected \(init, apply\), such as `bnn.pure\(module\)`"
    ):
        minisvi.affine_coupling(mean_field(LATENTS), network=network)
    with pytest.raises(TypeError, match=r"`network`: expected \(init, apply\)"):
        conditional(mean_field(real()), {"a": real()}, network=network)
