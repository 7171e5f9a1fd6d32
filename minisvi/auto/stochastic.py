"""The stochastic fit: any guide by sticking the landing, with a rate that rises and falls; on
minibatches too.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from minisvi.data.batches import FullBatch, Minibatches
from minisvi.guides.base import Guide
from minisvi.guides.wrapped import Wrapper
from minisvi.model.model import Model
from minisvi.objectives.elbo import ELBO
from minisvi.svi import SVI, SVIState
from minisvi.tools.keys import rbg_key
from minisvi.tools.programs import FEW_ROWS, IN_HASTE, CompilerOptions, num_rows
from minisvi.tools.sharding import to_host
from minisvi.tools.types import Params

if TYPE_CHECKING:
    import optax

_B2 = 0.95  # of Adam


def stochastic(
    key: Array,
    model: Model,
    guide: Guide,
    *data: Any,
    params: Params = None,
    num_steps: tuple[int, ...] = (2000, 6000),
    learning_rates: tuple[float, ...] = (8e-3, 4e-3),
    num_particles: int = 32,
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
    guide, for which one rate suits all latents (Kim et al. 2024); not at the guide's own start.
    Adam forgets the squares of gradients by b2 = 0.95: where the first of them are 1e3 times the
    later ones, as on a funnel, 0.999 leaves no steps of any size for thousands of iterations.

    With few rows a step the loop is compiled in haste, on CPUs (see `tools/programs.py`).

    At the `deadline`, of `time.monotonic()`, and at Ctrl-C it ends early, with what there is. Each
    run has its checkpoints in a directory of its own, below `checkpoint_dir`.
    """
    if len(num_steps) != len(learning_rates):
        got = f"{learning_rates}, {num_steps}"
        raise ValueError(f"expected one of `learning_rates` for each of `num_steps`; got {got}")
    batches = FullBatch() if batch_size is None else Minibatches(batch_size)
    optimizer = _optimizer(num_steps, learning_rates)
    objective = ELBO(num_particles, "sticking_the_landing")
    params = guide.init(key) if params is None else params
    one_vector = OneVector(guide, jax.tree.map(_form, params))
    rows_a_step = num_rows(data) if batch_size is None else batch_size
    engine = _BriefSVI if rows_a_step <= FEW_ROWS else SVI
    svi = engine(model, one_vector, optimizer, objective, batches)
    state = _start(svi, key, params)
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
        # On the host, where nothing has to be compiled to take the vector apart.
        vector = to_host(state.params)
        yield state._replace(params=one_vector.tree(vector))
        if int(state.step) < end:
            return


@dataclass(frozen=True, eq=False)
class _BriefSVI(SVI):
    """SVI whose steps take so little time that a slower loop is worth a quicker compilation."""

    compiler_options: ClassVar[CompilerOptions] = IN_HASTE


@dataclass(frozen=True, eq=False)
class OneVector(Wrapper):
    """`guide`, with its parameters as one vector.

    The optimiser's step and the check that it is finite are then a few kernels, and not some for
    every array of the parameters, each of which takes XLA a while to compile.
    """

    guide: Any
    form: Params  # a tree of the parameters' shapes and dtypes

    def init(self, key: Array, /) -> Array:
        vector, _ = ravel_pytree(self.guide.init(key))
        return vector

    def distribution(self, vector: Array, /, *data: Any) -> Any:
        return self.guide.distribution(self.tree(vector), *data)

    def tree(self, vector: Any) -> Params:
        """The guide's parameters, from a vector of JAX's or NumPy's."""
        leaves, treedef = jax.tree.flatten(self.form)
        ends = np.cumsum([leaf.size for leaf in leaves])
        split: Any = np.split if isinstance(vector, np.ndarray) else jnp.split
        parts = []
        for leaf, part in zip(leaves, split(vector, ends[:-1])):
            parts.append(part.reshape(leaf.shape).astype(leaf.dtype))
        return jax.tree.unflatten(treedef, parts)


def _form(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf))


def _start(svi: SVI, key: Array, params: Params) -> SVIState:
    """The state before the first step, made on the host. All that Adam keeps is zero there."""
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(params)]
    vector = np.concatenate(leaves)
    form = jax.eval_shape(svi.optimizer.init, vector)
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), form)
    zero: Any = np.zeros((), np.int32)
    key = rbg_key(key, 5)
    return SVIState(vector, opt_state, key, step=zero, num_skipped=zero, num_failed=zero)


@lru_cache
def _optimizer(
    num_steps: tuple[int, ...], rates: tuple[float, ...]
) -> "optax.GradientTransformation":
    import optax

    # Cached, for optax's optimisers compare by identity: a new one would compile the fit again.
    return optax.adam(partial(_rate, num_steps, rates), b2=_B2)


def _rate(num_steps: tuple[int, ...], rates: tuple[float, ...], step: Any) -> Any:
    """The rate at a step: in each run it rises for a tenth of the steps, and falls as a cosine."""
    ends = np.cumsum(num_steps)
    run = jnp.sum(step >= ends[:-1])
    rate = jnp.asarray(rates)[run]
    length = jnp.asarray(num_steps)[run]
    begin = jnp.asarray(ends - num_steps)[run]
    done = (step - begin) / length

    def rising() -> Array:
        return rate * 10 * done

    def falling() -> Array:
        fallen = (done - 0.1) / 0.9
        return rate * (1 + jnp.cos(jnp.pi * fallen)) / 2

    # Not `where`: XLA would fuse it into every kernel of the optimiser, and compile it as often.
    return jax.lax.cond(done < 0.1, rising, falling)
