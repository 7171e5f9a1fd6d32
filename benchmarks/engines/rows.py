"""Logistic regression on rows: minisvi, NumPyro's plate, a loop by hand; the rows alone; and a file
of rows.

w ~ N(0, I) of D coordinates, y_i ~ Bernoulli(logit = x_i w), N rows; a mean-field normal guide at w
= 0, sd 0.1; Adam 1e-2 from optax; one particle; float32; B rows a step. All are scans of the same
number of steps, jitted once. minisvi sees all rows in an epoch; NumPyro draws B rows without
replacement at each step, and the loop with it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from jax.scipy.stats import norm
from numpyro.infer import SVI as NumpyroSVI
from numpyro.infer import Trace_ELBO, autoguide, init_to_value

from minisvi import SVI, Minibatches, Model, mean_field, real
from minisvi.data.permutation import shuffled

ADAM, SCALE, HIDDEN, CHUNK = optax.adam(1e-2), 0.1, 32, 100_000
Call = Callable[[], Any]


def problem(num: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """x (N, D) and y (N,), float32."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((num, dim), np.float32)
    logits = x @ np.linspace(-1.0, 1.0, dim, dtype=np.float32)
    return x, (rng.random(num, np.float32) < 1 / (1 + np.exp(-logits))).astype(np.float32)


def log_prior(w: Any) -> Array:
    return jnp.asarray(sum(jnp.sum(norm.logpdf(leaf)) for leaf in jax.tree.leaves(w)))


def bernoulli(logits: Array, y: Array) -> Array:
    return y * logits - jax.nn.softplus(logits)


def log_likelihood(w: Array, x: Array, y: Array) -> Array:
    return bernoulli(x @ w, y)


def with_minisvi(x: Array, y: Array, size: int, num_steps: int) -> Call:
    dim = x.shape[1]
    model = Model(real(dim), log_prior=log_prior, log_likelihood=log_likelihood)
    svi = SVI(model, mean_field(real(dim), SCALE), ADAM, batches=Minibatches(size))
    state = svi.init(jax.random.key(0), x, y, params=_start(dim))
    scan = jax.jit(lambda state, x, y: svi.scan(state, num_steps, x, y))
    return lambda: -scan(state, x, y)[1].elbo


def rows_alone(num: int, size: int, num_steps: int) -> Call:
    """The places that each step of `Minibatches` sees, and nothing done with them."""

    def rows(step: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0), step * size // num)
        return shuffled(key, step * size % (num - size) + jnp.arange(size), num)

    start, steps = jnp.zeros(size, jnp.int32), jnp.arange(num_steps)
    scan = jax.jit(
        lambda start, steps: jax.lax.scan(lambda c, i: (c ^ rows(i), None), start, steps)[0]
    )
    return lambda: scan(start, steps)


def with_numpyro(x: Array, y: Array, size: int, num_steps: int) -> Call:
    num, dim = x.shape

    def model(x: Array, y: Array) -> None:
        w = numpyro.sample("w", dist.Normal(jnp.zeros(dim), 1.0).to_event(1))
        with numpyro.plate("rows", num, subsample_size=size) as rows:
            numpyro.sample("y", dist.Bernoulli(logits=x[rows] @ w), obs=y[rows])

    guide = autoguide.AutoNormal(
        model, init_loc_fn=init_to_value(values={"w": jnp.zeros(dim)}), init_scale=SCALE
    )
    svi = NumpyroSVI(model, guide, ADAM, Trace_ELBO())
    state = svi.init(jax.random.key(0), x, y)
    scan = jax.jit(
        lambda state, x, y: jax.lax.scan(lambda s, _: svi.update(s, x, y), state, length=num_steps)
    )
    return lambda: scan(state, x, y)[1]


def by_hand(x: Array, y: Array, size: int, num_steps: int) -> Call:
    num, dim = x.shape

    def loss(params: dict[str, Array], key: Array, x: Array, y: Array) -> Array:
        eps = jax.random.normal(key, (dim,))
        w = params["loc"] + jnp.exp(params["log_scale"]) * eps
        log_q = (
            -0.5 * jnp.sum(eps**2) - dim / 2 * math.log(2 * math.pi) - jnp.sum(params["log_scale"])
        )
        return log_q - log_prior(w) - num / size * jnp.sum(log_likelihood(w, x, y))

    def step(carry: Any, x: Array, y: Array) -> tuple[Any, Array]:
        params, opt_state, key = carry
        key, rows_key, eps_key = jax.random.split(key, 3)
        rows = jax.random.randint(rows_key, (size,), 0, num)
        value, grad = jax.value_and_grad(loss)(params, eps_key, x[rows], y[rows])
        updates, opt_state = ADAM.update(grad, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key), value

    params = _start(dim)
    carry = params, ADAM.init(params), jax.random.key(0)
    scan = jax.jit(
        lambda carry, x, y: jax.lax.scan(lambda c, _: step(c, x, y), carry, length=num_steps)
    )
    return lambda: scan(carry, x, y)[1]


def _start(dim: int) -> dict[str, Array]:
    return {"loc": jnp.zeros(dim), "log_scale": jnp.full(dim, math.log(SCALE))}


ENGINES = {"minisvi": with_minisvi, "by hand": by_hand, "numpyro": with_numpyro}


# A table in a file: the last column is y.


def write(path: Path, num: int, dim: int) -> np.memmap:
    """N rows of D columns and y, the same 100,000 over and over; read-only."""
    table = np.memmap(path, np.float32, "w+", shape=(num, dim + 1))
    x, y = problem(min(num, CHUNK), dim)
    chunk = np.concatenate([x, y[:, None]], axis=1)
    for i in range(0, num, CHUNK):
        table[i : i + CHUNK] = chunk[: num - i]
    table.flush()
    return np.memmap(path, np.float32, "r", shape=(num, dim + 1))


def in_order(table: np.ndarray, size: int) -> Callable[[int], Iterator[np.ndarray]]:
    """For a stream: the batches of one pass over the table, from a number on."""
    return lambda first: (
        table[i * size : (i + 1) * size] for i in range(first, len(table) // size)
    )


@dataclass(frozen=True)
class InOrder:
    """The same batches of a table in memory."""

    size: int

    def num_rows(self, data: tuple[Any, ...]) -> int:
        return data[0].shape[0]

    def __call__(self, step: Array, data: tuple[Any, ...]) -> tuple[tuple[Any, ...], float]:
        first = step % (self.num_rows(data) // self.size) * self.size
        batch = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, self.size), data
        )
        return batch, self.num_rows(data) / self.size


def logistic(w: Array, table: Array) -> Array:
    return bernoulli(table[:, :-1] @ w, table[:, -1])


def network(w: dict[str, Array], table: Array) -> Array:
    return bernoulli(jnp.tanh(table[:, :-1] @ w["hidden"]) @ w["out"], table[:, -1])


def of_table(name: str, dim: int) -> SVI:
    """`logistic`, or a `network` with a hidden layer of 32, of the rows of a table."""
    latents = {
        "logistic": real(dim),
        "network": {"hidden": real((dim, HIDDEN)), "out": real(HIDDEN)},
    }[name]
    likelihood = {"logistic": logistic, "network": network}[name]
    model = Model(latents, log_prior=log_prior, log_likelihood=likelihood)
    return SVI(model, mean_field(latents, SCALE), ADAM)
