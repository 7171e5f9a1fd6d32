"""Many draws in bounded memory: what is computed of a batch goes to the host, or to files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np

from minisvi.tools import checks
from minisvi.tools.names import leaf_names, named_leaves


def batchwise(
    compute: Callable[[np.ndarray], Any],
    num_samples: int,
    batch_size: int | None,
    out: str | Path | None,
) -> Any:
    """compute(rows) for the rows 0..num_samples - 1, all at once or `batch_size` at a time.

    `compute` gives a tree of arrays whose leading axis is the rows. Each batch of it goes to the
    host as it comes; or, with `out`, to files in that directory, one for each leaf, which come back
    memory-mapped.

    ValueError if `out` has no `batch_size`, or two leaves have one name; TypeError for PRNG keys in
    batches; FileExistsError if one of the files is there already. These are raised before anything
    is computed.
    """
    if batch_size is None:
        if out is not None:
            raise ValueError("`out` takes the draws in chunks: expected a `batch_size`; got None")
        return compute(np.arange(num_samples))
    size = checks.positive_integer("batch_size", batch_size)

    def rows_from(start: int) -> np.ndarray:
        # The last batch is filled up with repeated draws, which are cut off again, to keep the one
        # compiled shape.
        rows = np.arange(start, start + size)
        return np.minimum(rows, num_samples - 1)

    # The rows are numbers here too, by which arrays on the host may be indexed.
    form_of_batch = jax.eval_shape(partial(compute, rows_from(0)))
    form = jax.tree.map(partial(_with_rows, num_samples), form_of_batch)
    _check_numbers(form)
    whole = _room(form) if out is None else _files(form, Path(out))
    for start in range(0, num_samples, size):
        batch = jax.device_get(compute(rows_from(start)))
        jax.tree.map(partial(_write, start), whole, batch)
    return whole


def _with_rows(num_samples: int, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((num_samples, *leaf.shape[1:]), leaf.dtype)


def _check_numbers(form: Any) -> None:
    """TypeError names a leaf that is PRNG keys, for which NumPy has no array."""
    for name, leaf in zip(leaf_names(form), jax.tree.leaves(form), strict=True):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(
                "`fn` with a `batch_size`: expected numbers; "
                f"got PRNG keys for `{name}`: take their key_data"
            )


def _room(form: Any) -> Any:
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), form)


def _files(form: Any, out: Path) -> Any:
    """An empty file for each leaf, in the directory `out`, as memory-mapped arrays."""
    named = named_leaves(form, what="what `fn` returns")
    # A name may have any characters: quoted it is always that of a file in the directory itself.
    files = [out / f"{quote(name, safe=' ')}.npy" for name in named]
    there = [file.name for file in files if file.exists()]
    if there:
        raise FileExistsError(f"`out`: {out} has {there} already: give a new directory")
    out.mkdir(parents=True, exist_ok=True)
    mapped = [_memory_mapped(file, leaf) for file, leaf in zip(files, named.values())]
    return jax.tree.unflatten(jax.tree.structure(form), mapped)


def _memory_mapped(file: Path, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    file.touch(exist_ok=False)  # another process may have been faster
    return np.lib.format.open_memmap(file, "w+", leaf.dtype, leaf.shape)


def _write(start: int, whole: np.ndarray, batch: np.ndarray) -> None:
    end = min(start + len(batch), len(whole))
    whole[start:end] = batch[: end - start]
