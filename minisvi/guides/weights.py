"""Where the weights of a guide's network come from: a function of a key, or a tree of arrays, such
as `bnn.pure` gives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax import Array

from minisvi.tools.types import Params

Init = Callable[..., Params]


class Network(NamedTuple):
    """A network as two pure functions: `init(key, ...)` gives weights, and `apply(weights, x)` a
    vector of features.
    """

    init: Init
    apply: Callable[..., Array]


@dataclass(frozen=True, eq=False)
class Initial:
    """A function of a key, and of whatever else, that returns these weights.

    Arrays have no hash, so two of these are equal where they hold the very same arrays: guides that
    are built twice around one tree are equal, and share a compilation.
    """

    weights: Params

    def __call__(self, *_: Any) -> Params:
        return self.weights

    def _key(self) -> tuple[Any, ...]:
        leaves, treedef = jax.tree.flatten(self.weights)
        return treedef, *map(id, leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Initial) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def initialiser(name: str, init: Init | Params) -> Init:
    """`init` itself if it is a function, and a function that returns it if it is a tree of arrays.

    TypeError for anything else.
    """
    if callable(init):
        return init
    leaves = jax.tree.leaves(init)
    if not leaves or not all(_is_array(leaf) for leaf in leaves):
        raise TypeError(
            f"{name}: expected a function that returns weights, or a tree of arrays; got {init!r}"
        )
    return Initial(init)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def pair(name: str, network: Any) -> Network:
    """`network` as a `Network`, of a pair (init, apply) whose first may be a tree of arrays.

    TypeError for anything else.
    """
    is_pair = isinstance(network, tuple | list) and len(network) == 2
    if not is_pair or not callable(network[1]):
        raise TypeError(
            f"{name}: expected (init, apply), such as `bnn.pure(module)`; got {network!r}"
        )
    init, apply = network
    return Network(initialiser(f"{name}'s init", init), apply)
