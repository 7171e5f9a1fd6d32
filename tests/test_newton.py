"""Newton's method against functions whose minima, saddles and steps are known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT

from minisvi import newton
from minisvi.second_order.hessian_products import dense
from minisvi.second_order.newton import _expand, descend, start

SOLVERS = ("eigh", "cg")
EPS = float(jnp.finfo(FLOAT).eps)
MINIMUM = np.array([3.0, -2.0, 0.5])
QUADRATIC = np.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.5]])


def go_on(fun, state, solver="eigh", scale=np.ones_like, max_steps=100, dtype=FLOAT):
    """Newton's steps from a state."""
    expand = partial(_expand, fun, (), scale, solver, jnp.dtype(dtype))
    (end,) = descend(expand, [state], float(jnp.finfo(dtype).eps), max_steps)
    return end


def quadratic(x):
    z = x - jnp.asarray(MINIMUM, x.dtype)
    return 7.0 + 0.5 * z @ jnp.asarray(QUADRATIC, x.dtype) @ z


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def double_well(x):  # a saddle of height 0 at the origin, minima of height -1/4 at (+-1, 0)
    return 0.25 * x[0] ** 4 - 0.5 * x[0] ** 2 + 0.5 * x[1] ** 2


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param("float64", marks=pytest.mark.skipif(EPS > 1e-10, reason="x64 is off")),
    ],
)
def test_a_quadratic_takes_one_step_when_nothing_damps_it(solver, dtype):
    origin = jnp.zeros(3, dtype)
    little = start(np.asarray(origin))._replace(damping=float(jnp.finfo(dtype).eps))
    one = go_on(quadratic, little, solver, max_steps=1, dtype=dtype)
    exact = (
        solver == "eigh"
    )  # conjugate gradients stop at a tenth of the gradient, farther from the end
    assert np.allclose(one.x, MINIMUM, rtol=0, atol=20 * jnp.finfo(dtype).eps if exact else 1.0)
    # From a damping of one it falls by five in every step: the error by about that.
    state = newton(quadratic, origin, solver=solver)
    assert state.converged
    assert not state.stuck
    assert state.num_steps <= 12
    assert state.value == pytest.approx(7.0, rel=10 * float(jnp.finfo(dtype).eps))
    assert np.allclose(state.x, MINIMUM, rtol=0, atol=float(jnp.finfo(dtype).eps) ** 0.5)


def test_a_damped_step_is_the_formula(rtol):
    # p = -S (|S H S| + damping)^-1 S g, at an indefinite H, with S = diag(2, 1).
    matrix, x = jnp.array([[1.0, 2.0], [2.0, -1.5]]), jnp.array([0.7, -0.4])
    unit = np.array([2.0, 1.0])
    state = start(np.asarray(x))._replace(damping=0.3)
    one = go_on(lambda x: 0.5 * x @ matrix @ x, state, scale=lambda x: unit, max_steps=1)
    scaled = unit[:, None] * np.asarray(matrix, float) * unit[None]
    values, vectors = np.linalg.eigh(scaled)
    gradient = unit * (np.asarray(matrix, float) @ np.asarray(x, float))
    p = -vectors @ ((vectors.T @ gradient) / (np.abs(values) + 0.3))
    assert np.allclose(one.x, np.asarray(x) + unit * p, rtol=10 * rtol)
    assert np.allclose(
        one.decrement, 0.5 * np.sum((vectors.T @ gradient) ** 2 / np.abs(values)), rtol=10 * rtol
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_rosenbrock_from_the_classic_start(solver):
    state = newton(rosenbrock, jnp.array([-1.2, 1.0, -0.5, 2.0]), solver=solver, max_steps=200)
    assert state.converged
    # Of the two minima in four dimensions a descent may end in either: this is the one of value
    # zero.
    assert state.value <= (1e-9 if np.float32 == FLOAT else 1e-20)
    assert np.allclose(state.x, 1.0, rtol=0, atol=30 * EPS**0.5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_ill_scaled_quartic_in_its_units_takes_the_steps_of_a_well_scaled_one(solver):
    # With S the units, every quantity is that of the well-scaled function: the same path, step by
    # step. No such path without them: coordinates of scales 1e-3 to 1e3 are damped alike.
    unit = np.array([1e-3, 1.0, 1e3])
    mixing = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]

    def quartic(z):
        w = jnp.asarray(mixing, z.dtype) @ (z - jnp.asarray(MINIMUM, z.dtype))
        return jnp.sum(w**4 + 0.5 * w**2)

    well = newton(quartic, jnp.zeros(3), solver=solver)
    scaled = lambda x: quartic(x / jnp.asarray(unit, x.dtype))
    ill = newton(scaled, jnp.zeros(3), scale=lambda x: unit, solver=solver)
    assert well.converged
    assert ill.converged
    assert ill.num_steps == well.num_steps
    assert np.allclose(ill.x / unit, MINIMUM, rtol=0, atol=10 * EPS**0.5)
    raw = newton(scaled, jnp.zeros(3), solver=solver, max_steps=int(well.num_steps))
    assert not np.allclose(raw.x / unit, MINIMUM, rtol=0, atol=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("x", [[1e-3, 1.0], [-1e-3, 0.0], [0.3, -2.0]])
def test_a_saddle_repels(solver, x):
    state = newton(double_well, jnp.array(x), solver=solver)
    assert state.converged
    assert np.allclose(state.x, [np.sign(x[0]), 0.0], rtol=0, atol=10 * EPS**0.5)
    assert state.value == pytest.approx(-0.25, abs=10 * EPS)


@pytest.mark.parametrize("solver", SOLVERS)
def test_starts_that_descend_together_end_as_they_do_alone_and_trace_once(solver):
    traces = []

    def fun(x, shift):
        traces.append(None)
        return rosenbrock(x - shift)

    shift = jnp.array([0.5, -3.0])
    starts = np.array([[-1.2, 1.0], [3.0, -1.0], [0.0, 0.0]])
    alone = [newton(fun, jnp.asarray(x), shift, solver=solver, max_steps=400) for x in starts]
    count = len(traces)
    one_by_one = partial(_expand, fun, (shift,), np.ones_like, solver, jnp.dtype(FLOAT))
    expand = lambda rows: [one_by_one(row[None])[0] for row in rows]
    together = descend(expand, [start(x) for x in starts], EPS, 400)
    assert len(traces) == count
    for state, single in zip(together, alone):
        assert state.converged
        assert np.allclose(state.x, 1 + np.asarray(shift), rtol=0, atol=30 * EPS**0.5)
        assert np.allclose(state.x, single.x, rtol=0, atol=10 * EPS**0.5)
        if np.float64 == FLOAT:  # in float32 rounding may differ
            assert state.num_steps == single.num_steps
    assert len({state.num_steps for state in together}) > 1


def test_what_stops_a_descent_is_asked_before_each_step():
    left = iter([False, False, True])
    expand = partial(_expand, rosenbrock, (), np.ones_like, "eigh", jnp.dtype(FLOAT))
    (state,) = descend(expand, [start(np.array([-1.2, 1.0]))], EPS, 100, lambda: next(left))
    assert state.num_steps == 2
    assert not state.converged


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_into_a_region_that_is_not_finite_is_not_taken(solver, bad):
    # x - 2 log x has its minimum at 2; from 8 the Newton step is -24.
    def fun(x):
        inside = x[0] > 0.5
        safe = jnp.where(inside, x[0], 1.0)
        return jnp.where(inside, safe - 2 * jnp.log(safe), bad)

    state = newton(fun, jnp.array([8.0]), solver=solver)
    assert state.converged
    assert state.x[0] == pytest.approx(2.0, abs=10 * EPS**0.5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_that_is_not_finite_is_stuck_there(solver):
    x = jnp.array([jnp.nan, 1.0])
    state = newton(rosenbrock, x, solver=solver)
    assert state.stuck
    assert not state.converged
    assert np.array_equal(state.x, x, equal_nan=True)


@pytest.mark.parametrize("solver", SOLVERS)
def test_out_of_steps_is_not_converged(solver):
    state = newton(rosenbrock, jnp.array([-1.2, 1.0]), solver=solver, max_steps=3)
    assert not state.converged
    assert not state.stuck
    assert state.num_steps == 3
    on = go_on(rosenbrock, state, solver, max_steps=200)
    whole = newton(rosenbrock, jnp.array([-1.2, 1.0]), solver=solver, max_steps=200)
    assert on.converged
    assert on.num_steps == whole.num_steps
    assert np.array_equal(on.x, whole.x)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gradient_that_lies_is_stuck_and_not_converged(solver):
    # The value rises where the gradient says that it falls.
    def fun(x):
        lie = quadratic(2 * jax.lax.stop_gradient(x) - x)
        return lie + jax.lax.stop_gradient(quadratic(x) - lie)

    x = jnp.zeros(3)
    assert np.allclose(jax.grad(fun)(x), -jax.grad(quadratic)(x))
    state = newton(fun, x, solver=solver)
    assert state.stuck
    assert not state.converged
    assert state.value == pytest.approx(float(quadratic(x)), rel=100 * EPS)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_at_the_minimum_has_converged_in_a_few_steps(solver):
    state = newton(quadratic, jnp.asarray(MINIMUM, FLOAT), solver=solver)
    assert state.converged
    assert state.num_steps <= 5
    assert np.array_equal(state.x, jnp.asarray(MINIMUM, FLOAT))
    near = newton(quadratic, jnp.asarray(MINIMUM * (1 + 2 * EPS), FLOAT), solver=solver)
    assert near.converged
    assert near.num_steps <= 5


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_coordinate_that_f_does_not_have_stays_and_does_not_hinder(solver):
    state = newton(lambda x: quadratic(x[:3]), jnp.array([0.0, 0.0, 0.0, 5.0]), solver=solver)
    assert state.converged
    assert np.allclose(state.x, [*MINIMUM, 5.0], rtol=0, atol=EPS**0.5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_falls_for_ever_has_not_converged(solver):
    state = newton(lambda x: -x[0] + x[1] ** 2, jnp.array([0.0, 1.0]), solver=solver, max_steps=30)
    assert not state.converged
    assert state.x[0] > 1e3


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_unknowns(solver):
    state = newton(lambda x: jnp.sum(x), jnp.zeros(0), solver=solver)
    assert state.converged
    assert state.num_steps == 0
    assert state.x.shape == (0,)


@pytest.mark.parametrize("n", [1, 4])
def test_hessian_from_products_is_jaxs(n, rtol):
    fun = lambda x: jnp.sum(jnp.cos(jnp.cumsum(x)) * jnp.exp(0.3 * x))
    x = jnp.linspace(-1.0, 2.0, n)
    h = jax.jit(lambda x: dense(jax.linearize(jax.grad(fun), x)[1], x))(x)
    assert np.allclose(h, jax.jit(jax.hessian(fun))(x), rtol=10 * rtol, atol=10 * rtol)
    assert np.array_equal(h, h.T)


@pytest.mark.parametrize("n", [2, 30])
def test_both_solvers_reach_the_same_minimum(n):
    # A regularised logistic regression: convex, with one minimum.
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(60, n)), FLOAT)
    y = jnp.asarray(rng.random(60) < 0.5, FLOAT)
    fun = lambda w: jnp.sum(jax.nn.softplus(x @ w) - y * (x @ w)) + 0.5 * w @ w
    ends = [newton(fun, jnp.full(n, 3.0), solver=solver) for solver in SOLVERS]
    assert all(state.converged for state in ends)
    assert np.allclose(ends[0].x, ends[1].x, rtol=0, atol=3 * EPS**0.5)
    for state in ends:  # the decrement is the distance to the minimum in nats
        assert state.decrement <= max(EPS * n, 20 * EPS * state.value)


def test_an_unknown_solver():
    with pytest.raises(ValueError, match=r"`solver` must be one of \['eigh', 'cg'\]; got 'lu'"):
        newton(quadratic, jnp.zeros(3), solver="lu")
