"""A tree of latents: T leaf by leaf, and one flat vector for all of them.

The vector is what the built-in guides work on: one random call, one small optimiser state and few
kernels, whatever the tree.
"""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.model.supports import Support
from minisvi.tools import checks
from minisvi.tools.names import named_leaves


def latents_of(model: Any) -> Any:
    """The latents of a model, or `model` itself where it is a tree of latents already.

    TypeError names a leaf that is no support, and ValueError two of one dotted path.
    """
    latents = model.latents if hasattr(model, "log_density") else model
    for name, support in named_leaves(latents, what="latents").items():
        if not isinstance(support, Support):
            raise TypeError(
                f"latent `{name}`: expected a support, such as minisvi.real(); got {support!r}"
            )
    return latents


def shapes_of(latents: Any) -> Any:
    """Tree of shapes and dtypes of theta."""
    return jax.tree.map(
        lambda support: jax.ShapeDtypeStruct(support.shape, support.value_dtype), latents
    )


def unconstrained_like(latents: Any) -> Any:
    """Tree of shapes and dtypes of u."""
    return jax.tree.map(lambda support: support.unconstrained, latents)


def constrain(latents: Any, u: Any, weight: Any = None) -> tuple[Any, Array]:
    """theta = T(u) for a tree of supports, and the sum of log|det J_T(u)|; local ones count as
    `weight` says.
    """

    def one(support: Support, leaf: Array) -> tuple[Array, Array]:
        forward = (
            jax.vmap(support.forward_and_log_det) if support.local else support.forward_and_log_det
        )
        value, log_det = forward(leaf)
        return value, weigh(support, log_det, weight)

    pairs = jax.tree.map(one, latents, u)
    theta = jax.tree.map(lambda _, pair: pair[0], latents, pairs)
    log_dets = jax.tree.map(lambda _, pair: pair[1], latents, pairs)
    return theta, jnp.asarray(sum(jax.tree.leaves(log_dets), 0.0))


def at_zero(latents: Any) -> Any:
    """T(0): a theta inside the supports."""
    zeros = jax.tree.map(
        lambda spec: jnp.zeros(spec.shape, spec.dtype), unconstrained_like(latents)
    )
    return constrain(latents, zeros)[0]


def weigh(support: Support, terms: Array, weight: Any) -> Array:
    """The sum of a latent's terms. Those of a local one, whose leading axis is the rows, count as
    the rows do: the rows that are not in the batch have one too.
    """
    return (
        weighted_sum(terms.reshape(len(terms), -1).sum(-1), weight)
        if support.local
        else jnp.sum(terms)
    )


def weighted_sum(rows: Array, weight: Any) -> Array:
    """sum_i weight_i row_i of rows (B,): `weight` is (B,), one number for all rows, or None for one."""
    if weight is None:
        return jnp.sum(rows)
    return jnp.sum(weight * rows) if jnp.ndim(weight) else weight * jnp.sum(rows)


def with_rows(latents: Any, data: Any) -> Any:
    """The latents of a batch: local ones get the leading axis of the data's first array."""
    leaves = jax.tree.leaves(data)
    rows = jnp.shape(leaves[0])[:1] if leaves else ()
    return jax.tree.map(
        lambda s: replace(s, shape=(*rows, *s.shape), local=False) if s.local else s, latents
    )


def unconstrain(latents: Any, theta: Any) -> Any:
    """u = T^-1(theta) for a tree of supports; ValueError names a leaf of the wrong shape or outside
    its support.
    """
    theta = jax.tree.map(jnp.asarray, theta)
    checks.same_tree("latent", shapes_of(latents), theta)
    u = jax.tree.map(
        lambda support, leaf: support.inverse(leaf.astype(support.value_dtype)), latents, theta
    )
    for name, support, leaf, start in zip(
        named_leaves(latents),
        jax.tree.leaves(latents),
        jax.tree.leaves(theta),
        jax.tree.leaves(u),
    ):
        if not isinstance(start, jax.core.Tracer):  # a traced value is not known yet
            _check_inside(name, support, leaf, start)
    return u


def _check_inside(name: str, support: Support, theta: Array, u: Array) -> None:
    tolerance = jnp.finfo(support.value_dtype).eps ** 0.5
    again, _ = support.forward_and_log_det(u)
    if not (
        jnp.all(jnp.isfinite(u)) and jnp.allclose(again, theta, rtol=tolerance, atol=tolerance)
    ):
        kind = type(support.bijector).__name__.lstrip("_")
        raise ValueError(
            f"latent `{name}`: expected a value inside the support ({kind}); got {theta}"
        )


def spec(latents: Any) -> jax.ShapeDtypeStruct:
    """Shape (D,) and dtype of the vector of all unconstrained latents."""
    for name, support in named_leaves(latents).items():
        if support.local or support.num_values is not None:
            kind, remedy = (
                ("local", "`per_row` or `amortised`, around one over a row's support, for it")
                if support.local
                else ("discrete", "`categorical` for it, or a model without it, by `sum_out`")
            )
            raise ValueError(f"latent `{name}` is {kind}: expected a guide such as {remedy}")
    leaves = jax.tree.leaves(unconstrained_like(latents))
    dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
    return jax.ShapeDtypeStruct((sum(math.prod(leaf.shape) for leaf in leaves),), dtype)


def ravel(latents: Any, u: Any) -> Array:
    """The tree u as a vector, shape (D,)."""
    flat = spec(latents)
    parts = [jnp.ravel(leaf).astype(flat.dtype) for leaf in jax.tree.leaves(u)]
    return jnp.concatenate(parts) if parts else jnp.zeros(flat.shape, flat.dtype)


def unravel(latents: Any, vector: Any) -> Any:
    """The inverse of `ravel`."""
    leaves, treedef = jax.tree.flatten(unconstrained_like(latents))
    parts, start = [], 0
    for leaf in leaves:
        end = start + math.prod(leaf.shape)
        parts.append(vector[start:end].reshape(leaf.shape).astype(leaf.dtype))
        start = end
    return jax.tree.unflatten(treedef, parts)


def start(latents: Any, key: Array, loc: Any = None) -> Array:
    """Initial location, shape (D,): the tree `loc`, or uniform(-2, 2). ValueError names a leaf of
    another shape.
    """
    vector = spec(latents)
    if loc is None:
        return jax.random.uniform(key, vector.shape, vector.dtype, -2.0, 2.0)
    checks.same_tree("loc", unconstrained_like(latents), loc)
    return ravel(latents, loc)


def covariance(cov: Any, loc: Array) -> Array:
    """`cov` in the dtype of the location (D,); ValueError unless it is (D, D), or variances (D,)."""
    cov, size = jnp.asarray(cov, loc.dtype), loc.size
    if cov.shape not in ((size,), (size, size)):
        raise ValueError(f"`cov`: expected shape {(size, size)} or {(size,)}; got {cov.shape}")
    return cov


def strongly_typed(tree: Any) -> Any:
    """Leaves as arrays of their own dtype: a weakly typed one, made from a Python float, would turn
    strong in the first step and compile again.
    """
    return jax.tree.map(
        lambda leaf: jax.lax.convert_element_type(leaf, jnp.result_type(leaf)), tree
    )


def all_finite(tree: Any) -> Array:
    return jnp.all(
        jnp.stack(
            [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)] or [jnp.array(True)]
        )
    )
