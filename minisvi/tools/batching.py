"""A batch of a function: vectorised, or one after the other where that can hang.

On CPUs XLA gives a batch of triangular solves to the thread pool on which it waits for them: in
second derivatives of densities with a Cholesky factor, such as a Gaussian process's, all threads
come to wait (seen with jaxlib 0.10.2).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

# The last two have triangular solves in their derivatives.
_SOLVES = {"triangular_solve", "cholesky", "lu"}


def batched(fun: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`jax.vmap(fun)`, or `jax.lax.map` of it on a CPU if it, or its gradient, has triangular
    solves.
    """

    def apply(xs: Any) -> Any:
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], leaf.dtype), xs)
        if jax.default_backend() == "cpu" and not _SOLVES.isdisjoint(
            _primitives(jax.make_jaxpr(fun)(one))
        ):
            return jax.lax.map(fun, xs)
        return jax.vmap(fun)(xs)

    return apply


def one_by_one(fun: Callable[[Any], Any], xs: Any) -> Any:
    """fun of each of `xs`, one after the other on every machine.

    It is for functions that often have triangular solves, such as products with a Hessian, where
    nobody looks whether this one has.
    """
    return jax.lax.map(fun, xs)


def in_batches(fun: Callable[[Any], Any], xs: Any, batch_size: int) -> Any:
    """`jax.lax.map(fun, xs, batch_size=batch_size)`, which fails (jax 0.10) where a leaf of the
    result is empty.
    """
    seen: list[Any] = []  # what fun(x) is like, noted while it is traced, for it is traced once

    def filled(x: Any) -> list[Array]:
        value = fun(x)
        seen.append(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), value))
        return [leaf for leaf in jax.tree.leaves(value) if leaf.size]

    mapped = iter(jax.lax.map(filled, xs, batch_size=batch_size))
    num = len(jax.tree.leaves(xs)[0])
    leaves, treedef = jax.tree.flatten(seen[0])
    whole = [
        next(mapped) if leaf.size else jnp.zeros((num, *leaf.shape), leaf.dtype) for leaf in leaves
    ]
    return jax.tree.unflatten(treedef, whole)


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _primitives(inner)
