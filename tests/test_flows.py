"""Flows and mixtures: exact where they start, triangular, and with conditioners from Flax. Accuracy
is beside.
"""

import math
from functools import lru_cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import RTOL
from flax import nnx
from jax.scipy.stats import norm
from problems import adam
from scipy.stats import norm as normal
from tiers import standing_for

import minisvi
from minisvi import ELBO, SVI, Model, bnn, full_rank, mean_field, mixture, real

FLOWS = {
    "affine": minisvi.affine_coupling,
    "spline": minisvi.spline_coupling,
    "autoregressive": minisvi.inverse_autoregressive,
}
LATENTS = {"a": real(2), "b": minisvi.positive()}
STL = "sticking_the_landing"


def member(guide, key, size=0.3, **start):
    """Parameters of the guide's start with noise on every leaf, so that none of them is zero."""

    @jax.jit
    def moved(key):
        leaves, treedef = jax.tree.flatten(guide.init(key, **start))
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(
            treedef, [x + size * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
        )

    return moved(key)


def assert_close(got, expected, tolerance=50):
    """To `tolerance` units of the dtype's relative tolerance, on the scale of the value or of one,
    the larger.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.all(np.abs(got - expected) <= tolerance * RTOL * np.maximum(1, np.abs(expected)))


# Where a flow starts


@pytest.mark.foreign
@pytest.mark.parametrize("name", standing_for(FLOWS, "spline", "autoregressive"))
def test_a_flow_starts_as_its_base(name, key):
    family = full_rank(LATENTS)
    guide, fitted = FLOWS[name](family), member(family, key)

    @jax.jit
    @jax.vmap
    def draws(eps):
        q, start = family.distribution(fitted), guide.distribution(guide.init(key, base=fitted))
        (u, log_q), (flow_u, flow_log_q) = q.from_noise(eps), start.from_noise(eps)
        return (u, log_q, log_q), (flow_u, flow_log_q, start.log_prob(u))

    of_base, of_flow = draws(3 * jax.random.normal(key, (20, 3)))
    jax.tree.map(assert_close, of_flow, of_base)


# Any member: inverses, log-determinants, densities


def flow_of(name, size, key):
    """A flow over R^size far from its start, and some noise that reaches beyond the bound of a
    spline.
    """
    family = full_rank({"x": real(size)}, scale=1.5)
    guide = FLOWS[name](family, num_layers=3)
    return guide, member(guide, key), 3 * jax.random.normal(key, (40, size))


@pytest.mark.foreign
@pytest.mark.parametrize("size", standing_for([2, 5], 5))
def test_autoregressive_layers_are_triangular_in_their_order(size, key):
    guide, params, z = flow_of("autoregressive", size, key)
    orders = guide.distribution(params).orders

    @jax.jit
    @jax.vmap
    def jacobians(layer, order):
        return jax.jacfwd(lambda z: guide.layer.bijector(layer, order).forward_and_log_det(z)[0])(
            z[0]
        )

    for jacobian, order in zip(
        np.asarray(jacobians(params["layers"], orders)), np.asarray(orders), strict=True
    ):
        in_order = jacobian[np.ix_(np.argsort(order), np.argsort(order))]
        assert np.all(np.triu(in_order, 1) == 0)
        assert np.all(in_order[np.tril_indices(size)] != 0)  # and each sees all that come before it


# Sticking the landing, without an inverse

BASES = {
    "mean_field": mean_field,
    "full_rank": full_rank,
    "student_t": partial(mean_field, df=5.0),
    "whitened": mean_field,
}


@pytest.mark.foreign
@pytest.mark.parametrize(
    ("name", "base"),
    standing_for(
        [(name, base) for name in ("affine", "spline") for base in BASES],
        ("affine", "full_rank"),
        ("spline", "whitened"),
    ),
)
def test_stl_gradient_of_a_flow_is_that_of_its_definition(name, base, key):
    latents = {"x": real(4)}
    guide = FLOWS[name](BASES[base](latents, 1.0), num_layers=3)
    if base == "whitened":
        guide = minisvi.whitened(guide)
    params = member(guide, key)
    model = Model(latents, lambda theta: -jnp.sum(jnp.cosh(theta["x"] - 0.3)))
    eps = jax.random.normal(key, (8, guide.distribution(params).noise_size))

    @jax.jit
    @jax.value_and_grad
    def by_definition(params):
        """mean_k log p(u_k) - log q(u_k): the draws carry gradient, and q's own parameters none."""
        q, stopped = (guide.distribution(p) for p in (params, jax.lax.stop_gradient(params)))

        def log_weight(eps):
            u, _ = q.from_noise(eps)
            return model.log_density(u) - stopped.log_prob(u)

        return jnp.mean(jax.vmap(log_weight)(eps))

    @jax.jit
    @jax.value_and_grad
    def in_one_pass(params):
        q, stopped = (guide.distribution(p) for p in (params, jax.lax.stop_gradient(params)))

        def log_weight(u, log_q):
            return model.log_density(u) - log_q

        log_w, _ = jax.vmap(lambda eps: q.at_draws_on_path(log_weight, stopped, eps))(eps)
        return jnp.mean(log_w)

    (value, gradient), (expected, definition) = in_one_pass(params), by_definition(params)
    assert_close(value, expected)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(definition))
    assert largest > 0.1
    for got, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(definition), strict=True):
        assert np.max(np.abs(got - leaf)) < 200 * RTOL * largest


@pytest.mark.parametrize("size", [2, 5])
def test_every_coordinate_moves_within_two_coupling_layers(size):
    orders = minisvi.affine_coupling(full_rank({"x": real(size)}), num_layers=5)._orders()
    assert np.all(np.sort(orders, 1) == np.arange(size))
    for one, two in zip(orders[::2], orders[1::2]):
        assert np.all((one >= size // 2) | (two >= size // 2))


@pytest.mark.parametrize("make", FLOWS.values())
def test_a_base_over_theta_is_refused(make):
    with pytest.raises(TypeError, match=r"a guide over all of u.*got Delta"):
        make(minisvi.delta(LATENTS))


# Conditioners from Flax


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.gelu(nn.Dense(16)(nn.gelu(nn.Dense(16)(x))))


class Nnx(nnx.Module):
    def __init__(self, num_inputs, rngs):
        self.one, self.two = nnx.Linear(num_inputs, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x):
        return nnx.gelu(self.two(nnx.gelu(self.one(x))))


def linen_network():
    net = Linen()
    return lambda key, num_inputs: net.init(key, jnp.zeros(num_inputs)), net.apply


def nnx_network():
    _, apply = bnn.pure(Nnx(2, nnx.Rngs(0)))
    return lambda key, num_inputs: bnn.pure(Nnx(num_inputs, nnx.Rngs(key)))[0], apply


@pytest.mark.whole
@pytest.mark.foreign
@pytest.mark.parametrize("make", [linen_network, nnx_network])
def test_a_flax_module_as_conditioner(make, key):
    # The layers' weights differ, the start is the base, and the fit learns what the Gaussian
    # cannot.
    model, base, gaussian = fitted_gaussian()
    guide = minisvi.affine_coupling(full_rank(model.latents), 4, make())
    params = jax.jit(lambda key: guide.init(key, base=base))(key)
    kernels = [leaf for leaf in jax.tree.leaves(params["layers"]["network"]) if leaf.ndim == 3]
    assert len(kernels) == 2
    assert all(jnp.all(jnp.std(kernel, 0) > 0) for kernel in kernels)
    assert_close(gap(model, guide, params), gaussian)
    fitted = fit(model, guide, params, key, 400, 2e-2)
    assert gap(model, guide, fitted) < 0.25 * gaussian


def banana():
    def log_joint(theta):
        a, b = theta["x"]
        return norm.logpdf(a, 0.0, 10.0) + norm.logpdf(b, 0.03 * (a**2 - 100), 1.0)

    return Model({"x": real(2)}, log_joint)


@partial(jax.jit, static_argnames=("model", "guide"))
def elbo_of_2000(key, model, guide, params):
    return ELBO(2_000)(key, model, guide, params)


def gap(model, guide, params, num_draws=100_000):
    """0 - ELBO on fresh draws, by the log q of the forward pass."""
    keys = jax.random.split(jax.random.key(99), num_draws // 2_000)
    return -np.mean([float(elbo_of_2000(key, model, guide, params)) for key in keys])


def fit(model, guide, params, key, num_steps, rate, objective=None):
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, 100, num_steps)
    svi = SVI(model, guide, optax.adam(schedule), objective or ELBO(32, STL))
    return svi.run(key, num_steps, params=params, progress_bar=False).params


@lru_cache
def fitted_gaussian():
    """The model, its full-rank fit, on which a flow starts, and that fit's gap."""
    model = banana()
    family = full_rank(model.latents)
    svi = SVI(model, family, adam(0.05, 3000), ELBO(16, STL))
    params = svi.run(jax.random.key(20), 3000, progress_bar=False).params
    return model, params, gap(model, family, params)


# The mixture's own estimator


def three_humps(key):
    """A mixture in one dimension with unequal weights and scales, and a target that it is not."""
    guide = mixture(mean_field({"x": real()}), 3)
    params = {
        "logits": jnp.array([0.4, -0.7, 1.1]),
        "components": {
            "loc": jnp.array([[-1.0], [2.5], [3.0]]),
            "log_scale": jnp.array([[0.2], [-0.6], [0.9]]),
        },
    }
    target = Model(
        {"x": real()}, lambda theta: norm.logpdf(theta["x"], 1.7, 2.2) + jnp.sin(theta["x"])
    )
    return guide, params, target


def test_stl_gradient_of_a_mixture_is_zero_for_each_sample_at_the_posterior(key):
    guide = mixture(full_rank(LATENTS), 3)
    params = member(guide, key, 1.0)
    target = Model(
        jax.tree.map(lambda s: real(s.shape), LATENTS), guide.distribution(params).log_prob
    )
    estimate = jax.value_and_grad(lambda p, k: ELBO(gradient=STL)(k, target, guide, p))
    value, gradient = jax.jit(jax.vmap(estimate, (None, 0)))(params, jax.random.split(key, 20))
    assert_close(value, np.zeros(20))
    jax.tree.map(lambda leaf: assert_close(leaf, np.zeros(leaf.shape), 200), gradient)
    plain = jax.jit(jax.grad(lambda p: ELBO()(key, target, guide, p)))(params)
    assert jnp.max(jnp.abs(plain["components"]["loc"])) > 0.01


def test_draws_of_a_mixture_pick_components_by_their_weights(key):
    guide, params, _ = three_humps(key)
    q, num = guide.distribution(params), 50_000
    x, log_q = jax.jit(jax.vmap(lambda k: q.sample_and_log_prob(seed=k)))(
        jax.random.split(key, num)
    )
    x, weight = (
        np.asarray(x["x"], np.float64),
        np.asarray(jax.nn.softmax(params["logits"]), np.float64),
    )
    loc, scale = (
        np.asarray(params["components"][n][:, 0], np.float64) for n in ("loc", "log_scale")
    )
    density = normal.pdf(x[:, None], loc, np.exp(scale)) @ weight
    assert np.allclose(np.exp(log_q), density, rtol=50 * RTOL)
    mean, second = weight @ loc, weight @ (loc**2 + np.exp(2 * scale))
    assert abs(x.mean() - mean) < 4 * x.std() / math.sqrt(num)
    assert abs((x**2).mean() - second) < 4 * (x**2).std() / math.sqrt(num)


def test_local_latents_are_refused_in_a_mixture():
    with pytest.raises(ValueError, match="without local latents"):
        mixture(minisvi.per_row(mean_field({"z": real()}), 5, lambda rows: rows), 2)
