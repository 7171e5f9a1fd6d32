"""A fitted guide's parameters on disk."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from minisvi.tools import checks
from minisvi.tools.sharding import to_host


def save(path: str | Path, params: Any) -> None:
    """Write a fitted guide's parameters, or any tree of arrays, to a directory, which must not
    exist: ValueError else.

    Wherever the arrays lie, `load` has them on the default device.
    """
    import orbax.checkpoint as ocp

    named = checks.named_leaves(params, what="save")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(
            Path(path).absolute(), {name: a for name, a in to_host(named).items() if a.size}
        )


def load(path: str | Path, guide: Any) -> Any:
    """The parameters that `save` wrote; needs the guide, and nothing else of the fit.

    ValueError names the leaf that is missing, unexpected or of another shape, if they are another
    guide's.
    """
    import orbax.checkpoint as ocp

    expected = jax.eval_shape(guide.init, jax.random.key(0))
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(Path(path).absolute())
    names = checks.named_leaves(expected)
    found = {
        name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in names.items() if not leaf.size
    } | found
    checks.same_tree(f"the parameters in {path}", names, found)
    return jax.tree.unflatten(
        jax.tree.structure(expected), [jnp.asarray(found[name]) for name in names]
    )
