"""Many devices: names for their axes, rows laid out over one of them, and what several processes
have to agree on.

The engine names no device. It follows the arrays that it is given, and XLA puts in the collectives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from minisvi.tools.types import Data


def mesh(**axes: int) -> Mesh:
    """The devices of all processes as a grid, such as `mesh(rows=4, restarts=2)`.

    Use it by `with jax.set_mesh(...)`. minisvi knows three names of axes: `rows` of the data (see
    `shard_rows`), and `restarts` and `particles`, over which a fit's starts and an estimate's draws
    are then spread.
    """
    types = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


def shard_rows(mesh: Mesh, *data: Any) -> Data:
    """The data with their rows, the leading axis, spread over the axis `rows` of a mesh.

    A fit of such data is then spread too. Of several processes each gives its own rows, as many as
    any other, and gets arrays of the rows of all. ValueError unless all give as many, and the
    devices divide their number; and for a mesh with Explicit axes.
    """
    _check_axes(mesh)
    check_rows([sum(np.shape(leaf)[:1]) for leaf in jax.tree.leaves(data)])
    sharding = NamedSharding(mesh, PartitionSpec("rows"))

    def spread(leaf: Any) -> Array:
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(spread, data)


def check_axes(tree: Any) -> None:
    """ValueError if the mesh in use, or one that arrays of the tree lie on, has Explicit axes.

    With these JAX leaves it to each operation to say where its result lies.
    """
    _check_axes(jax.sharding.get_abstract_mesh())
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, Array):
            _check_axes(jax.typeof(leaf).sharding.mesh)


def _check_axes(mesh: Any) -> None:
    if mesh.explicit_axes:
        raise ValueError(
            f"expected a mesh of Auto axes; got Explicit axes {mesh.explicit_axes}: make it by "
            "minisvi.mesh(rows=...), or by jax.make_mesh with "
            "axis_types=(jax.sharding.AxisType.Auto, ...)"
        )


def check_rows(nums: list[int]) -> None:
    """ValueError unless all processes bring these numbers of rows.

    Their arrays would else not be parts of one.
    """
    least = [-num for num in agreed(*(-num for num in nums))]
    most = agreed(*nums)
    if most != least:
        raise ValueError(
            f"expected as many rows from each process; got {nums} from this one, and {least} from "
            "another"
        )


def along(axis: str, keys: Array) -> Array:
    """`keys` with the leading axis spread over an axis of the mesh in use.

    They stay as they are where the mesh has no axis of this name, or it does not divide them.
    """
    if not _divides(axis, len(keys)):
        return keys
    return jax.lax.with_sharding_constraint(keys, PartitionSpec(axis))


def apart(axis: str, function: Callable[[Array], Array], index: Array) -> Array:
    """function(index), where each device computes its own part of the leading axis.

    A loop in the function then waits for no other device's. The whole is computed at once where the
    mesh in use has no axis of this name, or it does not divide `index`.
    """
    if not _divides(axis, len(index)):
        return function(index)
    spec = PartitionSpec(axis)
    by_device = jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names={axis})
    return jax.jit(by_device)(index)


def _divides(axis: str, num: int) -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return axis in mesh.auto_axes and num % mesh.shape[axis] == 0


def whole(tree: Any) -> Any:
    """The tree with all of every array on every process, where some have only a part of it."""
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> Any:
    if not hasattr(leaf, "sharding") or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return jax.jit(jnp.copy, out_shardings=everywhere)(leaf)


def to_host(tree: Any) -> Any:
    """The tree as NumPy arrays of what all processes hold."""
    return jax.tree.map(np.asarray, whole(tree))


def agreed(*votes: int) -> list[int]:
    """The largest of the processes' votes, one by one: all have to run the same steps."""
    if jax.process_count() == 1:
        return list(votes)
    of_all = multihost_utils.process_allgather(np.array(votes))
    return of_all.max(axis=0).tolist()
