"""A likelihood of many rows, less what it is at one point: differences before sums.

A sum of N terms of a nat each is N nats, and float32 numbers near N are N / 2^23 apart, while what a fit looks at are
differences of a nat or less. The terms' own differences have all their digits, and are small near the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi import trees
from minisvi.model import Model
from minisvi.record import Record
from minisvi.sharding import to_host

MIN_ROWS = 30_000  # of fewer the sum has digits enough, for the time that one more program takes to compile


class Centred(NamedTuple):
    """A model, its data, and the `offset` in nats that its log density lacks."""

    model: Model
    data: tuple[Any, ...]
    offset: float


def centred(model: Model, start: Any, data: tuple[Any, ...]) -> Centred:
    """The model with log p(D_i | theta) - log p(D_i | theta_0) in place of each row's term, theta_0 = T(start).

    The reference terms are one more array of its data, and their sum, in double precision, is the offset. `start` is a
    tree u, or None for zero. A model that has no term per row, has fewer than 30,000 rows or float64 latents, or is not
    finite at the reference, stays as it is.
    """
    as_it_is = Centred(model, data, 0.0)
    if model.log_likelihood is None or not model.per_row:
        return as_it_is
    if trees.spec(model.latents).dtype != jnp.float32:
        return as_it_is
    if max((leaf.shape[0] for leaf in jax.tree.leaves(data) if jnp.ndim(leaf)), default=0) < MIN_ROWS:
        return as_it_is
    model.check(*data)
    u = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), trees.unconstrained_like(model.latents))
    reference = _rows(model, u if start is None else start, data)
    offset = float(np.sum(to_host(reference), dtype=np.float64))
    if not np.isfinite(offset):
        return as_it_is
    differences = replace(model, log_likelihood=_Differences(model.log_likelihood))
    return Centred(differences, (*data, reference), offset)


@partial(jax.jit, static_argnames="model")
def _rows(model: Model, u: Any, data: tuple[Any, ...]) -> Array:
    return model.rows(model.constrain(u), *data)


@dataclass(frozen=True, eq=False)
class _Differences(Record):
    """A record, so that equal models remain equal and share one compilation."""

    log_likelihood: Callable[..., Array]

    def __call__(self, theta: Any, *data: Any) -> Array:
        *rows, reference = data
        return self.log_likelihood(theta, *rows) - reference
