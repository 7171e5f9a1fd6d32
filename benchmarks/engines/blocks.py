"""A fit's compiled block of steps, called again and again on its own result; its memory; and the
models of `scale.py`.

Memory is what XLA plans for the block, arguments, results and temporaries, less those that share a
buffer.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from engines import pairs
from jax import Array
from jax.scipy.stats import norm

from minisvi import (
    ELBO,
    SVI,
    Minibatches,
    Model,
    amortised,
    local,
    mean_field,
    per_row,
    product,
    real,
)
from minisvi.running import device
from minisvi.running.plan import Plan

ADAM = optax.adam(1e-3)


class Block:
    """`num_steps` of a fit, at most 4,096 a call."""

    def __init__(
        self, svi: SVI, num_steps: int, *data: Any, num_restarts: int = 1, params: Any = None
    ) -> None:
        program, start = (
            device.program(svi, Plan(num_restarts)),
            lambda key: svi.init(key, *data, params=params),
        )
        keys = jax.random.split(jax.random.key(0), num_restarts)
        state = jax.jit(jax.vmap(start))(keys) if num_restarts > 1 else jax.jit(start)(keys[0])
        self._args = np.array([0, num_steps], np.int32), data, None
        self._lane = device.start(program, state, data, None)
        self._block = program.block.lower(self._lane, *self._args).compile()

    def __call__(self) -> None:
        self._lane, alive, *_ = self._block(self._lane, *self._args)
        if not alive:
            raise SystemExit("a fit of the benchmark failed")

    @property
    def memory(self) -> int:
        """Bytes."""
        m = self._block.memory_analysis()
        return (
            self.temporary
            + m.argument_size_in_bytes
            + m.output_size_in_bytes
            - m.alias_size_in_bytes
        )

    @property
    def temporary(self) -> int:
        return self._block.memory_analysis().temp_size_in_bytes


def by_dim(family: str, dim: int, num_steps: int) -> Block:
    """w ~ N(0, I), each coordinate seen once (see `pairs`)."""
    svi, state = pairs.with_minisvi(family, "ELBO", dim)
    return Block(svi, num_steps, pairs.problem(dim)[0], params=state.params)


def by_particles(dim: int, count: int, num_steps: int) -> Block:
    svi, state = pairs.with_minisvi("mean_field", "ELBO", dim)
    svi = SVI(svi.model, svi.guide, ADAM, ELBO(count))
    return Block(svi, num_steps, pairs.problem(dim)[0], params=state.params)


def by_restarts(dim: int, count: int, num_steps: int) -> Block:
    svi, _ = pairs.with_minisvi("mean_field", "ELBO", dim)
    return Block(svi, num_steps, pairs.problem(dim)[0], num_restarts=count)


# One latent a row: g ~ N(0, 1), z_n ~ N(g, 1), x_n ~ N(z_n, 1).


class _Normal:
    def __init__(self, loc: Any) -> None:
        self.loc = loc

    def log_prob(self, x: Array) -> Array:
        return norm.logpdf(x, self.loc)


def _hierarchy_prior(theta: Any) -> Any:
    return {"g": _Normal(0.0), "z": _Normal(theta["g"])}


def _hierarchy_rows(theta: Any, index: Array, x: Array) -> Array:
    del index
    return norm.logpdf(x, theta["z"])


def _index(index: Array, x: Array) -> Array:
    del x
    return index


def _encode(weights: Any, index: Array, x: Array) -> Any:
    del index
    column = jnp.stack([x, jnp.ones_like(x)], axis=1)
    return jax.tree.map(lambda w: (column @ w)[:, None], weights)


def _encoder(key: Array) -> Any:
    del key
    return {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)}


def hierarchy(kind: str, num: int, size: int) -> tuple[SVI, tuple[Array, Array]]:
    """The engine of a `per_row` or `amortised` guide at minibatches of some size, and its data."""
    parts = {
        "per_row": lambda: per_row(mean_field(real()), num, _index),
        "amortised": lambda: amortised(mean_field(real()), _encoder, _encode),
    }
    model = Model(
        {"g": real(), "z": local(real())}, log_likelihood=_hierarchy_rows, prior=_hierarchy_prior
    )
    guide = product({"g": mean_field(real()), "z": parts[kind]()})
    data = jnp.arange(num), 1.0 + jax.random.normal(jax.random.key(1), (num,))
    return SVI(model, guide, ADAM, batches=Minibatches(size)), data


def hierarchy_pieces(num: int, size: int, num_steps: int) -> dict[str, Callable[[], Any]]:
    """The whole step of the per_row guide; without the check that it is finite; its gradient; and
    Adam alone.
    """
    svi, data = hierarchy("per_row", num, size)
    start = svi.init(jax.random.key(0), *data)

    def gradient(params: Any, key: Array, step: Array, data: Any) -> Any:
        batch, weight = svi.batches(step, data)
        loss = lambda p: -svi.objective(key, svi.model, svi.guide, p, *batch, weight=weight)
        return jax.grad(loss)(params)

    def descend(carry: Any, grad: Any) -> Any:
        updates, opt_state = svi.optimizer.update(grad, carry[1], carry[0])
        return optax.apply_updates(carry[0], updates), opt_state

    def unchecked(carry: Any, step: Array, data: Any) -> Any:
        return descend(carry, gradient(carry[0], jax.random.fold_in(start.key, step), step, data))

    def gradient_alone(carry: Any, step: Array, data: Any) -> Any:
        grad = gradient(carry, jax.random.fold_in(start.key, step), step, data)
        return jax.tree.map(
            lambda leaf, g: g + 0 * leaf[:1], carry, grad
        )  # written whole, as Adam needs it

    at = start.params, start.opt_state
    grad = jax.tree.map(jnp.ones_like, start.params)
    return {
        "whole step": Block(svi, num_steps, *data),
        "without the check that it is finite": _scanned(unchecked, at, num_steps, data),
        "its gradient alone": _scanned(gradient_alone, start.params, num_steps, data),
        "Adam alone": _scanned(lambda carry, step, grad: descend(carry, grad), at, num_steps, grad),
    }


def _scanned(body: Callable[..., Any], start: Any, num_steps: int, args: Any) -> Callable[[], None]:
    steps = jnp.arange(num_steps)
    run = jax.jit(
        lambda carry, args: jax.lax.scan(lambda c, i: (body(c, i, args), None), carry, steps)[0]
    )
    return lambda: jax.block_until_ready(run(start, args)) and None


# Likelihoods whose backward pass holds much: a deep network, and a long series.


def _deep(w: Array, x: Array, y: Array) -> Array:
    for weights in w:
        x = jnp.tanh(x @ weights)
    return norm.logpdf(y, x[:, 0])


def _long(w: Array, series: Array) -> Array:
    """The rows are series (B, T), read by a recurrent network of H units."""
    terms, _ = _recur(w, jnp.zeros((series.shape[0], w.shape[1])), series.T)
    return jnp.sum(terms, axis=0)


def _recur(w: Array, hidden: Array, inputs: Array) -> tuple[Array, Array]:
    def step(hidden: Array, x: Array) -> tuple[Array, Array]:
        term = norm.logpdf(x, hidden[:, 0])
        return jnp.tanh(hidden @ w + 0.1 * x[:, None]), term

    hidden, terms = jax.lax.scan(step, hidden, inputs)
    return terms, hidden


def _long_in_pieces(w: Array, series: Array) -> Array:
    """The same; the backward pass keeps the state of every so many steps, and computes those
    between again.
    """
    pieces = series.T.reshape(-1, round(series.shape[1] ** 0.5), series.shape[0])

    @jax.checkpoint
    def piece(hidden: Array, inputs: Array) -> tuple[Array, Array]:
        terms, hidden = _recur(w, hidden, inputs)
        return hidden, jnp.sum(terms, axis=0)

    return jnp.sum(jax.lax.scan(piece, jnp.zeros((series.shape[0], w.shape[1])), pieces)[1], axis=0)


def _chunked(rows: Callable[..., Array], num_chunks: int) -> Callable[..., Array]:
    def log_likelihood(w: Array, *data: Array) -> Array:
        chunks = jax.tree.map(lambda leaf: leaf.reshape(num_chunks, -1, *leaf.shape[1:]), data)
        return jax.lax.map(lambda chunk: rows(w, *chunk), chunks).reshape(-1)

    return log_likelihood


def rematerialised(
    kind: str, num: int, size: int, num_chunks: int, num_steps: int
) -> dict[str, Block]:
    """A fit of the `deep` likelihood, of `num` rows and `size` units in each of 8 layers; or of the
    `long` one, of so many rows of 1,024 steps.
    """
    rows = {"deep": _deep, "long": _long}[kind]
    ways: dict[str, Callable[..., Array]] = {
        "plain": rows,
        "jax.checkpoint of it all": jax.checkpoint(rows),
        "lax.map over chunks of rows": _chunked(rows, num_chunks),
        "lax.map over chunks, each in jax.checkpoint": _chunked(jax.checkpoint(rows), num_chunks),
    }
    if kind == "long":
        ways["scan of scans, the inner in jax.checkpoint"] = _long_in_pieces
    key, latents = jax.random.key(2), real({"deep": (8, size, size), "long": (size, size)}[kind])
    x = jax.random.normal(key, (num, {"deep": size, "long": 1_024}[kind]))
    data = (x, x[:, 0]) if kind == "deep" else (x,)
    guide, prior = mean_field(latents, 0.01), partial(_prior, size)
    params = guide.init(key, loc=0.5 * size**-0.5 * jax.random.normal(key, latents.shape))
    return {
        name: Block(
            SVI(Model(latents, log_prior=prior, log_likelihood=way), guide, ADAM),
            num_steps,
            *data,
            params=params,
        )
        for name, way in ways.items()
    }


def _prior(size: int, w: Array) -> Array:
    return jnp.sum(norm.logpdf(w, 0.0, size**-0.5))


def bnn(sizes: tuple[int, ...], num: int, num_steps: int) -> tuple[Block, int]:
    """A network of weight matrices on `num` rows, full batch; and its number of weights."""
    shapes = list(pairwise(sizes))
    latents = [real(shape) for shape in shapes]

    def log_likelihood(ws: list[Array], x: Array, y: Array) -> Array:
        for w in ws[:-1]:
            x = jax.nn.relu(x @ w)
        return norm.logpdf(y, (x @ ws[-1])[:, 0])

    def log_prior(ws: list[Array]) -> Array:
        return jnp.asarray(sum(_prior(w.shape[0], w) for w in ws))

    x = jax.random.normal(jax.random.key(4), (num, sizes[0]))
    svi = SVI(
        Model(latents, log_prior=log_prior, log_likelihood=log_likelihood),
        mean_field(latents, 0.01),
        ADAM,
    )
    return Block(svi, num_steps, x, x[:, 0]), sum(a * b for a, b in shapes)
