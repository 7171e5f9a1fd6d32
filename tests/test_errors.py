"""Bad input: each message names the thing, what was expected and what came."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from problems import adam, conjugate_data, conjugate_model
from tiers import standing_for

import minisvi
from minisvi import (
    CUBO,
    ELBO,
    SVI,
    ForwardKL,
    ImportanceWeighted,
    Model,
    NonFiniteError,
    Posterior,
    Renyi,
    mean_field,
    positive,
    real,
)

X = jnp.arange(1.0, 6.0)
KEY = jax.random.key(0)
ADAM = adam(0.1)


def fit(model, *data, guide=None, num_steps=20, key=KEY, **options):
    guide = mean_field(model.latents) if guide is None else guide
    return SVI(model, guide, ADAM).run(key, num_steps, *data, progress_bar=False, **options)


def good():
    return Model(
        {"a": real()},
        lambda theta, x: norm.logpdf(theta["a"]) + jnp.sum(norm.logpdf(x, theta["a"])),
    )


def joint(log_joint, latents=None):
    return Model({"a": real()} if latents is None else latents, log_joint)


def rows(log_likelihood):
    return Model(
        {"a": real()},
        log_prior=lambda theta: norm.logpdf(theta["a"]),
        log_likelihood=log_likelihood,
    )


def norm_rows(theta, x):
    return norm.logpdf(x, theta["a"])


def estimate(objective, guide=None, **batch):
    guide = mean_field({"a": real()}) if guide is None else guide
    return objective(KEY, good(), guide, guide.init(KEY), X, **batch)


def dependent(on):
    return minisvi.conditional(mean_field(real()), on={on: real()})


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
        lambda: fit(
            Model(
                {"a": real(2)},
                log_prior=lambda t: norm.logpdf(t["a"]),
                log_likelihood=lambda t, x: x,
            ),
            X,
        ),
        ValueError,
        r"`log_prior` must return a scalar: expected float\[\]; got float\d\d\[2\]",
    ),
    "(N,) meets (N, 1) in a likelihood": (
        lambda: fit(rows(lambda theta, x, y: norm.logpdf(y, theta["a"] * x)), X[:, None], X),
        ValueError,
        (
            r"`log_likelihood`: norm.logpdf met shapes \(5,\) and \(5, 1\), which broadcast "
            r"to \(5, 5\): expected equal"
        ),
    ),
    "(N,) meets (N, 1) in a log joint": (
        lambda: fit(joint(lambda theta, x, y: -jnp.sum((y - theta["a"] * x) ** 2)), X[:, None], X),
        ValueError,
        r"`log_joint`: \w+ met shapes \(5,\) and \(5, 1\), which broadcast to \(5, 5\)",
    ),
    "(N, 1) terms": (
        lambda: fit(rows(lambda theta, x: norm.logpdf(x, theta["a"])), X[:, None]),
        ValueError,
        (
            r"`log_likelihood` must return one term per row: expected float\[5\]; got "
            r"float\d\d\[5, 1\]"
        ),
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
        lambda: joint(lambda t: t, {"s": {"tau": positive(2)}}).unconstrain(
            {"s": {"tau": jnp.array([1.0, -2.0])}}
        ),
        ValueError,
        r"latent `s.tau`: expected a value inside the support \(Exp\); got \[ 1. -2.\]",
    ),
    "value off the simplex": (
        lambda: joint(lambda t: t, {"p": minisvi.simplex(2)}).unconstrain(
            {"p": jnp.array([0.5, 0.6])}
        ),
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
        lambda: fit(
            good(), X, guide=custom(lambda p, *_: {"a": distrax.Categorical(jnp.zeros(3) + p)})
        ),
        TypeError,
        r"guide's draw `a`: expected a floating dtype; got int\d\d",
    ),
    "integer support": (
        lambda: real((), jnp.int32),
        TypeError,
        r"a support's dtype must be floating; got .*int32",
    ),
    "params of another tree": (
        lambda: fit(good(), X, params={"loc": jnp.zeros(1)}),
        ValueError,
        (
            r"params: expected a tree with leaves \['loc', 'log_scale'\]; got dict with "
            r"leaves \['loc'\]"
        ),
    ),
    "no support": (
        lambda: joint(lambda t: t, {"a": 3}),
        TypeError,
        r"latent `a`: expected a support.*got 3",
    ),
    "no log joint": (
        lambda: Model({"a": real()}),
        TypeError,
        r"expected either `log_joint`, or both",
    ),
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
        lambda: good().log_density({"a": jnp.zeros(())}, X, weight=2.0),
        ValueError,
        r"a minibatch needs a factored model: give `log_prior` and `log_likelihood`",
    ),
    "low rank above the dimension": (
        lambda: minisvi.low_rank({"a": real(3)}, rank=4),
        ValueError,
        r"`rank` must be in 1..3, the number of unconstrained latents; got 4",
    ),
    "low rank of zero": (
        lambda: minisvi.low_rank({"a": real(3)}, rank=0),
        ValueError,
        r"`rank` must be an integer >= 1; got 0",
    ),
    "fractional rank": (
        lambda: minisvi.low_rank({"a": real(3)}, rank=1.5),
        TypeError,
        r"`rank` must be an integer",
    ),
    "negative degrees of freedom": (
        lambda: mean_field({"a": real()}, df=-1.0),
        ValueError,
        r"`df` must be > 0; got -1",
    ),
    "a latent in no block": (
        lambda: minisvi.block({"a": real(), "b": real()}, [["a"]]),
        ValueError,
        r"block: expected each of the latents \['a', 'b'\] in one group; got \[\('a',\)\]",
    ),
    "a latent in two blocks": (
        lambda: minisvi.block({"a": real(), "b": real()}, [["a"], ["a", "b"]]),
        ValueError,
        r"block: expected each of the latents",
    ),
    "an unknown latent in a block": (
        lambda: minisvi.block({"a": real()}, [["a", "c"]]),
        ValueError,
        r"block: expected each of the latents \['a'\] in one group",
    ),
    "covariance of another shape": (
        lambda: minisvi.full_rank({"a": real(2)}).init(KEY, cov=jnp.eye(3)),
        ValueError,
        r"`cov`: expected shape \(2, 2\) or \(2,\); got \(3, 3\)",
    ),
    "covariance of another shape to whiten by": (
        lambda: minisvi.whitened(minisvi.full_rank({"a": real(2)})).init(KEY, cov=jnp.eye(3)),
        ValueError,
        r"`cov`: expected shape \(2, 2\) or \(2,\); got \(3, 3\)",
    ),
    "a whitened mixture": (
        lambda: minisvi.whitened(minisvi.mixture(mean_field({"a": real()}), 2)),
        TypeError,
        (
            r"whitened: expected a Gaussian, such as `full_rank\(latents\)`, or a flow over "
            r"one; got Mixture"
        ),
    ),
    "a whitened product": (
        lambda: minisvi.whitened(minisvi.product({"a": mean_field(real())})),
        TypeError,
        r"whitened: expected a Gaussian, .*; got Product",
    ),
    "a whitened flow over a guide of one's own": (
        lambda: minisvi.whitened(
            minisvi.affine_coupling(minisvi.mixture(mean_field({"a": real()}), 2))
        ),
        TypeError,
        r"whitened: expected a Gaussian, .*; got Flow",
    ),
    "a whitened guide of one's own": (
        lambda: minisvi.whitened(custom(lambda p, *_: p)),
        TypeError,
        r"whitened: expected a Gaussian, .*; got Custom",
    ),
    "no components": (
        lambda: minisvi.mixture(mean_field({"a": real()}), 0),
        ValueError,
        r"`num_components` must be an integer >= 1; got 0",
    ),
    "no layers": (
        lambda: minisvi.affine_coupling(mean_field({"a": real()}), num_layers=0),
        ValueError,
        r"`num_layers` must be an integer >= 1; got 0",
    ),
    "no bins": (
        lambda: minisvi.spline_coupling(mean_field({"a": real()}), num_bins=0),
        ValueError,
        r"`num_bins` must be an integer >= 1; got 0",
    ),
    "a spline on nothing": (
        lambda: minisvi.spline_coupling(mean_field({"a": real()}), bound=0.0),
        ValueError,
        r"`bound` must be > 0; got 0.0",
    ),
    "no hidden units": (
        lambda: minisvi.inverse_autoregressive(mean_field({"a": real()}), hidden=0),
        ValueError,
        r"`hidden` must be an integer >= 1; got 0",
    ),
    "no guide in a product": (
        lambda: minisvi.product({"a": real()}),
        TypeError,
        r"product: expected a guide for `a`; got Support",
    ),
    "a part that depends on itself": (
        lambda: fit(good(), X, guide=minisvi.product({"a": dependent("a")})),
        ValueError,
        r"parts depend on \{'a': \('a',\)\}: expected parts of \[\], and no circle",
    ),
    "a part that depends on nobody": (
        lambda: fit(good(), X, guide=minisvi.product({"a": dependent("zz")})),
        ValueError,
        r"parts depend on \{'a': \('zz',\)\}",
    ),
    "prior of another tree": (
        lambda: fit(
            Model(
                {"a": real()},
                prior=lambda theta: {"b": distrax.Normal(0.0, 1.0)},
                log_likelihood=norm_rows,
            ),
            X,
        ),
        ValueError,
        r"`prior`: expected a tree with leaves \['a'\]; got leaves \['b'\]",
    ),
    "two priors": (
        lambda: Model({"a": real()}, log_prior=len, prior=len, log_likelihood=len),
        TypeError,
        r"`prior` in place of `log_prior`",
    ),
    "antithetic draws of an odd number": (
        lambda: ELBO(3, sampling="antithetic"),
        ValueError,
        r"antithetic draws come in pairs: `num_particles` must be even; got 3",
    ),
    "quasi-random draws of six": (
        lambda: ELBO(6, sampling="quasi"),
        ValueError,
        r"quasi-random draws: `num_particles` must be a power of two; got 6",
    ),
    "unknown draws": (
        lambda: ELBO(2, sampling="sobol"),
        ValueError,
        r"`sampling` must be one of .*; got 'sobol'",
    ),
    "antithetic draws of a guide without normals": (
        lambda: estimate(
            ELBO(2, sampling="antithetic"),
            guide=custom(lambda p, *_: {"a": distrax.Normal(p, 1.0)}),
        ),
        ValueError,
        (
            r"sampling='antithetic': expected a guide made of normals, with `from_noise`; "
            r"this draws from keys"
        ),
    ),
    "doubly reparameterised antithetic draws": (
        lambda: ImportanceWeighted(4, "doubly_reparameterised", sampling="antithetic"),
        ValueError,
        (
            r"gradient='doubly_reparameterised' is unbiased with independent draws alone; got "
            r"'antithetic'"
        ),
    ),
    "a baseline of one": (
        lambda: ELBO(1, "score_function"),
        ValueError,
        r"baseline leaves one out: `num_particles` must be >= 2; got 1",
    ),
    "alpha of infinity": (
        lambda: Renyi(2, alpha=float("inf")),
        ValueError,
        r"`alpha` must be a finite number; got inf",
    ),
    "alpha of nan": (
        lambda: Renyi(2, alpha=float("nan")),
        ValueError,
        r"`alpha` must be a finite number; got nan",
    ),
    "renyi of no particles": (
        lambda: Renyi(0),
        ValueError,
        r"`num_particles` must be an integer >= 1; got 0",
    ),
    "renyi sticking the landing": (
        lambda: Renyi(2, "sticking_the_landing"),
        ValueError,
        r"`gradient` must be one of \('reparameterised', 'doubly_reparameterised'\)",
    ),
    "cubo of order one": (
        lambda: CUBO(2, order=1.0),
        ValueError,
        r"`order` must be a finite number > 1; got 1.0",
    ),
    "forward kl of one": (
        lambda: ForwardKL(1),
        ValueError,
        r"self-normalised weights of one draw are 1",
    ),
    "no entropy": (
        lambda: estimate(
            ELBO(2, "closed_form_entropy"), guide=minisvi.mixture(mean_field({"a": real()}), 2)
        ),
        ValueError,
        r"MixtureOf has no closed-form entropy: take gradient='reparameterised'",
    ),
    "closed-form kl of an unfactored model": (
        lambda: estimate(ELBO(2, "closed_form_kl")),
        ValueError,
        r"closed_form_kl .*prior distributions.*`prior`",
    ),
    "doubly reparameterised mixture": (
        lambda: estimate(
            ImportanceWeighted(2, "doubly_reparameterised"),
            guide=minisvi.mixture(mean_field({"a": real()}), 2),
        ),
        ValueError,
        (
            r"gradient='doubly_reparameterised' needs independent draws of q, and a mixture "
            r"is drawn by strata"
        ),
    ),
    "annealing an unfactored model": (
        lambda: estimate(ELBO(2, kl_weight=lambda step: 0.5), step=3),
        ValueError,
        r"expected a factored model: give `log_prior` and `log_likelihood`; got a `log_joint`",
    ),
    "zero particles": (
        lambda: ELBO(0),
        ValueError,
        r"`num_particles` must be an integer >= 1; got 0",
    ),
    "fractional particles": (
        lambda: ELBO(1.5),
        TypeError,
        r"`num_particles` must be an integer >= 1; got 1.5",
    ),
    "unknown gradient": (
        lambda: ELBO(1, "score"),
        ValueError,
        r"`gradient` must be one of \('reparameterised', .*got 'score'",
    ),
    "zero steps": (
        lambda: fit(good(), X, num_steps=0),
        ValueError,
        r"`num_steps` must be an integer >= 1; got 0",
    ),
    "negative steps": (
        lambda: fit(good(), X, num_steps=-3),
        ValueError,
        r"`num_steps` must be an integer >= 1; got -3",
    ),
    "fractional steps": (
        lambda: fit(good(), X, num_steps=1e3),
        TypeError,
        r"`num_steps` must be .*got 1000.0",
    ),
    "true steps": (
        lambda: fit(good(), X, num_steps=True),
        TypeError,
        r"`num_steps` must be an integer >= 1; got True",
    ),
    "a seed for a key": (
        lambda: fit(good(), X, key=0),
        TypeError,
        r"`key` must be one PRNG key.*got 0",
    ),
    "no key": (
        lambda: fit(good(), X, key=None),
        TypeError,
        r"`key` must be one PRNG key.*got None",
    ),
    "two keys": (
        lambda: fit(good(), X, key=jax.random.split(KEY)),
        TypeError,
        r"`key` must be one PRNG key.*got key<fry>\[2\]",
    ),
    "a legacy key of another kind": (
        lambda: fit(good(), X, key=jax.random.PRNGKey(0, impl="rbg")),
        TypeError,
        (
            r"`key` must be one PRNG key, such as .* jax\.random\.key\(0, impl='rbg'\); got "
            r"uint32\[4\]"
        ),
    ),
    "a legacy key of another kind, for `judge`": (
        lambda: minisvi.judge(
            jax.random.PRNGKey(0, impl="rbg"), good(), mean_field({"a": real()}), {}, X
        ),
        TypeError,
        r"`key` must be one PRNG key",
    ),
    "latents that share a name": (
        lambda: joint(lambda theta: 0.0, {"a": {"b": real()}, "a.b": real()}),
        ValueError,
        r"latents: expected .* got `a\.b` for both \['a'\]\['b'\] and \['a\.b'\]: rename one",
    ),
    "parts that share a name": (
        lambda: minisvi.product({"a": {"b": mean_field(real())}, "a.b": mean_field(real())}),
        ValueError,
        r"product: expected .* got `a\.b` for both",
    ),
    "data of minibatches that share a name": (
        lambda: minisvi.Minibatches(2).num_rows(({"a": {"b": X}, "a.b": X[:3]},)),
        ValueError,
        r"data: expected .* got `0\.a\.b` for both",
    ),
    "unknown on_failure": (
        lambda: fit(good(), X, on_failure="ignore"),
        ValueError,
        r"`on_failure` must be 'raise' or 'return'; got 'ignore'",
    ),
    "scale of zero": (
        lambda: mean_field({"a": real()}, scale=0.0),
        ValueError,
        r"`scale` must be > 0; got 0.0",
    ),
    "empty interval": (
        lambda: minisvi.interval(1.0, 1.0),
        ValueError,
        r"expected low < high; got 1.0 and 1.0",
    ),
    "simplex of a scalar": (
        lambda: minisvi.simplex(()),
        ValueError,
        r"simplex: expected a shape .* got \(\)",
    ),
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
        lambda: Posterior(good(), mean_field({"a": real()}), {}).predictive(
            KEY, lambda k, t: t, 4, batch_size=0
        ),
        ValueError,
        r"`batch_size` must be an integer >= 1; got 0",
    ),
}

LABELS = np.arange(10) % 5


def of_groups(latents, likelihood):
    return Model(latents, log_prior=lambda theta: 0.0 * theta["z"].sum(), log_likelihood=likelihood)


GROUPS = of_groups({"z": real(5)}, lambda t, g, y: y * t["z"][g])
TABLE = of_groups({"z": real((7, 5))}, lambda t, g, y: y * t["z"][2 * g, g])
PAIRS = of_groups({"z": real(5)}, lambda t, g, y: y * t["z"][g[:, 0]])
ELSEWHERE = Model({"z": real(5)}, lambda t: jnp.sum(t["z"][LABELS + 1]))
OUT_OF_BOUNDS = {
    "labels from one": (GROUPS, LABELS + 1, r"0\.\.4; got 1\.\.5\. Labels are .*: subtract 1"),
    "JAX's labels": (GROUPS, jnp.asarray(LABELS + 1), r"`log_likelihood` reads outside of axis 0"),
    "too far from the end": (GROUPS, LABELS - 6, r"got -1\.\.3, where those below zero"),
    "one of two axes": (TABLE, LABELS, r"axis 0 .*\(7, 5\).* 0\.\.6; got 0\.\.8\. If .*clip"),
    "a part of a table": (PAIRS, np.stack([LABELS + 1, LABELS], axis=1), r"0\.\.4; got 1\.\.5"),
}


@pytest.mark.parametrize("case", OUT_OF_BOUNDS)
def test_labels_that_are_out_of_bounds(case):
    model, labels, pattern = OUT_OF_BOUNDS[case]
    with pytest.raises(IndexError, match=pattern):
        model.check(labels, np.ones(10))


@pytest.mark.parametrize("batches", [minisvi.FullBatch(), minisvi.Minibatches(5)])
def test_a_run_looks_at_the_labels_of_all_rows(batches):
    labels = np.where(np.arange(10) == 9, 5, LABELS)
    svi = SVI(GROUPS, mean_field(GROUPS.latents), adam(0.1), batches=batches)
    with pytest.raises(IndexError, match=r"0\.\.4; got 0\.\.5"):
        svi.run(KEY, 10, labels, np.ones(10), progress_bar=False)


def test_labels_that_the_model_has_by_itself():
    with pytest.raises(IndexError, match=r"`log_joint` reads outside .* got 1\.\.5"):
        ELSEWHERE.check()


@pytest.mark.parametrize("labels", [LABELS, LABELS - 5, LABELS.astype(np.uint8), list(LABELS)])
def test_labels_that_are_in_bounds(labels):
    GROUPS.check(labels, np.ones(10))


def test_labels_that_jax_clips_or_that_are_not_known_pass():
    clipped = of_groups({"z": real(5)}, lambda t, g, y: y * t["z"].at[g].get(mode="clip"))
    clipped.check(LABELS + 1, np.ones(10))
    jax.eval_shape(GROUPS.check, LABELS + 1, np.ones(10))


FOREIGN = ["integer draws", "antithetic draws of a guide without normals", "prior of another tree"]


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.foreign) if c in FOREIGN else c for c in STATIC]
)
def test_static_mistakes(case):
    call, error, pattern = STATIC[case]
    with pytest.raises(error, match=pattern):
        call()


def test_legitimate_tables_pass():
    # A column against a row of its own, biases added to matrices, and one row alone are no
    # mistakes.
    def log_joint(theta, x):
        table = (x[:, None] - x[None, :]) ** 2 + (jnp.ones((5, 3)) + jnp.arange(3.0)[None, :])[
            :, :1
        ]
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
        (
            r"from the start.*log_joint: 1 of 1 values not finite \(nan\).*data `\[0\]`: NaN "
            r"at row 3 \(1 of 5 rows\)$"
        ),
    ),
    "NaN in a row of the likelihood": (
        lambda: fit(rows(lambda theta, x: norm.logpdf(x, theta["a"])), X.at[3].set(jnp.nan)),
        r"log_likelihood: 1 of 5 values not finite.*data `\[0\]`: NaN at row 3 \(1 of 5 rows\)$",
    ),
    "minus infinity at the start": (
        lambda: fit(
            joint(
                lambda theta: jnp.log(-jnp.abs(theta["b"])) - theta["a"] ** 2,
                {"a": real(), "b": real()},
            )
        ),
        r"from the start.*log_joint: 1 of 1 values not finite \(nan\)$",
    ),
    "a gradient alone": (  # sqrt(0)
        lambda: fit(
            joint(lambda t: -jnp.sqrt(0 * t["b"]) - t["a"] ** 2, {"a": real(), "b": real()})
        ),
        r"from the start.*next draw: gradient for b: 1 of 1 values not finite \(nan\)$",
    ),
}


@pytest.mark.parametrize(
    "case", standing_for(RUNTIME, "NaN in a row of the likelihood", "a gradient alone")
)
def test_a_start_that_is_not_finite(case):
    call, pattern = RUNTIME[case]
    with pytest.raises(NonFiniteError, match=pattern) as error:
        call()
    assert error.value.result.num_skipped == 10


def test_a_failure_is_explained_for_data_that_share_a_name_too():
    data = {"a": {"b": X}, "a.b": X.at[3].set(jnp.nan)}
    model = rows(lambda theta, data: norm.logpdf(data["a.b"], theta["a"]))
    with pytest.raises(NonFiniteError, match=r"data `\[0\]\.a\.b`: NaN at row 3 \(1 of 5 rows\)"):
        fit(model, data)


def test_fewer_than_ten_steps_that_all_failed_are_a_failure_too():
    with pytest.raises(NonFiniteError, match="on 3 steps in a row, from the start"):
        fit(good(), X.at[3].set(jnp.nan), num_steps=3)


def test_an_error_of_the_users_own_function_says_with_what_it_was_called():
    def log_likelihood(theta, y):
        return theta["a"] - jnp.ones(7)  # three against seven

    model = minisvi.Model({"a": real(3)}, prior=lambda t: None, log_likelihood=log_likelihood)
    with pytest.raises(TypeError, match="incompatible shapes") as caught:
        model.check(jnp.ones((5, 2), jnp.float32))
    note = caught.value.__notes__[-1]
    assert note.startswith("This was `log_likelihood`, called with theta of {'a': 'float")
    assert note.endswith("[3]'} and data of float32[5, 2].")
