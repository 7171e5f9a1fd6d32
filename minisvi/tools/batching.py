"""A function of one thing as a function of many: vectorised, or one after the other.

On CPUs XLA gives a batch of triangular solves to the thread pool on which it waits for them. In
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
    """`jax.vmap(fun)`, or `jax.lax.map` of it where that could hang.

    That is on a CPU, if `fun` or its gradient has triangular solves.
    """
    fun = traced_once(fun)

    def apply(xs: Any) -> Any:
        if jax.default_backend() == "cpu" and _has_solves(fun, xs):
            return jax.lax.map(fun, xs)
        return jax.vmap(fun)(xs)

    return apply


def traced_once(fun: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which JAX traces once however often it is called inside of another trace."""
    return jax.jit(fun, inline=True)


def one_by_one(fun: Callable[[Any], Any], xs: Any) -> Any:
    """fun of each of `xs`, one after the other on every machine.

    It is for functions that often have triangular solves, such as products with a Hessian, where
    nobody looks whether this one has.
    """
    return jax.lax.map(fun, xs)


def _has_solves(fun: Callable[[Any], Any], xs: Any) -> bool:
    one = jax.tree.map(_one_of, xs)
    primitives = _primitives(jax.make_jaxpr(fun)(one))
    return not _SOLVES.isdisjoint(primitives)


def _one_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of one of those along the leading axis."""
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


def _form(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _primitives(jaxpr: Any) -> Iterator[str]:
    """The names of the operations of a program, and of the programs in it."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(inner):
                yield from _primitives(inner)


def _is_program(node: Any) -> bool:
    return hasattr(node, "eqns")


def in_batches(fun: Callable[[Any], Any], xs: Any, batch_size: int) -> Any:
    """`jax.lax.map(fun, xs, batch_size=batch_size)`, but for functions whose result may have empty
    leaves, with which that fails (jax 0.10).
    """
    seen: list[Any] = []  # the form of fun(x), noted when it is traced, which happens once

    def without_empty_leaves(x: Any) -> list[Array]:
        value = fun(x)
        seen.append(jax.tree.map(_form, value))
        return [leaf for leaf in jax.tree.leaves(value) if leaf.size]

    mapped = iter(jax.lax.map(without_empty_leaves, xs, batch_size=batch_size))
    num = len(jax.tree.leaves(xs)[0])
    forms, treedef = jax.tree.flatten(seen[0])
    whole = []
    for form in forms:
        if form.size:
            whole.append(next(mapped))
        else:
            whole.append(jnp.zeros((num, *form.shape), form.dtype))
    return jax.tree.unflatten(treedef, whole)
