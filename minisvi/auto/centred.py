"""A likelihood by rows, less what it is at one point: differences before sums.

The sum of N rows' terms may be so large that numbers of its dtype are a nat apart, while what
matters are differences of a nat or less. The terms' own differences have all their digits, and are
small near the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from minisvi.model.model import Model
from minisvi.tools.programs import HostProgram
from minisvi.tools.record import Record
from minisvi.tools.sharding import to_host
from minisvi.tools.types import Data, Draw


class Centred(NamedTuple):
    """A model that wants the arrays of `reference` behind its data, and the `offset` in nats that
    its density lacks.
    """

    model: Model
    reference: tuple[Array, ...] = ()
    offset: float = 0.0


def centred(model: Model, u: Draw, data: Data) -> Centred:
    """The model with log p(D_i | theta) - log p(D_i | T(u)) in place of each row's term.

    `reference` holds the rows' terms at the tree u, and `offset` is their sum in double precision.
    A model without a term per row stays as it is, and so does one that is not finite there.
    """
    if model.log_likelihood is None or not model.per_row:
        return Centred(model)
    reference = _rows(model, u, data)
    offset = float(np.sum(to_host(reference), dtype=np.float64))
    if not np.isfinite(offset):
        return Centred(model)
    differences = _Differences(model.log_likelihood)
    return Centred(replace(model, log_likelihood=differences), (reference,), offset)


@partial(HostProgram, static_argnames="model")
def _rows(model: Model, u: Draw, data: Data) -> Array:
    return model.rows(model.constrain(u), *data)


@dataclass(frozen=True, eq=False)
class _Differences(Record):
    """A record, so that equal models remain equal and share one compilation."""

    log_likelihood: Callable[..., Array]

    def __call__(self, theta: Draw, *data: Any) -> Array:
        *rows, reference = data
        return self.log_likelihood(theta, *rows) - reference
