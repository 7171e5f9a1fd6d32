"""The stochastic fit: any guide by sticking the landing, with a rate that rises and falls; on
minibatches too.
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from minisvi.data.batches import FullBatch, Minibatches
from minisvi.guides.base import Guide
from minisvi.model.model import Model
from minisvi.guides.wrapped import Wrapper
from minisvi.objectives.elbo import ELBO
from minisvi.svi import SVI, SVIState
from minisvi.tools.keys import generator
from minisvi.tools.types import Data, Params

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
    guide, for which one rate suits all latents (Kim et al. 2024).

    At the `deadline`, of `time.monotonic()`, and at Ctrl-C it ends early, with what there is. Each
    run has its checkpoints in a directory of its own, below `checkpoint_dir`.
    """
    if len(num_steps) != len(learning_rates):
        got = f"{learning_rates}, {num_steps}"
        raise ValueError(f"expected one of `learning_rates` for each of `num_steps`; got {got}")
    batches = FullBatch() if batch_size is None else Minibatches(batch_size)
    optimizer = _optimizer(num_steps, learning_rates)
    objective = ELBO(num_particles, "sticking_the_landing")
    svi = SVI(model, OneVector(guide), optimizer, objective, batches)
    state = _start(key, svi, data, params)
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
        state = state._replace(params=np.asarray(state.params), step=np.asarray(state.step))
        yield state._replace(params=svi.guide.tree(state.params))
        if state.step < end:
            return


@dataclass(frozen=True, eq=False)
class OneVector(Wrapper):
    """`guide`, with its parameters as one vector, so that the optimiser's step and the check that
    it is finite take a few kernels, and not some for every array of the parameters.
    """

    guide: Any

    @property
    def form(self) -> Params:
        """The tree of the parameters' shapes and dtypes."""
        return _form(self.guide)

    def init(self, key: Array, /) -> Array:
        return self.vector(self.guide.init(key))

    def vector(self, params: Params) -> Array:
        vector, _ = ravel_pytree(params)
        return vector

    def tree(self, vector: Any) -> Params:
        """The parameters, from a vector of JAX's or NumPy's."""
        leaves, treedef = jax.tree.flatten(self.form)
        ends = np.cumsum([leaf.size for leaf in leaves])
        split = np.split if isinstance(vector, np.ndarray) else jnp.split
        parts = split(vector, ends[:-1])
        shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves)]
        typed = [part.astype(leaf.dtype) for part, leaf in zip(shaped, leaves)]
        return jax.tree.unflatten(treedef, typed)

    def distribution(self, vector: Array, /, *data: Any) -> Any:
        return self.guide.distribution(self.tree(vector), *data)


@lru_cache
def _form(guide: Guide) -> Params:
    return jax.eval_shape(guide.init, jax.random.key(0))


def _start(key: Array, svi: SVI, data: Data, params: Params | None) -> SVIState:
    """The state before the first step, made on the host. All that Adam keeps is zero there.

    Its key is of the kind that is drawn from by XLA's own generator, which is compiled in a tenth
    of the time.
    """
    if params is None:
        params = jax.jit(svi.guide.guide.init)(key)
    words = generator(key, 4).integers(2**32, size=4, dtype=np.uint32)
    key = jax.random.wrap_key_data(words, impl="unsafe_rbg")
    form = jax.eval_shape(svi.init, key, *data)._replace(key=None)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), form)
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(params)]
    vector = np.concatenate(leaves).astype(zeros.params.dtype)
    return zeros._replace(params=vector, key=key)


@lru_cache
def _optimizer(
    num_steps: tuple[int, ...], rates: tuple[float, ...]
) -> "optax.GradientTransformation":
    import optax

    # Cached, for optax's optimisers compare by identity: a new one would compile the fit again.
    return optax.adam(partial(_rate, num_steps, rates))


def _rate(num_steps: tuple[int, ...], rates: tuple[float, ...], step: Array) -> Array:
    """The learning rate at a step, counted over all runs. With r the run's rate, N its steps, w =
    N // 10, and i the steps since it began: r i / w for i < w, and then

        r (1 + cos(pi (i - w) / (N - w))) / 2
    """
    ends = np.cumsum(num_steps)
    run = jnp.sum(step >= ends[:-1])
    begins = ends - num_steps
    begin, num, rate = (jnp.asarray(x, float)[run] for x in (begins, num_steps, rates))
    i = step - begin
    warm = jnp.floor(num / 10)

    def rising() -> Array:
        return rate * i / warm

    def falling() -> Array:
        done = jnp.minimum((i - warm) / (num - warm), 1.0)
        return rate * (1 + jnp.cos(jnp.pi * done)) / 2

    # Not `where`: XLA would compute the cosine anew in the kernel of every parameter, and compile
    # it as often.
    return jax.lax.cond(i < warm, rising, falling)
