"""Draws of q and of wider versions of it, so that the weights show what lies beyond its tails.

A guide fitted by the ELBO is narrower than the posterior, and its own draws seldom reach what it
lacks. Where q is a function of n normals, u = T(eps), importance sampling may take place over eps:
of ten draws eight are from N(0, I), one is wider in all its coordinates alike and one in a single
one,

    m(eps) = 0.8 N(eps; 0, I) + 0.1 N(eps; 0, r^2 I)
             + 0.1 / n sum_j N(eps; 0, I + (s^2 - 1) e_j e_j^T),

and a weight is p(u, D) N(eps; 0, I) / (q(u) m(eps)): a defensive mixture (Hesterberg 1995; Owen &
Zhou 2000), which costs a fifth of the ESS where q is exact.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides import base
from minisvi.guides.base import Guide
from minisvi.tools.noise import normals
from minisvi.tools.types import Data, Params

_WIDE = 3.0  # s; and r puts |eps|^2, of mean n and sd sqrt(2 n), three of its sds out


def is_plain(num_draws: int) -> Array:
    """Which draws are from q itself, (S,): the first eight of ten."""
    return jnp.arange(num_draws) % 10 < 8


def noise(
    key: Array, guide: Guide, params: Params, data: Data, num_draws: int
) -> tuple[Array, Array]:
    """What `base.draw` makes S draws from, and log N(eps; 0, I) - log m(eps), (S,).

    These are keys and zeros where q can only be drawn from a key: then all draws are plain.
    """
    spec = jax.eval_shape(partial(_normals, guide), params, data)
    return _noise(key, num_draws, spec)


def _normals(guide: Guide, params: Params, data: Data) -> Array | None:
    """An array like the normals that one draw is a function of, or None if it is of no normals."""
    q = guide.distribution(params, *data)
    size = base.noise_size(q)
    if base.is_stratified(q) or not size:
        return None
    dtype = getattr(q, "noise_dtype", None) or jnp.result_type(float)
    return jnp.zeros(size, dtype)


# The guide is no argument, so that there is one program for all guides of as many normals.
@partial(jax.jit, static_argnames=("num_draws", "spec"))
def _noise(key: Array, num_draws: int, spec: jax.ShapeDtypeStruct | None) -> tuple[Array, Array]:
    if spec is None:
        return jax.random.split(key, num_draws), jnp.zeros(num_draws)
    size = spec.shape[0]
    normal_key, place_key = jax.random.split(key)
    kind = jnp.arange(num_draws) % 10
    place = jax.random.randint(place_key, (num_draws,), 0, size)[:, None]
    radius = jnp.sqrt(1 + 3 * jnp.sqrt(2 / size))
    one_wide = jnp.where(jnp.arange(size)[None] == place, _WIDE, 1.0)
    is_wide_in_one = kind[:, None] == 9
    is_wide_in_all = kind[:, None] == 8
    scale = jnp.where(is_wide_in_all, radius, 1.0)
    scale = jnp.where(is_wide_in_one, one_wide, scale)
    eps = scale.astype(spec.dtype) * normals(normal_key, (num_draws, size), spec.dtype)
    return eps, -_log_mixture_ratio(eps, radius)


def _log_mixture_ratio(eps: Array, radius: Array) -> Array:
    """log m(eps) / N(eps; 0, I) of each row."""
    size = eps.shape[1]

    def wider(square: Array, scale: Any, num: int) -> Array:
        return 0.5 * square * (1 - scale**-2.0) - num * jnp.log(scale)

    all_wider = wider(jnp.sum(eps**2, axis=1), radius, size)
    one_wider = jax.nn.logsumexp(wider(eps**2, _WIDE, 1), axis=1) - jnp.log(size)
    log_ratios = jnp.stack([jnp.zeros_like(all_wider), all_wider, one_wider])
    shares = jnp.array([0.8, 0.1, 0.1], eps.dtype)
    return jax.nn.logsumexp(log_ratios, axis=0, b=shares[:, None])
