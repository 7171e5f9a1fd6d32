"""What a posterior says, from weighted draws of theta: plain ones, or those reweighted towards the
exact posterior.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.posterior import diagnostics
from minisvi.posterior.summary import Summary, summarise
from minisvi.tools import checks
from minisvi.tools.inputs import arrays


class Draws(NamedTuple):
    """S draws of theta, and the logarithms of their normalised weights, (S,); -log S each for plain
    draws.

    `theta` is a tree in the shape of the latents, each leaf with a leading axis S. All methods are
    pure, and count a draw as its weight says: one of weight zero does not count, whatever its
    value.
    """

    theta: Any
    log_weights: Array

    def mean(self) -> Any:
        """E[theta] = sum_s w_s theta_s, leaf by leaf."""
        return jax.tree.map(lambda x: _moments(x, self.log_weights)[0], self.theta)

    def sd(self) -> Any:
        """Standard deviation of theta, sqrt(sum_s w_s (theta_s - mean)^2), leaf by leaf."""
        return jax.tree.map(lambda x: _moments(x, self.log_weights)[1], self.theta)

    def median(self) -> Any:
        """Marginal medians of theta."""
        return self.quantiles(0.5)

    def quantiles(self, probabilities: Any) -> Any:
        """Marginal quantiles; each leaf gets the shape of `probabilities` in front of its own (see
        `quantiles`).

        ValueError for a probability outside [0, 1].
        """
        checks.probabilities(probabilities)
        return jax.tree.map(lambda x: quantiles(x, self.log_weights, probabilities), self.theta)

    def summary(self) -> Summary:
        """A table of mean, sd, quantiles, ESS and error for each scalar entry of theta; print it."""
        return summarise(self.theta, self.log_weights)

    def map(self, f: Callable[[Any], Any]) -> "Draws":
        """The draws of f(theta), with the same weights: f takes one theta, and returns a tree of
        arrays.

        It serves what is a function of theta and has a posterior of its own: contrasts such as
        `a[1] - a[0]`, predictions without noise, other units. The mean of a bool, such as
        `theta["slope"] > 0`, is its probability. Keep `f` at hand: an equal function and equal
        shapes are not compiled again.
        """
        return Draws(_mapped(f, self.theta, self.log_weights.size), self.log_weights)

    def resample(self, key: Array, num_samples: int) -> "Draws":
        """`num_samples` of the draws with equal weights: without replacement, the next always by
        the weights that are left (Gumbel top-k, Kool et al. 2019), so that the first n of them are
        a resample of n.

        Without replacement the sample is biased towards q unless S is many times `num_samples` and
        the weights' ESS more than it: all S draws are q's own. ValueError if fewer draws than
        `num_samples` have a weight.
        """
        num_samples = checks.positive_integer("num_samples", num_samples)
        known = not isinstance(self.log_weights, jax.core.Tracer)
        most = (
            int(np.sum(np.asarray(self.log_weights) > -np.inf)) if known else self.log_weights.size
        )
        if num_samples > most:
            raise ValueError(
                f"`num_samples` must be in 1..{most}, the draws that have a weight; got {num_samples}"
            )
        noise = jax.random.gumbel(
            checks.prng_key(key), self.log_weights.shape, self.log_weights.dtype
        )
        _, rows = jax.lax.top_k(self.log_weights + noise, num_samples)
        return plain(jax.tree.map(lambda leaf: leaf[rows], self.theta), num_samples)

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
        keys = jax.random.split(jax.random.fold_in(key, 1), num_samples)

        def compute(rows: Any) -> Any:
            return _map_theta(fn, keys[rows], jax.tree.map(lambda leaf: leaf[rows], theta), inputs)

        return in_chunks(compute, num_samples, batch_size, out)


@jax.jit
def _moments(x: Array, log_weights: Array) -> tuple[Array, Array]:
    # Bools have no differences, and those of integers may wrap around.
    floats = x.astype(jnp.result_type(float, x))
    return diagnostics.weighted_moments(floats, log_weights)


@partial(jax.jit, static_argnames=("f", "num_draws"))
def _mapped(f: Callable[[Any], Any], theta: Any, num_draws: int) -> Any:
    return jax.vmap(f, axis_size=num_draws)(theta)


def plain(theta: Any, num_samples: int) -> Draws:
    """`num_samples` draws that all count alike."""
    dtype = jnp.result_type(float, *jax.tree.leaves(theta))
    return Draws(theta, jnp.full(num_samples, -np.log(num_samples), dtype))


@jax.jit
def quantiles(x: Array, log_weights: Array, probabilities: Any) -> Array:
    """Weighted quantiles of x (S, ...), one for each of `probabilities`, whose shape comes in front
    of x's own.

    The mean of the weighted quantile function over a window [a, a + 1/n], a = p (1 - 1/n), with n =
    1 / sum_s w_s^2: for equal weights this is the linear interpolation between order statistics of
    `jnp.quantile` (Akinshin 2023, type 7). A draw of weight zero changes nothing, and n is 1 where
    one draw has all the weight.
    """
    p = jnp.asarray(probabilities)
    weights = jax.nn.softmax(log_weights)
    width, weights = jnp.sum(weights**2), diagnostics.per_draw(weights, x)
    x = jnp.where(weights == 0, 0.0, x)
    x, weights = jax.lax.sort(
        (x, jnp.broadcast_to(weights, x.shape).astype(x.dtype)), dimension=0, num_keys=1
    )
    upper = jnp.cumsum(weights, axis=0)
    upper = upper / upper[-1:]
    lower = jnp.concatenate([jnp.zeros_like(upper[:1]), upper[:-1]])

    def one(p: Array) -> Array:
        a, b = p * (1 - width), p * (1 - width) + width
        share = jnp.clip(upper, a, b) - jnp.clip(lower, a, b)
        # Infinite draws outside the window do not count, and NaN, which is sorted to the end,
        # always does.
        terms = jnp.where((share > 0) | jnp.isnan(x), share * x, 0.0)
        mean = jnp.sum(terms, axis=0) / jnp.sum(share, axis=0)
        # Rounding does not take it out of their range, so that the quantiles of a constant are that
        # constant.
        least = jnp.min(jnp.where(share > 0, x, jnp.inf), axis=0)
        return jnp.clip(mean, least, jnp.max(jnp.where(share > 0, x, -jnp.inf), axis=0))

    return jax.lax.map(one, p.ravel()).reshape(*p.shape, *x.shape[1:])


def in_chunks(
    compute: Callable[[Any], Any], num_samples: int, batch_size: int | None, out: str | Path | None
) -> Any:
    """compute(rows) for the rows 0..num_samples - 1, at once; or `batch_size` at a time, and each
    chunk to the host, or to files in the directory `out`, one a leaf, which come back
    memory-mapped.

    ValueError if `out` has no `batch_size`, or two leaves have one name; TypeError for PRNG keys in
    chunks; FileExistsError if one of the files is there already. Nothing is computed before these
    are raised.
    """
    if batch_size is None:
        if out is not None:
            raise ValueError("`out` takes the draws in chunks: expected a `batch_size`; got None")
        return compute(np.arange(num_samples))
    size = checks.positive_integer("batch_size", batch_size)
    # The last chunk is filled up with repeated draws, cut off again, to keep the one compiled
    # shape.
    chunks = {
        at: np.minimum(np.arange(at, at + size), num_samples - 1)
        for at in range(0, num_samples, size)
    }
    form = jax.eval_shape(compute, chunks[0])
    room = _room(num_samples, form) if out is None else _files(num_samples, form, Path(out))
    for at, rows in chunks.items():
        jax.tree.map(partial(_write, at), room, jax.device_get(compute(rows)))
    return room


def _room(num_samples: int, form: Any) -> Any:
    return jax.tree.map(
        lambda leaf: np.empty((num_samples, *leaf.shape[1:]), leaf.dtype), _numbers(form)
    )


def _files(num_samples: int, form: Any, out: Path) -> Any:
    named = checks.named_leaves(_numbers(form), what="what `fn` returns")
    # A name may have any characters: quoted it is always that of a file in the directory itself.
    files = [out / f"{quote(name, safe=' ')}.npy" for name in named]
    there = [file.name for file in files if file.exists()]
    if there:
        raise FileExistsError(f"`out`: {out} has {there} already: give a new directory")
    out.mkdir(parents=True, exist_ok=True)
    arrays = [
        _memory_mapped(file, (num_samples, *leaf.shape[1:]), leaf.dtype)
        for file, leaf in zip(files, named.values())
    ]
    return jax.tree.unflatten(jax.tree.structure(form), arrays)


def _memory_mapped(file: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    file.touch(exist_ok=False)  # another process may have been faster
    return np.lib.format.open_memmap(file, "w+", dtype, shape)


def _numbers(form: Any) -> Any:
    """`form` itself; TypeError names a leaf that is PRNG keys, for which NumPy has no array."""
    for name, leaf in zip(checks.leaf_names(form), jax.tree.leaves(form), strict=True):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(
                f"`fn` with a `batch_size`: expected numbers; got PRNG keys for `{name}`: take their key_data"
            )
    return form


def _write(start: int, whole: np.ndarray, chunk: np.ndarray) -> None:
    whole[start : start + len(chunk)] = chunk[: len(whole) - start]


@partial(jax.jit, static_argnames="fn")
def _map_theta(fn: Callable[..., Any], keys: Array, theta: Any, inputs: tuple[Any, ...]) -> Any:
    return jax.vmap(lambda key, theta: fn(key, theta, *inputs))(keys, theta)
