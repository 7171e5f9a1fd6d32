"""Many devices: names for their axes, rows laid out over one of them, and what several processes
have to agree on.

The engine follows the arrays that it is given; XLA puts in the collectives. It names no device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def mesh(**axes: int) -> Mesh:
    """The devices of all processes as a grid, such as `mesh(rows=4, restarts=2)`; use it by `with
    jax.set_mesh(...)`.

    Names that minisvi knows: `rows` of the data (`shard_rows`), `restarts` and `particles`, over
    which a fit's starts and an estimate's draws are then spread.
    """
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def shard_rows(mesh: Mesh, *data: Any) -> tuple[Any, ...]:
    """The data with their rows, the leading axis, spread over the axis `rows` of a mesh; a fit of
    them is then too.

    With several processes each gives its own rows, as many as any other, and gets arrays of them
    all. ValueError unless all give as many, and the devices divide their number; and for a mesh
    with Explicit axes.
    """
    _check_axes(mesh)
    check_rows([sum(np.shape(leaf)[:1]) for leaf in jax.tree.leaves(data)])
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(rows, np.asarray(leaf)), data
    )


def check_axes(tree: Any) -> None:
    """ValueError if the mesh in use, or one that arrays of the tree lie on, has Explicit axes: with
    these JAX leaves it to each operation to say where its result lies.
    """
    _check_axes(jax.sharding.get_abstract_mesh())
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, Array):
            _check_axes(jax.typeof(leaf).sharding.mesh)


def _check_axes(mesh: Any) -> None:
    if mesh.explicit_axes:
        raise ValueError(
            f"expected a mesh of Auto axes; got Explicit axes {mesh.explicit_axes}: make it by minisvi.mesh(rows=...), "
            "or by jax.make_mesh with axis_types=(jax.sharding.AxisType.Auto, ...)"
        )


def check_rows(nums: list[int]) -> None:
    """ValueError unless all processes bring these numbers of rows: their arrays would not be parts
    of one.
    """
    least = [-num for num in agreed(*(-num for num in nums))]
    if agreed(*nums) != least:
        raise ValueError(
            f"expected as many rows from each process; got {nums} from this one, and {least} from another"
        )


def along(axis: str, keys: Array) -> Array:
    """`keys` with the leading axis spread over the axis of this name of the mesh in use, if it has
    one that divides.
    """
    return (
        jax.lax.with_sharding_constraint(keys, PartitionSpec(axis))
        if _divides(axis, len(keys))
        else keys
    )


def apart(axis: str, function: Callable[[Array], Array], index: Array) -> Array:
    """function(index), each device at its own part of the leading axis, so that a loop in it waits
    for no other's.
    """
    if not _divides(axis, len(index)):
        return function(index)
    spec = PartitionSpec(axis)
    return jax.jit(jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names={axis}))(index)


def _divides(axis: str, num: int) -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return axis in mesh.auto_axes and num % mesh.shape[axis] == 0


def whole(tree: Any) -> Any:
    """With all of every array on every process, where some have a part of it only."""

    def gathered(leaf: Any) -> Any:
        if not hasattr(leaf, "sharding") or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        return jax.jit(jnp.copy, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()))(
            leaf
        )

    return jax.tree.map(gathered, tree)


def to_host(tree: Any) -> Any:
    """NumPy arrays of what all processes hold."""
    return jax.tree.map(np.asarray, whole(tree))


def agreed(*votes: int) -> list[int]:
    """The largest of the processes' votes, one by one: all have to run the same steps."""
    if jax.process_count() == 1:
        return list(votes)
    return multihost_utils.process_allgather(np.array(votes)).max(axis=0).tolist()
