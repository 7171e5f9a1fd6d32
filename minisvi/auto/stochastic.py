"""The stochastic fit: any guide by sticking the landing, with a rate that rises and falls; on
minibatches too.
"""

import itertools
import time
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array

from minisvi.data.batches import FullBatch, Minibatches
from minisvi.guides.base import Guide
from minisvi.model.model import Model
from minisvi.objectives.elbo import ELBO
from minisvi.svi import SVI, SVIState
from minisvi.tools.types import Params

if TYPE_CHECKING:
    import optax


def stochastic(
    key: Array,
    model: Model,
    guide: Guide,
    *data: Any,
    params: Params | None = None,
    num_steps: tuple[int, ...] = (2000, 6000),
    learning_rates: tuple[float, ...] = (8e-3, 4e-3),
    num_particles: int = 32,
    b2: float = 0.999,
    batch_size: int | None = None,
    deadline: float = np.inf,
    checkpoint_dir: Path | None = None,
    checkpoint_every: float = 60.0,
) -> Iterator[SVIState]:
    """The state after each of some runs of Adam, one going on from the other, as long as the caller
    asks for more.

    In every run the rate warms up for a tenth of its `num_steps` and then falls to zero by a
    cosine, so that the last iterate has no noise left to average. Sticking the landing has no noise
    where q is the posterior, and much far from it: start at `params` near by, of a `whitened`
    guide, for which one rate suits all latents (Kim et al. 2024). Adam forgets the squares of
    gradients by `b2`: where the first of them are 1e3 times the later ones, as on a funnel, 0.999
    leaves no steps of any size for thousands of iterations, and 0.95 does.

    At the `deadline`, of `time.monotonic()`, and at Ctrl-C it ends early, with what there is. Each
    run has its checkpoints in a directory of its own, below `checkpoint_dir`.
    """
    if len(num_steps) != len(learning_rates):
        got = f"{learning_rates}, {num_steps}"
        raise ValueError(f"expected one of `learning_rates` for each of `num_steps`; got {got}")
    batches = FullBatch() if batch_size is None else Minibatches(batch_size)
    optimizer = _optimizer(num_steps, learning_rates, b2)
    svi = SVI(model, guide, optimizer, ELBO(num_particles, "sticking_the_landing"), batches)
    state = svi.init(key, *data, params=params)
    go_on = partial(
        svi.resume,
        checkpoint_every=checkpoint_every,
        progress_bar=False,
        on_failure="return",
    )
    for end in itertools.accumulate(num_steps):
        directory = None if checkpoint_dir is None else checkpoint_dir / f"{end} steps"
        num_left = end - int(state.step)
        seconds = deadline - time.monotonic()
        result = go_on(state, num_left, *data, seconds=seconds, checkpoint_dir=directory)
        state = result.state
        yield state
        if state.step < end:
            return


@lru_cache
def _optimizer(
    num_steps: tuple[int, ...], rates: tuple[float, ...], b2: float = 0.999
) -> "optax.GradientTransformation":
    import optax

    # Cached, for optax's optimisers compare by identity: a new one would compile the fit again.
    schedules = [
        optax.warmup_cosine_decay_schedule(0.0, rate, num // 10, num)
        for rate, num in zip(rates, num_steps)
    ]
    ends = list(itertools.accumulate(num_steps))
    return optax.adam(optax.join_schedules(schedules, ends[:-1]), b2=b2)
