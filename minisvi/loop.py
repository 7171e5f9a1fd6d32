"""The compiled loop: blocks of updates on the device, and between them, on the host, all that is not mathematics."""

import time
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.progress import ProgressBar, deferred_interrupt

MAX_CONSECUTIVE_FAILURES = 10
BLOCK_CAPACITY = 4096  # steps; the trace of a block has this length whatever the number of steps asked for
_BLOCK_SECONDS = 0.25  # how long the bar may stand still and Ctrl-C may wait
_FIRST_BLOCK = 16

Reason = Literal["finished", "interrupted", "non-finite"]


def run(svi: Any, state: Any, num_steps: int, data: tuple[Any, ...], progress_bar: bool) -> tuple[Any, Any, Reason]:
    """`num_steps` of `svi.update`: the last state, the ELBO of each step taken, and why it ended."""
    state, traces, done, limit = _copy(state), [], 0, _FIRST_BLOCK
    with ProgressBar(num_steps, progress_bar) as bar, deferred_interrupt() as interrupted:
        while done < num_steps and not interrupted.is_set():
            begin = time.perf_counter()
            state, buffer, taken = _block(svi, state, min(limit, num_steps - done), data)
            traces.append(np.asarray(buffer)[: int(taken)])
            bar.advance(traces[-1])
            done += len(traces[-1])
            if state.num_failed >= MAX_CONSECUTIVE_FAILURES:
                break
            pace = _BLOCK_SECONDS / (time.perf_counter() - begin)
            limit = int(np.clip(limit * pace, 1, min(64 * limit, BLOCK_CAPACITY)))
    # Fewer than ten steps may all have failed: then nothing was fitted either.
    failed = state.num_failed >= MAX_CONSECUTIVE_FAILURES or state.num_skipped == state.step
    reason: Reason = "non-finite" if failed else "finished" if done == num_steps else "interrupted"
    return state, np.concatenate(traces), reason


@partial(jax.jit, static_argnames="svi", donate_argnames="state")
def _block(svi: Any, state: Any, num_steps: Any, data: tuple[Any, ...]) -> tuple[Any, Array, Array]:
    # A while loop and not a scan, so that the number of steps is not part of the program: the last, shorter block runs
    # the same one, the host sets the pace, and a fit that fails ends at once.
    def go_on(carry: Any) -> Array:
        state, _, taken = carry
        return (taken < num_steps) & (state.num_failed < MAX_CONSECUTIVE_FAILURES)

    def step(carry: Any) -> Any:
        state, trace, taken = carry
        state, info = svi.update(state, *data)
        return state, trace.at[taken].set(info.elbo), taken + 1

    trace = jnp.zeros(BLOCK_CAPACITY, jax.eval_shape(svi.evaluate, state, *data).dtype)
    return jax.lax.while_loop(go_on, step, (state, trace, jnp.zeros((), jnp.int32)))


@jax.jit
def _copy(tree: Any) -> Any:
    # Blocks overwrite their input: the state that the user holds must stay theirs.
    return jax.tree.map(jnp.copy, tree)
