"""Equality and hash by value for the frozen records of the package.

Records are static arguments of compiled functions: two that are equal share one compilation. Their
fields may hold dicts, which have no hash, so a record is compared through its flattened fields.
They are not registered as pytrees: each is one leaf, and everything in it is known when tracing.

A record keeps its own copy of dicts and lists, so that it and its hash stay what they were when the
caller changes them. JAX's caches could not find it again otherwise.
"""

from copy import copy
from dataclasses import fields
from typing import Any

import jax


class Record:
    """Base of `@dataclass(frozen=True, eq=False)` classes whose fields are hashable, or pytrees of
    hashables. A class with a `__post_init__` of its own calls this one first.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            own = _copied(getattr(self, field.name))
            object.__setattr__(self, field.name, own)

    def _key(self) -> tuple[Any, ...]:
        """The record's class and fields, in a form that can be compared and hashed."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        values = [getattr(self, name) for name in names]
        leaves, treedef = jax.tree.flatten(values)
        return type(self), treedef, tuple(leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def _copied(value: Any) -> Any:
    """The value with new dicts, lists and tuples, at any depth, and the same leaves in them."""
    if isinstance(value, dict):
        own = copy(value)  # of the same class, such as an OrderedDict
        own.update({name: _copied(part) for name, part in value.items()})
        return own
    if type(value) in (list, tuple):
        return type(value)(_copied(part) for part in value)
    return value
