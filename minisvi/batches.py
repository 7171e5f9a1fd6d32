"""D: which rows a step sees, as a pure function of the step, so that a fit can be replayed from its state."""

from dataclasses import dataclass
from typing import Any

from jax import Array


@dataclass(frozen=True)
class FullBatch:
    """All rows at every step.

    The contract of a source of batches: called with the step and the data, it returns the rows of this step and the
    factor N/B of their likelihood, None where no row was left out.
    """

    def __call__(self, step: Array, data: tuple[Any, ...]) -> tuple[tuple[Any, ...], Array | None]:
        del step
        return data, None
