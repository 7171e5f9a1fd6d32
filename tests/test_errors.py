"""Bad input: each message names the thing, what was expected and what came."""

import distrax
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.scipy.stats import norm
from problems import conjugate_data, conjugate_model

import minisvi
from minisvi import ELBO, SVI, Model, NonFiniteError, Posterior, mean_field, positive, real

X = jnp.arange(1.0, 6.0)
KEY = jax.random.key(0)
ADAM = optax.adam(0.1)


def fit(model, *data, guide=None, num_steps=20, key=KEY, **options):
    guide = mean_field(model.latents) if guide is None else guide
    return SVI(model, guide, ADAM).run(key, num_steps, *data, progress_bar=False, **options)


def good():
    return Model({"a": real()}, lambda theta, x: norm.logpdf(theta["a"]) + jnp.sum(norm.logpdf(x, theta["a"])))


def joint(log_joint, latents=None):
    return Model({"a": real()} if latents is None else latents, log_joint)


def rows(log_likelihood):
    return Model({"a": real()}, log_prior=lambda theta: norm.logpdf(theta["a"]), log_likelihood=log_likelihood)


def custom(distribution):
    return minisvi.custom(lambda key: jnp.zeros(()), distribution)


# case: (call, error, pattern)
STATIC = {
    "log joint is not a scalar": (
        lambda: fit(joint(lambda theta, x: norm.logpdf(x, theta["a"])), X),
        ValueError,
        r"`log_joint` must return a scalar: expected float\[\]; got float\d\d\[5\]",
    ),
    "log joint returns a tuple": (
        lambda: fit(joint(lambda theta: (theta["a"], 1.0))),
        TypeError,
        r"`log_joint` must return a scalar: expected an array; got tuple",
    ),
    "log prior is not a scalar": (
        lambda: fit(Model({"a": real(2)}, log_prior=lambda t: norm.logpdf(t["a"]), log_likelihood=lambda t, x: x), X),
        ValueError,
        r"`log_prior` must return a scalar: expected float\[\]; got float\d\d\[2\]",
    ),
    "(N,) meets (N, 1) in a likelihood": (
        lambda: fit(rows(lambda theta, x, y: norm.logpdf(y, theta["a"] * x)), X[:, None], X),
        ValueError,
        r"`log_likelihood`: norm.logpdf met shapes \(5,\) and \(5, 1\), which broadcast to \(5, 5\): expected equal",
    ),
    "(N,) meets (N, 1) in a log joint": (
        lambda: fit(joint(lambda theta, x, y: -jnp.sum((y - theta["a"] * x) ** 2)), X[:, None], X),
        ValueError,
        r"`log_joint`: \w+ met shapes \(5,\) and \(5, 1\), which broadcast to \(5, 5\)",
    ),
    "(N, 1) terms": (
        lambda: fit(rows(lambda theta, x: norm.logpdf(x, theta["a"])), X[:, None]),
        ValueError,
        r"`log_likelihood` must return one term per row: expected float\[5\]; got float\d\d\[5, 1\]",
    ),
    "log likelihood already summed": (
        lambda: fit(rows(lambda theta, x: jnp.sum(norm.logpdf(x, theta["a"]))), X),
        ValueError,
        r"`log_likelihood` must return one term per row: expected float\[5\]; got float\d\d\[\]",
    ),
    "misspelt latent in the log joint": (
        lambda: fit(joint(lambda theta: -(theta["aa"] ** 2))),
        ValueError,
        r"`log_joint` failed with KeyError\('aa'\); the model's latents are \['a'\]",
    ),
    "misspelt latent in values": (
        lambda: good().unconstrain({"b": 1.0}),
        ValueError,
        r"latent: expected a tree with leaves \['a'\]; got dict with leaves \['b'\]",
    ),
    "misshapen value": (
        lambda: good().unconstrain({"a": jnp.zeros(2)}),
        ValueError,
        r"latent `a`: expected shape \(\); got \(2,\)",
    ),
    "value outside its support": (
        lambda: joint(lambda t: t, {"s": {"tau": positive(2)}}).unconstrain({"s": {"tau": jnp.array([1.0, -2.0])}}),
        ValueError,
        r"latent `s.tau`: expected a value inside the support \(Exp\); got \[ 1. -2.\]",
    ),
    "value off the simplex": (
        lambda: joint(lambda t: t, {"p": minisvi.simplex(2)}).unconstrain({"p": jnp.array([0.5, 0.6])}),
        ValueError,
        r"latent `p`: expected a value inside the support \(StickBreaking\)",
    ),
    "start of another shape": (
        lambda: mean_field({"a": real(3)}).init(KEY, loc={"a": jnp.zeros(2)}),
        ValueError,
        r"loc `a`: expected shape \(3,\); got \(2,\)",
    ),
    "guide of another tree": (
        lambda: fit(good(), X, guide=mean_field({"b": real()})),
        ValueError,
        r"guide's draw: expected a tree with leaves \['a'\]; got dict with leaves \['b'\]",
    ),
    "guide of another shape": (
        lambda: fit(good(), X, guide=mean_field({"a": real(2)})),
        ValueError,
        r"guide's draw `a`: expected shape \(\); got \(2,\)",
    ),
    "integer draws": (
        lambda: fit(good(), X, guide=custom(lambda p, *_: {"a": distrax.Categorical(jnp.zeros(3) + p)})),
        TypeError,
        r"guide's draw `a`: expected a floating dtype; got int\d\d",
    ),
    "integer support": (lambda: real((), jnp.int32), TypeError, r"a support's dtype must be floating; got .*int32"),
    "params of another tree": (
        lambda: fit(good(), X, params={"loc": jnp.zeros(1)}),
        ValueError,
        r"params: expected a tree with leaves \['loc', 'log_scale'\]; got dict with leaves \['loc'\]",
    ),
    "no support": (lambda: joint(lambda t: t, {"a": 3}), TypeError, r"latent `a`: expected a support.*got 3"),
    "no log joint": (lambda: Model({"a": real()}), TypeError, r"expected either `log_joint`, or both"),
    "half a factored model": (
        lambda: Model({"a": real()}, log_prior=lambda t: t["a"]),
        TypeError,
        r"expected either `log_joint`, or both",
    ),
    "both forms": (
        lambda: Model({"a": real()}, lambda t: t["a"], log_prior=lambda t: t["a"]),
        TypeError,
        r"expected either `log_joint`, or both",
    ),
    "minibatch of an unfactored model": (
        lambda: good().log_density({"a": jnp.zeros(())}, X, scale=2.0),
        ValueError,
        r"a minibatch needs a factored model: give `log_prior` and `log_likelihood`",
    ),
    "zero particles": (lambda: ELBO(0), ValueError, r"`num_particles` must be an integer >= 1; got 0"),
    "fractional particles": (lambda: ELBO(1.5), TypeError, r"`num_particles` must be an integer >= 1; got 1.5"),
    "unknown gradient": (
        lambda: ELBO(1, "score"),
        ValueError,
        r"`gradient` must be one of \('reparameterised', .*got 'score'",
    ),
    "zero steps": (lambda: fit(good(), X, num_steps=0), ValueError, r"`num_steps` must be an integer >= 1; got 0"),
    "negative steps": (
        lambda: fit(good(), X, num_steps=-3),
        ValueError,
        r"`num_steps` must be an integer >= 1; got -3",
    ),
    "fractional steps": (lambda: fit(good(), X, num_steps=1e3), TypeError, r"`num_steps` must be .*got 1000.0"),
    "true steps": (lambda: fit(good(), X, num_steps=True), TypeError, r"`num_steps` must be an integer >= 1; got True"),
    "a seed for a key": (lambda: fit(good(), X, key=0), TypeError, r"`key` must be one PRNG key.*got 0"),
    "no key": (lambda: fit(good(), X, key=None), TypeError, r"`key` must be one PRNG key.*got None"),
    "two keys": (
        lambda: fit(good(), X, key=jax.random.split(KEY)),
        TypeError,
        r"`key` must be one PRNG key.*got key<fry>\[2\]",
    ),
    "unknown on_failure": (
        lambda: fit(good(), X, on_failure="ignore"),
        ValueError,
        r"`on_failure` must be 'raise' or 'return'; got 'ignore'",
    ),
    "scale of zero": (lambda: mean_field({"a": real()}, scale=0.0), ValueError, r"`scale` must be > 0; got 0.0"),
    "empty interval": (lambda: minisvi.interval(1.0, 1.0), ValueError, r"expected low < high; got 1.0 and 1.0"),
    "simplex of a scalar": (lambda: minisvi.simplex(()), ValueError, r"simplex: expected a shape .* got \(\)"),
    "oblong cholesky": (
        lambda: minisvi.lower_cholesky((2, 3)),
        ValueError,
        r"expected a shape \(..., n, n\).*\(2, 3\)",
    ),
    "no samples": (
        lambda: Posterior(good(), mean_field({"a": real()}), {}).sample(KEY, 0),
        ValueError,
        r"`num_samples` must be an integer >= 1; got 0",
    ),
    "zero batch size": (
        lambda: Posterior(good(), mean_field({"a": real()}), {}).predictive(KEY, lambda k, t: t, 4, batch_size=0),
        ValueError,
        r"`batch_size` must be an integer >= 1; got 0",
    ),
}

FOREIGN = ["integer draws"]


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.foreign) if c in FOREIGN else c for c in STATIC])
def test_static_mistakes(case):
    call, error, pattern = STATIC[case]
    with pytest.raises(error, match=pattern):
        call()


def test_legitimate_tables_pass():
    # A column against a row of its own, biases added to matrices, and one row alone are no mistakes.
    def log_joint(theta, x):
        table = (x[:, None] - x[None, :]) ** 2 + (jnp.ones((5, 3)) + jnp.arange(3.0)[None, :])[:, :1]
        return -jnp.sum(theta["a"] ** 2 * table)

    joint(log_joint).check(X)
    good().check(X[:1])
    rows(lambda theta: norm.logpdf(X, theta["a"])).check()  # data closed over
    rows(lambda theta, x, y: norm.logpdf(y, theta["a"] * x[:, 0])).check(X[:, None], X)
    conjugate_model().check(conjugate_data())


# Found at the first steps, since only the numbers tell.
RUNTIME = {
    "NaN in the data": (
        lambda: fit(good(), X.at[3].set(jnp.nan)),
        r"from the start.*log_joint: 1 of 1 values not finite \(nan\).*data\[0\]: 1 of 5 values not finite",
    ),
    "NaN in a row of the likelihood": (
        lambda: fit(rows(lambda theta, x: norm.logpdf(x, theta["a"])), X.at[3].set(jnp.nan)),
        r"log_likelihood: 1 of 5 values not finite.*data\[0\]: 1 of 5",
    ),
    "minus infinity at the start": (
        lambda: fit(joint(lambda theta: jnp.log(-jnp.abs(theta["b"])) - theta["a"] ** 2, {"a": real(), "b": real()})),
        r"from the start.*log_joint: 1 of 1 values not finite \(nan\)$",
    ),
    "a gradient alone": (  # sqrt(0)
        lambda: fit(joint(lambda t: -jnp.sqrt(0 * t["b"]) - t["a"] ** 2, {"a": real(), "b": real()})),
        r"from the start.*next draw: gradient for b: 1 of 1 values not finite \(nan\)$",
    ),
}


@pytest.mark.parametrize("case", RUNTIME)
def test_a_start_that_is_not_finite(case):
    call, pattern = RUNTIME[case]
    with pytest.raises(NonFiniteError, match=pattern) as error:
        call()
    assert error.value.result.num_skipped == 10


def test_fewer_than_ten_steps_that_all_failed_are_a_failure_too():
    with pytest.raises(NonFiniteError, match="on 3 steps in a row, from the start"):
        fit(good(), X.at[3].set(jnp.nan), num_steps=3)
