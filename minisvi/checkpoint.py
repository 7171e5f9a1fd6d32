"""A fit that outlives its process: the loop's whole state in a directory, written by Orbax in the background.

What is written is all that the next step depends on, so that a fit that goes on from it is the one that was not
interrupted, bit by bit. A checkpoint is there whole or not at all, and the last three are kept.
"""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minisvi import checks

logger = logging.getLogger("minisvi")
KEEP = 3


class Saved(NamedTuple):
    """A run after `done` steps: the loop's `lane`, and the trace and the rule's checks up to there."""

    done: int
    lane: Any
    elbo: np.ndarray
    seen: Any


class Checkpoints:
    """The checkpoints of one run, in a directory of its own, one every so many seconds.

    `about` says what the run is of (see `describe`): `restore` raises ValueError if the directory's is of another.
    """

    def __init__(self, directory: str | Path, every: float, about: dict[str, str]) -> None:
        if not every > 0:
            raise ValueError(f"`checkpoint_every` must be above 0 seconds; got {every}")
        self._path, self._every, self._about = Path(directory).absolute(), every, about
        self._open()
        self._since, self._last = time.monotonic(), -1

    def _open(self) -> None:
        import orbax.checkpoint as ocp  # slow to import

        self._args: Any = ocp.args
        self._path.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, cleanup_tmp_directories=True)
        self._manager: Any = ocp.CheckpointManager(self._path, options=options)

    def restore(self, lane: Any) -> Saved | None:
        """The latest that is whole, like `lane`; None if there is none. Damaged ones are removed, and said."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                about = self._read(step, about=self._args.JsonRestore())["about"]
                if about == self._about:
                    like = jax.tree.map(_spec, _bits(lane))
                    found = self._read(step, lane=self._args.StandardRestore(like), trace=self._args.StandardRestore())
            except Exception as error:  # whatever the damaged file makes of it
                logger.warning("the checkpoint %s is damaged, and now removed: %s", self._path / str(step), error)
                shutil.rmtree(self._path / str(step))
                self._manager.reload()
                continue
            self._check(about)
            self._last = step
            logger.info("going on from step %d, by the checkpoint in %s", step, self._path)
            elbo, *seen = (found["trace"][str(i)] for i in range(len(found["trace"])))
            rule = None if lane.memory is None else jax.tree.unflatten(jax.tree.structure(lane.memory.seen), seen)
            return Saved(step, jax.tree.map(_like, lane, found["lane"]), elbo, rule)
        return None

    def _read(self, step: int, **parts: Any) -> Any:
        return self._manager.restore(step, args=self._args.Composite(**parts))

    def _check(self, about: dict[str, str]) -> None:
        for leaf in {**self._about, **about}:
            there, here = about.get(leaf, "absent"), self._about.get(leaf, "absent")
            if there != here:
                raise ValueError(
                    f"the checkpoints in {self._path} are of another run: `{leaf}` is {there} there, and {here} here"
                )

    @property
    def due(self) -> bool:
        return time.monotonic() - self._since >= self._every

    def save(self, saved: Saved) -> None:
        """Begin to write, in the background. If that fails the fit goes on, and a warning says what there is."""
        self._since = time.monotonic()
        if saved.done == self._last:
            return
        # A copy, for the next block overwrites the lane while it is being written.
        lane = jax.tree.map(jnp.copy, _bits(saved.lane))
        trace = dict(zip(map(str, range(99)), [saved.elbo, *jax.tree.leaves(saved.seen)]))
        parts = {
            "lane": self._args.StandardSave(lane),
            "trace": self._args.StandardSave(trace),
            "about": self._args.JsonSave(self._about),
        }
        with self._surviving():
            self._manager.save(saved.done, args=self._args.Composite(**parts))
            self._last = saved.done

    def close(self) -> None:
        """Wait until all is written."""
        with self._surviving():
            self._manager.wait_until_finished()
            self._manager.close()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of this write or of the last one: whatever the disk makes of it
            self._last = -1
            logger.warning("no checkpoint could be written to %s, and the fit goes on: %r", self._path, error)
            with suppress(Exception):
                self._open()


def describe(name: str, thing: Any) -> dict[str, str]:
    """What it is, leaf by leaf: shapes and dtypes of arrays, fields of records, names of classes and functions."""
    if isinstance(thing, str | int | float | bool | None):
        return {name: repr(thing)}
    if hasattr(thing, "shape") and hasattr(thing, "dtype"):
        return {name: f"{thing.dtype}{list(thing.shape)}"}
    parts: dict[Any, Any] = {}
    if is_dataclass(thing) and not isinstance(thing, type):
        parts = {field.name: getattr(thing, field.name) for field in fields(thing)}
    elif isinstance(thing, dict):
        parts = thing
    elif isinstance(thing, tuple | list):
        parts = dict(zip(getattr(thing, "_fields", range(len(thing))), thing))
    kind = getattr(thing, "__qualname__", type(thing).__qualname__)
    return {name: kind} | {k: v for key, part in parts.items() for k, v in describe(f"{name}.{key}", part).items()}


def save(path: str | Path, params: Any) -> None:
    """Write a fitted guide's parameters, or any tree of arrays, to a directory, which must not exist."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(path).absolute(), params)


def load(path: str | Path, guide: Any) -> Any:
    """The parameters that `save` wrote; needs the guide, and nothing else of the fit.

    ValueError names the leaf that is missing, unexpected or of another shape, if they are another guide's.
    """
    import orbax.checkpoint as ocp

    expected = jax.eval_shape(guide.init, jax.random.key(0))
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(Path(path).absolute())
    names = checks.named_leaves(expected)
    found = checks.named_leaves(found)
    checks.same_tree(f"the parameters in {path}", names, found)
    return jax.tree.unflatten(jax.tree.structure(expected), [found[name] for name in names])


def _bits(tree: Any) -> Any:
    """With PRNG keys as the integers that they are."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _like(leaf: Any, found: Any) -> Any:
    """What was found, as the kind of array that `leaf` is."""
    if leaf.sharding.num_devices == 1:  # free to follow other arrays to where they are
        found = jnp.asarray(np.asarray(found))
    return jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else found
