"""What q says: draws, summaries and predictions of a fitted guide."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from minisvi.guides.base import Guide
from minisvi.guides.foreign import member
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.posterior.diagnostics import PSIS, psis
from minisvi.posterior.draws import Draws, plain
from minisvi.posterior.spilling import batchwise
from minisvi.posterior.summary import Summary
from minisvi.tools import checks
from minisvi.tools.batching import in_batches
from minisvi.tools.inputs import arrays
from minisvi.tools.types import Data, Draw, Params

_BATCH_SIZE = 250  # draws whose log densities are computed at a time


@dataclass(frozen=True)
class Posterior:
    """The approximate posterior q(theta) at fitted parameters: `Posterior(model, guide, params)`.

    `data`, a tuple, are needed by `reweighted`, and by guides of local latents, which are stored by
    row or amortised over the data. Summaries are those of `Draws`, over `num_samples` plain draws.
    Trees come back in the shape of the latents. TypeError for data in no tuple, and ValueError for
    draws of local latents without data.
    """

    model: Model
    guide: Guide
    params: Params
    data: Data = ()

    def __post_init__(self) -> None:
        if not isinstance(self.data, tuple):
            kind = type(self.data).__name__
            raise TypeError(
                f"Posterior: expected `data` as a tuple, such as (x,) or (x, y); got {kind}"
            )
        object.__setattr__(self, "data", arrays(self.data))

    @classmethod
    def of(cls, svi: Any, result: Any, *data: Any) -> "Posterior":
        """The posterior of an SVI at the `params` of its result: `Posterior.of(svi, svi.run(key,
        500, y), y)`.
        """
        return cls(svi.model, svi.guide, result.params, data)

    def sample(self, key: Array, num_samples: int) -> Draw:
        """Independent draws of theta, each leaf with a leading axis of `num_samples`."""
        self._check_data()
        keys = _split(key, num_samples)
        with self._noting_data():
            return _map_draws(self.model, self.guide, _theta, self.params, self.data, keys, ())

    def _check_data(self) -> None:
        local = trees.local_names(self.model.latents)
        if local and not self.data:
            raise ValueError(
                f"latents {local} are local, and their draws need the rows of the data: expected "
                "Posterior(model, guide, params, data), with data a tuple"
            )

    @contextmanager
    def _noting_data(self) -> Iterator[None]:
        # Whether the user's own guide or model takes data shows only where it is called without.
        try:
            yield
        except TypeError as error:
            if not self.data:
                error.add_note(
                    "a guide or a model that takes data needs "
                    "Posterior(model, guide, params, data), a tuple"
                )
            raise

    def draws(self, key: Array, num_samples: int) -> Draws:
        """The draws of `sample` with equal weights."""
        return plain(self.sample(key, num_samples), num_samples)

    def reweighted(
        self, key: Array, num_samples: int, batch_size: int = _BATCH_SIZE
    ) -> tuple[Draws, PSIS]:
        """The draws of `sample` with Pareto-smoothed importance weights, which take them from q to
        p(theta | D); and the weights' figures, of which k-hat says whether they may be trusted.

        The density is that of the model at `data`. It is computed for `batch_size` draws at a time.
        """
        args = self.model, self.guide, self.params, *self.data
        with self._noting_data():
            u, log_w = log_weights(key, *args, num_samples=num_samples, batch_size=batch_size)
        target = self.model.over(self.guide.constrained)
        return _reweigh(target, u, log_w)

    def mean(self, key: Array, num_samples: int = 10_000) -> Draw:
        """E_q[theta]."""
        return self.draws(key, num_samples).mean()

    def sd(self, key: Array, num_samples: int = 10_000) -> Draw:
        """Standard deviation of theta under q."""
        return self.draws(key, num_samples).sd()

    def median(self, key: Array, num_samples: int = 10_000) -> Draw:
        """Marginal medians of theta under q."""
        return self.draws(key, num_samples).median()

    def quantiles(self, key: Array, probabilities: Any, num_samples: int = 10_000) -> Draw:
        """Marginal quantiles. Each leaf gets the shape of `probabilities` in front of its own.

        ValueError for a probability outside [0, 1].
        """
        checks.probabilities(probabilities)
        return self.draws(key, num_samples).quantiles(probabilities)

    def summary(self, key: Array, num_samples: int = 10_000) -> Summary:
        """A table of mean, sd, quantiles, ESS and error under q, to be printed: a row for each
        scalar entry of theta.
        """
        return self.draws(key, num_samples).summary()

    def predictive(
        self,
        key: Array,
        fn: Callable[..., Any],
        num_samples: int,
        *inputs: Any,
        batch_size: int | None = None,
        out: str | Path | None = None,
    ) -> Any:
        """fn(key, theta, *inputs) at `num_samples` draws of theta, stacked along a leading axis.

        The draws are those of `sample(key, num_samples)`. Keep `fn` at hand and pass new data as
        `inputs`: equal functions and shapes are not compiled again.

        - `batch_size`: that many are drawn and computed at a time, and each batch goes to the host
          as it comes, so that device memory holds one batch. The numbers do not depend on it, but
          for keys of JAX's kind "rbg", whose draws depend on how many are made at once.
        - `out`: a directory. Each batch then goes to files there, and what comes back is
          memory-mapped, so that host memory holds one batch too. There is a file for each leaf, by
          its name, with the characters quoted as in a URL that are not for files; that of a single
          array is `value.npy`.

        FileExistsError if one of the files is there already; TypeError for PRNG keys from `fn` in
        batches.
        """
        checks.takes("fn", fn, "fn(key, theta, *inputs)", 2 + len(inputs))
        inputs = arrays(inputs)
        self._check_data()
        keys = _split(key, num_samples)
        args = self.model, self.guide, fn, self.params, self.data

        def compute(rows: np.ndarray) -> Any:
            return _map_draws(*args, keys[rows], inputs)

        with self._noting_data():
            return batchwise(compute, num_samples, batch_size, out)


def log_weights(
    key: Array,
    model: Model,
    guide: Guide,
    params: Params,
    *data: Any,
    num_samples: int,
    batch_size: int = _BATCH_SIZE,
) -> tuple[Draw, Array]:
    """Independent draws of q and their log weights log p(T(u), D) + log|det J_T(u)| - log q(u),
    (S,), in nats.

    The draws are u, or theta itself where the guide is constrained:
    `model.over(guide.constrained).constrain` takes one to theta. They are computed `batch_size` at
    a time, which bounds the memory; what comes back does not depend on it. Any guide will do: a
    mixture is drawn from as a whole, not by strata. Records are static and data are arguments:
    equal ones are compiled once.
    """
    checks.positive_integer("batch_size", batch_size)
    keys = _split(key, num_samples)
    return weigh(model, guide, params, arrays(data), keys, batch_size)


def _split(key: Array, num_samples: int) -> Array:
    key = checks.prng_key(key)
    num_samples = checks.positive_integer("num_samples", num_samples)
    return jax.random.split(key, num_samples)


def _theta(key: Array, theta: Draw) -> Draw:
    del key
    return theta


@partial(jax.jit, static_argnames=("model", "guide", "fn"))
def _map_draws(
    model: Model,
    guide: Guide,
    fn: Callable[..., Any],
    params: Params,
    data: Data,
    keys: Array,
    inputs: Data,
) -> Any:
    """fn(key, theta, *inputs) at a draw theta of q for each of the keys."""
    q = member(guide, params, *data)
    target = model.over(guide.constrained)

    def one(key: Array) -> Any:
        u, _ = q.draw(key)
        fn_key = jax.random.fold_in(key, 1)
        return fn(fn_key, target.constrain(u), *inputs)

    return jax.vmap(one)(keys)


@partial(jax.jit, static_argnames=("model", "guide", "batch_size"))
def weigh(
    model: Model,
    guide: Guide,
    params: Params,
    data: Data,
    noise: Array,
    batch_size: int = _BATCH_SIZE,
) -> tuple[Draw, Array]:
    """Draws made from `noise` (S, ...) and their log weights (S,), as `log_weights` has them.

    The noise of a draw is a key, or the normals that q is made from.
    """
    q = member(guide, params, *data)
    target = model.over(guide.constrained)

    def one(noise: Array) -> tuple[Draw, Array]:
        u, log_q = q.draw(noise)
        log_p = target.log_density(u, *data)
        return u, log_p - log_q

    return in_batches(one, noise, batch_size)


def _reweigh(target: Model, u: Draw, log_w: Array) -> tuple[Draws, PSIS]:
    smoothed = psis(log_w)
    return Draws(_constrained(target, u, log_w), smoothed.log_weights), smoothed


@partial(jax.jit, static_argnames="target")
def _constrained(target: Model, u: Draw, log_w: Array) -> Draw:
    return jax.vmap(target.constrain, axis_size=log_w.size)(u)
