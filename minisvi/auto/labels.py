"""Labels that may be exchanged: optima that are one solution in another order.

Of a mixture whose components have no order, each of the K! orders of an optimum is an optimum too.
Restarts seldom find all of them.
"""

from functools import partial
from itertools import permutations
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from minisvi.model import trees
from minisvi.model.at_rows import ravel_rows, unravel_rows
from minisvi.model.bijectors import Exp, Identity, Sigmoid, StickBreaking
from minisvi.model.model import Model
from minisvi.posterior.diagnostics import Optima
from minisvi.second_order.deterministic import Deterministic
from minisvi.second_order.fixed_draws import log_p_at
from minisvi.tools.keys import generator
from minisvi.tools.names import named_leaves
from minisvi.tools.programs import HostProgram
from minisvi.tools.types import Draw

_MOST_LABELS = 4
_NUM_POINTS = 16  # at which a symmetry is tried
_ELEMENTWISE = (Exp, Identity, Sigmoid)


class Labels(NamedTuple):
    """`num` labels, the leading axis of the latents `names`, and how an order of them acts on u."""

    num: int
    names: tuple[str, ...]
    is_elementwise: bool


def with_relabelled(key: Array, det: Deterministic) -> tuple[Deterministic, tuple[str, ...]]:
    """The fit with its best optimum in all orders of its labels among the optima; and the names of
    the latents whose labels are exchangeable.

    They are where p(theta, D) is the same in every order, at points about the optimum. Nothing is
    added where the optimum itself does not tell its labels apart.
    """
    rng = generator(key, 8)
    loc = np.asarray(det.params["loc"], float)
    scale = np.exp(np.asarray(det.params["log_scale"], float))
    points = loc + scale * rng.standard_normal((_NUM_POINTS, loc.size))
    for labels in _candidates(det.model):
        generators = ((1, 0, *range(2, labels.num)), (*range(1, labels.num), 0))
        if all(_is_symmetry(det, points, labels, order) for order in generators):
            others = list(permutations(range(labels.num)))[1:]
            moved = [_reordered(det.model, loc[None], labels, order)[0] for order in others]
            found = np.concatenate(moved)
            if np.max(np.abs(found - loc) / scale) <= 0.5:
                return det, ()
            return det._replace(optima=_extended(det, found)), labels.names
    return det, ()


def _candidates(model: Model) -> list[Labels]:
    """The latents that share a leading axis of few entries, the most entries first."""
    found = []
    leaves = named_leaves(model.latents)
    for num in range(_MOST_LABELS, 1, -1):
        alike = {name: leaf for name, leaf in leaves.items() if leaf.shape[:1] == (num,)}
        bijectors = [leaf.bijector for leaf in alike.values()]
        if not all(isinstance(bijector, (*_ELEMENTWISE, StickBreaking)) for bijector in bijectors):
            continue  # an `ordered` latent has its labels told apart
        is_elementwise = all(isinstance(bijector, _ELEMENTWISE) for bijector in bijectors)
        if alike:
            found.append(Labels(num, tuple(alike), is_elementwise))
    return found


def _extended(det: Deterministic, loc: np.ndarray) -> Optima:
    """The optima, with the best one at these locations too."""
    optima = det.optima
    num = len(optima.elbo)
    best = int(np.argmax(np.where(np.isfinite(optima.elbo), optima.elbo, -np.inf)))
    repeated = np.full(len(loc), best)
    copies = Optima(*[np.asarray(part)[repeated] for part in optima])
    copies = copies._replace(loc=loc, optimum=num + np.arange(len(loc)))
    return Optima(*map(np.concatenate, zip(optima, copies)))


def _is_symmetry(
    det: Deterministic, points: np.ndarray, labels: Labels, order: tuple[int, ...]
) -> bool:
    """Whether p(theta, D) is the same with the labels in another order, at all points."""
    moved, log_dets = _reordered(det.model, points, labels, order)
    log_p = log_p_at(det.model, points, det.fixed)
    difference = log_p_at(det.model, moved, det.fixed) - log_p - log_dets
    tolerance = 1e3 * np.finfo(log_p.dtype).eps * (1 + np.abs(log_p))
    return bool(np.all(np.abs(difference) < tolerance))


def _reordered(
    model: Model, rows: np.ndarray, labels: Labels, order: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """u with the labels in another order, for each row, and by how much log|det J_T| changes."""
    u = unravel_rows(model.latents, rows)
    if labels.is_elementwise:
        moved = jax.tree.map(partial(_take_columns, labels.num, order), model.latents, u)
        return ravel_rows(moved, len(rows)), np.zeros(len(rows))
    moved, log_dets = _reorder(model, labels.num, np.array(order), u)
    return ravel_rows(moved, len(rows)), np.asarray(log_dets, float)


def _take_columns(num: int, order: tuple[int, ...], support: Any, leaf: np.ndarray) -> np.ndarray:
    return leaf[:, np.array(order)] if support.shape[:1] == (num,) else leaf


@partial(HostProgram, static_argnames=("model", "num"))
def _reorder(model: Model, num: int, order: Array, u: Draw) -> tuple[Draw, Array]:
    def reordered(leaf: Array) -> Array:
        return leaf[order] if leaf.shape[:1] == (num,) else leaf

    def one(u: Draw) -> tuple[Draw, Array]:
        theta, before = trees.constrain(model.latents, u)
        theta = jax.tree.map(reordered, theta)
        u = jax.tree.map(lambda support, leaf: support.inverse(leaf), model.latents, theta)
        _, after = trees.constrain(model.latents, u)
        return u, after - before

    return jax.vmap(one)(u)
