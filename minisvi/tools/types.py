"""The names by which signatures call the trees that go through the engine."""

from typing import Any, Protocol, TypeAlias

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


class Engine(Protocol):
    """What drives a fit one step at a time, `SVI` as it is seen from below."""

    @property
    def model(self) -> Any: ...

    @property
    def guide(self) -> Any: ...

    @property
    def compiler_options(self) -> Any:
        """How its loop is compiled: see `programs`."""
        ...

    @property
    def batches(self) -> Any:
        """`batches(step, data)` are the rows of a step, and their weight N/B."""
        ...

    @property
    def target(self) -> Any:
        """The model over what the guide draws."""
        ...

    def draw(self, key: Any, params: Params, /, *batch: Any) -> Draw:
        """One draw of the guide."""
        ...

    def update(self, state: Any, /, *data: Any) -> tuple[Any, Any]:
        """The state after one step, and what a person wants to see of it."""
        ...

    def evaluate(self, state: Any, /, *data: Any) -> Any:
        """The ELBO estimate that the next step would see."""
        ...
