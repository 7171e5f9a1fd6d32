"""Equality and hash by value for the frozen records of the package.

Records are static arguments of compiled functions: two that are equal share one compilation. Their
fields may hold dicts, which have no hash, so a record is compared through its flattened fields.
They are not registered as pytrees: each is one leaf, and everything in it is known when tracing.
"""

from dataclasses import fields
from typing import Any

import jax


class Record:
    """Base of `@dataclass(frozen=True, eq=False)` classes whose fields are hashable, or pytrees of
    hashables.
    """

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
