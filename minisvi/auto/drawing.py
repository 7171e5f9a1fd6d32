"""Draws of any guide for its verdict: on the host where it is Gaussian, else compiled."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.auto import defensive
from minisvi.auto.gaussians import Drawn, of_guide
from minisvi.guides.base import Guide
from minisvi.guides.foreign import member
from minisvi.model.at_rows import in_blocks, over_chunks, unravel_rows
from minisvi.model.model import Model
from minisvi.tools.keys import generator
from minisvi.tools.programs import IN_HASTE, HostProgram
from minisvi.tools.types import Data, Draw, Params


def draw(
    key: Array, model: Model, guide: Guide, params: Params, data: Data, num_draws: int
) -> Drawn:
    """S draws u, as trees (S, ...), with log q and the log ratio of q to what they are from.

    Guides that are functions of normals are drawn from wider versions of themselves, too; from
    those that are drawn by keys all draws are plain.
    """
    rng = generator(key, 4)
    gaussians = of_guide(guide, params)
    if gaussians is not None:
        drawn = gaussians.draw(rng, num_draws)
        return drawn._replace(u=unravel_rows(model.latents, drawn.u))
    normals = jax.eval_shape(partial(_normals, guide), params, data)
    if normals is None:
        noise: Any = jax.random.split(key, num_draws)
        log_ratio = np.zeros(num_draws)
    else:
        eps = defensive.noise(rng, num_draws, normals.size)
        noise = eps.astype(normals.dtype)
        log_ratio = -defensive.log_ratio(eps)
    compute = partial(_draws, guide, params, data)
    u, log_q = in_blocks(compute, noise, num_draws)
    return Drawn(u, log_q.astype(float), log_ratio)


def _normals(guide: Guide, params: Params, data: Data) -> Array | None:
    """An array like the normals that one draw is a function of, or None if it is of no normals."""
    q = member(guide, params, *data)
    if q.stratified or not q.noise_size:
        return None
    dtype = q.noise_dtype or jnp.result_type(float)
    return jnp.zeros(q.noise_size, dtype)


# In haste 20,000 draws take up to 0.1 s longer, and 0.3 s less to compile, or more.
@partial(HostProgram, static_argnames="guide", options=IN_HASTE)
def _draws(
    guide: Guide, params: Params, data: Data, noise: Array, num_chunks: Any
) -> tuple[Draw, Array]:
    """Draws, with log q, from the noise of the first chunks."""
    q = member(guide, params, *data)
    return over_chunks(jax.vmap(q.draw), noise, num_chunks)


def log_prob(guide: Guide, params: Params, data: Data, u: Draw, rows: np.ndarray) -> np.ndarray:
    """log q, (S,) in nats, at points u (S, ...), which are `rows` (S, D) where q is Gaussian."""
    gaussians = of_guide(guide, params)
    if gaussians is not None:
        return gaussians.log_prob(rows)
    return np.asarray(_log_prob(guide, params, data, u), float)


@partial(HostProgram, static_argnames="guide", options=IN_HASTE)
def _log_prob(guide: Guide, params: Params, data: Data, u: Draw) -> Array:
    q = member(guide, params, *data)
    return jax.lax.map(q.log_prob, u)
