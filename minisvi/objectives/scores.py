"""How good q is, in numbers that no gradient is taken of: the ELBO at fresh draws, and scores of
held-out rows.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import Guide
from minisvi.guides.foreign import member
from minisvi.model.model import Model
from minisvi.objectives.elbo import ELBO, reparameterised
from minisvi.tools.types import Data, Params

_PAIR = ELBO(2)
CHUNK = 8  # pairs at a time, to bound the memory


def elbo(
    key: Array,
    model: Model,
    guide: Guide,
    params: Params,
    num_pairs: int,
    *data: Any,
    weight: Any = None,
) -> Array:
    """`num_pairs` independent estimates of the ELBO, of two draws each, in nats."""

    def estimate(key: Array) -> Array:
        problem = _PAIR.problem(model, guide, params, data, weight, None)
        particles = _PAIR.particles(key, problem.q, partial(reparameterised, problem))
        return particles.mean(particles.values)

    return jax.lax.map(estimate, jax.random.split(key, num_pairs), batch_size=CHUNK)


def log_predictive(
    key: Array,
    model: Model,
    guide: Guide,
    params: Params,
    num_draws: int,
    num_rows: int,
    held_out: Data,
) -> Array:
    """(1/M) sum_i log (1/S) sum_s p(row_i | theta_s), theta_s ~ q, of M held-out rows: a scalar in
    nats per row.
    """
    del num_rows
    q = member(guide, params, *held_out)
    target = model.over(guide.constrained)

    def log_likelihood(key: Array) -> Array:
        u, _ = q.draw(key)
        return model.rows(target.constrain(u), *held_out)

    def add(total: Array, key: Array) -> tuple[Array, None]:
        return jnp.logaddexp(total, log_likelihood(key)), None

    keys = jax.random.split(key, num_draws)
    rows = jax.eval_shape(log_likelihood, keys[0])
    nothing = jnp.full(rows.shape, -jnp.inf, rows.dtype)
    # One draw at a time: memory holds the rows once.
    total, _ = jax.lax.scan(add, nothing, keys)
    return jnp.mean(total) - jnp.log(num_draws)


def validation_elbo(
    key: Array,
    model: Model,
    guide: Guide,
    params: Params,
    num_draws: int,
    num_rows: int,
    held_out: Data,
) -> Array:
    """(1/M) E_q[log p(D_val | theta)] - (1/N) KL, N = `num_rows`: a minibatch's ELBO over N; in
    nats per row.
    """
    num_held_out = jax.tree.leaves(held_out)[0].shape[0]
    num_pairs = -(-num_draws // 2)
    weight = num_rows / num_held_out
    values = elbo(key, model, guide, params, num_pairs, *held_out, weight=weight)
    return jnp.mean(values) / num_rows
