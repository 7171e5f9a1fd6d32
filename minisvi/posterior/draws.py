"""What a posterior says: statistics of weighted draws of theta.

The draws are plain ones, whose weights are equal, or draws that are reweighted towards the exact
posterior.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.posterior import diagnostics
from minisvi.posterior.spilling import batchwise
from minisvi.posterior.summary import Summary, summarise
from minisvi.posterior.weighted import quantiles
from minisvi.tools import checks
from minisvi.tools.inputs import arrays
from minisvi.tools.keys import generator
from minisvi.tools.sharding import to_host
from minisvi.tools.types import Data, Draw


class Draws(NamedTuple):
    """S draws of theta, and the logarithms of their normalised weights, (S,); these are -log S each
    for plain draws.

    `theta` is a tree in the shape of the latents, each leaf with a leading axis S. A draw counts as
    its weight says: one of weight zero does not count, whatever its value.

    Statistics are computed on the host, in double precision, and compile nothing. They are NumPy
    arrays of the dtype of theta's leaves, or of JAX's default float for integers and bools.
    """

    theta: Draw
    log_weights: Array | np.ndarray

    def mean(self) -> Draw:
        """E[theta] = sum_s w_s theta_s, leaf by leaf."""

        def leaf_mean(x: Array) -> np.ndarray:
            mean, _ = diagnostics.weighted_moments(x, self.log_weights)
            return mean.astype(_float_of(x))

        return jax.tree.map(leaf_mean, self.theta)

    def sd(self) -> Draw:
        """Standard deviation of theta, sqrt(sum_s w_s (theta_s - mean)^2), leaf by leaf."""

        def leaf_sd(x: Array) -> np.ndarray:
            _, sd = diagnostics.weighted_moments(x, self.log_weights)
            return sd.astype(_float_of(x))

        return jax.tree.map(leaf_sd, self.theta)

    def median(self) -> Draw:
        """Marginal medians of theta."""
        return self.quantiles(0.5)

    def quantiles(self, probabilities: Any) -> Draw:
        """Marginal quantiles. Each leaf gets the shape of `probabilities` in front of its own.

        A quantile is the mean of the weighted quantile function over a window [a, a + 1/n], where
        a = p (1 - 1/n) and n = 1 / sum_s w_s^2. For equal weights this is the linear interpolation
        between order statistics of `numpy.quantile` (Akinshin 2023, type 7).

        ValueError for a probability outside [0, 1].
        """
        checks.probabilities(probabilities)

        def leaf_quantiles(x: Array) -> np.ndarray:
            found = quantiles(x, self.log_weights, probabilities)
            return found.astype(_float_of(x))

        return jax.tree.map(leaf_quantiles, self.theta)

    def summary(self) -> Summary:
        """A table of mean, sd, quantiles, ESS and error, to be printed: a row for each scalar entry
        of theta.
        """
        return summarise(self.theta, self.log_weights)

    def map(self, f: Callable[[Draw], Any]) -> "Draws":
        """The draws of f(theta), with the same weights. f takes one theta and returns a tree of
        arrays.

        It serves what is a function of theta and so has a posterior of its own: contrasts such as
        `a[1] - a[0]`, predictions without noise, other units. The mean of a bool, such as
        `theta["slope"] > 0`, is its probability. All draws are taken at once: where f(theta) is
        large, `resample` fewer first. Keep `f` at hand: an equal function and equal shapes are not
        compiled again.
        """
        values = _mapped(f, self.theta, self.log_weights.size)
        return Draws(values, self.log_weights)

    def resample(self, key: Array, num_samples: int) -> "Draws":
        """`num_samples` of the draws, which then have equal weights.

        They are taken one after the other, without replacement, each by the weights that are left
        (Gumbel top-k, Kool et al. 2019). So the first n of them are a resample of n.

        Without replacement the sample is biased towards q, unless S is many times `num_samples` and
        the ESS of the weights exceeds it: all S draws are q's own. ValueError if fewer draws than
        `num_samples` have a weight.
        """
        num_samples = checks.positive_integer("num_samples", num_samples)
        most = _num_weighted(self.log_weights)
        if num_samples > most:
            raise ValueError(
                f"`num_samples` must be in 1..{most}, the draws that have a weight; "
                f"got {num_samples}"
            )
        log_weights = to_host(self.log_weights)
        rng = generator(checks.prng_key(key))
        perturbed = log_weights + rng.gumbel(size=len(log_weights))
        rows = np.argsort(-perturbed)[:num_samples]
        return plain(_take(to_host(self.theta), rows), num_samples)

    def predictive(
        self,
        key: Array,
        fn: Callable[..., Any],
        num_samples: int,
        *inputs: Any,
        batch_size: int | None = None,
        out: str | Path | None = None,
    ) -> Any:
        """fn(key, theta, *inputs) at `resample(key, num_samples)`, stacked along a leading axis.

        `batch_size` and `out` bound the memory, and equal functions and shapes are compiled once:
        see `Posterior.predictive`.
        """
        checks.takes("fn", fn, "fn(key, theta, *inputs)", 2 + len(inputs))
        inputs = arrays(inputs)
        theta = self.resample(key, num_samples).theta

        def compute(rows: np.ndarray) -> Any:
            return _map_theta(fn, key, rows, _take(theta, rows), inputs)

        return batchwise(compute, num_samples, batch_size, out)


def plain(theta: Draw, num_samples: int) -> Draws:
    """`num_samples` draws that all count alike."""
    dtype = jnp.result_type(float, *jax.tree.leaves(theta))
    log_weights = np.full(num_samples, -np.log(num_samples), dtype)
    return Draws(theta, log_weights)


def _take(theta: Draw, rows: Any) -> Draw:
    return jax.tree.map(lambda leaf: leaf[rows], theta)


def _num_weighted(log_weights: Array | np.ndarray) -> int:
    """The number of draws that have a weight."""
    return int(np.sum(to_host(log_weights) > -np.inf))


def _float_of(x: Array) -> Any:
    """The dtype of x, or JAX's default float in place of an integer or a bool."""
    is_floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.dtype if is_floating else jnp.result_type(float)


@partial(jax.jit, static_argnames=("f", "num_draws"))
def _mapped(f: Callable[[Draw], Any], theta: Draw, num_draws: int) -> Any:
    return jax.vmap(f, axis_size=num_draws)(theta)


@partial(jax.jit, static_argnames="fn")
def _map_theta(fn: Callable[..., Any], key: Array, rows: Array, theta: Draw, inputs: Data) -> Any:
    """fn at the draws theta (B, ...), whose numbers among all draws are `rows` (B,). Each has a key
    of its own, which is made in here: to make them outside would be two programs more.
    """
    of_all = jax.random.fold_in(key, 1)

    def one(row: Array, theta: Draw) -> Any:
        return fn(jax.random.fold_in(of_all, row), theta, *inputs)

    return jax.vmap(one)(rows, theta)
