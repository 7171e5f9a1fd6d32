"""The names of a tree's leaves: a leaf's dotted path, as a person would write it."""

from typing import Any

import jax

Path = tuple[Any, ...]
"""The keys and places that lead to a leaf, as JAX gives them."""


def path_name(path: Path) -> str:
    """The name of a leaf, such as `net.layers.0.kernel`, or `value` for a tree that is a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator=".") or "value"


def leaf_names(tree: Any, is_leaf: Any = None) -> list[str]:
    """The dotted path of each leaf of `tree`; two leaves may have the same one."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [path_name(path) for path, _ in leaves]


def named_leaves(tree: Any, is_leaf: Any = None, what: str = "a tree") -> dict[str, Any]:
    """Leaves of `tree` by their dotted path; ValueError if two of them have the same one."""
    paths: dict[str, Path] = {}
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        name = path_name(path)
        if name in paths:
            both = f"{jax.tree_util.keystr(paths[name])} and {jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{what}: expected leaves with names of their own; got `{name}` for both {both}: "
                "rename one"
            )
        paths[name] = path
        leaves[name] = leaf
    return leaves


def data_name(path: Path) -> str:
    """The name of a leaf of the data, by its place among them: `[1].y`."""
    if not (path and hasattr(path[0], "idx")):  # held-out data that are in no tuple
        return path_name(path)
    place = f"[{path[0].idx}]"
    if len(path) == 1:
        return place
    return f"{place}.{path_name(path[1:])}"


def entry_name(name: str, index: tuple[int, ...]) -> str:
    """The name of one scalar of a leaf, as a person would write it: `net.kernel[0, 2]`."""
    if not index:
        return name
    places = ", ".join(map(str, index))
    return f"{name}[{places}]"
