"""The Laplace approximation against closed forms: Gaussians, which it must recover, and what it
must refuse.
"""

import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from conftest import FLOAT, RTOL
from jax.scipy.stats import norm
from tiers import standing_for

import minisvi
from minisvi import IndefiniteHessianError, Model, laplace, positive, real
from minisvi.model import trees
from minisvi.second_order import curvature
from minisvi.second_order.derivatives import _images

MODES = ["exact", "diagonal", "low_rank"]
MODE_ERROR = {jnp.dtype("float32"): 1e-3, jnp.dtype("float64"): 1e-7}[
    jnp.dtype(FLOAT)
]  # in posterior sds


def log_gaussian(theta, loc, precision, offset):
    x = jnp.concatenate([theta["a"], theta["b"]]) - loc
    return offset - 0.5 * x @ precision @ x


def gaussian_model(size):
    return Model({"a": real(size - size // 3), "b": real(size // 3)}, log_gaussian)


def gaussian(size, seed=0, rank=None):
    """Location and covariance, float64: sds of e^-3 to e^3, off the origin by about ten of them.

    With `rank`, the covariance is S (I + F F^T) S for some F (D, rank), some of its columns large.
    """
    rng = np.random.default_rng(seed)
    sd = np.exp(rng.uniform(-3, 3, size))
    half = rng.normal(size=(size, 2 * size)) / size**0.5
    cov = half @ half.T
    if rank is not None:
        factor = rng.normal(size=(size, rank)) * np.linspace(0.5, 2, rank)
        cov = np.eye(size) + factor @ factor.T
    return 3 + 10 * sd * rng.normal(size=size), sd[:, None] * cov * sd


def fit(key, loc, precision, offset=0.0, **options):
    data = (jnp.asarray(array, FLOAT) for array in (loc, precision, offset))
    return laplace(key, gaussian_model(len(loc)), *data, **options)


def vector(u):
    return np.concatenate([np.asarray(u["a"], np.float64), np.asarray(u["b"], np.float64)])


def correlation_error(got, cov):
    """The largest error of a covariance in units of the true sds."""
    sd = np.sqrt(np.diag(cov))
    return np.max(np.abs((np.asarray(got, np.float64) - cov) / sd[:, None] / sd))


def distance(loc, fitted, precision):
    """|loc - fitted| in posterior sds."""
    error = vector(fitted) - loc
    return np.sqrt(error @ precision @ error)


def dense(params):
    """S (I + F F^T) S of the parameters of a `low_rank` guide."""
    scale, factor = (
        np.exp(np.asarray(params["log_scale"], np.float64)),
        np.asarray(params["factor"], np.float64),
    )
    return scale[:, None] * (np.eye(scale.size) + factor @ factor.T) * scale


# --- A Gaussian is recovered. ---


@pytest.mark.parametrize("size", standing_for([1, 3, 30], 3))
def test_exact_recovers_any_gaussian(size, key):
    loc, cov = gaussian(size)
    precision = np.linalg.inv(cov)
    found = fit(key, loc, precision, offset=-7.0)
    assert distance(loc, found.loc, precision) < MODE_ERROR
    assert correlation_error(found.cov, cov) < RTOL
    log_evidence = -7.0 + 0.5 * size * np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(cov)[1]
    assert np.allclose(found.log_evidence, log_evidence, rtol=10 * RTOL)
    assert found.grad_norm < MODE_ERROR
    q = found.guide.distribution(found.params)
    assert np.allclose(q.loc, vector(found.loc), rtol=RTOL)
    assert (
        correlation_error(
            np.asarray(q.factor.dense(), np.float64) @ np.asarray(q.factor.dense()).T, cov
        )
        < RTOL
    )


@pytest.mark.parametrize("size", standing_for([3, 30], 30))
def test_diagonal_has_the_conditional_variances(size, key):
    loc, cov = gaussian(size)
    precision = np.linalg.inv(cov)
    found = fit(key, loc, precision, hessian="diagonal")
    assert distance(loc, found.loc, precision) < MODE_ERROR
    assert np.allclose(found.cov, 1 / np.diag(precision), rtol=10 * RTOL)
    assert np.allclose(
        np.exp(found.params["log_scale"]), np.diag(precision) ** -0.5, rtol=10 * RTOL
    )
    log_evidence = 0.5 * size * np.log(2 * np.pi) - 0.5 * np.sum(np.log(np.diag(precision)))
    assert np.allclose(found.log_evidence, log_evidence, rtol=10 * RTOL)


def test_low_rank_recovers_a_gaussian_of_its_family(key):
    loc, cov = gaussian(30, rank=4)
    precision = np.linalg.inv(cov)
    found = fit(key, loc, precision, hessian="low_rank", rank=4)
    assert distance(loc, found.loc, precision) < MODE_ERROR
    assert correlation_error(dense(found.params), cov) < 10 * RTOL
    assert np.allclose(found.cov, np.diag(cov), rtol=10 * RTOL)
    log_evidence = 15 * np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(cov)[1]
    assert np.allclose(found.log_evidence, log_evidence, rtol=10 * RTOL)


def test_low_rank_is_at_the_optimum_of_its_family_on_other_gaussians(key):
    # The gradient of KL(q || p), Sigma = S (I + F F^T) S: diag(H Sigma) - 1 in log S, and S (H -
    # Sigma^-1) S F in F.
    loc, cov = gaussian(30, rank=8)
    precision = np.linalg.inv(cov)
    found = fit(key, loc, precision, hessian="low_rank", rank=4)
    scale, factor = (
        np.exp(np.asarray(found.params["log_scale"], np.float64)),
        np.asarray(found.params["factor"]),
    )
    sigma = dense(found.params)
    in_factor = scale[:, None] * (precision - np.linalg.inv(sigma)) * scale @ factor
    assert np.max(np.abs(factor)) > 1
    assert np.max(np.abs(np.diag(precision @ sigma) - 1)) < 100 * RTOL
    assert np.max(np.abs(in_factor)) < 100 * RTOL


@pytest.mark.parametrize("hessian", ["exact", "low_rank"])
def test_grad_norm_is_the_distance_from_the_mode(hessian, key):
    # After three climbs of one step the point is not the mode; H is the same everywhere.
    loc, cov = gaussian(30, rank=4)
    precision = np.linalg.inv(cov)
    found = fit(key, loc, precision, hessian=hessian, rank=4, max_steps=1)
    assert distance(loc, found.loc, precision) > 1
    assert np.allclose(found.grad_norm, distance(loc, found.loc, precision), rtol=100 * RTOL)


# --- What is too large for a D x D matrix. ---


def log_structured(theta, loc, scale, factor):
    """log N(loc, S (I + F F^T) S) up to a constant, without a D x D matrix."""
    x = (theta["x"] - loc) / scale
    inner = jnp.eye(factor.shape[1], dtype=x.dtype) + factor.T @ factor
    return -0.5 * (x @ x - (factor.T @ x) @ jnp.linalg.solve(inner, factor.T @ x))


def structured(size=500, rank=8):
    rng = np.random.default_rng(1)
    scale = np.exp(rng.uniform(-2, 2, size))
    factor = rng.normal(size=(size, rank)) * 2.0 ** -np.arange(rank)
    return 3 + 10 * scale * rng.normal(size=size), scale, factor


def array_sizes(function, *args):
    """The sizes of all arrays that a function makes, to any depth."""
    shapes = re.findall(r"\w+\[([\d,]*)\]", str(jax.make_jaxpr(function)(*args)))
    return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]


def peak_memory(function):
    """The bytes of the host's arrays at most, in a second call."""
    function()
    tracemalloc.start()
    function()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_diagonal_and_low_rank_form_no_square_matrix(key):
    size, model = 1000, Model({"x": real(1000)}, log_structured)
    data = tuple(jnp.asarray(array, FLOAT) for array in structured(size))
    x, rng = np.zeros(size), np.random.default_rng(0)
    ones, basis = np.ones(size), rng.normal(size=(size, 3 * 4))
    rows = np.zeros((8, size))
    compiled = array_sizes(lambda u, v: _images.__wrapped__(model, u, v, 1, data), x, rows)
    assert size in compiled
    assert max(compiled) < 30 * size
    on_host = {
        "diagonal": lambda: curvature.diagonal(rng, model, x, data, ones, 4),
        "widest": lambda: curvature.widest(model, x, data, ones, basis, True),
    }
    square = size * size * 8
    assert max(peak_memory(piece) for piece in on_host.values()) < square / 2
    assert peak_memory(lambda: curvature.eigenpairs(model, x, data)) > square


@pytest.mark.slow
def test_low_rank_finds_the_variances_that_a_diagonal_misses(key):
    loc, scale, factor = structured()
    variances = scale**2 * (1 + np.sum(factor**2, axis=1))
    model = Model({"x": real(500)}, log_structured)
    data = tuple(jnp.asarray(array, FLOAT) for array in (loc, scale, factor))
    ratio = {}
    for hessian in ("diagonal", "low_rank"):
        found = laplace(key, model, *data, hessian=hessian, rank=4)
        assert np.max(np.abs(np.asarray(found.loc["x"]) - loc) / np.sqrt(variances)) < MODE_ERROR
        ratio[hessian] = np.asarray(found.cov) / variances
    assert np.min(ratio["diagonal"]) < 0.1
    assert np.max(np.abs(ratio["low_rank"] - 1)) < 0.05


@pytest.mark.parametrize("scaled", [False, True])
def test_the_diagonal_from_random_signs_is_right_within_its_standard_error(scaled):
    # Var[z_i (A z)_i] = sum_{j != i} A_ij^2, A = S H S; S = |diag H|^(-1/2) takes out the unequal
    # scales.
    loc, cov = gaussian(30)
    precision, num_probes = np.linalg.inv(cov), 25
    scale = np.diag(precision) ** -0.5 if scaled else np.ones(30)
    data = tuple(jnp.asarray(array, FLOAT) for array in (loc, precision, 0.0))
    rng = np.random.default_rng(3)
    estimate = curvature.diagonal(rng, gaussian_model(30), loc, data, scale, num_probes)
    a = scale[:, None] * precision * scale
    variance = (np.sum(a**2, axis=1) - np.diag(a) ** 2) / num_probes
    z = (np.asarray(estimate, np.float64) - np.diag(precision)) * scale**2 / np.sqrt(variance)
    assert np.max(np.abs(z)) < 4
    assert 0.5 < np.sqrt(np.mean(z**2)) < 1.5


def test_few_probes_are_exact_for_a_diagonal_hessian(key):
    loc, cov = gaussian(30)
    found = fit(key, loc, np.diag(1 / np.diag(cov)), hessian="diagonal", num_probes=4)
    assert np.allclose(found.cov, np.diag(cov), rtol=10 * RTOL)


def test_a_fit_by_few_probes_is_right_within_their_standard_error(key):
    # The last signs are in units of the estimate before: the standard error is about that at the
    # true scale.
    loc, cov = gaussian(30)
    precision, num_probes = np.linalg.inv(cov), 29
    found = fit(key, loc, precision, hessian="diagonal", num_probes=num_probes)
    correlation = precision / np.sqrt(np.outer(np.diag(precision), np.diag(precision)))
    z = (1 / np.asarray(found.cov) / np.diag(precision) - 1) / np.sqrt(
        (np.sum(correlation**2, 1) - 1) / num_probes
    )
    assert np.max(np.abs(z)) < 5
    assert 0.5 < np.sqrt(np.mean(z**2)) < 2


# --- Models that are not Gaussian. ---


def log_poisson(theta, x, y):
    """y_n ~ Poisson(rate exp(x_n w)), rate ~ Gamma(3, 2), w ~ N(0, 1), up to a constant."""
    log_mean = jnp.log(theta["rate"]) + x @ theta["w"]
    log_prior = 2 * jnp.log(theta["rate"]) - 2 * theta["rate"] - 0.5 * theta["w"] @ theta["w"]
    return log_prior + jnp.sum(y * log_mean - jnp.exp(log_mean))


def test_poisson_regression_against_scipy(key):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(40, 2)) * np.array([1.0, 0.3])
    y = rng.poisson(4 * np.exp(x @ np.array([0.5, -1.0])))

    def loss(u):  # with log|det J| = log rate
        log_mean = u[0] + x @ u[1:]
        return (
            2 * np.exp(u[0])
            - 3 * u[0]
            + 0.5 * u[1:] @ u[1:]
            - np.sum(y * log_mean - np.exp(log_mean))
        )

    mode = scipy.optimize.minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-7}).x
    features = np.concatenate([np.ones((40, 1)), x], axis=1)
    prior = np.diag([2 * np.exp(mode[0]), 1, 1])
    cov = np.linalg.inv((features.T * np.exp(features @ mode)) @ features + prior)
    model = Model({"rate": positive(), "w": real(2)}, log_poisson)
    found = laplace(key, model, jnp.asarray(x, FLOAT), jnp.asarray(y, FLOAT))
    assert np.allclose(
        trees.ravel(model.latents, found.loc), mode, atol=1e-4 * np.sqrt(np.diag(cov))
    )
    assert np.allclose(model.constrain(found.loc)["rate"], np.exp(mode[0]), rtol=1e-4)
    assert correlation_error(found.cov, cov) < 1e-4
    log_evidence = -loss(mode) + 1.5 * np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(cov)[1]
    assert np.allclose(found.log_evidence, log_evidence, rtol=10 * RTOL)


def log_gamma(theta, shape, rate):
    return (shape - 1) * jnp.log(theta["a"]) - rate * theta["a"]


@pytest.mark.parametrize("hessian", standing_for(MODES, "low_rank"))
def test_a_gamma_density_has_stirlings_evidence(hessian, key):
    # In u = log theta: shape u - rate e^u, whose mode is log(shape / rate), and curvature shape.
    found = laplace(key, Model({"a": positive()}, log_gamma), 7.0, 3.0, hessian=hessian, rank=1)
    assert np.allclose(found.loc["a"], np.log(7 / 3), atol=100 * RTOL)
    assert np.allclose(np.ravel(found.cov), 1 / 7, rtol=100 * RTOL)
    assert np.allclose(
        found.log_evidence, 7 * np.log(7 / 3) - 7 + 0.5 * np.log(2 * np.pi / 7), rtol=10 * RTOL
    )


def log_regression(theta, x, y):
    return jnp.sum(norm.logpdf(y, x @ theta["w"], 3.0)) - 0.5 * theta["w"] @ theta["w"] / 100


def test_the_mode_is_found_where_the_log_density_has_few_digits_left(key):
    # -1.3e4, which float32 holds to 1e-3; a hundredth of a posterior sd changes it by 5e-5.
    rng = np.random.default_rng(6)
    x = rng.normal(size=(5000, 4)) @ (np.eye(4) + 0.4) * np.array([0.01, 1, 1, 100])
    y = x @ np.array([50.0, 1.0, -2.0, 0.03]) + 3 * rng.normal(size=5000)
    x, y = np.asarray(x, FLOAT).astype(np.float64), np.asarray(y, FLOAT).astype(np.float64)
    precision = x.T @ x / 9 + np.eye(4) / 100
    mode = np.linalg.solve(precision, x.T @ y / 9)
    found = laplace(
        key, Model({"w": real(4)}, log_regression), jnp.asarray(x, FLOAT), jnp.asarray(y, FLOAT)
    )
    error = np.asarray(found.loc["w"], np.float64) - mode
    assert np.sqrt(error @ precision @ error) < 0.01
    assert found.log_evidence < -1e4
    assert correlation_error(found.cov, np.linalg.inv(precision)) < 10 * RTOL


def test_no_latents(key):
    model = Model({}, lambda theta, x: jnp.sum(x))
    for hessian in ("exact", "diagonal"):
        assert laplace(key, model, jnp.arange(4.0), hessian=hessian).log_evidence == 6.0


# --- A Hessian that is no precision. ---

# name: (S H S, with eigenvalues 1 - r, 1, 1 + r; the eigenvalues)
BAD = {"singular": 1.0, "indefinite": 2.0}
SCALES = np.array([0.5, 20.0, 3.0])


def bad_precision(kind, hessian):
    """(H, the eigenvalues of S H S), which the diagonal only sees on the diagonal."""
    r = BAD[kind]
    if hessian == "diagonal":
        return np.diag([1, 1 - r, 1]) / SCALES**2, [1 - r, 1, 1]
    return np.array([[1, r, 0], [r, 1, 0], [0, 0, 1]]) / SCALES[:, None] / SCALES, [1 - r, 1, 1 + r]


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("hessian", MODES)
def test_a_singular_or_indefinite_hessian_is_an_error_with_its_eigenvalues(kind, hessian, key):
    precision, eigenvalues = bad_precision(kind, hessian)
    with pytest.raises(
        IndefiniteHessianError, match=r"positive definite Hessian.*min_eigenvalue"
    ) as caught:
        fit(
            key,
            np.zeros(3),
            precision,
            hessian=hessian,
            rank=1,
            start={"a": jnp.zeros(2), "b": jnp.zeros(1)},
        )
    assert np.allclose(caught.value.eigenvalues, eigenvalues, atol=10 * RTOL)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("hessian", MODES)
def test_min_eigenvalue_mends_it(kind, hessian, key):
    precision, eigenvalues = bad_precision(kind, hessian)
    start = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    found = fit(
        key, np.zeros(3), precision, hessian=hessian, rank=1, start=start, min_eigenvalue=0.25
    )
    assert np.allclose(found.eigenvalues, eigenvalues, atol=10 * RTOL)
    vectors = (
        np.array([[1, -1, 0], [1, 1, 0], [0, 0, 2**0.5]]) / 2**0.5
    )  # rows, of eigenvalues 1 - r, 1 + r and 1
    if hessian == "exact":
        values = np.array([0.25, 1 + BAD[kind], 1])
        expected = SCALES[:, None] * (vectors.T / values @ vectors) * SCALES
    elif hessian == "low_rank":
        expected = SCALES**2 * (1 + (1 / 0.25 - 1) * vectors[0] ** 2)
    else:
        # Where H_ii is zero there is no scale to speak of: the eigenvalue is that of H itself.
        expected = np.where([True, kind == "indefinite", True], SCALES**2, 1) * np.array([1, 4, 1])
    assert np.allclose(found.cov, expected, rtol=100 * RTOL)


def log_logistic(theta, x, y):
    logits = x @ theta["w"]
    return jnp.sum(y * logits - jax.nn.softplus(logits))


@pytest.mark.parametrize("hessian", standing_for(["exact", "low_rank"], "exact"))
def test_columns_that_depend_on_each_other_are_found_in_either_precision(hessian, key):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(3000, 2)) @ np.array([[1.0, 2.0, -3.0], [0.5, 1.0, 1.0]])
    y = rng.integers(0, 2, 3000)
    model = Model({"w": real(3)}, log_logistic)
    with pytest.raises(IndefiniteHessianError) as caught:
        laplace(key, model, jnp.asarray(x, FLOAT), jnp.asarray(y, FLOAT), hessian=hessian, rank=1)
    assert abs(caught.value.eigenvalues[0]) < 1e-5
    assert caught.value.eigenvalues[1] > 0.1


# --- Where other guides start. ---


def started(guide, found, key):
    @jax.jit
    def centre_and_factor(loc, cov):
        q = guide.distribution(guide.init(key, loc=loc, cov=cov))
        draw = lambda eps: trees.ravel(guide.latents, q.from_noise(eps)[0])
        zeros = jnp.zeros(q.noise_size, FLOAT)
        return draw(zeros), jax.jacobian(draw)(zeros)

    centre, half = centre_and_factor(found.loc, found.cov)
    assert np.allclose(centre, vector(found.loc), rtol=RTOL)
    half = np.asarray(half, np.float64)
    return half @ half.T


def test_the_gaussian_families_start_from_a_fit(key):
    loc, cov = gaussian(3, seed=2)
    precision = np.linalg.inv(cov)
    found = fit(key, loc, precision)
    latents = gaussian_model(3).latents
    assert correlation_error(started(minisvi.full_rank(latents), found, key), cov) < 10 * RTOL
    mean_field = np.diag(1 / np.diag(precision))  # the KL-optimal one
    assert (
        correlation_error(started(minisvi.mean_field(latents), found, key), mean_field) < 10 * RTOL
    )
    block = cov.copy()
    block[:2, 2:], block[2:, :2] = 0, 0
    assert (
        correlation_error(started(minisvi.block(latents, [["a"], ["b"]]), found, key), block)
        < 10 * RTOL
    )
    whole = started(minisvi.block(latents, [["b", "a"]]), found, key)
    assert correlation_error(whole, cov) < 10 * RTOL


def test_low_rank_starts_near_a_target_of_its_family(key):
    loc, cov = gaussian(30, rank=4)
    found = fit(key, loc, np.linalg.inv(cov))
    latents = gaussian_model(30).latents

    def kl(guide):
        ratio = np.linalg.solve(cov, started(guide, found, key))
        return 0.5 * (np.trace(ratio) - 30 - np.linalg.slogdet(ratio)[1])

    assert kl(minisvi.low_rank(latents, 4)) < 0.05 * kl(minisvi.mean_field(latents))


@pytest.mark.whole
@pytest.mark.foreign
@pytest.mark.parametrize(
    "make", [minisvi.affine_coupling, minisvi.inverse_autoregressive, minisvi.spline_coupling]
)
def test_a_flow_starts_from_a_fit(make, key):
    loc, cov = gaussian(3, seed=2)
    found = fit(key, loc, np.linalg.inv(cov))
    flow = make(found.guide, num_layers=2)
    q = flow.distribution(jax.jit(lambda key: flow.init(key, base=found.params))(key))
    exact = found.guide.distribution(found.params)

    @jax.jit
    @jax.vmap
    def log_qs(k):
        u, log_q = q.sample_and_log_prob(seed=k)
        return log_q, q.log_prob(u), exact.log_prob(u)

    drawn, scored, expected = log_qs(jax.random.split(key, 3))
    assert np.allclose(drawn, expected, rtol=10 * RTOL)
    assert np.allclose(scored, expected, rtol=10 * RTOL)


# --- Bad input, and compilation. ---


def log_of_positive(theta):
    return jnp.log(theta["w"]) - theta["w"]


BAD_INPUT = {
    "hessian": (
        ValueError,
        {"hessian": "full"},
        r"`hessian` must be one of \['exact', .*\]; got 'full'",
    ),
    "rank too large": (
        ValueError,
        {"hessian": "low_rank", "rank": 4},
        r"`rank` must be in 1..3, .*; got 4",
    ),
    "rank zero": (
        ValueError,
        {"hessian": "low_rank", "rank": 0},
        "`rank` must be an integer >= 1; got 0",
    ),
    "rank a float": (
        TypeError,
        {"hessian": "low_rank", "rank": 2.0},
        "`rank` must be an integer >= 1; got 2.0",
    ),
    "num_probes": (ValueError, {"num_probes": 0}, "`num_probes` must be an integer >= 1; got 0"),
    "max_steps": (TypeError, {"max_steps": None}, "`max_steps` must be an integer >= 1; got None"),
    "min_eigenvalue": (
        ValueError,
        {"min_eigenvalue": 0.0},
        "`min_eigenvalue` must be None or > 0; got 0.0",
    ),
    "start": (
        ValueError,
        {"start": {"a": jnp.zeros(2)}},
        r"loc: expected a tree with leaves \['a', 'b'\]",
    ),
    "start's shape": (
        ValueError,
        {"start": {"a": jnp.zeros(3), "b": jnp.zeros(1)}},
        r"loc `a`: expected shape \(2,\); got \(3,\)",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(name, key):
    error, options, message = BAD_INPUT[name]
    with pytest.raises(error, match=message):
        fit(key, np.zeros(3), np.eye(3), **options)


def test_a_key_is_needed():
    with pytest.raises(TypeError, match="`key` must be one PRNG key"):
        fit(7, np.zeros(3), np.eye(3))


@pytest.mark.parametrize(("start", "value"), [(-1.0, "nan"), (0.0, "-inf")])
def test_a_start_outside_the_support(start, value, key):
    model = Model({"w": real()}, log_of_positive)
    with pytest.raises(
        ValueError, match=f"expected a finite log density .*; got {value}, .* give another `start`"
    ):
        laplace(key, model, start={"w": jnp.array(start)})
    assert np.allclose(laplace(key, model, start={"w": jnp.array(0.1)}).loc["w"], 1.0, atol=1e-3)


@pytest.mark.parametrize(
    "make", [minisvi.mean_field, minisvi.full_rank, lambda latents: minisvi.low_rank(latents, 1)]
)
@pytest.mark.parametrize("shape", [(2, 2), (4,), (), (3, 1)])
def test_a_covariance_of_another_shape(make, shape, key):
    message = rf"`cov`: expected shape \(3, 3\) or \(3,\); got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        make(gaussian_model(3).latents).init(key, cov=jnp.ones(shape))


@pytest.mark.parametrize("hessian", standing_for(MODES, "diagonal"))
def test_new_data_of_the_same_shape_compile_nothing(hessian, key):
    traces = []

    def log_joint(theta, x):
        traces.append(1)
        return -0.5 * jnp.sum((theta["w"] - x) ** 2)

    fit = lambda x: laplace(key, Model({"w": real(3)}, log_joint), x, hessian=hessian, rank=1)
    assert np.allclose(fit(jnp.array([1.0, 2.0, 3.0])).loc["w"], [1, 2, 3], atol=1e-3)
    assert traces
    traces.clear()
    assert np.allclose(fit(jnp.array([4.0, -5.0, 6.0])).loc["w"], [4, -5, 6], atol=1e-3)
    assert traces == []
