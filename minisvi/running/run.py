"""A whole run: from a start and the data to a result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict

import jax.numpy as jnp
from jax import Array

from minisvi.running.feed import feed, is_stream
from minisvi.running.host import Host, drive
from minisvi.running.outcome import best_of, raise_on_failure, result_of
from minisvi.running.plan import Plan
from minisvi.running.result import SVIResult
from minisvi.tools import checks, inputs
from minisvi.tools.sharding import check_axes
from minisvi.tools.types import Data


class Options(TypedDict, total=False):
    """How a run goes, besides its start and its steps: `SVI.run` says what each is."""

    average: bool
    stop: Any
    held_out: Data | None
    seconds: float
    checkpoint_dir: str | Path | None
    checkpoint_every: float
    progress_bar: bool
    on_failure: Literal["raise", "return"]


def run(
    svi: Any,
    start: Callable[..., Any],
    begin: int,
    num_steps: int,
    data: Data,
    key: Array | None = None,
    num_restarts: int = 1,
    *,
    average: bool = False,
    stop: Any = None,
    held_out: Data | None = None,
    seconds: float = float("inf"),
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: float = 60.0,
    progress_bar: bool = True,
    on_failure: Literal["raise", "return"] = "raise",
) -> SVIResult:
    """`num_steps` from the state `start(svi, *data)` at step `begin`, with the `Options`.

    With several starts the state is stacked, and `key` serves to choose among them.
    """
    plan = Plan(num_restarts, average, stop)
    host = Host(progress_bar, seconds, checkpoint_dir, checkpoint_every)
    checks.positive_integer("num_steps", num_steps)
    if on_failure not in ("raise", "return"):
        raise ValueError(f"`on_failure` must be 'raise' or 'return'; got {on_failure!r}")
    if held_out is not None and stop is None:
        raise ValueError(
            "`held_out` is for a stopping rule: expected `stop`, such as Patience(); got None"
        )
    held_out = None if held_out is None else inputs.arrays(held_out)
    if not is_stream(data):
        data = inputs.arrays(data)
        svi.model.check_terms(*data)  # all rows: a start sees those of one batch
    check_axes((data, held_out))
    svi, source = feed(svi, data, begin)
    state = start(svi, *source.example)
    # A run that ended in failure may try again.
    state = state._replace(num_failed=jnp.zeros_like(state.num_failed))
    outcome = drive(svi, plan, host, state, num_steps, source, held_out)
    if key is None or num_restarts == 1:
        result = result_of(outcome, plan, begin)
    else:
        result = best_of(svi, outcome, plan, data, key)
    if on_failure == "raise":
        raise_on_failure(svi, outcome, result)
    return result
