"""Did it work? Eight schools by `minisvi.fit`, beside a plain mean field: the verdicts on both, and
the four pictures.

python examples/verdict.py            # a minute
python examples/verdict.py --quick    # the mean field alone, shortly: does it run?
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from jax.scipy.stats import norm
from plotting import save

import minisvi
from minisvi.posterior import plots

EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def log_prior(theta):
    """Centred: theta_j ~ N(mu, tau), mu ~ N(0, 10), log tau ~ N(5, 1), which makes a funnel of
    (tau, theta).
    """
    mu, tau = theta["mu"], theta["tau"]
    log_p_mu = norm.logpdf(mu, 0.0, 10.0)
    # The density of tau is that of log tau over tau.
    log_p_tau = norm.logpdf(jnp.log(tau), 5.0, 1.0) - jnp.log(tau)
    log_p_effects = jnp.sum(norm.logpdf(theta["effect"], mu, tau))
    return log_p_mu + log_p_tau + log_p_effects


def log_likelihood(theta, effects, errors):
    return norm.logpdf(effects, theta["effect"], errors)


LATENTS = {"mu": minisvi.real(), "tau": minisvi.positive(), "effect": minisvi.real(8)}
MODEL = minisvi.Model(LATENTS, log_prior=log_prior, log_likelihood=log_likelihood)


def by_hand(key, num_steps):
    """A mean field by Adam from four starts, and the judgement on it."""
    guide = minisvi.mean_field(LATENTS)
    svi = minisvi.SVI(MODEL, guide, optax.adam(0.01), minisvi.ELBO(10))
    options = {"num_restarts": 4, "average": True, "progress_bar": False}
    result = svi.run(key, num_steps, EFFECTS, ERRORS, **options)
    judged = minisvi.judge(key, MODEL, guide, result.params, EFFECTS, ERRORS)
    return guide, result, judged


def figure(result, guide, fit):
    """The loss, the restarts and the weights of the mean field; and its marginals, beside the draws
    that `fit` trusts.
    """
    picture, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    plots.loss(result.elbo, ax=axes[0, 0])
    plots.restarts(result.restarts.elbo, result.restarts.elbo_se, ax=axes[0, 1])
    args = MODEL, guide, result.params, EFFECTS, ERRORS
    _, log_w = minisvi.log_weights(jax.random.key(3), *args, num_samples=20_000)
    plots.weights(log_w, ax=axes[0, 2])
    posterior = minisvi.Posterior(MODEL, guide, result.params)
    draws = posterior.draws(jax.random.key(4), 20_000)
    plots.marginals(three(draws), three(fit.draws), ax=axes[1])
    return save(picture, "verdict")


def three(draws):
    """The draws of three scalars only."""
    theta = {
        "mu": draws.theta["mu"],
        "tau": draws.theta["tau"],
        "school 0": draws.theta["effect"][:, 0],
    }
    return draws._replace(theta=theta)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    num_steps = 200 if quick else 4000
    guide, result, judged = by_hand(jax.random.key(0), num_steps)
    print(f"A mean field by Adam\n{judged.verdict}\n")
    if quick:
        return
    fit = minisvi.fit(jax.random.key(2), MODEL, EFFECTS, ERRORS)
    print(f"minisvi.fit\n{fit}\n")
    mean = fit.draws.mean()
    sd = fit.draws.sd()
    print(f"mu {mean['mu']:.2f} +- {sd['mu']:.2f}, tau {mean['tau']:.2f} +- {sd['tau']:.2f}")
    figure(result, guide, fit)


if __name__ == "__main__":
    main()
