"""What users give: supports, options and data that are wrong are refused by name, and what can be
read is read.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from problems import adam
from tiers import standing_for

import minisvi
from minisvi import SVI, Draws, Model, Posterior, mean_field, real
from minisvi.tools import inputs

KEY = jax.random.key(0)
ADAM = adam(0.1)
NAN, INF = float("nan"), float("inf")
MODEL = Model({"a": real()}, lambda theta: -0.5 * theta["a"] ** 2)


def half(dtype):
    return Model({"a": real(), "b": real(2, dtype)}, lambda theta: -0.5 * theta["a"] ** 2)


def posterior():
    guide = mean_field(MODEL.latents)
    return Posterior(MODEL, guide, guide.init(KEY))


def rows(log_likelihood):
    return Model(
        {"a": real()}, log_prior=lambda theta: -(theta["a"] ** 2), log_likelihood=log_likelihood
    )


def local_posterior():
    guide = minisvi.product({"z": minisvi.per_row(mean_field(real()), 3, lambda x: jnp.arange(3))})
    model = Model({"z": minisvi.local(real())}, lambda theta, x: jnp.sum(theta["z"]))
    return Posterior(model, guide, guide.init(KEY))


# case: (call, error, pattern)
REFUSED = {
    "negative size": (
        lambda: real(-1),
        ValueError,
        r"real: expected a shape of sizes >= 0; got -1",
    ),
    "fractional size": (
        lambda: real(2.5),
        TypeError,
        r"real: expected a shape such as 3 or \(3, 2\); got 2.5",
    ),
    "fractional sizes": (
        lambda: minisvi.positive((2.5,)),
        TypeError,
        r"positive: expected a shape .*got \(2.5,\)",
    ),
    "true for a size": (lambda: real(True), TypeError, r"real: expected a shape .*got True"),
    "no size": (lambda: real(None), TypeError, r"real: expected a shape .*got None"),
    "two sizes": (
        lambda: real(3, 2),
        TypeError,
        r"floating dtype; got 2: .*write real\(\(3, 2\)\)",
    ),
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
    "lower bound of infinity": (
        lambda: minisvi.greater_than(INF),
        ValueError,
        r"`lower` must be a finite",
    ),
    "lower bound in words": (
        lambda: minisvi.greater_than("0"),
        TypeError,
        r"`lower` must be a number; got '0'",
    ),
    "infinite interval": (
        lambda: minisvi.interval(0, INF),
        ValueError,
        r"interval: `high` must be a finite number; got inf",
    ),
    "interval from nan": (
        lambda: minisvi.interval(NAN, 1),
        ValueError,
        r"interval: `low` must be a finite number",
    ),
    "seconds in words": (
        lambda: minisvi.fit(KEY, MODEL, seconds="3"),
        TypeError,
        r"`seconds` must be a number; got '3'",
    ),
    "seconds of nan": (
        lambda: minisvi.fit(KEY, MODEL, seconds=NAN),
        ValueError,
        r"`seconds` must be a number",
    ),
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
    "a prior that is no function": (
        lambda: Model({"a": real()}, prior={"a": None}, log_likelihood=len),
        TypeError,
        r"Model: `prior` must be a function prior\(theta, ...\); got \{'a': None\}",
    ),
    "terms by position": (
        lambda: Model({"a": real()}, len, len),
        TypeError,
        (
            r"got \['log_joint', 'log_prior'\]. Only `log_joint` goes by position: give "
            r"`prior=..., log_likelihood=...` by"
        ),
    ),
    "a learning rate for an optimiser": (
        lambda: SVI(MODEL, mean_field(MODEL.latents), 0.3),
        TypeError,
        r"expected an optax `optimizer`, such as optax.adam\(0.3\); got 0.3",
    ),
    "a guide for a model": (
        lambda: SVI(mean_field(MODEL.latents), MODEL, ADAM),
        TypeError,
        r"expected a `model`, such as Model\(latents, log_joint\); got MeanField",
    ),
    "a model for a guide": (
        lambda: SVI(MODEL, MODEL, ADAM),
        TypeError,
        r"expected a `guide`, such as mean_field",
    ),
    "a row less": (
        lambda: rows(lambda theta, x: x[1:] * theta["a"]).check(jnp.ones(300)),
        ValueError,
        (
            r"expected float\[300\]; got float\d\d\[299\]. Rows are the leading axis "
            r".*`log_joint`, or `per_row=False`"
        ),
    ),
    "rows for a log joint": (
        lambda: Model({"a": real()}, lambda theta, x: x * theta["a"]).check(jnp.ones(3)),
        ValueError,
        r"expected float\[\]; got float\d\d\[3\]. One term per row is a `log_likelihood`",
    ),
    "a prediction from theta alone": (
        lambda: posterior().predictive(KEY, lambda theta: theta["a"], 3),
        TypeError,
        r"`fn` must take fn\(key, theta, \*inputs\); got a function of \(theta\)",
    ),
    "a prediction of draws without its input": (
        lambda: Draws({"a": jnp.ones(3)}, jnp.zeros(3)).predictive(KEY, lambda key, theta, x: x, 3),
        TypeError,
        r"`fn` must take fn\(key, theta, \*inputs\); got a function of \(key, theta, x\)",
    ),
    "a prediction that is no function": (
        lambda: posterior().predictive(KEY, 3, 3),
        TypeError,
        r"must be a function fn",
    ),
    "draws of local latents without data": (
        lambda: local_posterior().sample(KEY, 3),
        ValueError,
        r"latents \['z'\] are local, .*expected Posterior\(model, guide, params, data\)",
    ),
    "predictions from local latents without data": (
        lambda: local_posterior().predictive(KEY, lambda key, theta: theta, 3),
        ValueError,
        r"latents \['z'\] are local",
    ),
    "data of a posterior in no tuple": (
        lambda: Posterior(MODEL, mean_field(MODEL.latents), {}, jnp.ones(3)),
        TypeError,
        r"expected `data` as a tuple, such as \(x,\)",
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
    model = Model(
        {"a": real((3, 0)), "b": real()}, lambda theta: -0.5 * theta["b"] ** 2 + jnp.sum(theta["a"])
    )
    guide = mean_field(model.latents)
    u, log_w = minisvi.log_weights(
        KEY, model, guide, guide.init(KEY), num_samples=70, batch_size=40
    )
    assert u["a"].shape == (70, 3, 0)
    assert jnp.all(jnp.isfinite(log_w))
    tree = minisvi.to_arviz(Draws(u, jnp.zeros(70)), model)
    assert np.allclose(tree["sample_stats"]["lp"][0], -0.5 * u["b"] ** 2, atol=1e-5)


def test_a_guide_of_ones_own_that_takes_data_says_where_they_belong():
    guide = minisvi.custom(lambda key: 0.0, lambda params, x: params)
    with pytest.raises(TypeError) as error:
        Posterior(MODEL, guide, 0.0).sample(KEY, 3)
    assert "needs Posterior(model, guide, params, data)" in "".join(error.value.__notes__)


X = np.array([1.0, 2.0, 4.0], np.float32)
FRAME = pandas.DataFrame({"one": [1, 2, 4], "two": [0.5, 1.0, 2.0]})
# name: (the data, the arrays that they are)
READ = {
    "a list of numbers": ([1.0, 2.0, 4.0], X),
    "a list of NumPy's numbers": (list(X), X),
    "nested lists": ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
    "a series": (FRAME["two"], np.array([0.5, 1.0, 2.0])),
    "a frame": (FRAME, np.array([[1, 0.5], [2, 1.0], [4, 2.0]])),
    "a frame with a flag": (
        FRAME.assign(flag=[True, False, True])[["two", "flag"]],
        np.array([[0.5, 1.0], [1.0, 0.0], [2.0, 1.0]]),
    ),
    "an index": (FRAME.index, np.arange(3)),
    "a list of arrays": ([X, X], [X, X]),
    "a tuple of numbers": ((1.0, 2.0), (1.0, 2.0)),
    "a dict of lists": ({"x": [1.0, 2.0, 4.0], "y": X}, {"x": X, "y": X}),
    "a number": (3.0, 3.0),
}


@pytest.mark.parametrize("name", READ)
def test_data_that_are_read(name):
    given, expected = READ[name]
    (got,) = inputs.arrays((given,))
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert jax.tree.all(jax.tree.map(np.array_equal, got, expected))


def test_arrays_and_tracers_stay_as_they_are():
    x = jnp.ones(3)
    assert inputs.arrays((x, {"y": X})) == (x, {"y": X})
    assert jax.eval_shape(lambda x: inputs.arrays((x,)), x)[0].shape == (3,)


# name: (the data, what is said of them)
UNREADABLE = {
    "words": ("abc", r"data `\[0\]`: expected numbers, .*; got 'abc'"),
    "a word in a list": ([1.0, "a"], r"data `\[0\].1`: expected numbers, .*; got 'a'"),
    "nothing": (None, r"data `\[0\]`: expected numbers, .*; got None"),
    "nothing in a dict": ({"x": X, "y": None}, r"data `\[0\].y`: expected numbers, .*; got None"),
    "objects": (np.array([1, "a"], object), r"data `\[0\]`: .*; got ndarray of object"),
    "dates": (
        np.array(["2024-01-01"], "datetime64[D]"),
        r"data `\[0\]`: .*; got ndarray of datetime64\[D\]",
    ),
    "a column of words": (
        FRAME.assign(name="a"),
        r"a DataFrame whose columns \['name'\] are no numbers",
    ),
    "lists of unequal lengths": (
        [[1.0, 2.0], [3.0]],
        r"data `\[0\]`: .*; got lists of unequal lengths",
    ),
    "a mask": (
        np.ma.masked_array(X, [0, 0, 1]),
        r"data `\[0\]`: .*; got a masked array: give it and its mask",
    ),
    "a function": (len, r"data `\[0\]`: .*; got <built-in function len>"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_data_that_are_refused(name):
    given, pattern = UNREADABLE[name]
    with pytest.raises(TypeError, match=pattern):
        inputs.arrays((given,))


OF_X = Model(
    {"a": real()}, lambda theta, x: -0.5 * theta["a"] ** 2 - jnp.sum((x - theta["a"]) ** 2)
)
GUIDE = mean_field(OF_X.latents)
DRAWS = minisvi.Draws({"a": jnp.arange(5.0)}, jnp.full(5, -jnp.log(5.0)))
TAKES_DATA = {
    "check": lambda x: OF_X.check(x),
    "predictive": lambda x: DRAWS.predictive(KEY, lambda key, theta, x: x * theta["a"], 2, x),
    "init": lambda x: SVI(OF_X, GUIDE, ADAM).init(KEY, x).params,
    "run": lambda x: SVI(OF_X, GUIDE, ADAM).run(KEY, 2, x, progress_bar=False).params,
    "resume": lambda x: SVI(OF_X, GUIDE, ADAM).resume(state(), 2, x, progress_bar=False).params,
    "laplace": lambda x: minisvi.laplace(KEY, OF_X, x).params,
    "deterministic": lambda x: (
        minisvi.deterministic(KEY, OF_X, x, num_restarts=1, num_draws=8).params
    ),
    "judge": lambda x: minisvi.judge(KEY, OF_X, GUIDE, GUIDE.init(KEY), x, num_draws=100).draws,
    "log_weights": lambda x: minisvi.log_weights(
        KEY, OF_X, GUIDE, GUIDE.init(KEY), x, num_samples=3
    ),
    "posterior": lambda x: Posterior(OF_X, GUIDE, GUIDE.init(KEY), (x,)).reweighted(KEY, 3)[0],
}


def state():
    return SVI(OF_X, GUIDE, ADAM).init(KEY, X)


@pytest.mark.parametrize(
    "name", standing_for(TAKES_DATA, "check", "predictive", "run", "resume", "posterior")
)
def test_a_list_is_data_wherever_data_are_taken(name):
    call = TAKES_DATA[name]
    of_list, of_array = call([1.0, 2.0, 4.0]), call(X)
    assert jax.tree.all(jax.tree.map(np.array_equal, of_list, of_array))
    with pytest.raises(TypeError, match=r"data `\[0\]`: expected numbers, .*; got 'abc'"):
        call("abc")


def test_held_out_data_and_those_of_fit_are_read_too():
    svi = SVI(rows(lambda theta, x: -((x - theta["a"]) ** 2)), GUIDE, ADAM)
    one, two = (
        svi.run(KEY, 2, X, stop=minisvi.Patience(every=1), held_out=(x,), progress_bar=False)
        for x in (X, list(X))
    )
    assert np.array_equal(one.checks.score, two.checks.score)
    with pytest.raises(TypeError, match=r"data `\[0\]`: expected numbers"):
        minisvi.fit(KEY, OF_X, "abc")


def test_held_out_data_in_no_tuple_are_named_too():
    with pytest.raises(TypeError, match=r"data `value`: expected numbers, .*; got 'abc'"):
        inputs.arrays("abc")
