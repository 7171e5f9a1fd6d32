"""What the checkpoints in a directory are of, written beside them, so that no run goes on from
another's.
"""

import json
import logging
import os
import uuid
import zlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from minisvi.tools.keys import to_integers
from minisvi.tools.sharding import to_host

logger = logging.getLogger("minisvi")


def claim(directory: Path, about: dict[str, str]) -> None:
    """Write down, in a directory's about.json, what run its checkpoints are of.

    ValueError if it says that they are of another run, or if there are checkpoints but nothing says
    what they are of.
    """
    is_known = (directory / "about.json").exists()
    if not is_known and _has_checkpoints(directory):
        raise ValueError(
            f"{directory} has checkpoints that are not minisvi's, or have lost their about.json"
        )
    reclaim(directory, about)


def _has_checkpoints(directory: Path) -> bool:
    return any(path.parent.name.isdigit() for path in directory.glob("*/_CHECKPOINT_METADATA"))


def reclaim(directory: Path, about: dict[str, str]) -> None:
    """Write the about.json if it is not there, or is damaged; ValueError names the first leaf in
    which it is of something else.
    """
    file = directory / "about.json"
    if file.exists():
        try:
            written = json.loads(file.read_text())
        except ValueError as error:
            logger.warning("%s is damaged, and written again as of this run: %s", file, error)
        else:
            _compare(directory, written, about)
            return
    directory.mkdir(parents=True, exist_ok=True)
    _write_at_once(file, json.dumps(about, indent=1))


def _write_at_once(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    draft = file.with_suffix(f".{uuid.uuid4().hex}")  # no other run's: they may begin together
    with draft.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(draft, file)


def _compare(directory: Path, written: dict[str, str], about: dict[str, str]) -> None:
    for leaf in about | written:
        there = written.get(leaf, "absent")
        here = about.get(leaf, "absent")
        if there != here:
            raise ValueError(
                f"{directory} has checkpoints of another run: "
                f"`{leaf}` is {there} there, and {here} here"
            )


def describe(name: str, thing: Any) -> dict[str, str]:
    """What a thing is, leaf by leaf: arrays by shape, dtype and checksum, records by their fields,
    classes and functions by their names. A `ShapeDtypeStruct` stands for an array of any numbers.
    """
    if isinstance(thing, np.generic):
        thing = thing.item()
    if isinstance(thing, str | int | float | bool | None):
        return {name: repr(thing)}
    if hasattr(thing, "shape") and hasattr(thing, "dtype"):
        return {name: f"{thing.dtype}{list(thing.shape)}{_checksum(thing)}"}
    kind = getattr(thing, "__qualname__", type(thing).__qualname__)
    described = {name: kind}
    for key, part in _parts(thing).items():
        described |= describe(f"{name}.{key}", part)
    return described


def _parts(thing: Any) -> dict[Any, Any]:
    """What a thing is made of, by name or place."""
    if is_dataclass(thing) and not isinstance(thing, type):
        return {field.name: getattr(thing, field.name) for field in fields(thing)}
    if isinstance(thing, dict):
        return thing
    if isinstance(thing, tuple | list):
        names = getattr(thing, "_fields", range(len(thing)))
        return dict(zip(names, thing))
    return {}


def _checksum(array: Any) -> str:
    """The array's fingerprint, if this process holds all of it: the rest would have to be sent."""
    if isinstance(array, jax.Array):
        is_here = array.is_fully_addressable
    else:
        is_here = isinstance(array, np.ndarray)
    return f", sum {fingerprint(array)}" if is_here else ""


def fingerprint(array: Any) -> str:
    """A checksum of the numbers of an array, or of an array of PRNG keys."""
    numbers = to_host(to_integers(array))
    flat = np.ascontiguousarray(numbers).reshape(-1)
    return f"{zlib.crc32(flat.view(np.uint8).data):08x}"
