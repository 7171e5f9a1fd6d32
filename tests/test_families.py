"""Families x properties, over the table of `families.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT, RTOL
from families import (
    FAMILIES,
    FLOWS,
    FLOWS_SLOW,
    FOREIGN,
    KINDS,
    NAMES,
    TREES,
    marked,
    members_of,
)
from problems import adam
from tiers import standing_for

import minisvi
from minisvi import ELBO, SVI, Model, real
from minisvi.guides.foreign import member

KNOW_ENTROPY = {
    "mean_field",
    "student_t",
    "full_rank",
    "low_rank",
    "block",
    "product",
    "custom distrax",
    "custom tfp",
}
KNOW_ENTROPY |= {"whitened full_rank", "whitened low_rank"}


def weighted_draws(q, key, num):
    """u, log q(u) and weights of `num` draws of every stratum of q."""
    u, log_q, log_weight = jax.vmap(lambda k: q.strata(k))(jax.random.split(key, num))
    return u, log_q, jnp.exp(log_weight)


FIVE = Model(TREES[5], lambda theta: jnp.zeros(()))


@jax.jit
@jax.vmap
def there_and_back(u):
    theta = FIVE.constrain(u)
    return theta, FIVE.constrain(FIVE.unconstrain(theta))


def flattened(tree):
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


@pytest.mark.parametrize("name", standing_for(NAMES, *KINDS))
def test_draws_densities_and_entropy_belong_together(name, key):
    # In one program, which is what takes the time. Every way to draw gives log q of the draw; a
    # batch is its draws one by one; the stopped family has no gradient; the entropy is the mean of
    # -log q, or is refused.
    guide, latents, params = members_of(name, 5, key)
    has_entropy, has_noise = name in KNOW_ENTROPY, "custom" not in name
    n = 20_000 if has_entropy else 50

    @jax.jit
    def evaluate(params, key):
        draw = lambda p, k: member(guide, p).draw(k)
        q, keys = member(guide, params), jax.random.split(key, n)
        u, log_q = jax.vmap(draw, (None, 0))(params, keys)
        many, many_log_q, weights = weighted_draws(q, key, 3)
        draws, drawn = (
            [jax.tree.map(lambda leaf: leaf[:3], u), flattened(many)],
            [log_q[:3], jnp.ravel(many_log_q)],
        )
        size = q.noise_size
        assert (size is not None) == has_noise
        if has_noise:
            fixed, fixed_log_q, _ = q.strata(jax.random.normal(key, (size,)))
            draws, drawn = [*draws, fixed], [*drawn, fixed_log_q]
        scored = jax.vmap(q.log_prob)(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *draws))
        if has_entropy:
            entropy = q.entropy()
        else:
            entropy = None
            with pytest.raises(
                ValueError, match="has no closed-form entropy: take gradient='reparameterised'"
            ):
                q.entropy()
        stopped = jax.grad(lambda p: draw(jax.lax.stop_gradient(p), key)[1])(params)
        return (
            u,
            log_q,
            weights,
            jnp.concatenate(drawn),
            scored,
            entropy,
            stopped,
            draw(params, keys[2]),
        )

    u, log_q, weights, drawn, scored, entropy, stopped, (one, one_log_q) = evaluate(params, key)
    assert jax.tree.structure(u) == jax.tree.structure(latents)
    assert all(
        leaf.shape == (n, *s.unconstrained.shape)
        for leaf, s in zip(*map(jax.tree.leaves, (u, latents)))
    )
    assert np.allclose(jnp.sum(weights, axis=1), 1.0, rtol=RTOL)
    assert np.allclose(drawn, scored, rtol=100 * RTOL, atol=100 * RTOL)
    assert all(
        np.allclose(a[2], b, atol=1e-4) for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(one))
    )
    assert np.allclose(log_q[2], one_log_q, rtol=1e-4, atol=1e-4)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(stopped))
    if has_entropy:
        log_q = np.asarray(log_q, np.float64)
        assert abs(entropy + log_q.mean()) < 4 * log_q.std() / n**0.5

    # The draws lie in the supports, and can be unconstrained.
    theta, again = there_and_back(jax.tree.map(lambda leaf: leaf[:50], u))
    assert np.all(np.asarray(theta["b"]["c"]) > 0)
    assert np.allclose(np.sum(theta["b"]["d"], axis=-1), 1.0, atol=1e-5)
    assert all(
        np.allclose(a, b, rtol=1e-4) for a, b in zip(jax.tree.leaves(theta), jax.tree.leaves(again))
    )


def density_on_a_grid(name, dimension, key):
    """(exp(log q) on a grid over bulk and tails, of a vector of parameters; the vector; the grid; a
    cell's volume).
    """
    guide, latents, params = members_of(name, dimension, key)
    vector, unravel_params = jax.flatten_util.ravel_pytree(params)
    u, _, _ = jax.jit(lambda key: weighted_draws(member(guide, params), key, 2000))(key)
    draws = np.stack([np.ravel(leaf) for leaf in jax.tree.leaves(u)], axis=1)
    low, high = draws.min(0), draws.max(0)
    width = high - low
    num = {1: 20_001, 2: 501}[dimension]
    # Of heavy tails 1e-4 of the mass lies ten widths out.
    axes = [np.linspace(lo - 1.5 * w, hi + 1.5 * w, num) for lo, hi, w in zip(low, high, width)]
    grid = jnp.asarray(
        np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dimension), FLOAT
    )

    @jax.jit
    def density(vector):
        q = guide.distribution(unravel_params(vector))
        return jnp.exp(
            jax.vmap(lambda x: q.log_prob(minisvi.model.trees.unravel(latents, x)))(grid)
        )

    at = lambda vector: np.asarray(density(vector), np.float64)
    return at, vector, grid, np.prod([axis[1] - axis[0] for axis in axes])


# In two dimensions the families that are not flows are integrated below, with the gradient.
IN_ONE_DIMENSION = [marked(name, 1) for name in FAMILIES]
IN_TWO = [marked(name, 2) for name in FLOWS]


@pytest.mark.parametrize(
    ("name", "dimension"),
    standing_for(IN_ONE_DIMENSION, ("student_t", 1), ("low_rank", 1), ("mixture", 1))
    + standing_for(IN_TWO, ("affine_coupling", 2)),
)
def test_integrates_to_one(name, dimension, key):
    density, vector, _, cell = density_on_a_grid(name, dimension, key)
    assert np.sum(density(vector)) * cell == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("name", standing_for(FLOWS_SLOW, "mixture"))
def test_gradient_through_the_draws_is_the_finite_difference_of_the_expectation(name, key):
    # d/dphi E_q[f], f bounded and smooth, in four directions v: E_q[f] by quadrature of exp(log q)
    # at phi +- h v.
    guide, latents, params = members_of(name, 2, key)
    density, vector, grid, cell = density_on_a_grid(name, 2, key)
    assert np.sum(density(vector)) * cell == pytest.approx(1.0, abs=2e-3)
    unravel_params = jax.flatten_util.ravel_pytree(params)[1]
    directions = (
        jax.random.normal(jax.random.key(3), (4, vector.size), vector.dtype) / vector.size**0.5
    )
    if "whitened" in name:  # its loc and factor are not fitted, and have no gradient
        fitted = {
            **jax.tree.map(jnp.zeros_like, params),
            "x": jax.tree.map(jnp.ones_like, params["x"]),
        }
        mask = jax.flatten_util.ravel_pytree(fitted)[0]
        directions = directions * mask[None] * (vector.size / jnp.sum(mask)) ** 0.5
    f = lambda x: jnp.tanh(x[0] - 1.5) + jnp.sin(x[0] + 0.7 * x[1])
    values = np.asarray(jax.vmap(f)(grid), np.float64)

    @jax.jit
    @jax.vmap
    def through_the_draws(k):
        def estimate(vector):
            u, _, log_weight = member(guide, unravel_params(vector)).strata(k)
            return jnp.exp(log_weight) @ jax.vmap(
                lambda u: f(minisvi.model.trees.ravel(latents, u))
            )(u)

        return directions @ jax.grad(estimate)(vector)

    h, n = 0.05, 40_000
    expected = np.array(
        [values @ (density(vector + h * v) - density(vector - h * v)) for v in directions]
    )
    expected *= cell / (2 * h)
    samples = np.asarray(through_the_draws(jax.random.split(key, n)), np.float64)
    error = np.abs(samples.mean(0) - expected)
    assert np.max(np.abs(expected)) > 0.03
    assert np.all(error < 4 * samples.std(0) / n**0.5 + 0.01 * np.max(np.abs(expected)))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FOREIGN])
def test_equal_arguments_give_equal_guides(name):
    make = FAMILIES[name]
    one, two = make(TREES[5]), make(dict(reversed(TREES[5].items())))
    assert one == two
    assert hash(one) == hash(two)
    assert one != make(TREES[3])


@pytest.mark.x64
def test_draws_keep_the_dtypes_of_the_latents(key):
    latents = {"a": real(2, jnp.float32), "b": real((), jnp.float16)}
    for make in (minisvi.mean_field, minisvi.full_rank, lambda tree: minisvi.low_rank(tree, 1)):
        guide = make(latents)
        u, _ = guide.distribution(guide.init(key)).sample_and_log_prob(seed=key)
        assert {name: leaf.dtype for name, leaf in u.items()} == {
            "a": jnp.float32,
            "b": jnp.float16,
        }


# A fit of these has other optima than the target's, or a long way to it: it begins near, at a lower
# rate.
NEAR = ("mixture", "conditional", "coupling", "autoregressive", "flow over")


@pytest.mark.parametrize("name", standing_for(FLOWS_SLOW, "low_rank"))
def test_recovers_a_target_of_its_own_family_and_does_not_trace_twice(name, key):
    _, latents, truth = members_of(name, 3, key, spread=3.0)
    exact, traces = FAMILIES[name](latents).distribution(truth), []

    def log_joint(theta):  # log evidence 0
        traces.append(None)
        return exact.log_prob(theta)

    is_near = any(word in name for word in NEAR)
    model, guide = Model(latents, log_joint), FAMILIES[name](latents)
    optimizer = adam(0.003 if is_near else 0.1, 5000)
    leaves, treedef = jax.tree.flatten(truth)
    keys = jax.random.split(jax.random.key(8), len(leaves))
    near = [
        leaf + 0.05 * jax.random.normal(k, leaf.shape, leaf.dtype) for leaf, k in zip(leaves, keys)
    ]
    start = jax.tree.unflatten(treedef, near) if is_near else guide.init(key)
    objective = ELBO(8, "sticking_the_landing")
    params = (
        SVI(model, guide, optimizer, objective)
        .run(key, 5000, params=start, progress_bar=False)
        .params
    )
    elbo = jax.jit(lambda key: ELBO(5000)(key, model, guide, params))(key)
    assert abs(elbo) < 1e-3

    count = len(traces)
    again = SVI(
        model, FAMILIES[name](latents) if name not in FOREIGN else guide, optimizer, objective
    )
    again.run(jax.random.key(1), 7, params=start, progress_bar=False)
    assert len(traces) == count
