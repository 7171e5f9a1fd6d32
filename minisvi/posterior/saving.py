"""A fitted guide's parameters on disk."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from minisvi.guides.base import Guide
from minisvi.tools import checks
from minisvi.tools.sharding import to_host
from minisvi.tools.types import Params


def save(path: str | Path, params: Params) -> None:
    """Write a fitted guide's parameters, or any tree of arrays, to a directory.

    Wherever the arrays lie, `load` has them on the default device. ValueError if the directory
    exists.
    """
    import orbax.checkpoint as ocp

    named = to_host(checks.named_leaves(params, what="save"))
    # Orbax writes no arrays without entries; `load` knows them from the guide.
    written = {name: array for name, array in named.items() if array.size}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), written)


def load(path: str | Path, guide: Guide) -> Params:
    """The parameters that `save` wrote. It needs the guide, and nothing else of the fit.

    ValueError, if they are another guide's, names the leaf that is missing, unexpected or of
    another shape.
    """
    import orbax.checkpoint as ocp

    expected = jax.eval_shape(guide.init, jax.random.key(0))
    with ocp.StandardCheckpointer() as checkpointer:
        written = checkpointer.restore(Path(path).absolute())
    named = checks.named_leaves(expected)
    found = _empty_leaves(named) | written
    checks.same_tree(f"the parameters in {path}", named, found)
    leaves = [jnp.asarray(found[name]) for name in named]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def _empty_leaves(named: dict[str, Any]) -> dict[str, Any]:
    empty = {name: leaf for name, leaf in named.items() if not leaf.size}
    return {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in empty.items()}
