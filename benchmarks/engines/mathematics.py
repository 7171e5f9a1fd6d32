"""The two log joints, shared by minisvi and the hand-written loop; and the network, shared by
all.
"""

from functools import cache

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import softplus
from jax.scipy.special import gammaln

LOG_2PI = 1.8378770664093453
SHAPES = {
    "bias_0": (4,),
    "bias_1": (3,),
    "bias_2": (1,),
    "kernel_0": (2, 4),
    "kernel_1": (4, 3),
    "kernel_2": (3, 1),
}

Weights = dict[str, Array]


def gamma_log_joint(theta: dict[str, Array], z: Array) -> Array:
    """c ~ HalfNormal(1), z_i ~ Gamma(c, 1). As in NumPyro: one term per row, gammaln(c) once."""
    c = theta["concentration"]
    log_prior = 0.5 * jnp.log(2 / jnp.pi) - 0.5 * c * c
    return log_prior + jnp.sum((c - 1) * jnp.log(z) - z - gammaln(c))


def logits(w: Weights, x: Array) -> Array:
    """The 2-4-3-1 network, shape (N,)."""
    hidden = jnp.tanh(x @ w["kernel_0"] + w["bias_0"])
    hidden = jnp.tanh(hidden @ w["kernel_1"] + w["bias_1"])
    return (hidden @ w["kernel_2"] + w["bias_2"])[:, 0]


def bnn_log_prior(w: Weights) -> Array:
    """Biases ~ Normal(0, 1), kernels ~ SoftLaplace(0, 1)."""
    biases = [jnp.sum(-0.5 * (b * b + LOG_2PI)) for name, b in w.items() if name.startswith("bias")]
    kernels = [
        jnp.sum(jnp.log(2 / jnp.pi) - jnp.logaddexp(k, -k))
        for name, k in w.items()
        if name.startswith("kernel")
    ]
    return jnp.asarray(sum(biases + kernels))


def bnn_log_likelihood(w: Weights, x: Array, y: Array) -> Array:
    """y_i ~ Bernoulli(logit f(x_i)), one term per row."""
    f = logits(w, x)
    return y * f - softplus(f)


@cache
def key() -> Array:
    """The key that all fits start from."""
    return jax.random.PRNGKey(0)
