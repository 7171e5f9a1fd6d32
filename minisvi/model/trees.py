"""A tree of latents: T leaf by leaf, and one flat vector for all of them.

The vector is what the built-in guides work on. It takes one random call, one small optimiser state
and few kernels, whatever the tree.
"""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.model.supports import Support
from minisvi.tools import checks
from minisvi.tools.names import named_leaves
from minisvi.tools.types import Data, Draw, Latents, Weight


def latents_of(model: Any) -> Latents:
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


def local_names(latents: Latents) -> list[str]:
    """The dotted paths of the local latents."""
    return [name for name, support in named_leaves(latents).items() if support.local]


def shapes_of(latents: Latents) -> Any:
    """The tree of shapes and dtypes of theta."""
    return jax.tree.map(lambda support: support.spec, latents)


def unconstrained_like(latents: Latents) -> Any:
    """The tree of shapes and dtypes of u."""
    return jax.tree.map(lambda support: support.unconstrained, latents)


def constrain(latents: Latents, u: Draw, weight: Weight = None) -> tuple[Draw, Array]:
    """theta = T(u), and the sum of log|det J_T(u)| over the latents, a scalar in nats.

    The rows of local latents count as `weight` says (see `weigh`).
    """
    treedef: Any = jax.tree.structure(latents)
    theta = []
    log_dets = []
    for support, leaf in zip(jax.tree.leaves(latents), treedef.flatten_up_to(u)):
        value, log_det = _forward(support, leaf)
        theta.append(value)
        log_dets.append(weigh(support, log_det, weight))
    return jax.tree.unflatten(treedef, theta), jnp.asarray(sum(log_dets, 0.0))


def _forward(support: Support, u: Array) -> tuple[Array, Array]:
    """T(u) and log|det J_T(u)|, a scalar, or one for each row of a local latent."""
    if support.local:
        return jax.vmap(support.forward_and_log_det)(u)
    return support.forward_and_log_det(u)


def at_zero(latents: Latents) -> Draw:
    """T(0): a theta inside the supports."""
    like = unconstrained_like(latents)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    theta, _ = constrain(latents, zeros)
    return theta


def weigh(support: Support, terms: Array, weight: Weight) -> Array:
    """The sum of a latent's terms, such as its log prior's.

    A local latent has terms for each row, along the leading axis. They count `weight` = N/B times,
    because the rows that are not in the batch have such terms too.
    """
    if not support.local:
        return jnp.sum(terms)
    rows = terms.reshape(len(terms), -1).sum(-1)
    return weighted_sum(rows, weight)


def weighted_sum(rows: Array, weight: Weight) -> Array:
    """sum_i weight_i row_i of rows (B,).

    `weight` is (B,), or one number for all rows, or None, which stands for one.
    """
    if weight is None:
        return jnp.sum(rows)
    if jnp.ndim(weight) == 0:
        return weight * jnp.sum(rows)
    return jnp.sum(weight * rows)


def with_rows(latents: Latents, data: Data) -> Latents:
    """The latents of a batch: local ones get the leading axis of the data's first array."""
    rows = row_shape(data) or ()

    def of_batch(support: Support) -> Support:
        if not support.local:
            return support
        return replace(support, shape=(*rows, *support.shape), local=False)

    return jax.tree.map(of_batch, latents)


def row_shape(data: Data) -> tuple[int, ...] | None:
    """(B,), the leading axis of the data's first array; None without data."""
    leaves = jax.tree.leaves(data)
    return jnp.shape(leaves[0])[:1] if leaves else None


def unconstrain(latents: Latents, theta: Draw) -> Draw:
    """u = T^-1(theta); ValueError names a leaf of the wrong shape or outside its support."""
    theta = jax.tree.map(jnp.asarray, theta)
    checks.same_tree("latent", shapes_of(latents), theta)
    u = jax.tree.map(_inverse, latents, theta)
    leaves = zip(named_leaves(latents).items(), jax.tree.leaves(theta), jax.tree.leaves(u))
    for (name, support), theta_leaf, u_leaf in leaves:
        if not isinstance(u_leaf, jax.core.Tracer):  # a traced value is not known yet
            _check_inside(name, support, theta_leaf, u_leaf)
    return u


def _inverse(support: Support, theta: Array) -> Array:
    return support.inverse(theta.astype(support.value_dtype))


def _check_inside(name: str, support: Support, theta: Array, u: Array) -> None:
    tolerance = jnp.finfo(support.value_dtype).eps ** 0.5
    again, _ = support.forward_and_log_det(u)
    is_finite = jnp.all(jnp.isfinite(u))
    if not (is_finite and jnp.allclose(again, theta, rtol=tolerance, atol=tolerance)):
        kind = type(support.bijector).__name__.lstrip("_")
        raise ValueError(
            f"latent `{name}`: expected a value inside the support ({kind}); got {theta}"
        )


def spec(latents: Latents) -> jax.ShapeDtypeStruct:
    """Shape (D,) and dtype of the vector of all unconstrained latents.

    ValueError for latents that have no place in it, which are the local and the discrete ones.
    """
    for name, support in named_leaves(latents).items():
        _check_has_a_place(name, support)
    leaves = jax.tree.leaves(unconstrained_like(latents))
    size = sum(leaf.size for leaf in leaves)
    dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
    return jax.ShapeDtypeStruct((size,), dtype)


def _check_has_a_place(name: str, support: Support) -> None:
    if support.local:
        raise ValueError(
            f"latent `{name}` is local: expected a guide such as `per_row` or `amortised`, "
            "around one over a row's support, for it"
        )
    if support.num_values is not None:
        raise ValueError(
            f"latent `{name}` is discrete: expected a guide such as `categorical` for it, or a "
            "model without it, by `sum_out`"
        )


def ravel(latents: Latents, u: Draw) -> Array:
    """The tree u as a vector, shape (D,)."""
    vector = spec(latents)
    parts = [jnp.ravel(leaf).astype(vector.dtype) for leaf in jax.tree.leaves(u)]
    if not parts:
        return jnp.zeros(vector.shape, vector.dtype)
    return jnp.concatenate(parts)


def unravel(latents: Latents, vector: Array | np.ndarray) -> Draw:
    """The inverse of `ravel`."""
    leaves, treedef = jax.tree.flatten(unconstrained_like(latents))
    parts = []
    start = 0
    for leaf in leaves:
        end = start + math.prod(leaf.shape)
        part = vector[start:end].reshape(leaf.shape)
        parts.append(part.astype(leaf.dtype))
        start = end
    return jax.tree.unflatten(treedef, parts)


def precision(latents: Latents) -> float:
    """The relative distance of neighbouring numbers, in the dtype of that vector."""
    return float(jnp.finfo(spec(latents).dtype).eps)


def start(latents: Latents, key: Array, loc: Draw = None) -> Array:
    """An initial location, shape (D,): the tree `loc`, or a draw of uniform(-2, 2).

    ValueError names a leaf of `loc` that has another shape.
    """
    vector = spec(latents)
    if loc is None:
        return jax.random.uniform(key, vector.shape, vector.dtype, -2.0, 2.0)
    checks.same_tree("loc", unconstrained_like(latents), loc)
    return ravel(latents, loc)


def covariance(cov: Any, loc: Array) -> Array:
    """`cov` in the dtype of the location (D,).

    ValueError unless it is a matrix (D, D), or variances (D,).
    """
    cov = jnp.asarray(cov, loc.dtype)
    size = loc.size
    if cov.shape not in ((size,), (size, size)):
        raise ValueError(f"`cov`: expected shape {(size, size)} or {(size,)}; got {cov.shape}")
    return cov


def strongly_typed(tree: Any) -> Any:
    """The tree with leaves that are arrays of a dtype of their own.

    A weakly typed leaf, made from a Python float, would turn strong in the first step, which would
    compile again.
    """

    def typed(leaf: Any) -> Array:
        return jax.lax.convert_element_type(leaf, jnp.result_type(leaf))

    return jax.tree.map(typed, tree)


def all_finite(tree: Any) -> Array:
    """Whether every number of the tree is finite, a scalar bool."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return jnp.array(True)
    each = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
    return jnp.all(jnp.stack(each))
