"""Where the weights of a guide's network come from: a function of a key, or a tree of arrays, as
`bnn.pure` gives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

Init = Callable[..., Any]
Network = tuple[Init, Callable[..., Array]]


@dataclass(frozen=True, eq=False)
class Initial:
    """A function of a key, and of whatever else, that returns these weights.

    Arrays have no hash, so two of these are equal where they hold the very same arrays: guides that
    are built twice around one tree are equal, and share a compilation.
    """

    weights: Any

    def __call__(self, *_: Any) -> Any:
        return self.weights

    def _key(self) -> tuple[Any, ...]:
        leaves, treedef = jax.tree.flatten(self.weights)
        return treedef, *map(id, leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Initial) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def initialiser(name: str, init: Any) -> Init:
    """`init` as a function; TypeError unless it is one, or a tree of arrays."""
    if callable(init):
        return init
    leaves = jax.tree.leaves(init)
    if not leaves or not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        raise TypeError(
            f"{name}: expected a function that returns weights, or a tree of arrays; got {init!r}"
        )
    return Initial(init)


def pair(name: str, network: Any) -> Network:
    """`network` as two functions (init, apply), of which the first may be given as a tree of
    arrays.

    TypeError for anything else.
    """
    if not (isinstance(network, tuple | list) and len(network) == 2 and callable(network[1])):
        raise TypeError(
            f"{name}: expected (init, apply), such as `bnn.pure(module)`; got {network!r}"
        )
    init, apply = network
    return initialiser(f"{name}'s init", init), apply
