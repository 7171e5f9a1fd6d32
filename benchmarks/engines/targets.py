"""Three targets to measure gradient estimators on, all with priors that Distrax or TFP know."""

from collections.abc import Callable
from typing import Any, NamedTuple

import distrax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm
from tensorflow_probability.substrates.jax import distributions as tfd

from minisvi import Model, positive, real


class Target(NamedTuple):
    model: Model
    data: tuple[Array, ...]
    posterior: tuple[Any, Array] | None = (
        None  # the tree of locations and the variances, where they are known
    )


def conjugate(dim: int = 8, num_rows: int = 7) -> Target:
    """w_i ~ N(m_i, s_i), x_ni ~ N(w_i, t_i), away from the origin and with scales over two
    decades.
    """
    rng = np.random.default_rng(3)
    prior_loc = 10.0 * rng.normal(size=dim)
    prior_sd, noise_sd = np.exp(rng.uniform(np.log(0.1), np.log(10.0), (2, dim)))
    x = prior_loc + prior_sd * rng.normal(size=dim) + noise_sd * rng.normal(size=(num_rows, dim))
    precision = 1 / prior_sd**2 + num_rows / noise_sd**2
    loc = (prior_loc / prior_sd**2 + x.sum(0) / noise_sd**2) / precision
    prior_loc, prior_sd, noise_sd = (jnp.asarray(v, float) for v in (prior_loc, prior_sd, noise_sd))
    model = Model(
        {"w": real(dim)},
        prior=lambda _: {"w": distrax.Normal(prior_loc, prior_sd)},
        log_likelihood=lambda theta, x: jnp.sum(
            norm.logpdf(x, theta["w"][None], noise_sd[None]), axis=-1
        ),
    )
    return Target(
        model,
        (jnp.asarray(x, float),),
        ({"w": jnp.asarray(loc, float)}, jnp.asarray(1 / precision, float)),
    )


def logistic_regression() -> Target:
    """Breast cancer (569 rows), standardised, with an intercept: D = 31, beta ~ N(0, I)."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import StandardScaler

    x, y = load_breast_cancer(return_X_y=True)
    x = np.column_stack([np.ones(len(x)), StandardScaler().fit_transform(x)])
    sign = jnp.asarray(2 * y - 1, float)

    def log_likelihood(theta: dict[str, Array], x: Array, sign: Array) -> Array:
        return -jnp.logaddexp(0.0, -sign * (x @ theta["beta"]))

    dim = x.shape[1]
    prior: Callable[[Any], Any] = lambda _: {"beta": distrax.Normal(jnp.zeros(dim), jnp.ones(dim))}
    return Target(
        Model({"beta": real(dim)}, prior=prior, log_likelihood=log_likelihood),
        (jnp.asarray(x, float), sign),
    )


def eight_schools() -> Target:
    """Rubin (1981), not centred: D = 10 with log tau."""
    effects = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def prior(_: Any) -> dict[str, Any]:
        return {
            "mu": distrax.Normal(jnp.zeros(()), 5.0),
            "tau": tfd.HalfCauchy(0.0, 5.0),
            "z": distrax.Normal(jnp.zeros(8), jnp.ones(8)),
        }

    def log_likelihood(theta: dict[str, Array], effects: Array, errors: Array) -> Array:
        return norm.logpdf(effects, theta["mu"] + theta["tau"] * theta["z"], errors)

    latents = {"mu": real(), "tau": positive(), "z": real(8)}
    return Target(Model(latents, prior=prior, log_likelihood=log_likelihood), (effects, errors))


TARGETS: dict[str, Callable[[], Target]] = {
    "conjugate Gaussian": conjugate,
    "logistic regression": logistic_regression,
    "eight schools": eight_schools,
}
