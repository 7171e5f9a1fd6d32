"""Flows against targets that no Gaussian fits, whose log evidence is zero: the gap is KL(q || p),
on fresh draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm

import minisvi
from minisvi import ELBO, SVI, Model, full_rank, real

pytestmark = pytest.mark.foreign


def banana(theta):
    a, b = theta["x"]
    return norm.logpdf(a, 0.0, 10.0) + norm.logpdf(b, 0.03 * (a**2 - 100.0), 1.0)


def funnel(theta):
    v, x = theta["x"][0], theta["x"][1:]
    return norm.logpdf(v, 0.0, 3.0) + jnp.sum(norm.logpdf(x, 0.0, jnp.exp(v / 2)))


def two_modes(theta):
    a, b = theta["x"]
    one = norm.logpdf(a, 3.5, 0.7) + norm.logpdf(b, -4.0 + 0.5 * (a - 3.5), 0.5)
    two = norm.logpdf(a, 6.3, 0.5) + norm.logpdf(b, -2.0, 0.9)
    return jnp.logaddexp(jnp.log(0.4) + one, jnp.log(0.6) + two)


def fit(model, guide, key, params, rate, num_steps, num_particles):
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, 100, num_steps)
    svi = SVI(model, guide, optax.adam(schedule), ELBO(num_particles, "sticking_the_landing"))
    return svi.run(key, num_steps, params=params, progress_bar=False).params


def gap(model, guide, params):
    """-ELBO and its standard error on 100,000 draws."""
    elbo = jax.jit(lambda key: ELBO(2000)(key, model, guide, params))
    values = -np.array([elbo(key) for key in jax.random.split(jax.random.key(7), 50)], np.float64)
    return values.mean(), values.std() / 50**0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("density", "size", "reference"),
    [(banana, 2, 0.73), (funnel, 10, 1.87)],
    ids=["banana", "funnel"],
)
def test_a_flow_has_a_tenth_of_the_gaussians_gap(density, size, reference, key):
    model = Model({"x": real(size)}, density)
    gaussian = full_rank(model.latents)
    start = gaussian.init(key, loc={"x": jnp.zeros(size)}, cov=jnp.ones(size))
    base = fit(model, gaussian, key, start, 0.05, 2000, 16)
    gaussian_gap, _ = gap(model, gaussian, base)
    assert gaussian_gap == pytest.approx(reference, abs=0.1)
    flow = minisvi.affine_coupling(gaussian)
    begin = flow.init(key, base=base)
    assert gap(model, flow, begin)[0] == pytest.approx(
        gaussian_gap, abs=0.05
    )  # it begins as its base
    flow_gap, error = gap(model, flow, fit(model, flow, key, begin, 1e-2, 1500, 32))
    assert flow_gap + 2 * error < gaussian_gap / 10


@pytest.mark.slow
def test_spline_coupling_fits_two_modes(key):
    model = Model({"x": real(2)}, two_modes)
    base = full_rank(model.latents)
    flow = minisvi.spline_coupling(base)
    start = flow.init(
        key, base=base.init(key, loc={"x": jnp.array([5.2, -2.8])}, cov=jnp.array([2.5, 2.0]))
    )
    flow_gap, error = gap(model, flow, fit(model, flow, key, start, 5e-3, 3000, 64))
    assert flow_gap + 2 * error < 0.02


@pytest.mark.whole
def test_a_mixture_of_gaussians_holds_two_modes(key):
    model = Model({"x": real(2)}, two_modes)
    guide = minisvi.mixture(full_rank(model.latents), 2)
    starts = [
        guide.guide.init(key, loc={"x": jnp.array(loc)}, cov=jnp.ones(2))
        for loc in ([2.0, -5.0], [7.0, -1.0])
    ]
    start = {
        "logits": jnp.zeros(2),
        "components": jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts),
    }
    params = fit(model, guide, key, start, 0.05, 3000, 8)
    mixture_gap, _ = gap(model, guide, params)
    assert abs(mixture_gap) < 1e-3
    assert np.allclose(jax.nn.softmax(params["logits"]), [0.4, 0.6], atol=0.01)
