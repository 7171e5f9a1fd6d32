"""The mode of a log density and its curvature there, by gradients and products with the Hessian.

H is the Hessian of -log p at x, the vector of all u; `model` has `latents` and `log_density(u,
*data)`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.model import trees
from minisvi.second_order import newton
from minisvi.second_order.hessian_products import scaled_products
from minisvi.tools import checks


def mode(
    key: Array, model: Any, start: Array, data: tuple[Any, ...], num_probes: int, max_steps: int
) -> tuple[Array, Array, Array, Array]:
    """The mode x, the log density and its gradient there, and diag H. ValueError where one of these
    is not finite.

    L-BFGS from afar, and Newton's method, in units of the curvature, for the rest of the way: among
    strongly correlated latents the former ends hundredths of a sd short in float32.
    """
    num_probes = checks.positive_integer("num_probes", num_probes)
    max_steps = checks.positive_integer("max_steps", max_steps)
    x = climb(model, start, data, max_steps)
    first, *others = jax.random.split(key, 2 if x.size <= num_probes else 3)
    scale = unit_scale(diagonal(model, x, data, jnp.ones_like(x), first, num_probes))
    x, value, grad = polish(model, x, scale, data, max_steps)
    for probe_key in others:  # an estimate is as good as the units that its signs are in
        diag = diagonal(model, x, data, scale, probe_key, num_probes)
        scale = unit_scale(diag)
    bad = np.sum(~np.isfinite(grad) | ~np.isfinite(diag))
    if bad or not np.isfinite(value):
        raise ValueError(
            f"expected a finite log density and derivatives where the climb ended; got {value}, and derivatives "
            f"that are not finite for {bad} of {x.size} latents: give another `start`{checks.or_the_data(data)}"
        )
    return x, value, grad, diag


@partial(jax.jit, static_argnames="model")
def climb(model: Any, start: Array, data: tuple[Any, ...], max_steps: int) -> Array:
    """L-BFGS until a step promises less than rounding or is not finite: the point where it ended."""
    import optax

    optimizer, loss = optax.lbfgs(), partial(_loss, model, data)

    def step(carry: Any) -> Any:
        x, state, _, taken = carry
        value, grad = optax.value_and_grad_from_state(loss)(x, state=state)
        updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=loss)
        promise = -jnp.vdot(
            grad, updates
        )  # in nats; where it is not a number, the comparison is False
        go_on = promise > x.size * jnp.finfo(x.dtype).eps
        return jnp.where(jnp.isfinite(promise), x + updates, x), state, go_on, taken + 1

    def unfinished(carry: Any) -> Array:
        _, _, go_on, taken = carry
        return go_on & (taken < max_steps)

    x, *_ = jax.lax.while_loop(unfinished, step, (start, optimizer.init(start), jnp.array(True), 0))
    return x


@partial(jax.jit, static_argnames="model")
def polish(
    model: Any, x: Array, scale: Array, data: tuple[Any, ...], max_steps: int
) -> tuple[Array, Array, Array]:
    """Newton's method from x: the mode, the log density and its gradient there."""
    loss = partial(_loss, model, data)
    x = newton.newton(loss, x, scale=lambda _: scale, solver="cg", max_steps=max_steps).x
    value, grad = jax.value_and_grad(loss)(x)
    return x, -value, -grad


def _loss(model: Any, data: tuple[Any, ...], x: Array) -> Array:
    return -model.log_density(trees.unravel(model.latents, x), *data)


def scaled_hessian(model: Any, x: Array, data: tuple[Any, ...], scale: Array, rows: Array) -> Array:
    """S H S v for each row v; one by one, for a batch of triangular solves can hang XLA's thread
    pool on a CPU.
    """
    _, _, product = scaled_products(partial(_loss, model, data), x, scale)
    return jax.lax.map(product, rows)


@partial(jax.jit, static_argnames=("model", "num_probes"))
def diagonal(
    model: Any, x: Array, data: tuple[Any, ...], scale: Array, key: Array, num_probes: int
) -> Array:
    """diag H: exact for D <= `num_probes`, else the mean of z * H z over so many random signs z
    (Bekas 2007).

    The signs are in units of `scale`: else the noise in an entry would be of the size of the
    largest ones.
    """
    size = x.size
    exact = size <= num_probes
    _, _, product = scaled_products(partial(_loss, model, data), x, scale)

    def add(i: Array, total: Array) -> Array:
        probe = jax.nn.one_hot(i, size, dtype=x.dtype)
        if not exact:
            probe = jax.random.rademacher(jax.random.fold_in(key, i), (size,), x.dtype)
        return total + probe * product(probe)

    total = jax.lax.fori_loop(0, size if exact else num_probes, add, jnp.zeros_like(x))
    return total / scale**2 / (1 if exact else num_probes)


@jax.jit
def unit_scale(diag: Array) -> Array:
    """S for which S H S has the diagonal 1 or -1, or 0 where it was."""
    return jnp.where(diag == 0, 1.0, jnp.abs(diag) ** -0.5)


@partial(jax.jit, static_argnames="model")
def eigenpairs(
    model: Any, x: Array, data: tuple[Any, ...], diag: Array
) -> tuple[Array, Array, Array]:
    """S = |diag H|^(-1/2), and all eigenvalues and vectors of S H S, ascending."""
    scale = unit_scale(diag)
    return scale, *jnp.linalg.eigh(
        scaled_hessian(model, x, data, scale, jnp.eye(x.size, dtype=x.dtype))
    )


@partial(jax.jit, static_argnames="model")
def widest(
    model: Any, x: Array, data: tuple[Any, ...], diag: Array, basis: Array, refine: Any
) -> tuple[Array, Array, Array]:
    """S = |diag H|^(-1/2), some eigenvalues of S H S, the first R being its smallest, and a basis
    whose first R columns are their vectors V: the directions in which N(x, H^-1) is widest beyond
    S. From a basis (D, 3 R), at first random.

    `refine`: S is changed until S^-1 (I - V (1 - lambda) V^T) S^-1, with lambda cut at 1, has the
    diagonal of H, which is where the KL of the Gaussian of that precision to N(x, H^-1) is
    stationary in S.
    """
    rank, unit = basis.shape[1] // 3, unit_scale(diag)

    def step(carry: Any) -> Any:
        scale, values, basis, _, taken = carry
        basis, _ = jnp.linalg.qr(basis)
        images = scaled_hessian(model, x, data, scale, basis.T).T
        new_values, rotation = jnp.linalg.eigh(basis.T @ images)
        rotation = rotation[:, :rank]
        vectors = basis @ rotation
        # The directions of LOBPCG (Knyazev 2001): the vectors, their residuals, and the last change
        # of the vectors.
        residuals = images @ rotation - vectors * new_values[None, :rank]
        basis = jnp.concatenate([vectors, residuals, basis[:, rank:] @ rotation[rank:]], axis=1)
        kept = jnp.where(refine, 1 - jnp.clip(new_values[:rank], 0.0, 1.0), 0.0)
        # Kept off zero, to which a latent that the R directions nearly determine would slowly go (a
        # Heywood case).
        new_scale = unit * jnp.sqrt(
            jnp.maximum(1 - jnp.sum(kept[None, :] * vectors**2, axis=1), 1e-3)
        )
        change = jnp.concatenate(
            [jnp.log(new_scale / scale), (new_values - values)[:rank] / new_values[-1]]
        )
        return new_scale, new_values, basis, jnp.max(jnp.abs(change)), taken + 1

    def unfinished(carry: Any) -> Array:
        *_, change, taken = carry
        return (change > jnp.finfo(x.dtype).eps ** 0.75) & (taken < 100)

    values = jnp.zeros(min(basis.shape), x.dtype)
    start = (unit, values, basis, jnp.array(jnp.inf, x.dtype), 0)
    scale, values, basis, *_ = jax.lax.while_loop(unfinished, step, start)
    return scale, values, basis
