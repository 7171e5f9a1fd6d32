"""The mode of a log density and its curvature there, by gradients and products with the Hessian.

H is the Hessian of -log p at x, the vector of all u, and S = diag(`unit`) holds units in which the
coordinates are alike. All is on the host, but for the density's own derivatives. Of a model only
`latents` and `log_density(u, *data)` are used.
"""

from typing import Any, NamedTuple

import numpy as np

from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.second_order import newton
from minisvi.second_order.derivatives import gradient, hessians, images
from minisvi.second_order.fixed_draws import MAX_DENSE
from minisvi.second_order.newton import Expansion
from minisvi.tools import checks, finite_data
from minisvi.tools.types import Data

_MAX_ROUNDS = 100
_MOST_NUMBERS = 2**20  # of the probes that are made at once
_SIGNS = np.array([-1.0, 1.0])


class Mode(NamedTuple):
    """The mode `x` (D,), the log density and its gradient there, and diag H (D,)."""

    x: np.ndarray
    log_p: float
    grad: np.ndarray
    diag: np.ndarray


class Eigenpairs(NamedTuple):
    """The units `scale` (D,), eigenvalues of S H S, ascending, and their vectors, one a column."""

    scale: np.ndarray
    values: np.ndarray
    vectors: np.ndarray


def mode(
    rng: np.random.Generator,
    model: Model,
    start: np.ndarray,
    data: Data,
    num_probes: int,
    max_steps: int,
) -> Mode:
    """The mode that is found from `start`; ValueError where the density or a
    derivative of it is not finite there.
    """
    num_probes = checks.positive_integer("num_probes", num_probes)
    max_steps = checks.positive_integer("max_steps", max_steps)
    if start.size <= min(MAX_DENSE, num_probes):
        found = _by_hessians(model, start, data, max_steps)
    else:
        found = _by_products(rng, model, start, data, num_probes, max_steps)
    num_bad = np.sum(~np.isfinite(found.grad) | ~np.isfinite(found.diag))
    if num_bad or not np.isfinite(found.log_p):
        raise ValueError(
            f"expected a finite log density and derivatives where the climb ended; got "
            f"{found.log_p}, and derivatives that are not finite for {num_bad} of {start.size} "
            f"latents: give another `start`{finite_data.or_the_data(data)}"
        )
    return found


def _by_hessians(model: Model, start: np.ndarray, data: Data, max_steps: int) -> Mode:
    """By whole Hessians, of few latents."""

    def expand(rows: np.ndarray) -> list[Expansion]:
        return [_with_hessian(model, row, data) for row in rows]

    x = _end(model, expand, start, max_steps)
    at = hessians(model, x[None], data, chunk=1)
    return Mode(x, float(at.log_p[0]), at.grad[0], -np.diagonal(at.hessian[0]))


def _by_products(
    rng: np.random.Generator,
    model: Model,
    start: np.ndarray,
    data: Data,
    num_probes: int,
    max_steps: int,
) -> Mode:
    """By products with the Hessian, of many latents.

    L-BFGS comes from afar, and Newton's method, in units of the curvature, goes the rest of the
    way: among strongly correlated latents L-BFGS ends hundredths of a sd short in float32.
    """
    x = _climb(model, start, data, max_steps)
    unit = unit_scale(diagonal(rng, model, x, data, np.ones_like(x), num_probes))

    def expand(rows: np.ndarray) -> list[Expansion]:
        return [_with_products(model, row, unit, data) for row in rows]

    x = _end(model, expand, x, max_steps)
    log_p, grad = gradient(model, x, data)
    diag = diagonal(rng, model, x, data, unit, num_probes)
    if x.size > num_probes:
        # An estimate is as good as the units that its signs are in.
        diag = diagonal(rng, model, x, data, unit_scale(diag), num_probes)
    return Mode(x, log_p, grad, diag)


def _climb(model: Model, start: np.ndarray, data: Data, max_steps: int) -> np.ndarray:
    """The point where L-BFGS ends, or the start if that is not finite."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        log_p, grad = gradient(model, x, data)
        return -log_p, -grad

    with np.errstate(all="ignore"):
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": max_steps})
    return found.x if np.all(np.isfinite(found.x)) else start


def _end(model: Model, expand: Any, x: np.ndarray, max_steps: int) -> np.ndarray:
    """Where Newton's method ends, as far as the latents' dtype can say."""
    eps = trees.precision(model.latents)
    (end,) = newton.descend(expand, [newton.start(x)], eps, max_steps)
    return end.x


def _with_hessian(model: Model, x: np.ndarray, data: Data) -> Expansion:
    """-log p near x, in units of its curvatures there."""
    at = hessians(model, x[None], data, chunk=1)
    hessian = -at.hessian[0]
    unit = unit_scale(np.diagonal(hessian))
    scaled = unit[:, None] * hessian * unit
    return Expansion(-float(at.log_p[0]), -unit * at.grad[0], unit, scaled.__matmul__, scaled)


def _with_products(model: Model, x: np.ndarray, unit: np.ndarray, data: Data) -> Expansion:
    """-log p near x, in those units."""
    log_p, grad = gradient(model, x, data)

    def product(v: np.ndarray) -> np.ndarray:
        (image,) = scaled_images(model, x, data, unit, v[None])
        return image

    return Expansion(-log_p, -unit * grad, unit, product, None)


def scaled_images(
    model: Model, x: np.ndarray, data: Data, unit: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """S H S v for each row v of `rows`."""
    return -unit * images(model, x, unit * rows, data)


def diagonal(
    rng: np.random.Generator,
    model: Model,
    x: np.ndarray,
    data: Data,
    unit: np.ndarray,
    num_probes: int,
) -> np.ndarray:
    """diag H: exact for D <= `num_probes`, else the mean of z * H z over so many vectors z of
    random signs (Bekas 2007).

    The signs are in those units: otherwise the noise in every entry would be of the size of the
    largest entries.
    """
    size = x.size
    is_exact = size <= num_probes
    num = size if is_exact else num_probes
    at_once = max(1, min(num, _MOST_NUMBERS // size))
    total = np.zeros(size)
    for begin in range(0, num, at_once):
        count = min(at_once, num - begin)
        probes = np.eye(count, size, begin) if is_exact else rng.choice(_SIGNS, (count, size))
        total += np.sum(probes * scaled_images(model, x, data, unit, probes), axis=0)
    return total / unit**2 / (1 if is_exact else num_probes)


def unit_scale(diag: np.ndarray) -> np.ndarray:
    """The S for which S H S has the diagonal 1 or -1, or 0 where it was 0."""
    is_known = np.isfinite(diag) & (diag != 0)
    return np.where(is_known, np.abs(np.where(is_known, diag, 1.0)) ** -0.5, 1.0)


def eigenpairs(model: Model, x: np.ndarray, data: Data) -> Eigenpairs:
    """All eigenpairs of S H S, with S = |diag H|^(-1/2)."""
    hessian = -hessians(model, x[None], data, chunk=1).hessian[0]
    scale = unit_scale(np.diagonal(hessian))
    values, vectors = np.linalg.eigh(scale[:, None] * hessian * scale)
    return Eigenpairs(scale, values, vectors)


def widest(
    model: Model, x: np.ndarray, data: Data, diag: np.ndarray, basis: np.ndarray, refine: bool
) -> Eigenpairs:
    """The directions in which N(x, H^-1) is widest beyond S = |diag H|^(-1/2): the first R of
    `values` are the smallest eigenvalues of S H S, and the first R of `vectors` (D, 3 R), which are
    a basis, are their vectors V. The search starts from such a `basis`, at first a random one.

    `refine`: S is changed until S^-1 (I - V (1 - lambda) V^T) S^-1, with lambda cut at 1, has the
    diagonal of H. That is where the KL of the Gaussian of this precision to N(x, H^-1) is
    stationary in S.
    """
    rank = basis.shape[1] // 3
    scale = unit = unit_scale(diag)
    old_values = np.zeros(min(basis.shape))
    tolerance = trees.precision(model.latents) ** 0.75
    for _ in range(_MAX_ROUNDS):
        basis, _ = np.linalg.qr(basis)
        moved = scaled_images(model, x, data, scale, basis.T).T
        values, rotation = np.linalg.eigh(basis.T @ moved)
        rotation = rotation[:, :rank]
        vectors = basis @ rotation
        # The directions of LOBPCG (Knyazev 2001): the vectors, their residuals, and the last change
        # of the vectors.
        residuals = moved @ rotation - vectors * values[:rank]
        last_change = basis[:, rank:] @ rotation[rank:]
        basis = np.concatenate([vectors, residuals, last_change], axis=1)
        explained = 1 - np.clip(values[:rank], 0.0, 1.0) if refine else np.zeros(rank)
        old_scale, scale = scale, unit * _shrinkage(explained, vectors)
        change_of_scale = np.max(np.abs(np.log(scale / old_scale)))
        change_of_values = np.max(np.abs(values - old_values)[:rank] / values[-1])
        old_values = values
        if not max(change_of_scale, change_of_values) > tolerance:
            break
    return Eigenpairs(scale, values, basis)


def _shrinkage(explained: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """By how much each unit is smaller for what the vectors (D, R) explain of its coordinate.

    It is kept off zero, to which the unit of a latent that the R directions nearly determine would
    slowly go (a Heywood case).
    """
    left = 1 - np.sum(explained * vectors**2, axis=1)
    return np.sqrt(np.maximum(left, 1e-3))
