"""Likelihoods that have no term per row, `per_row=False`: what works as ever, and what says that it
needs rows.
"""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from problems import adam
from scipy.stats import norm as normal

import minisvi
from minisvi import ELBO, SVI, Minibatches, Model, Patience, Stream, mean_field, positive, real

KEY = jax.random.key(0)
ADAM = adam(0.1)
X = jnp.asarray(np.random.default_rng(5).normal(size=9).cumsum())
LATENTS = {"phi": real(2), "sd": positive()}


def prior(theta):
    return {"phi": distrax.Normal(0.0, 0.5), "sd": distrax.Gamma(2.0, 1.0)}


def autoregression(theta, x):
    """log p(x_3, ... | x_1, x_2), a scalar: a term less for each lag."""
    mean = theta["phi"][0] * x[1:-1] + theta["phi"][1] * x[:-2]
    return jnp.sum(norm.logpdf(x[2:], mean, theta["sd"]))


MODEL = Model(LATENTS, prior=prior, log_likelihood=autoregression, per_row=False)
U = {"phi": jnp.array([0.4, -0.2]), "sd": jnp.array(0.3)}


def by_hand():
    """The log prior with log|det J|, and the log likelihood, by SciPy."""
    x, phi, sd = np.asarray(X, float), np.asarray(U["phi"], float), np.exp(0.3)
    log_prior = normal.logpdf(phi, 0, 0.5).sum() + np.log(sd) - sd + 0.3
    return log_prior, normal.logpdf(x[2:], phi[0] * x[1:-1] + phi[1] * x[:-2], sd).sum()


@pytest.mark.foreign
def test_log_density_is_the_sum_of_prior_and_likelihood(rtol):
    MODEL.check(X)
    assert np.allclose(MODEL.log_terms(U, X), by_hand(), rtol=10 * rtol)
    assert np.allclose(MODEL.log_density(U, X), sum(by_hand()), rtol=10 * rtol)


@pytest.mark.foreign
def test_annealing_and_closed_form_kls_work(key, rtol):
    guide = mean_field(LATENTS)
    params = guide.init(key, loc=U)
    half = lambda step: 0.5
    objectives = ELBO(4), ELBO(4, kl_weight=half, likelihood_weight=half), ELBO(4, "closed_form_kl")
    estimates = jax.jit(
        lambda params, x: [
            objective(key, MODEL, guide, params, x, step=0) for objective in objectives
        ]
    )
    plain, warm, closed = estimates(params, X)
    assert np.allclose(warm, 0.5 * plain, rtol=10 * rtol)
    assert abs(closed - plain) < 5  # of another estimator at the same draws
    assert SVI(MODEL, guide, ADAM).run(key, 2, X, progress_bar=False).reason == "finished"


@pytest.mark.foreign
def test_laplace_is_at_the_mode_of_prior_and_likelihood(key):
    fitted = minisvi.laplace(key, MODEL, X)
    grad = jax.grad(MODEL.log_density)(fitted.loc, X)
    assert fitted.grad_norm < 1e-2
    assert all(np.allclose(leaf, 0, atol=1e-2) for leaf in jax.tree.leaves(grad))


@pytest.mark.foreign
def test_yesterdays_posterior_is_a_prior_without_rows_too(key, rtol):
    guide = mean_field(LATENTS)
    params = guide.init(key)
    today = minisvi.with_prior(MODEL, guide, params)
    expected = guide.distribution(params).log_prob(U) + by_hand()[1]
    assert np.allclose(today.log_density(U, X), expected, rtol=10 * rtol)


@pytest.mark.foreign
def test_arviz_gets_no_log_likelihood_of_rows(key):
    draws = minisvi.Posterior(MODEL, mean_field(LATENTS), mean_field(LATENTS).init(key)).draws(
        key, 4
    )
    tree = minisvi.to_arviz(draws, MODEL, X)
    assert "log_likelihood" not in tree.children
    assert tree["sample_stats"]["lp"].shape == (1, 4)


def run(*data, batches=None, **options):
    batches = {} if batches is None else {"batches": batches}
    return SVI(MODEL, mean_field(LATENTS), ADAM, **batches).run(
        KEY, 3, *data, progress_bar=False, **options
    )


# case: (call, error, pattern)
NEED_ROWS = {
    "minibatches": (
        lambda: run(X, batches=Minibatches(3)),
        ValueError,
        r"a minibatch needs .*one term per row",
    ),
    "a stream": (
        lambda: run(Stream([X, X], num_data=18)),
        ValueError,
        r"a minibatch needs .*`per_row=False`",
    ),
    "a scale": (
        lambda: MODEL.log_density(U, X, weight=2.0),
        ValueError,
        r"a minibatch needs .*`per_row=False`",
    ),
    "fit by minibatches": (
        lambda: minisvi.fit(KEY, MODEL, X, batch_size=3),
        ValueError,
        r"a minibatch needs",
    ),
    "held-out rows": (
        lambda: run(X, stop=Patience(), held_out=(X,)),
        ValueError,
        r"Patience scores held-out rows, which needs .*one term per row",
    ),
    "terms of rows": (
        lambda: MODEL.rows(LATENTS, X),
        ValueError,
        r"the log likelihood of each row needs",
    ),
    "local latents": (
        lambda: Model(
            {"z": minisvi.local(real())}, prior=prior, log_likelihood=autoregression, per_row=False
        ),
        ValueError,
        r"latents \['z'\] are local, one for each row",
    ),
    "no likelihood apart": (
        lambda: Model(LATENTS, autoregression, per_row=False),
        TypeError,
        r"`per_row=False` is said of a `log_likelihood`",
    ),
    "neither true nor false": (
        lambda: Model(LATENTS, prior=prior, log_likelihood=autoregression, per_row=1),
        TypeError,
        r"`per_row` must be True or False; got 1",
    ),
    "rows after all": (
        lambda: Model(
            LATENTS, prior=prior, log_likelihood=lambda t, x: x * t["sd"], per_row=False
        ).check(X),
        ValueError,
        r"`log_likelihood` must return a scalar: expected float\[\]; got float\d\d\[9\]",
    ),
}


@pytest.mark.foreign
@pytest.mark.parametrize("case", NEED_ROWS)
def test_what_needs_rows_says_so(case):
    call, error, pattern = NEED_ROWS[case]
    with pytest.raises(error, match=pattern):
        call()
