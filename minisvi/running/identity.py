"""What a directory's checkpoints are of, written beside them, so that no fit goes on from
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

from minisvi.tools.sharding import to_host

logger = logging.getLogger("minisvi")


def claim(directory: Path, about: dict[str, str]) -> None:
    """`reclaim` a directory, or ValueError if there are checkpoints in it of which nothing says
    what they are of.
    """
    known = (directory / "about.json").exists()
    if not known and any(
        path.parent.name.isdigit() for path in directory.glob("*/_CHECKPOINT_METADATA")
    ):
        raise ValueError(
            f"{directory} has checkpoints that are not minisvi's, or have lost their about.json"
        )
    reclaim(directory, about)


def reclaim(directory: Path, about: dict[str, str]) -> None:
    """Write down what a directory's checkpoints are of, if that is not there yet; ValueError names
    the first leaf in which it is of something else.
    """
    file = directory / "about.json"
    if file.exists():
        try:
            written = json.loads(file.read_text())
        except ValueError as error:
            logger.warning("%s is damaged, and written again as of this run: %s", file, error)
        else:
            return _compare(directory, written, about)
    directory.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{uuid.uuid4().hex}")  # no other run's: they may begin together
    with draft.open("w") as opened:
        json.dump(about, opened, indent=1)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(draft, file)  # there whole or not at all


def _compare(directory: Path, written: dict[str, str], about: dict[str, str]) -> None:
    for leaf in {**about, **written}:
        there, here = written.get(leaf, "absent"), about.get(leaf, "absent")
        if there != here:
            raise ValueError(
                f"{directory} has checkpoints of another run: `{leaf}` is {there} there, and {here} here"
            )


def describe(name: str, thing: Any) -> dict[str, str]:
    """What it is, leaf by leaf: arrays by shape, dtype and checksum, fields of records, names of
    classes and functions. A `ShapeDtypeStruct` is an array whose numbers may be others.
    """
    if isinstance(thing, np.generic):
        thing = thing.item()
    if isinstance(thing, str | int | float | bool | None):
        return {name: repr(thing)}
    if hasattr(thing, "shape") and hasattr(thing, "dtype"):
        return {name: f"{thing.dtype}{list(thing.shape)}{_sum(thing)}"}
    parts: dict[Any, Any] = {}
    if is_dataclass(thing) and not isinstance(thing, type):
        parts = {field.name: getattr(thing, field.name) for field in fields(thing)}
    elif isinstance(thing, dict):
        parts = thing
    elif isinstance(thing, tuple | list):
        parts = dict(zip(getattr(thing, "_fields", range(len(thing))), thing))
    kind = getattr(thing, "__qualname__", type(thing).__qualname__)
    return {name: kind} | {
        k: v for key, part in parts.items() for k, v in describe(f"{name}.{key}", part).items()
    }


def _sum(array: Any) -> str:
    # What other processes have of it would have to be sent here.
    here = (
        array.is_fully_addressable
        if isinstance(array, jax.Array)
        else isinstance(array, np.ndarray)
    )
    return f", sum {fingerprint(array)}" if here else ""


def fingerprint(array: Any) -> str:
    """Of an array's numbers, or a PRNG key's, or some keys'."""
    is_key = jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    numbers = to_host(jax.random.key_data(array) if is_key else array)
    return f"{zlib.crc32(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data):08x}"
