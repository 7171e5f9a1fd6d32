"""How good q is, in numbers that no gradient is taken of: the ELBO at fresh draws, and scores of
held-out rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides import base
from minisvi.objectives.elbo import ELBO

# The value of this objective is that of any other gradient's, and it may have discrete latents.
_PAIR = ELBO(2, "score_function")
CHUNK = 8  # pairs at a time, to bound the memory


def elbo(
    key: Array, model: Any, guide: Any, params: Any, num_pairs: int, *data: Any, weight: Any = None
) -> Array:
    """`num_pairs` independent estimates of the ELBO, of two draws each, in nats."""

    def estimate(key: Array) -> Array:
        _, _, draws = _PAIR.particles("total", key, model, guide, params, *data, weight=weight)
        return draws.mean(draws.log_w)

    return jax.lax.map(estimate, jax.random.split(key, num_pairs), batch_size=CHUNK)


def log_predictive(
    key: Array, model: Any, guide: Any, params: Any, num_draws: int, num_rows: int, held_out: Any
) -> Array:
    """(1/M) sum_i log (1/S) sum_s p(row_i | theta_s), theta_s ~ q, of M held-out rows: a scalar in
    nats per row.
    """
    del num_rows
    q, target = guide.distribution(params, *held_out), model.over(guide.constrained)

    def log_likelihood(key: Array) -> Array:
        return model.rows(target.constrain(base.draw(q, key)[0]), *held_out)

    def add(total: Array, key: Array) -> tuple[Array, None]:
        return jnp.logaddexp(total, log_likelihood(key)), None

    keys = jax.random.split(key, num_draws)
    rows = jax.eval_shape(log_likelihood, keys[0])
    # One draw at a time: memory holds the rows once.
    total, _ = jax.lax.scan(add, jnp.full(rows.shape, -jnp.inf, rows.dtype), keys)
    return jnp.mean(total) - jnp.log(num_draws)


def validation_elbo(
    key: Array, model: Any, guide: Any, params: Any, num_draws: int, num_rows: int, held_out: Any
) -> Array:
    """(1/M) E_q[log p(D_val | theta)] - (1/N) KL, N = `num_rows`: a minibatch's ELBO over N; in
    nats per row.
    """
    num_held_out = jax.tree.leaves(held_out)[0].shape[0]
    values = elbo(
        key, model, guide, params, -(-num_draws // 2), *held_out, weight=num_rows / num_held_out
    )
    return jnp.mean(values) / num_rows
