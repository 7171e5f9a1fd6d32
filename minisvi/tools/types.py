"""The names by which signatures call the trees that go through the engine."""

from typing import Any, TypeAlias

Params: TypeAlias = Any
"""phi: a guide's parameters, a pytree of floats."""

Latents: TypeAlias = Any
"""The supports of a model's latents, a pytree whose leaves are `Support`s."""

Draw: TypeAlias = Any
"""u or theta: a pytree of arrays in the form of the latents."""

Data: TypeAlias = tuple[Any, ...]
"""D: what comes after the latents in the user's functions, each a pytree of arrays."""
