"""Densities that have a reverse mode alone: the Hessian from differences of gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT
from jax.experimental.ode import odeint
from jax.scipy.stats import norm

from minisvi import Model, deterministic, fit, laplace, linear_response, real
from minisvi.second_order.hessian_products import dense, scaled_products
from minisvi.second_order.newton import newton

EPS = float(jnp.finfo(FLOAT).eps)
LOC = np.array([3.0, -20.0, 0.5])
SD = np.array([2.0, 10.0, 0.1])


@jax.custom_vjp
def cubed(z):
    return z + 0.05 * z**3


def _forward(z):
    return cubed(z), z


def _backward(z, cotangent):
    return ((1 + 0.15 * z**2) * cotangent,)


cubed.defvjp(_forward, _backward)


def steep(x):
    """0.5 |c(z)|^2 in z = (x - loc) / sd, with correlation; smooth, far from quadratic, of unequal
    scales.
    """
    z = cubed((x - LOC) / SD)
    return 0.5 * jnp.sum(z**2) + 0.3 * z[0] * z[1]


def plain(x):
    z = (x - LOC) / SD
    z = z + 0.05 * z**3
    return 0.5 * jnp.sum(z**2) + 0.3 * z[0] * z[1]


def log_joint(theta):
    return -steep(theta["x"])


MODEL = Model({"x": real(3)}, log_joint)


def test_products_are_those_of_forward_mode():
    x = jnp.asarray(LOC + np.array([1.0, -0.5, 2.0]) * SD)
    unit = jnp.asarray(SD)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.hessian(steep)(x)
    value, grad, product = scaled_products(steep, x, unit)
    exact = unit[:, None] * jax.jit(jax.hessian(plain))(x) * unit[None]
    assert np.allclose(dense(product, x), exact, rtol=0, atol=10 * EPS**0.5)
    assert np.allclose(value, plain(x))
    assert np.allclose(grad, unit * jax.grad(plain)(x), rtol=1e-5, atol=1e-5)
    assert np.array_equal(product(jnp.zeros(3)), np.zeros(3))


def test_a_type_error_of_the_function_is_its_own():
    def wrong(x):
        raise TypeError("not a matter of derivatives")

    with pytest.raises(TypeError, match="not a matter of derivatives"):
        scaled_products(wrong, jnp.zeros(3), jnp.ones(3))


@pytest.mark.parametrize("solver", ["eigh", "cg"])
def test_newton(solver):
    state = newton(steep, jnp.asarray(LOC + SD), scale=lambda _: jnp.asarray(SD), solver=solver)
    assert state.converged
    assert np.allclose((state.x - LOC) / SD, 0.0, atol=10 * EPS**0.5)


@pytest.mark.whole
def test_mean_field_response_and_laplace(key):
    found = deterministic(key, MODEL, num_restarts=1, restart_draws=16, num_draws=16)
    same = deterministic(
        key, Model({"x": real(3)}, lambda theta: -plain(theta["x"])), num_restarts=1, num_draws=16
    )
    tolerance = 50 * EPS**0.5
    assert np.allclose((found.params["loc"] - same.params["loc"]) / SD, 0.0, atol=tolerance)
    assert np.allclose(found.params["log_scale"], same.params["log_scale"], atol=tolerance)
    unit = SD[:, None] * SD[None]
    assert np.allclose(linear_response(found) / unit, linear_response(same) / unit, atol=tolerance)
    cov = laplace(key, MODEL).cov
    assert np.allclose(
        cov / unit, np.linalg.inv(jax.hessian(plain)(jnp.asarray(LOC))) / unit, atol=tolerance
    )


# Prey and predators, by name: growth, predation, death, gain, as factors of what the data were made
# with.
RATES = jnp.array([0.6, 0.03, 0.8, 0.025])
TIMES = jnp.linspace(0.0, 10.0, 11)


def lotka_volterra(factors):
    growth, predation, death, gain = RATES * factors

    def field(z, t):
        del t
        prey, predators = z
        return jnp.array(
            [(growth - predation * predators) * prey, (gain * prey - death) * predators]
        )

    return odeint(field, jnp.array([30.0, 5.0]), TIMES, rtol=1e-5, atol=1e-5, mxstep=500)


def lotka_volterra_log_joint(theta, y):
    path = jnp.maximum(lotka_volterra(jnp.exp(0.3 * theta["x"])), 1e-3)
    return jnp.sum(norm.logpdf(theta["x"])) + jnp.sum(norm.logpdf(jnp.log(y), jnp.log(path), 0.1))


@pytest.mark.slow
def test_lotka_volterra_goes_through_fit(key):
    noise = np.random.default_rng(0).normal(size=(11, 2))
    y = lotka_volterra(jnp.ones(4)) * jnp.exp(0.1 * jnp.asarray(noise, FLOAT))
    found = fit(
        key, Model({"x": real(4)}, lotka_volterra_log_joint), y, num_draws=4000, progress_bar=False
    )
    assert found.verdict.level == "good"
    assert found.deterministic.converged
    mean, sd = found.draws.mean()["x"], found.draws.sd()["x"]
    assert np.all(np.abs(mean) < 3 * sd)
    assert np.all((sd > 0.02) & (sd < 0.5))
