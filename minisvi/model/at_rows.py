"""A log density at many points, for what is computed on the host.

One program holds the model, whatever the number of points: it takes blocks of a fixed size, of
which the first few chunks are computed.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools.batching import traced_once
from minisvi.tools.programs import BY_DEFAULT, HostProgram
from minisvi.tools.sharding import to_host
from minisvi.tools.types import Data, Draw, Latents, Weight

_CHUNK = 64  # points that are computed at a time
_MOST_POINTS = 2048  # of a block
_MOST_NUMBERS = 2**22  # of a block


def never() -> bool:
    """False: what is computed may take its time."""
    return False


def density_at_rows(
    model: Model,
    u: Draw,
    num: int,
    data: Data,
    weight: Weight = None,
    reference: tuple[Array, ...] = (),
    over: Callable[[], bool] = never,
) -> tuple[Draw, np.ndarray]:
    """theta = T(u) and log p(T(u), D) + log|det J_T(u)|, (S,) in nats, at `num` points u (S, ...).

    `reference` is what a model that is `centred` takes after the data. After each block of points
    `over()` is asked whether to stop: then only the points up to there come back.
    """

    def compute(block: tuple[Draw, Array], num_chunks: int) -> tuple[Draw, Array]:
        points, places = block
        return _densities(model, points, places, num_chunks, data, weight, reference)

    # A tree without leaves would not say how many points there are.
    places = np.zeros(num, np.float32)
    return in_blocks(compute, (u, places), num, over)


@partial(HostProgram, static_argnames="model", options=BY_DEFAULT)
def _densities(
    model: Model,
    u: Draw,
    places: Array,
    num_chunks: Any,
    data: Data,
    weight: Weight,
    reference: tuple[Array, ...],
) -> tuple[Draw, Array]:
    """theta and the log density at the points of the first chunks."""

    def one(point: Draw, place: Array) -> tuple[Draw, Array]:
        del place
        log_p = model.log_density(point, *data, *reference, weight=weight)
        return model.constrain(point), log_p

    batch = jax.vmap(one, axis_size=_CHUNK)
    return over_chunks(lambda points: batch(*points), (u, places), num_chunks)


def in_blocks(
    compute: Callable[[Any, int], Any],
    points: Any,
    num: int,
    over: Callable[[], bool] = never,
    chunk: int = _CHUNK,
    most: int = _MOST_POINTS,
) -> Any:
    """compute(block, num_chunks) of one block of points after the other, on the host.

    `points` is a tree (S, ...), of S = `num`. All blocks have the same size, of which the first
    `num_chunks` chunks count. After each `over()` is asked whether to stop.
    """
    size = sum(math.prod(np.shape(leaf)[1:]) for leaf in jax.tree.leaves(points))
    per_block = max(min(most, _MOST_NUMBERS // max(size, 1)) // chunk, 1) * chunk
    found = []
    for begin in range(0, num, per_block):
        count = min(per_block, num - begin)
        rows = np.minimum(np.arange(begin, begin + per_block), num - 1)
        result = to_host(compute(_take(points, rows), -(-count // chunk)))
        found.append(_take(result, slice(count)))
        if over():
            break
    return found[0] if len(found) == 1 else jax.tree.map(_joined, *found)


def _take(tree: Any, rows: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _joined(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts)


def over_chunks(
    function: Callable[[Any], Any], points: Any, num_chunks: Any, chunk: int = _CHUNK
) -> Any:
    """function(points), one chunk of the leading axis after the other; only so many of them."""
    function = traced_once(function)

    def at(i: Any) -> Any:
        return jax.tree.map(lambda leaf: _chunk_of(leaf, i, chunk), points)

    def put(whole: Array, part: Array, i: Any) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part, i * chunk, 0)

    def body(i: Any, results: Any) -> Any:
        parts = function(at(i))
        return jax.tree.map(lambda whole, part: put(whole, part, i), results, parts)

    def empty(form: Any) -> Array:
        num = len(jax.tree.leaves(points)[0])
        return jnp.zeros((num, *form.shape[1:]), form.dtype)

    forms = jax.eval_shape(lambda: function(at(0)))
    return jax.lax.fori_loop(0, num_chunks, body, jax.tree.map(empty, forms))


def _chunk_of(leaf: Array, i: Any, chunk: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(leaf, i * chunk, chunk)


def unravel_rows(latents: Latents, rows: np.ndarray) -> Draw:
    """The tree u of points (S, ...), from rows (S, D)."""
    leaves, treedef = jax.tree.flatten(trees.unconstrained_like(latents))
    parts = []
    start = 0
    for leaf in leaves:
        end = start + math.prod(leaf.shape)
        part = rows[:, start:end].reshape(len(rows), *leaf.shape)
        with np.errstate(over="ignore"):  # of points too far away
            parts.append(part.astype(leaf.dtype))
        start = end
    return jax.tree.unflatten(treedef, parts)


def ravel_rows(u: Draw, num: int) -> np.ndarray:
    """The rows (S, D), in double precision, of a tree of points u (S, ...)."""
    columns = [np.asarray(leaf, float).reshape(num, -1) for leaf in jax.tree.leaves(u)]
    return np.concatenate([np.zeros((num, 0)), *columns], axis=1)
