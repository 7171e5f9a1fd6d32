"""Draws, summaries and predictions, plain and reweighted: against closed forms, and the same
numbers in chunks.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import members_of
from jax.scipy.special import gammaln, ndtri

from minisvi import Draws, Model, Posterior, custom, log_weights, mean_field, positive, real
from minisvi.posterior.draws import plain
from minisvi.posterior.weighted import quantiles

# theta = (a, exp(b)): N((5, -2), (3, 0.5)^2), a normal and a log-normal away from the origin.
LATENTS = {"a": real(2), "tau": positive()}
MODEL = Model(LATENTS, lambda theta: jnp.zeros(()))
PARAMS = {"loc": jnp.array([5.0, -2.0, 0.7]), "log_scale": jnp.log(jnp.array([3.0, 0.5, 0.2]))}
POSTERIOR = Posterior(MODEL, mean_field(LATENTS), PARAMS)
N = 100_000


def test_summaries_equal_the_closed_forms(key):
    within = lambda got, exact, sd: np.all(
        np.abs(np.asarray(got) - exact) < 4 * np.asarray(sd) / N**0.5
    )
    tau_mean = np.exp(0.7 + 0.02)
    tau_sd = tau_mean * np.sqrt(np.expm1(0.04))
    mean, sd, median = POSTERIOR.mean(key, N), POSTERIOR.sd(key, N), POSTERIOR.median(key, N)
    assert within(mean["a"], [5.0, -2.0], [3.0, 0.5])
    assert within(mean["tau"], tau_mean, tau_sd)
    assert within(sd["a"], [3.0, 0.5], [3.0, 0.5])
    assert within(sd["tau"], tau_sd, 1.5 * tau_sd)
    assert within(
        median["a"], [5.0, -2.0], [4.0, 0.7]
    )  # the median's error is sqrt(pi / 2) of the mean's
    assert within(median["tau"], np.exp(0.7), 1.3 * tau_sd)


def test_quantiles(key):
    p = jnp.array([0.05, 0.5, 0.9])
    quantiles = POSTERIOR.quantiles(key, p, N)
    assert quantiles["a"].shape == (3, 2)
    exact = np.array([[5.0, -2.0]]) + np.asarray(ndtri(p))[:, None] * np.array([[3.0, 0.5]])
    assert np.allclose(quantiles["a"], exact, atol=0.05)
    assert np.allclose(quantiles["tau"], np.exp(0.7 + 0.2 * np.asarray(ndtri(p))), atol=0.02)
    assert POSTERIOR.quantiles(key, 0.25, 10)["tau"].shape == ()


def noisy(key, theta, x):
    return {
        "mean": theta["a"] @ x,
        "draw": theta["a"] @ x + theta["tau"] * jax.random.normal(key, x.shape[1:]),
    }


def test_predictions_spilled_to_files_are_those_in_memory(key, tmp_path):
    x = jnp.array([0.3, -2.0, 5.0])
    whole = POSTERIOR.predictive(key, by_name, 23, x)
    spilled = POSTERIOR.predictive(key, by_name, 23, x, batch_size=7, out=tmp_path / "new")
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "noise.npy",
        "shifted.y.npy",
    ]
    assert isinstance(spilled["shifted"]["y"], np.memmap)
    jax.tree.map(np.testing.assert_array_equal, spilled, jax.device_get(whole))
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "noise.npy"), whole["noise"])
    with pytest.raises(
        ValueError, match="`out` takes the draws in chunks: expected a `batch_size`"
    ):
        POSTERIOR.predictive(key, by_name, 23, x, out=tmp_path)


def spill(directory, fn):
    draws = plain({"x": jnp.arange(5.0)}, 5)
    return draws.predictive(jax.random.key(0), fn, 5, batch_size=2, out=directory)


def test_files_that_are_there_are_not_written_over(tmp_path):
    first = spill(tmp_path, lambda key, theta: {"a": theta["x"]})
    kept = np.array(first["a"])
    with pytest.raises(
        FileExistsError, match=r"`out`: .* has \['a.npy'\] already: give a new directory"
    ):
        spill(tmp_path, lambda key, theta: {"a": -theta["x"], "b": theta["x"]})
    np.testing.assert_array_equal(first["a"], kept)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]


def test_files_stay_in_their_directory_whatever_the_names(tmp_path):
    outside = str(tmp_path / "elsewhere")
    names = ["a/b", "../evil", outside, "", ".", "..", "\0", "%2F", "\\", "n.1"]
    found = spill(
        tmp_path / "out", lambda key, theta: {name: i + theta["x"] for i, name in enumerate(names)}
    )
    assert {str(array.filename.parent) for array in found.values()} == {str(tmp_path / "out")}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    for i, name in enumerate(names):
        np.testing.assert_array_equal(np.sort(np.load(found[name].filename)), i + np.arange(5.0))


COLLIDING = {"a": {"b": 1.0}, "a.b": 2.0}
MISTAKES = {
    "two leaves of one name": (
        lambda key, theta: COLLIDING,
        ValueError,
        r"`a.b` for both \['a'\]\['b'\] and \['a.b'\]",
    ),
    "keys": (
        lambda key, theta: {"k": key},
        TypeError,
        "expected numbers; got PRNG keys for `k`: take their key_data",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_has_no_files_is_refused_before_it_is_computed(name, tmp_path):
    fn, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        spill(tmp_path / "out", fn)
    assert not (tmp_path / "out").exists()


def by_name(key, theta, x):
    return {
        "noise": jax.random.normal(key),
        "shifted": {"y": x + jnp.sum(jax.tree.leaves(theta)[0])},
    }


def test_predictions_do_not_depend_on_the_batch_size(key):
    x = jnp.arange(10.0).reshape(2, 5)
    whole = POSTERIOR.predictive(key, noisy, 23, x)
    assert whole["draw"].shape == (23, 5)
    for batch_size in (1, 7, 23, 100):
        parts = POSTERIOR.predictive(key, noisy, 23, x, batch_size=batch_size)
        assert isinstance(parts["draw"], np.ndarray)  # on the host
        np.testing.assert_allclose(parts["draw"], whole["draw"], rtol=1e-5, atol=1e-5)


def test_predictions_use_the_draws_of_sample_and_fresh_noise(key):
    draws, x = POSTERIOR.sample(key, 5000), jnp.array([[2.0], [-1.0]])
    predictions = POSTERIOR.predictive(key, noisy, 5000, x)
    np.testing.assert_allclose(predictions["mean"], draws["a"] @ x, rtol=1e-5, atol=1e-5)
    noise = (predictions["draw"] - predictions["mean"])[:, 0] / draws["tau"]
    assert abs(noise.mean()) < 4 / 5000**0.5
    assert abs(noise.std() - 1) < 4 / 10_000**0.5
    assert abs(np.corrcoef(noise, draws["a"][:, 0])[0, 1]) < 4 / 5000**0.5


@pytest.mark.parametrize("num_inputs", [0, 1, 33])
def test_new_inputs_of_any_size(num_inputs, key):
    assert POSTERIOR.predictive(key, noisy, 4, jnp.ones((2, num_inputs)))["draw"].shape == (
        4,
        num_inputs,
    )


def test_the_same_shapes_are_compiled_once(key):
    traces = []

    def fn(key, theta, x):
        traces.append(None)
        return theta["tau"] * x

    for i in range(3):
        POSTERIOR.predictive(jax.random.key(i), fn, 12, jnp.full(3, 1.0 + i), batch_size=5)
    assert len(traces) == 1


def test_parts_over_theta_are_not_transformed_again(key):
    class Exponential:  # over theta > 0
        def sample_and_log_prob(self, *, seed):
            x = 4.0 * jax.random.exponential(seed)
            return x, -x / 4 - jnp.log(4.0)

    model = Model({"tau": positive()}, lambda theta: jnp.zeros(()))
    guide = custom(lambda key: {}, lambda params, *_: {"tau": Exponential()}, constrained=True)
    draws = Posterior(model, guide, {}).sample(key, N)["tau"]
    assert abs(draws.mean() - 4.0) < 4 * 4.0 / N**0.5


def test_amortised_guides_see_the_data(key):
    class Shifted:
        def __init__(self, loc):
            self.loc = loc

        def sample_and_log_prob(self, *, seed):
            eps = jax.random.normal(seed, self.loc.shape)
            return self.loc + 0.01 * eps, jnp.sum(-0.5 * eps**2)

    guide = custom(
        lambda key: {"w": jnp.ones(())}, lambda params, x: {"a": Shifted(params["w"] * x)}
    )
    model = Model({"a": real(3)}, lambda theta, x: jnp.zeros(()))
    x = jnp.array([10.0, -4.0, 2.0])
    assert np.allclose(
        Posterior(model, guide, {"w": jnp.asarray(2.0)}, (x,)).mean(key, 500)["a"], 2 * x, atol=0.01
    )


# Weighted draws.

WEIGHTS = jnp.array([1.0, 4.0, 0.0, 2.0, 3.0])
X = jnp.array([[1007.0, -3.0], [1001.0, 2.0], [1e6, -1e6], [1003.0, 0.5], [1002.0, 9.0]])
DRAWS = Draws({"x": X, "n": jnp.array([3, 1, 7, 0, 2])}, jnp.log(WEIGHTS / 10))
REPEATED = np.repeat(np.asarray(X, float), np.asarray(WEIGHTS, int), axis=0)


def test_integer_weights_are_repeated_draws(rtol):
    np.testing.assert_allclose(DRAWS.mean()["x"], REPEATED.mean(0), rtol=rtol)
    np.testing.assert_allclose(DRAWS.sd()["x"], REPEATED.std(0), rtol=20 * rtol)
    assert DRAWS.mean()["n"] == pytest.approx((3 + 4 + 0 + 6) / 10, rel=rtol)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_equal_weights_give_the_quantiles_of_jax(size, key, rtol):
    x = 1000 + 5 * jax.random.normal(key, (size, 2, 3))
    p = jnp.array([0.0, 0.01, 0.33, 0.5, 0.9, 1.0])
    np.testing.assert_allclose(
        quantiles(x, plain(x, size).log_weights, p), jnp.quantile(x, p, axis=0), rtol=rtol
    )


@pytest.mark.parametrize("p", [0.0, 0.1, 0.42, 0.5, 0.77, 1.0])
def test_weighted_quantiles_average_the_quantile_function_over_a_window(p, rtol):
    # The quantile function of the repeated draws is constant on tenths, so that its mean over a
    # window is exact.
    n = 1 / np.sum((np.asarray(WEIGHTS) / 10) ** 2)
    edges = p * (1 - 1 / n) + np.array([0.0, 1.0]) / n
    share = np.diff(np.clip(np.linspace(0, 1, 11), *edges)) * n
    np.testing.assert_allclose(
        DRAWS.quantiles(p)["x"], share @ np.sort(REPEATED, axis=0), rtol=10 * rtol
    )


def test_a_draw_without_weight_changes_nothing_and_one_with_weight_always_counts(rtol):
    summaries = lambda draws: (
        draws.mean(),
        draws.sd(),
        draws.quantiles(jnp.array([0.0, 0.3, 1.0])),
    )
    expected = summaries(
        Draws(X[jnp.array([0, 1, 3, 4])], DRAWS.log_weights[jnp.array([0, 1, 3, 4])])
    )
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        got = summaries(Draws(X.at[2].set(bad), DRAWS.log_weights))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), got, expected)
        assert not np.any(np.isfinite(Draws(X.at[3].set(bad), DRAWS.log_weights).mean()))
    assert np.all(np.isnan(Draws(X.at[3].set(jnp.nan), DRAWS.log_weights).quantiles(0.1)))
    assert np.all(np.isfinite(Draws(X.at[3].set(jnp.inf), DRAWS.log_weights).quantiles(0.3)))


def test_quantiles_of_a_constant_are_that_constant(key):
    x, p = jnp.full((50, 2), 0.1), jnp.linspace(0.0, 1.0, 7)
    got = quantiles(x, jax.nn.log_softmax(jax.random.normal(key, (50,))), p)
    np.testing.assert_array_equal(got, jnp.full((7, 2), 0.1))


def deterministics(theta):
    x, n = theta["x"], theta["n"]
    return {
        "contrast": x[0] - 2 * x[1],
        "positive": x[1] > 1.0,
        "small": n.astype(jnp.uint8),
        "fixed": 7.0,
    }


def test_functions_of_theta_have_a_posterior_of_their_own(rtol):
    mapped = DRAWS.map(deterministics)
    np.testing.assert_array_equal(mapped.log_weights, DRAWS.log_weights)
    mean, sd, median = mapped.mean(), mapped.sd(), mapped.median()
    contrast = REPEATED[:, 0] - 2 * REPEATED[:, 1]
    np.testing.assert_allclose(mean["contrast"], contrast.mean(), rtol=rtol)
    np.testing.assert_allclose(sd["contrast"], contrast.std(), rtol=20 * rtol)
    # By hand: x[1] > 1 has weight 4 + 3 of 10, and n is 3, 1, 0, 2 with weights 1, 4, 2, 3.
    np.testing.assert_allclose(mean["positive"], 0.7, rtol=rtol)
    np.testing.assert_allclose(sd["positive"], 0.21**0.5, rtol=rtol)
    np.testing.assert_allclose(mean["small"], 1.3, rtol=rtol)
    np.testing.assert_allclose(sd["small"], 0.9, rtol=rtol)
    assert (mean["fixed"], sd["fixed"], median["fixed"]) == (7.0, 0.0, 7.0)


def test_a_function_of_a_draw_without_weight_does_not_count(rtol):
    outside = DRAWS._replace(theta=DRAWS.theta | {"x": X.at[2].set(jnp.nan)})
    got, expected = outside.map(deterministics), DRAWS.map(deterministics)
    assert np.isnan(got.theta["contrast"][2])
    for statistic in (Draws.mean, Draws.sd, Draws.median):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=rtol), statistic(got), statistic(expected)
        )


def test_a_function_of_no_latents_has_as_many_draws():
    assert plain({}, 5).map(lambda theta: jnp.array([3.0, 4.0])).theta.shape == (5, 2)


def test_resampling_takes_the_next_by_the_weights_that_are_left(key):
    draws, num = Draws(np.arange(5), np.asarray(DRAWS.log_weights)), 3000
    keys = np.asarray(jax.random.key_data(jax.random.split(key, num)))
    rows = np.array([draws.resample(key, 3).theta for key in keys])
    w = np.asarray(WEIGHTS) / 10
    second = w * (
        np.sum(w / (1 - w)) - w / (1 - w)
    )  # p(second = j) = sum_{i != j} w_i w_j / (1 - w_i)
    for got, exact in ((rows[:, 0], w), (rows[:, 1], second)):
        frequency = np.bincount(got, minlength=5) / num
        assert np.all(np.abs(frequency - exact) <= 4 * np.sqrt(exact * (1 - exact) / num))
    assert np.all(np.diff(np.sort(rows, axis=1), axis=1) > 0)  # none twice


def test_a_resample_holds_the_smaller_ones_and_draws_of_equal_weight(key, rtol):
    three, two = DRAWS.resample(key, 3), DRAWS.resample(key, 2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:2], b), three.theta, two.theta)
    np.testing.assert_allclose(three.log_weights, -np.log(3), rtol=rtol)
    jax.tree.map(np.testing.assert_array_equal, DRAWS.resample(key, 3), three)
    legacy = jax.random.key_data(key)
    jax.tree.map(np.testing.assert_array_equal, DRAWS.resample(legacy, 3), three)
    other = plain(np.arange(1000), 1000)
    assert np.any(other.resample(key, 9).theta != other.resample(jax.random.key(1), 9).theta)


def test_more_draws_than_there_are_with_a_weight(key):
    with pytest.raises(
        ValueError, match=r"`num_samples` must be in 1\.\.4, the draws that have a weight; got 5"
    ):
        DRAWS.resample(key, 5)
    with pytest.raises(ValueError, match=r"`num_samples` must be an integer >= 1; got 0"):
        DRAWS.resample(key, 0)


def test_predictions_at_resampled_draws(key):
    draws, x = POSTERIOR.draws(key, 4000), jnp.array([[2.0], [-1.0]])
    chosen = draws.resample(key, 1000).theta
    predictions = draws.predictive(key, noisy, 1000, x)
    np.testing.assert_allclose(predictions["mean"], chosen["a"] @ x, rtol=1e-5, atol=1e-5)
    noise = (predictions["draw"] - predictions["mean"])[:, 0] / chosen["tau"]
    assert abs(noise.mean()) < 4 / 1000**0.5
    assert abs(noise.std() - 1) < 4 / 2000**0.5
    parts = draws.predictive(key, noisy, 1000, x, batch_size=300)
    np.testing.assert_allclose(parts["draw"], predictions["draw"], rtol=1e-5, atol=1e-5)


# Log weights. The target: tau ~ Gamma(3, rate 2) and a ~ N((1, 2), 1), times e^7, so that log p(D)
# = 7.


def gamma_and_normals(theta, evidence):
    tau = 2 * jnp.log(theta["tau"]) - 2 * theta["tau"] + 3 * jnp.log(2.0) - gammaln(3.0)
    return (
        evidence
        + tau
        - 0.5 * jnp.sum((theta["a"] - jnp.array([1.0, 2.0])) ** 2)
        - jnp.log(2 * jnp.pi)
    )


TARGET = Model(LATENTS, gamma_and_normals)
NEARBY = {"loc": jnp.array([1.3, 1.9, 0.4]), "log_scale": jnp.log(jnp.array([1.3, 1.2, 0.8]))}
SHIFTED = Posterior(TARGET, mean_field(LATENTS), NEARBY, (jnp.asarray(7.0),))


class Wide:
    """tau ~ Exponential(rate 1/2) over theta itself, beside normals."""

    def sample_and_log_prob(self, *, seed):
        x = 2.0 * jax.random.exponential(seed)
        return x, -x / 2 - jnp.log(2.0)


class Normals:
    def sample_and_log_prob(self, *, seed):
        x = 1.5 + 1.5 * jax.random.normal(seed, (2,))
        return x, -jnp.sum(((x - 1.5) / 1.5) ** 2) / 2 - 2 * jnp.log(1.5) - jnp.log(2 * jnp.pi)


OVER_THETA = custom(
    lambda key: {},
    lambda *_: {"a": Normals(), "tau": Wide()},
    constrained={"a": False, "tau": True},
)


@pytest.mark.parametrize("guide", [None, OVER_THETA], ids=["u", "theta"])
def test_reweighted_draws_have_the_moments_and_the_evidence_of_the_target(guide, key, rtol):
    posterior = SHIFTED if guide is None else Posterior(TARGET, guide, {}, SHIFTED.data)
    draws, smoothed = posterior.reweighted(key, 20_000)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=10 * rtol),
        draws.theta,
        posterior.sample(key, 20_000),
    )
    ess = 1 / np.sum(np.exp(2 * np.asarray(draws.log_weights)))
    assert smoothed.khat < 0.5
    assert 4000 < ess < 20_000
    assert abs(smoothed.log_evidence - 7) < 4 * np.sqrt(1 / ess - 1 / 20_000)
    mean, sd = draws.mean(), draws.sd()
    assert np.all(np.abs(mean["a"] - np.array([1.0, 2.0])) < 4 / ess**0.5)
    assert abs(mean["tau"] - 1.5) < 4 * 0.75**0.5 / ess**0.5
    assert np.all(np.abs(sd["a"] - 1) < 4 * 0.71 / ess**0.5)
    assert (
        abs(draws.median()["tau"] - 1.33703) < 4 * 1.1 / ess**0.5
    )  # scipy.stats.gamma.ppf(0.5, 3, scale=0.5)
    assert np.all(
        np.abs(posterior.mean(key)["a"] - np.array([1.0, 2.0]))[0] > 0.2
    )  # and q itself has not


SLOW = ["student_t", "conditional", "custom tfp", "spline_coupling", "flow over a mixture"]
KINDS = ["mixture"] + [pytest.param(name, marks=pytest.mark.slow) for name in SLOW]


@pytest.mark.foreign
@pytest.mark.parametrize("name", KINDS)
def test_log_weights_of_every_kind_of_guide(name, key, rtol):
    guide, latents, params = members_of(name, 3, key)
    model = Model(latents, lambda theta, y: -jnp.sum((theta["a"] - y) ** 2) + theta["b"])
    y = jnp.array([3.0, -1.0])
    u, log_w = log_weights(key, model, guide, params, y, num_samples=9, batch_size=4)
    q = guide.distribution(params, y)
    expected = jax.vmap(lambda u: model.log_density(u, y) - q.log_prob(u))(u)
    np.testing.assert_allclose(log_w, expected, rtol=100 * rtol, atol=100 * rtol)
    assert np.unique(u["b"]).size == 9


def test_log_weights_do_not_depend_on_the_batch_size(key, rtol):
    args = key, TARGET, SHIFTED.guide, NEARBY, *SHIFTED.data
    whole = log_weights(*args, num_samples=23)
    parts = log_weights(*args, num_samples=23, batch_size=7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), parts, whole)
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1; got 0"):
        log_weights(*args, num_samples=23, batch_size=0)


def test_log_weights_are_compiled_once(key):
    traces = []

    def log_joint(theta, y):
        traces.append(None)
        return -jnp.sum((theta["a"] - y) ** 2)

    model = Model({"a": real(2)}, log_joint)
    guide = mean_field(model.latents)
    for i in range(3):
        params = {"loc": jnp.full(2, 1.0 + i), "log_scale": jnp.zeros(2)}
        posterior = Posterior(
            Model({"a": real(2)}, log_joint), guide, params, (jnp.full(2, 2.0 * i),)
        )
        _, smoothed = posterior.reweighted(jax.random.key(i), 500)
        assert smoothed.khat < 0.7
    assert len(traces) == 1


def test_reweighting_without_the_data_says_what_it_needs(key):
    with pytest.raises(TypeError, match="missing 1 required") as caught:
        Posterior(TARGET, SHIFTED.guide, NEARBY).reweighted(key, 10)
    assert any("Posterior(model, guide, params, data)" in note for note in caught.value.__notes__)


def test_weights_of_amortised_guides_are_those_at_the_data(key, rtol):
    class Shifted:
        def __init__(self, loc):
            self.loc = loc

        def sample_and_log_prob(self, *, seed):
            eps = jax.random.normal(seed, self.loc.shape)
            return self.loc + eps, -0.5 * jnp.sum(eps**2)

    guide = custom(lambda key: {}, lambda params, x: {"a": Shifted(2.0 * x)})
    model = Model({"a": real(3)}, lambda theta, x: -0.5 * jnp.sum((theta["a"] - 2.0 * x) ** 2))
    draws, smoothed = Posterior(model, guide, {}, (jnp.array([10.0, -4.0, 2.0]),)).reweighted(
        key, 100
    )
    np.testing.assert_allclose(draws.log_weights, -np.log(100), rtol=10 * rtol)
    np.testing.assert_allclose(smoothed.log_evidence, 0.0, atol=10 * rtol)
