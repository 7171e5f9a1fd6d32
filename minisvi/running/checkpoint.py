"""A fit that outlives its process: the loop's whole state in a directory, written by Orbax in the
background.

What is written is all that the next step depends on, so that a fit that goes on from it is the one
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
from minisvi.tools.interrupts import interrupted

logger = logging.getLogger("minisvi")
KEEP = 3


class Saved(NamedTuple):
    """A run after `done` steps: the loop's `lane`, and up to there the trace, the checks and the
    rows dropped.
    """

    done: int
    lane: Any
    elbo: np.ndarray
    seen: Any
    num_dropped: int = 0


class Checkpoints:
    """The checkpoints of one run, in a directory of its own (see `claim`), one every so many
    seconds.
    """

    def __init__(self, directory: str | Path, every: float, about: dict[str, str]) -> None:
        if not every > 0:
            raise ValueError(f"`checkpoint_every` must be above 0 seconds; got {every}")
        self._path, self._every, self._about = Path(directory).absolute(), every, about
        claim(self._path, about)
        self._open()
        self._since, self._last = time.monotonic(), -1

    def _open(self) -> None:
        import orbax.checkpoint as ocp  # slow to import

        self._args: Any = ocp.args
        self._path.mkdir(parents=True, exist_ok=True)
        names = _Names(ocp.path.step.standard_name_format())
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP, cleanup_tmp_directories=True, step_name_format=names
        )
        self._manager: Any = ocp.CheckpointManager(self._path, options=options)

    def restore(self, lane: Any) -> Saved | None:
        """The latest that is whole, like `lane`; None if there is none. Damaged ones are put aside,
        and said.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                like = self._args.StandardRestore(jax.tree.map(_spec, _bits(lane)))
                args = self._args.Composite(lane=like, trace=self._args.StandardRestore())
                found = self._manager.restore(step, args=args)
                if int(found["trace"].pop("sum")[0]) != _sum(found["lane"], found["trace"]):
                    raise ValueError("its numbers are not those that were written")
            except Exception as error:  # whatever the damaged file makes of it
                _put_aside(self._path / str(step), error)
                self._manager.reload()
                continue
            self._last = step
            logger.info("going on from step %d, by the checkpoint in %s", step, self._path)
            dropped = int(found["trace"].pop("dropped")[0])
            elbo, *seen = (found["trace"][str(i)][1:] for i in range(len(found["trace"])))
            rule = (
                None
                if lane.memory is None
                else jax.tree.unflatten(jax.tree.structure(lane.memory.seen), seen)
            )
            return Saved(step, jax.tree.map(_like, lane, found["lane"]), elbo, rule, dropped)
        return None

    @property
    def due(self) -> bool:
        return time.monotonic() - self._since >= self._every

    def save(self, saved: Saved) -> None:
        """Begin to write, in the background. If that fails the fit goes on, and a warning says what
        there is.
        """
        self._since = time.monotonic()
        if saved.done == self._last:
            return
        # A copy, for the next block overwrites the lane while it is being written.
        lane = jax.tree.map(jnp.copy, _bits(saved.lane))
        columns = enumerate([saved.elbo, *jax.tree.leaves(saved.seen)])
        trace = {
            str(i): np.concatenate([np.zeros_like(a, shape=(1, *a.shape[1:])), a])
            for i, a in columns
        }
        trace["dropped"] = np.array([saved.num_dropped])
        trace["sum"] = np.array(
            [_sum(lane, trace)], np.uint32
        )  # for Orbax has none of the numbers themselves
        parts = self._args.StandardSave(lane), self._args.StandardSave(trace)
        with self._surviving():
            reclaim(
                self._path, self._about
            )  # the directory may have been emptied, and have a late checkpoint since
            self._check_place(saved.done)
            self._manager.save(saved.done, args=self._args.Composite(lane=parts[0], trace=parts[1]))
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
        try:
            yield
        except (
            Exception
        ) as error:  # of this write or of the last one: whatever the disk makes of it
            self._last = -1
            logger.warning(
                "no checkpoint could be written to %s, and the fit goes on: %.200r",
                self._path,
                error,
            )
            with suppress(Exception):
                self._open()


class _Names:
    """Orbax's names of checkpoints, which are the numbers of their steps; but what else has such a
    name is not found, so that Orbax neither counts nor removes it.
    """

    def __init__(self, names: Any) -> None:
        self.build_name, self.find_step = names.build_name, names.find_step
        self._find_all = names.find_all

    def find_all(self, directory: Any) -> Iterator[Any]:
        return (found for found in self._find_all(directory) if _is_checkpoint(Path(found.path)))


def _is_checkpoint(path: Path) -> bool:
    """Whether it is one of ours, damaged or not: one that has lost all of its files is an empty
    directory.
    """
    marks = "_CHECKPOINT_METADATA", "lane/_METADATA", "trace/_METADATA"
    return path.is_dir() and (
        any((path / mark).exists() for mark in marks) or not any(path.iterdir())
    )


def remembered(path: Path, compute: Callable[[], Any], like: Any, deadline: float) -> Any:
    """compute(), a tree of arrays structured as `like`: read if the path has it, else computed, and
    written unless that was interrupted, or took until the `deadline`, of `time.monotonic()`. What
    is damaged is put aside, and computed again.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        if path.exists():
            try:
                found = checkpointer.restore(path)
                return jax.tree.unflatten(
                    jax.tree.structure(like), [found[str(i)] for i in range(len(found))]
                )
            except Exception as error:  # whatever the damaged file makes of it
                _put_aside(path, error)
        tree = compute()
        if time.monotonic() < deadline and not interrupted():
            checkpointer.save(
                path, {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
            )
    return tree


def _put_aside(path: Path, error: Exception) -> None:
    """Renamed and not removed, for it may be something else of the user's."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    with suppress(FileNotFoundError):  # another process was faster
        path.rename(aside)
    logger.warning("the checkpoint %s is damaged, and now in %s: %.200r", path, aside, error)


def _sum(lane: Any, trace: dict[str, np.ndarray]) -> int:
    """Another one if a bit of the numbers is."""
    bits = zlib.crc32(
        b"".join(np.ascontiguousarray(trace[name]).tobytes() for name in sorted(trace))
    )
    return bits ^ int(_lane_sum(lane))


@jax.jit
def _lane_sum(lane: Any) -> Array:
    """Where the lane is, for no process may have all of it: integers add up to the same in any
    order.
    """
    total = jnp.zeros((), jnp.uint32)
    for i, leaf in enumerate(jax.tree.leaves(lane)):
        word = f"uint{8 * min(leaf.dtype.itemsize, 4)}"
        words = (
            leaf.astype(word) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, word)
        )
        place = 2 * jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape) + 1
        total += (2 * i + 1) * jnp.sum(place * words.astype(jnp.uint32), dtype=jnp.uint32)
    return total


def _bits(tree: Any) -> Any:
    """With PRNG keys as the integers that they are, and a number in place of none, as Orbax wants
    it.
    """

    def bits(leaf: Any) -> Any:
        return (
            jax.random.key_data(leaf)
            if _is_key(leaf)
            else leaf
            if leaf.size
            else jnp.zeros(1, leaf.dtype)
        )

    return jax.tree.map(bits, tree)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _like(leaf: Any, found: Any) -> Any:
    """What was found, as the kind of array that `leaf` is."""
    if not leaf.size:
        return leaf
    if leaf.sharding.num_devices == 1:  # free to follow other arrays to where they are
        found = jnp.asarray(np.asarray(found))
    return (
        jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else found
    )
