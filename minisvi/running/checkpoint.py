"""A run that outlives its process: the loop's whole state in a directory, written by Orbax in the
background.

What is written is all that the next step depends on, so that a run that goes on from it is the one
that was not interrupted, bit by bit. A checkpoint is there whole or not at all, and the last three
are kept.
"""

import logging
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.running.identity import claim, reclaim
from minisvi.running.plan import Lane
from minisvi.tools.interrupts import interrupted
from minisvi.tools.keys import from_integers, to_integers

logger = logging.getLogger("minisvi")
KEEP = 3


class Saved(NamedTuple):
    """A run after `done` steps: the loop's `lane`, and up to there the ELBO estimates, what the
    rule saw, and the number of rows that were left out.
    """

    done: int
    lane: Lane
    elbo: np.ndarray
    seen: Any
    num_dropped: int = 0


class NoCheckpoints:
    """A stand-in for `Checkpoints` that saves nothing."""

    due = False

    def restore(self, lane: Lane) -> None:
        del lane

    def save(self, saved: Saved) -> None:
        del saved

    def close(self) -> None:
        pass


class Checkpoints:
    """The checkpoints of one run, in a directory of its own (see `claim`), one every so many
    seconds.
    """

    def __init__(self, directory: str | Path, every: float, about: dict[str, str]) -> None:
        if not every > 0:
            raise ValueError(f"`checkpoint_every` must be above 0 seconds; got {every}")
        self._path = Path(directory).absolute()
        self._every = every
        self._about = about
        claim(self._path, about)
        self._open()
        self._since = time.monotonic()
        self._last = -1

    def _open(self) -> None:
        import orbax.checkpoint as ocp  # slow to import

        self._args: Any = ocp.args
        self._path.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP,
            cleanup_tmp_directories=True,
            step_name_format=_Names(ocp.path.step.standard_name_format()),
        )
        self._manager: Any = ocp.CheckpointManager(self._path, options=options)

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._since >= self._every

    def restore(self, lane: Lane) -> Saved | None:
        """The latest checkpoint that is whole, like `lane`; None if there is none. Damaged ones are
        put aside, with a warning.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                saved = self._read(step, lane)
            except Exception as error:  # whatever the damaged file makes of it
                _put_aside(self._path / str(step), error)
                self._manager.reload()
                continue
            self._last = step
            logger.info("going on from step %d, by the checkpoint in %s", step, self._path)
            return saved
        return None

    def _read(self, step: int, lane: Lane) -> Saved:
        """The checkpoint of a step; ValueError if its checksum is not that of its numbers."""
        form = jax.tree.map(_form, _bits(lane))
        args = self._args.Composite(
            lane=self._args.StandardRestore(form), trace=self._args.StandardRestore()
        )
        found = self._manager.restore(step, args=args)
        trace = found["trace"]
        written = int(trace.pop("sum")[0])
        if written != _checksum(found["lane"], trace):
            raise ValueError("its numbers are not those that were written")
        num_dropped = int(trace.pop("dropped")[0])
        elbo, *seen = _columns(trace)
        restored = jax.tree.map(_like, lane, found["lane"])
        return Saved(step, restored, elbo, _unflatten_seen(lane, seen), num_dropped)

    def save(self, saved: Saved) -> None:
        """Begin to write, in the background. If that fails the run goes on, with a warning."""
        self._since = time.monotonic()
        if saved.done == self._last:
            return
        # A copy, for the next block overwrites the lane while it is being written.
        lane = jax.tree.map(jnp.copy, _bits(saved.lane))
        trace = _trace([saved.elbo, *jax.tree.leaves(saved.seen)])
        trace["dropped"] = np.array([saved.num_dropped])
        # Orbax has no checksum of the numbers themselves.
        trace["sum"] = np.array([_checksum(lane, trace)], np.uint32)
        args = self._args.Composite(
            lane=self._args.StandardSave(lane), trace=self._args.StandardSave(trace)
        )
        with self._surviving():
            # The directory may have been emptied, and have got a late checkpoint since.
            reclaim(self._path, self._about)
            self._check_place(saved.done)
            self._manager.save(saved.done, args=args)
            self._last = saved.done

    def close(self) -> None:
        """Wait until all is written."""
        with self._surviving():
            self._manager.wait_until_finished()
            self._manager.close()

    def _check_place(self, step: int) -> None:
        # Orbax would remove what is there.
        place = self._path / str(step)
        if place.exists() and not _is_checkpoint(place):
            raise FileExistsError(f"`{step}` is there, and is no checkpoint: it is left alone")

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Let no failure to write end the run."""
        try:
            yield
        except Exception as error:  # of this write or of the last one
            self._last = -1
            logger.warning(
                "no checkpoint could be written to %s, and the fit goes on: %.200r",
                self._path,
                error,
            )
            with suppress(Exception):
                self._open()


class _Names:
    """Orbax's names of checkpoints, which are the numbers of their steps. Whatever else has such a
    name is not found, so that Orbax neither counts nor removes it.
    """

    def __init__(self, names: Any) -> None:
        self.build_name = names.build_name
        self.find_step = names.find_step
        self._find_all = names.find_all

    def find_all(self, directory: Any) -> Iterator[Any]:
        return (found for found in self._find_all(directory) if _is_checkpoint(Path(found.path)))


def _is_checkpoint(path: Path) -> bool:
    """Whether it is one of ours, damaged or not: one that has lost all of its files is an empty
    directory.
    """
    if not path.is_dir():
        return False
    marks = "_CHECKPOINT_METADATA", "lane/_METADATA", "trace/_METADATA"
    is_empty = not any(path.iterdir())
    return is_empty or any((path / mark).exists() for mark in marks)


def remembered(path: Path, compute: Callable[[], Any], like: Any, deadline: float) -> Any:
    """compute(), a tree of arrays with the structure of `like`, read from the path if it is there.

    It is written there unless the computation was interrupted, or took until the `deadline`, of
    `time.monotonic()`. What is damaged is put aside, and computed again.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        if path.exists():
            try:
                found = checkpointer.restore(path)
                leaves = [found[str(i)] for i in range(len(found))]
                return jax.tree.unflatten(jax.tree.structure(like), leaves)
            except Exception as error:  # whatever the damaged file makes of it
                _put_aside(path, error)
        tree = compute()
        if time.monotonic() < deadline and not interrupted():
            leaves = jax.tree.leaves(tree)
            checkpointer.save(path, {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)})
    return tree


def _put_aside(path: Path, error: Exception) -> None:
    """Rename what is damaged, and do not remove it, for it may be something else of the user's."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    with suppress(FileNotFoundError):  # another process was faster
        path.rename(aside)
    logger.warning("the checkpoint %s is damaged, and now in %s: %.200r", path, aside, error)


def _trace(columns: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The columns by their number. Each has a row of zeros before it, for Orbax writes no empty
    array.
    """
    trace = {}
    for i, column in enumerate(columns):
        zero = np.zeros_like(column, shape=(1, *column.shape[1:]))
        trace[str(i)] = np.concatenate([zero, column])
    return trace


def _columns(trace: dict[str, np.ndarray]) -> list[np.ndarray]:
    return [trace[str(i)][1:] for i in range(len(trace))]


def _unflatten_seen(lane: Lane, leaves: list[np.ndarray]) -> Any:
    if lane.memory is None:
        return None
    return jax.tree.unflatten(jax.tree.structure(lane.memory.seen), leaves)


def _checksum(lane: Any, trace: dict[str, np.ndarray]) -> int:
    """A checksum that changes if one bit of the lane or of the trace changes."""
    columns = [np.ascontiguousarray(trace[name]).tobytes() for name in sorted(trace)]
    return zlib.crc32(b"".join(columns)) ^ int(_lane_checksum(lane))


@jax.jit
def _lane_checksum(lane: Any) -> Array:
    """The checksum of the lane, computed where it lies, for no process may hold all of it: integers
    add up to the same in any order.
    """
    total = jnp.zeros((), jnp.uint32)
    for i, leaf in enumerate(jax.tree.leaves(lane)):
        words = _words(leaf)
        place = 2 * jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape) + 1
        total += (2 * i + 1) * jnp.sum(place * words, dtype=jnp.uint32)
    return total


def _words(leaf: Array) -> Array:
    """The bits of an array as integers, of 32 bits each at most."""
    word = f"uint{8 * min(leaf.dtype.itemsize, 4)}"
    if leaf.dtype == bool:
        words = leaf.astype(word)
    else:
        words = jax.lax.bitcast_convert_type(leaf, word)
    return words.astype(jnp.uint32)


def _bits(tree: Any) -> Any:
    """The tree as Orbax wants it: PRNG keys are the integers that they are made of, and an empty
    array has a number in it.
    """

    def bits(leaf: Any) -> Any:
        leaf = to_integers(leaf)
        return leaf if leaf.size else jnp.zeros(1, leaf.dtype)

    return jax.tree.map(bits, tree)


def _form(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _like(leaf: Any, found: Any) -> Any:
    """What was found, as the kind of array that `leaf` is."""
    if not leaf.size:
        return leaf
    if leaf.sharding.num_devices == 1:  # free to follow other arrays to where they are
        found = jnp.asarray(np.asarray(found))
    return from_integers(found, leaf)
