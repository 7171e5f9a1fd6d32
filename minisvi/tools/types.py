"""The names by which signatures call the trees that go through the engine."""

from typing import Any, TypeAlias

from jax import Array

Params: TypeAlias = Any
"""phi: a guide's parameters, a pytree of floats."""

Latents: TypeAlias = Any
"""The supports of a model's latents, a pytree whose leaves are `Support`s."""

Draw: TypeAlias = Any
"""u or theta: a pytree of arrays in the form of the latents."""

Data: TypeAlias = tuple[Any, ...]
"""D: what comes after the latents in the user's functions, each a pytree of arrays."""

Weight: TypeAlias = Array | float | None
"""N/B, by which the terms of B rows stand for those of all N: one number, or each row's own, (B,),
or None where all rows are there."""
