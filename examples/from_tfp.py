"""Any joint distribution of TFP, fitted and judged by minisvi.

`from_tfp` is the bridge: a joint distribution with some parts pinned knows its log density, and the
distribution of each latent has a default bijector. The example is a robust regression of stack loss
on air flow, in 21 days of a chemical plant (Brownlee 1965, p. 454), some of them odd:

    y_i ~ StudentT(nu, alpha + beta x_i, sigma),   nu ~ Gamma(2, 0.1),   sigma ~ HalfNormal(1)
    alpha ~ Normal(0, 1),   beta ~ Normal(0, 1)

Run `python examples/from_tfp.py`; `--quick` leaves NUTS out.
"""

# %% The bridge.
import jax
import jax.numpy as jnp
import numpy as np
from beside_nuts import EFFORT, compare, timed
from tensorflow_probability.substrates import jax as tfp

import minisvi

tfd = tfp.distributions


def by_name(tree):
    """The dict of what a joint distribution returns, which may be a named tuple."""
    return tree if isinstance(tree, dict) else tree._asdict()


def bijectors(joint, seed):
    """The default bijector of each part, given one draw of all of them."""
    distributions, _ = joint.sample_distributions(seed=jax.random.key(seed))
    return {
        name: part.experimental_default_event_space_bijector()
        for name, part in by_name(distributions).items()
    }


def from_tfp(joint, data):
    """The model for minisvi of a joint distribution, with the dict `data` of its observed parts.

    A fit takes that dict, or another one of the same names. ValueError names a latent whose support
    depends on another latent: scale a latent of a fixed support instead.
    """
    draw = by_name(joint.experimental_pin(**data).sample_unpinned(seed=jax.random.key(0)))
    first, second = bijectors(joint, 0), bijectors(joint, 1)
    latents = {}
    for name, value in draw.items():
        u = jnp.zeros_like(first[name].inverse(value))
        if not np.array_equal(first[name].forward(u), second[name].forward(u)):
            raise ValueError(f"the support of `{name}` depends on another latent")
        latents[name] = minisvi.transformed(first[name], jnp.shape(value))

    def log_probs(theta, data):
        return joint.experimental_pin(**data).unnormalized_log_prob_parts(**theta)

    def log_prior(theta):
        return total(log_probs(theta, data).unpinned)

    def log_likelihood(theta, data):
        return total(log_probs(theta, data).pinned)

    # TFP sums the rows of an observed part, so that there is no term per row.
    return minisvi.Model(latents, None, log_prior, log_likelihood, per_row=False)


def total(parts):
    return sum(map(jnp.sum, by_name(parts).values()), 0.0)


# %% The data, of which both columns are standardised.
FLOW = [80, 80, 75, 62, 62, 62, 62, 62, 58, 58, 58, 58, 58, 58, 50, 50, 50, 50, 50, 56, 70]
LOSS = [42, 37, 37, 28, 18, 18, 19, 20, 15, 14, 14, 13, 11, 12, 8, 7, 8, 8, 9, 15, 15]


def standardised(column):
    column = np.asarray(column, np.float32)
    return (column - column.mean()) / column.std()


FLOW, LOSS = standardised(FLOW), standardised(LOSS)


# %% The joint distribution, as TFP has it.
@tfd.JointDistributionCoroutineAutoBatched
def regression():
    alpha = yield tfd.Normal(0.0, 1.0, name="alpha")
    beta = yield tfd.Normal(0.0, 1.0, name="beta")
    sigma = yield tfd.HalfNormal(1.0, name="sigma")
    nu = yield tfd.Gamma(2.0, 0.1, name="nu")
    yield tfd.StudentT(nu, alpha + beta * FLOW, sigma, name="y")


# %% The fit, its verdict, NUTS beside it, and a check by draws of TFP's own.
if __name__ == "__main__":
    data = {"y": LOSS}
    model = from_tfp(regression, data)
    fit, seconds = timed(
        lambda: minisvi.fit(jax.random.key(0), model, data, progress_bar=False, **EFFORT)
    )
    compare(fit, seconds, jax.random.key(1))
    theta = fit.draws.resample(jax.random.key(2), 2000).theta

    def replicate(theta, key):
        return regression.sample(**theta, seed=key).y

    keys = jax.random.split(jax.random.key(3), 2000)
    replicated = jax.jit(jax.vmap(replicate))(theta, keys)
    low, high = np.quantile(replicated, [0.05, 0.95], axis=0)
    print(f"{np.mean((low <= LOSS) & (high >= LOSS)):.0%} of the days in 90 % intervals")
