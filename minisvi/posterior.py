"""What q says: draws, summaries and predictions of a fitted guide."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi import checks
from minisvi.guides import Guide
from minisvi.model import Model


@dataclass(frozen=True)
class Posterior:
    """The approximate posterior q(theta) at fitted parameters: `Posterior(model, guide, result.params)`.

    Give `data` to guides that are amortised over it. Summaries are over `num_samples` draws, leaf by leaf; a tree comes
    back in the shape of the latents.
    """

    model: Model
    guide: Guide
    params: Any
    data: tuple[Any, ...] = ()

    def sample(self, key: Array, num_samples: int) -> Any:
        """Independent draws of theta, each leaf with a leading axis of `num_samples`."""
        return _map_draws(self.model, self.guide, _theta, self.params, self.data, self._keys(key, num_samples), ())

    def mean(self, key: Array, num_samples: int = 10_000) -> Any:
        """E_q[theta]."""
        return jax.tree.map(lambda draws: jnp.mean(draws, axis=0), self.sample(key, num_samples))

    def sd(self, key: Array, num_samples: int = 10_000) -> Any:
        """Standard deviation of theta under q."""
        return jax.tree.map(lambda draws: jnp.std(draws, axis=0), self.sample(key, num_samples))

    def median(self, key: Array, num_samples: int = 10_000) -> Any:
        """Marginal medians of theta under q."""
        return self.quantiles(key, 0.5, num_samples)

    def quantiles(self, key: Array, probabilities: Any, num_samples: int = 10_000) -> Any:
        """Marginal quantiles; each leaf gets the shape of `probabilities` in front of its own."""
        p = jnp.asarray(probabilities)
        return jax.tree.map(lambda draws: jnp.quantile(draws, p, axis=0), self.sample(key, num_samples))

    def predictive(
        self,
        key: Array,
        fn: Callable[..., Any],
        num_samples: int,
        *inputs: Any,
        batch_size: int | None = None,
    ) -> Any:
        """fn(key, theta, *inputs) at `num_samples` draws of theta, stacked along a leading axis.

        The draws are those of `sample(key, num_samples)`. With a `batch_size`, that many are computed at a time and
        each chunk goes to the host as it comes, so that device memory holds one chunk; the numbers do not depend on it.
        Keep `fn` at hand and pass new data as `inputs`: equal function and shapes are not compiled again.
        """
        keys = self._keys(key, num_samples)
        compute = partial(_map_draws, self.model, self.guide, fn, self.params, self.data)
        if batch_size is None:
            return compute(keys, inputs)
        size = checks.positive_integer("batch_size", batch_size)
        # The last chunk is filled up with repeated draws, cut off afterwards, to keep the one compiled shape.
        index = np.minimum(np.arange(-(-num_samples // size) * size), num_samples - 1).reshape(-1, size)
        chunks = [jax.device_get(compute(keys[rows], inputs)) for rows in index]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_samples], *chunks)

    def _keys(self, key: Array, num_samples: int) -> Array:
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
        u, _ = q.sample_and_log_prob(seed=key)
        return fn(jax.random.fold_in(key, 1), target.constrain(u), *inputs)

    return jax.vmap(one)(keys)
