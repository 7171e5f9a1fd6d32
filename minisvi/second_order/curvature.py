"""The mode of a log density and its curvature there, by gradients and products with the Hessian.

H is the Hessian of -log p at x, the vector of all u, and S = diag(`scale`) holds units in which the
coordinates are alike. Of a model only `latents` and `log_density(u, *data)` are used.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.second_order import newton
from minisvi.second_order.derivatives import products
from minisvi.second_order.hessian_products import scaled_products
from minisvi.second_order.newton import Expansion
from minisvi.tools import checks, finite_data
from minisvi.tools.batching import one_by_one
from minisvi.tools.types import Data


class Mode(NamedTuple):
    """The mode `x` (D,), the log density and its gradient there, and diag H (D,)."""

    x: Array
    log_density: Array
    grad: Array
    diag: Array


class Eigenpairs(NamedTuple):
    """The units `scale` (D,), eigenvalues of S H S, ascending, and their vectors, one a column."""

    scale: Array
    values: Array
    vectors: Array


def mode(
    key: Array, model: Model, start: Array, data: Data, num_probes: int, max_steps: int
) -> Mode:
    """The mode that is found from `start`. ValueError where the density or a derivative of it is
    not finite there.

    L-BFGS comes from afar, and Newton's method, in units of the curvature, goes the rest of the
    way: among strongly correlated latents L-BFGS ends hundredths of a sd short in float32.
    """
    num_probes = checks.positive_integer("num_probes", num_probes)
    max_steps = checks.positive_integer("max_steps", max_steps)
    x = climb(model, start, data, max_steps)
    is_exact = x.size <= num_probes
    first_key, *later_keys = jax.random.split(key, 2 if is_exact else 3)
    diag = diagonal(model, x, data, jnp.ones_like(x), first_key, num_probes)
    scale = unit_scale(diag)
    x, value, grad = polish(model, x, scale, data, max_steps)
    # An estimate is as good as the units that its signs are in, so it is made once more in its own.
    for probe_key in later_keys:
        diag = diagonal(model, x, data, scale, probe_key, num_probes)
        scale = unit_scale(diag)
    num_bad = np.sum(~np.isfinite(grad) | ~np.isfinite(diag))
    if num_bad or not np.isfinite(value):
        raise ValueError(
            f"expected a finite log density and derivatives where the climb ended; got {value}, "
            f"and derivatives that are not finite for {num_bad} of {x.size} latents: give another "
            f"`start`{finite_data.or_the_data(data)}"
        )
    return Mode(x, value, grad, diag)


class _Climb(NamedTuple):
    """L-BFGS on its way: the optimiser's state at x, whether to `go_on`, and the steps `taken`."""

    x: Array
    state: Any
    go_on: Array
    taken: Any


@partial(jax.jit, static_argnames="model")
def climb(model: Model, start: Array, data: Data, max_steps: int) -> Array:
    """The point where L-BFGS from `start` ends: where a step promises less than rounding, or is not
    finite.
    """
    import optax

    optimizer = optax.lbfgs()
    loss = partial(_loss, model, data)

    def step(now: _Climb) -> _Climb:
        value, grad = optax.value_and_grad_from_state(loss)(now.x, state=now.state)
        updates, state = optimizer.update(
            grad, now.state, now.x, value=value, grad=grad, value_fn=loss
        )
        # In nats. Where the promise is not a number, the comparison is False.
        promise = -jnp.vdot(grad, updates)
        go_on = promise > now.x.size * jnp.finfo(now.x.dtype).eps
        x = jnp.where(jnp.isfinite(promise), now.x + updates, now.x)
        return _Climb(x, state, go_on, now.taken + 1)

    def unfinished(now: _Climb) -> Array:
        return now.go_on & (now.taken < max_steps)

    first = _Climb(start, optimizer.init(start), jnp.array(True), 0)
    return jax.lax.while_loop(unfinished, step, first).x


def polish(
    model: Model, x: Array, scale: Array, data: Data, max_steps: int
) -> tuple[Array, Array, Array]:
    """Newton's method from x: the mode, and the log density and its gradient there."""
    unit = np.asarray(scale, float)

    def expand(rows: np.ndarray) -> list[Expansion]:
        return [_expansion(model, row, unit, data) for row in rows]

    eps = float(jnp.finfo(x.dtype).eps)
    (end,) = newton.descend(expand, [newton.start(np.asarray(x))], eps, max_steps)
    row = end.x[None]
    at = products(model, row, row, data)
    mode = jnp.asarray(end.x, x.dtype)
    log_p = jnp.asarray(at.log_p[0], x.dtype)
    return mode, log_p, jnp.asarray(at.grad[0], x.dtype)


def _expansion(model: Model, x: np.ndarray, unit: np.ndarray, data: Data) -> Expansion:
    """-log p near x, in those units."""
    row = x[None]
    at = products(model, row, row, data)

    def product(v: np.ndarray) -> np.ndarray:
        return -unit * products(model, row, (unit * v)[None], data).hessian[0]

    return Expansion(-float(at.log_p[0]), -unit * at.grad[0], unit, product, None)


def _loss(model: Model, data: Data, x: Array) -> Array:
    u = trees.unravel(model.latents, x)
    return -model.log_density(u, *data)


def scaled_hessian(model: Model, x: Array, data: Data, scale: Array, rows: Array) -> Array:
    """S H S v for each row v of `rows`."""
    _, _, product = scaled_products(partial(_loss, model, data), x, scale)
    return one_by_one(product, rows)


@partial(jax.jit, static_argnames=("model", "num_probes"))
def diagonal(
    model: Model, x: Array, data: Data, scale: Array, key: Array, num_probes: int
) -> Array:
    """diag H: exact for D <= `num_probes`, else the mean of z * H z over so many vectors z of
    random signs (Bekas 2007).

    The signs are in units of `scale`: otherwise the noise in every entry would be of the size of
    the largest entries.
    """
    size = x.size
    is_exact = size <= num_probes
    _, _, product = scaled_products(partial(_loss, model, data), x, scale)

    def add(i: Array, total: Array) -> Array:
        probe = jax.nn.one_hot(i, size, dtype=x.dtype)
        if not is_exact:
            probe_key = jax.random.fold_in(key, i)
            probe = jax.random.rademacher(probe_key, (size,), x.dtype)
        return total + probe * product(probe)

    num_products = size if is_exact else num_probes
    total = jax.lax.fori_loop(0, num_products, add, jnp.zeros_like(x))
    num_averaged = 1 if is_exact else num_probes
    return total / scale**2 / num_averaged


@jax.jit
def unit_scale(diag: Array) -> Array:
    """The S for which S H S has the diagonal 1 or -1, or 0 where it was 0."""
    return jnp.where(diag == 0, 1.0, jnp.abs(diag) ** -0.5)


@partial(jax.jit, static_argnames="model")
def eigenpairs(model: Model, x: Array, data: Data, diag: Array) -> Eigenpairs:
    """All eigenpairs of S H S, with S = |diag H|^(-1/2)."""
    scale = unit_scale(diag)
    identity = jnp.eye(x.size, dtype=x.dtype)
    values, vectors = jnp.linalg.eigh(scaled_hessian(model, x, data, scale, identity))
    return Eigenpairs(scale, values, vectors)


class _Search(NamedTuple):
    """The search for the widest directions: what it has, how much that changed, and the steps."""

    scale: Array
    values: Array
    basis: Array
    change: Array
    taken: Any


@partial(jax.jit, static_argnames="model")
def widest(
    model: Model, x: Array, data: Data, diag: Array, basis: Array, refine: Any
) -> Eigenpairs:
    """The directions in which N(x, H^-1) is widest beyond S = |diag H|^(-1/2): the first R of
    `values` are the smallest eigenvalues of S H S, and the first R of `vectors` (D, 3 R), which are
    a basis, are their vectors V. The search starts from such a `basis`, at first a random one.

    `refine`: S is changed until S^-1 (I - V (1 - lambda) V^T) S^-1, with lambda cut at 1, has the
    diagonal of H. That is where the KL of the Gaussian of this precision to N(x, H^-1) is
    stationary in S.
    """
    rank = basis.shape[1] // 3
    unit = unit_scale(diag)

    def step(now: _Search) -> _Search:
        basis, _ = jnp.linalg.qr(now.basis)
        images = scaled_hessian(model, x, data, now.scale, basis.T).T
        values, rotation = jnp.linalg.eigh(basis.T @ images)
        rotation = rotation[:, :rank]
        vectors = basis @ rotation
        # The directions of LOBPCG (Knyazev 2001): the vectors, their residuals, and the last change
        # of the vectors.
        residuals = images @ rotation - vectors * values[None, :rank]
        last_change = basis[:, rank:] @ rotation[rank:]
        next_basis = jnp.concatenate([vectors, residuals, last_change], axis=1)
        explained = jnp.where(refine, 1 - jnp.clip(values[:rank], 0.0, 1.0), 0.0)
        scale = unit * _shrinkage(explained, vectors)
        change_of_scale = jnp.log(scale / now.scale)
        change_of_values = (values - now.values)[:rank] / values[-1]
        change = jnp.concatenate([change_of_scale, change_of_values])
        return _Search(scale, values, next_basis, jnp.max(jnp.abs(change)), now.taken + 1)

    def unfinished(now: _Search) -> Array:
        return (now.change > jnp.finfo(x.dtype).eps ** 0.75) & (now.taken < 100)

    values = jnp.zeros(min(basis.shape), x.dtype)
    first = _Search(unit, values, basis, jnp.array(jnp.inf, x.dtype), 0)
    last = jax.lax.while_loop(unfinished, step, first)
    return Eigenpairs(last.scale, last.values, last.basis)


def _shrinkage(explained: Array, vectors: Array) -> Array:
    """By how much each unit is smaller for what the vectors (D, R) explain of its coordinate.

    It is kept off zero, to which the unit of a latent that the R directions nearly determine would
    slowly go (a Heywood case).
    """
    left = 1 - jnp.sum(explained[None, :] * vectors**2, axis=1)
    return jnp.sqrt(jnp.maximum(left, 1e-3))
