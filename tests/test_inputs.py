"""What users give: supports, options and data that are wrong are refused by name, and what can be read is read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import minisvi
from minisvi import SVI, Draws, Model, Posterior, mean_field, real

KEY = jax.random.key(0)
ADAM = optax.adam(0.1)
NAN, INF = float("nan"), float("inf")
MODEL = Model({"a": real()}, lambda theta: -0.5 * theta["a"] ** 2)


def half(dtype):
    return Model({"a": real(), "b": real(2, dtype)}, lambda theta: -0.5 * theta["a"] ** 2)


def posterior():
    guide = mean_field(MODEL.latents)
    return Posterior(MODEL, guide, guide.init(KEY))


# case: (call, error, pattern)
REFUSED = {
    "negative size": (lambda: real(-1), ValueError, r"real: expected a shape of sizes >= 0; got -1"),
    "fractional size": (lambda: real(2.5), TypeError, r"real: expected a shape such as 3 or \(3, 2\); got 2.5"),
    "fractional sizes": (lambda: minisvi.positive((2.5,)), TypeError, r"positive: expected a shape .*got \(2.5,\)"),
    "true for a size": (lambda: real(True), TypeError, r"real: expected a shape .*got True"),
    "no size": (lambda: real(None), TypeError, r"real: expected a shape .*got None"),
    "two sizes": (lambda: real(3, 2), TypeError, r"floating dtype; got 2: .*write real\(\(3, 2\)\)"),
    "two sizes of a square": (
        lambda: minisvi.corr_cholesky(3, 3),
        TypeError,
        r"write corr_cholesky\(\(3, 3\)\)",
    ),
    "two sizes after a bound": (
        lambda: minisvi.interval(0, 2.5, 3, 2),
        TypeError,
        r"write interval\(0, 2.5, \(3, 2\)\)",
    ),
    "lower bound of nan": (
        lambda: minisvi.greater_than(NAN),
        ValueError,
        r"greater_than: `lower` must be a finite number; got nan",
    ),
    "lower bound of infinity": (lambda: minisvi.greater_than(INF), ValueError, r"`lower` must be a finite"),
    "lower bound in words": (lambda: minisvi.greater_than("0"), TypeError, r"`lower` must be a number; got '0'"),
    "infinite interval": (
        lambda: minisvi.interval(0, INF),
        ValueError,
        r"interval: `high` must be a finite number; got inf",
    ),
    "interval from nan": (lambda: minisvi.interval(NAN, 1), ValueError, r"interval: `low` must be a finite number"),
    "seconds in words": (
        lambda: minisvi.fit(KEY, MODEL, seconds="3"),
        TypeError,
        r"`seconds` must be a number; got '3'",
    ),
    "seconds of nan": (lambda: minisvi.fit(KEY, MODEL, seconds=NAN), ValueError, r"`seconds` must be a number"),
    "seconds of a run in words": (
        lambda: SVI(MODEL, mean_field(MODEL.latents), ADAM).run(KEY, 3, seconds="3"),
        TypeError,
        r"`seconds` must be a number; got '3'",
    ),
    "probabilities of draws": (
        lambda: Draws({"a": jnp.arange(3.0)}, jnp.zeros(3)).quantiles([0.5, 2.0, -1.0]),
        ValueError,
        r"`probabilities` must be in \[0, 1\]; got \[0.5, 2.0, -1.0\]",
    ),
    "probabilities of a posterior": (
        lambda: posterior().quantiles(KEY, jnp.array(NAN)),
        ValueError,
        r"`probabilities` must be in \[0, 1\]; got nan",
    ),
    "bfloat16 in the deterministic fit": (
        lambda: minisvi.deterministic(KEY, half(jnp.bfloat16)),
        TypeError,
        r"latent `b`: expected float32 or float64; got bfloat16",
    ),
    "float16 in laplace": (
        lambda: minisvi.laplace(KEY, half(jnp.float16)),
        TypeError,
        r"latent `b`: expected float32 or float64; got float16",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case):
    call, error, pattern = REFUSED[case]
    with pytest.raises(error, match=pattern):
        call()


def test_shapes_may_be_lists_and_numpy_integers():
    assert real([3, 2]) == real((3, 2))
    assert minisvi.interval(np.float64(0), 1, np.int64(3)) == minisvi.interval(0.0, 1.0, (3,))


def test_a_spent_budget_and_quantiles_at_the_ends_are_allowed():
    svi = SVI(MODEL, mean_field(MODEL.latents), ADAM)
    assert svi.run(KEY, 3, seconds=-1, progress_bar=False).reason == "budget"
    ends = Draws({"a": jnp.arange(3.0)}, jnp.zeros(3)).quantiles([0, 1])
    assert np.allclose(ends["a"], [0.0, 2.0], atol=1e-5)


def test_an_empty_latent_beside_others_is_judged():
    # By the weights, which `fit` rests on, and in ArviZ.
    model = Model({"a": real((3, 0)), "b": real()}, lambda theta: -0.5 * theta["b"] ** 2 + jnp.sum(theta["a"]))
    guide = mean_field(model.latents)
    u, log_w = minisvi.log_weights(KEY, model, guide, guide.init(KEY), num_samples=70, batch_size=40)
    assert u["a"].shape == (70, 3, 0)
    assert jnp.all(jnp.isfinite(log_w))
    tree = minisvi.to_arviz(Draws(u, jnp.zeros(70)), model)
    assert np.allclose(tree["sample_stats"]["lp"][0], -0.5 * u["b"] ** 2, atol=1e-5)
