"""What q says: draws, summaries and predictions of a fitted guide."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax import Array

from minisvi import checks
from minisvi.diagnostics import PSIS, psis
from minisvi.draws import Draws, in_chunks, plain
from minisvi.guides import Guide, base
from minisvi.model import Model


@dataclass(frozen=True)
class Posterior:
    """The approximate posterior q(theta) at fitted parameters: `Posterior(model, guide, result.params)`.

    Give `data`, a tuple, to guides that are amortised over it, and for `reweighted`. Summaries are those of `Draws`,
    over `num_samples` plain draws; a tree comes back in the shape of the latents.
    """

    model: Model
    guide: Guide
    params: Any
    data: tuple[Any, ...] = ()

    def sample(self, key: Array, num_samples: int) -> Any:
        """Independent draws of theta, each leaf with a leading axis of `num_samples`."""
        keys = _split(key, num_samples)
        return _map_draws(self.model, self.guide, _theta, self.params, self.data, keys, ())

    def draws(self, key: Array, num_samples: int) -> Draws:
        """The draws of `sample` with equal weights."""
        return plain(self.sample(key, num_samples), num_samples)

    def reweighted(self, key: Array, num_samples: int, batch_size: int = 250) -> tuple[Draws, PSIS]:
        """The draws of `sample` with Pareto-smoothed importance weights, which take them from q to p(theta | D); and
        k-hat, which says whether they may be trusted to.

        The density is that of the model at `data`; `batch_size` is how many draws it is computed for at a time.
        """
        args = self.model, self.guide, self.params, *self.data
        try:
            u, log_w = log_weights(key, *args, num_samples=num_samples, batch_size=batch_size)
        except TypeError as error:
            if not self.data:
                error.add_note("`reweighted` needs the model's data: Posterior(model, guide, params, data), a tuple")
            raise
        return _reweigh(self.model.over(self.guide.constrained), u, log_w)

    def mean(self, key: Array, num_samples: int = 10_000) -> Any:
        """E_q[theta]."""
        return self.draws(key, num_samples).mean()

    def sd(self, key: Array, num_samples: int = 10_000) -> Any:
        """Standard deviation of theta under q."""
        return self.draws(key, num_samples).sd()

    def median(self, key: Array, num_samples: int = 10_000) -> Any:
        """Marginal medians of theta under q."""
        return self.draws(key, num_samples).median()

    def quantiles(self, key: Array, probabilities: Any, num_samples: int = 10_000) -> Any:
        """Marginal quantiles; each leaf gets the shape of `probabilities` in front of its own."""
        return self.draws(key, num_samples).quantiles(probabilities)

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

        The draws are those of `sample(key, num_samples)`. With a `batch_size`, that many are drawn and computed at a
        time and each chunk goes to the host as it comes, so that device memory holds one chunk; the numbers do not
        depend on it, but for keys of JAX's kind "rbg", whose draws depend on how many are made at once. With a
        directory `out` too it goes to a file there, `value.npy`, or one a leaf by its name, and what comes back is
        memory-mapped: then host memory holds one chunk as well. Characters of a name that are not for files are quoted
        as in a URL. Keep `fn` at hand and pass new data as `inputs`: equal function and shapes are not compiled again.

        FileExistsError if one of the files is there already; TypeError for PRNG keys from `fn` in chunks.
        """
        keys = _split(key, num_samples)
        args = self.model, self.guide, fn, self.params, self.data
        return in_chunks(lambda rows: _map_draws(*args, keys[rows], inputs), num_samples, batch_size, out)


def log_weights(
    key: Array, model: Model, guide: Guide, params: Any, *data: Any, num_samples: int, batch_size: int = 250
) -> tuple[Any, Array]:
    """Independent draws of q and their log weights log p(T(u), D) + log|det J_T(u)| - log q(u), (S,), in nats.

    The draws are u, or theta itself where the guide is constrained: `model.over(guide.constrained).constrain` takes
    one to theta. They are computed `batch_size` at a time, so that memory is that of so many log densities; what comes
    back does not depend on it. For any guide: a mixture is drawn from as a whole, not by strata. Records are static and
    data are arguments: equal ones are compiled once.
    """
    checks.positive_integer("batch_size", batch_size)
    return weigh(model, guide, params, data, _split(key, num_samples), batch_size)


def _split(key: Array, num_samples: int) -> Array:
    return jax.random.split(checks.prng_key(key), checks.positive_integer("num_samples", num_samples))


def _theta(key: Array, theta: Any) -> Any:
    del key
    return theta


@partial(jax.jit, static_argnames=("model", "guide", "fn"))
def _map_draws(
    model: Model, guide: Guide, fn: Callable[..., Any], params: Any, data: Any, keys: Array, inputs: tuple[Any, ...]
) -> Any:
    q = guide.distribution(params, *data)
    target = model.over(guide.constrained)

    def one(key: Array) -> Any:
        u, _ = base.draw(q, key)
        return fn(jax.random.fold_in(key, 1), target.constrain(u), *inputs)

    return jax.vmap(one)(keys)


@partial(jax.jit, static_argnames=("model", "guide", "batch_size"))
def weigh(
    model: Model, guide: Guide, params: Any, data: tuple[Any, ...], noise: Array, batch_size: int = 250
) -> tuple[Any, Array]:
    """Draws from `noise` (S, ...), each a key or the normals that q is made from, and their log weights (S,)."""
    q = guide.distribution(params, *data)
    target = model.over(guide.constrained)

    def one(noise: Array) -> tuple[Any, Array]:
        u, log_q = base.draw(q, noise)
        return u, target.log_density(u, *data) - log_q

    return jax.lax.map(one, noise, batch_size=batch_size)


@partial(jax.jit, static_argnames="target")
def _reweigh(target: Model, u: Any, log_w: Array) -> tuple[Draws, PSIS]:
    smoothed = psis(log_w)
    return Draws(jax.vmap(target.constrain, axis_size=log_w.size)(u), smoothed.log_weights), smoothed
