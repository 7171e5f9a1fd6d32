"""Where a Gaussian will not do: which latents drive the scales of others, read off the density, and
the `driven` guide that starts from there.

Of a funnel, u_i | h ~ N(m, exp(2 c h)), the curvature -d^2 log p / du_i^2 is exp(-2 c h), and with
a likelihood besides it is P + exp(-2 c h): its logarithm is a softplus of h. A Gaussian posterior
has curvatures that depend on nothing.
"""

import itertools
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from minisvi.guides.driven import Driven
from minisvi.guides.flow import Flow, affine_coupling
from minisvi.guides.flow_layers import mlp
from minisvi.guides.gaussian import mean_field
from minisvi.model import trees
from minisvi.model.at_rows import ravel_rows
from minisvi.model.model import Model
from minisvi.second_order.derivatives import hessians
from minisvi.tools.keys import generator, rbg_key
from minisvi.tools.programs import IN_HASTE, HostProgram
from minisvi.tools.types import Data, Draw, Latents, Params

NUM_DRAWS = 256  # at which the curvatures are looked at
MAX_SIZE = 600  # latents: so many products with a Hessian a draw
NUM_LAYERS = 4
_BLOCK = 32  # draws, of which all Hessians are kept at a time
_LEAST_EFFECT = 0.1  # sd of a log curvature, for its latents to be called driven
_LEAST_SHARE = 0.1  # of the latents, which are driven where that is what is the matter
# Of the variance of the log curvatures, by the gates: 0.9 and more on hierarchies, 0.1 on a banana.
_LEAST_EXPLAINED = 0.5
_NUM_PASSES = 4
_NOISE = 4.0  # standard errors, below which an effect is taken for none
# Of a gate, by how much its slope exceeds the mean one, and where it opens.
_STEEPER = np.array([1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0])
_BIASES = np.linspace(-4.0, 4.0, 17)


class Effects(NamedTuple):
    """What each latent does to the curvatures of the others, at draws of a mean field.

    `log_curvature` (S, D); `eps` (S, D), the draws in the mean field's own units; and `slope` (D,
    D), of the log curvature of i (rows) per sd of j (columns).
    """

    log_curvature: np.ndarray
    eps: np.ndarray
    slope: np.ndarray


class Gates(NamedTuple):
    """How the curvature of each of the rest follows the drivers: exp of a softplus of `gate` w +
    `bias`, with `gate` (R, H) and `bias` (R,). Of the variance of the log curvature it explains a
    share, `explained` (R,).
    """

    gate: np.ndarray
    bias: np.ndarray
    explained: np.ndarray


def effects(
    key: Array, model: Model, data: Data, loc: np.ndarray, sds: np.ndarray, num_draws: int
) -> Effects:
    """The effects at draws of N(loc, diag(sds)^2), of which the first half are reflected."""
    half = generator(key, 5).standard_normal((num_draws // 2, loc.size))
    eps = np.concatenate([half, -half])
    rows = loc + sds * eps
    blocks = [rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK)]
    curvature = np.concatenate([_curvatures(model, block, data) for block in blocks])
    log_curvature = _logs(curvature)
    return Effects(log_curvature, eps, _slopes(log_curvature, eps))


def _slopes(log_curvature: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """The regression of each log curvature on the draws, (D, D), of what stands out of the noise.

    Small slopes stand out once the large ones are subtracted, and so it is done in some passes.
    """
    remainder = log_curvature - np.mean(log_curvature, axis=0)
    total = np.zeros((eps.shape[1], eps.shape[1]))
    for _ in range(_NUM_PASSES):
        slope = remainder.T @ eps / np.sum(eps**2, axis=0)
        error = np.std(remainder, axis=0) / np.sqrt(len(eps))
        slope[np.abs(slope) < _NOISE * error[:, None]] = 0.0
        total = total + slope
        remainder = remainder - eps @ slope.T
    np.fill_diagonal(total, 0.0)  # what a latent does to itself is no driving
    return total


def _logs(curvature: np.ndarray) -> np.ndarray:
    """log |curvature| of each draw and latent, (S, D), to within a factor of 1e6 of its median:
    where the density is flat, or bends upwards, the logarithm tells nothing of a scale.
    """
    size = np.abs(curvature)
    size[~np.isfinite(size)] = np.nan
    typical = np.nan_to_num(np.nanmedian(size, axis=0), nan=1.0)
    typical = np.maximum(typical, np.finfo(float).tiny)
    relative = np.nan_to_num(size / typical, nan=1.0)
    return np.log(np.clip(relative, 1e-6, 1e6)) + np.log(typical)


def _curvatures(model: Model, rows: np.ndarray, data: Data) -> np.ndarray:
    found = hessians(model, rows, data)
    return -np.diagonal(found.hessian, axis1=1, axis2=2)


def drivers(latents: Latents, slope: np.ndarray) -> np.ndarray:
    """The places of the latents that come first, (H,): all that are not driven.

    A leaf of the tree is driven if others bend its curvatures more than it bends theirs, by the
    mean square over pairs of entries, so that a leaf counts no more for being large: many effects
    each tell a little of their scale. Of one leaf alone this is asked of each of its entries. Of
    several driven leaves only the largest, and those at least half as large, come last: a smaller
    one is as a rule the mean of a larger one, as that of a hierarchy's groups, and does not scale
    with them.
    """
    groups = _groups(latents)
    of_pairs = np.zeros((len(groups), len(groups)))
    of_entries = np.zeros(len(groups))
    for i, driven in enumerate(groups):
        for j, driver in enumerate(groups):
            if i != j:
                squares = slope[np.ix_(driven, driver)] ** 2
                of_pairs[i, j] = np.mean(squares)
                of_entries[i] += np.mean(np.sum(squares, axis=1))
    received = np.sum(of_pairs, axis=1)
    given = np.sum(of_pairs, axis=0)
    is_driven = (received > given) & (of_entries > _LEAST_EFFECT**2)
    sizes = np.array([group.size for group in groups])
    comes_last = is_driven & (2 * sizes >= np.max(sizes[is_driven], initial=0))
    first = [group for group, is_last in zip(groups, comes_last) if not is_last]
    return np.concatenate([np.zeros(0, int), *first])


def _groups(latents: Latents) -> list[np.ndarray]:
    """The places of the entries of each leaf; or each place alone, if there is one leaf."""
    leaves = jax.tree.leaves(trees.unconstrained_like(latents))
    sizes = [leaf.size for leaf in leaves if leaf.size]
    ends = np.cumsum(sizes)
    if len(sizes) == 1:
        return [np.array([place]) for place in range(ends[-1])]
    return np.split(np.arange(ends[-1]), ends[:-1])


def gates(found: Effects, first: np.ndarray, rest: np.ndarray) -> Gates:
    """The gates of the rest, per sd of the drivers.

    The direction is that of the slopes. In it the log curvature is b + softplus(k s + a), where k
    and a are those of a grid with the least squares.
    """
    slope = found.slope[np.ix_(rest, first)]
    along = found.eps[:, first] @ slope.T  # (S, R): the slope times s
    observed = found.log_curvature[:, rest]
    grid = np.array(list(itertools.product(_STEEPER, _BIASES)))
    errors = []
    for steeper, bias in grid:
        predicted = np.logaddexp(0.0, steeper * along + bias)
        errors.append(np.var(observed - predicted, axis=0))
    steeper, bias = grid[np.argmin(errors, axis=0)].T
    spread = np.var(observed, axis=0)
    # A curvature that never changes leaves nothing to explain.
    unexplained = np.divide(
        np.min(errors, axis=0), spread, out=np.zeros_like(spread), where=spread > 0
    )
    return Gates(slope * steeper[:, None], bias, 1 - unexplained)


def non_centred(
    key: Array, model: Model, data: Data, loc: Draw, cov: np.ndarray
) -> tuple[Driven, Params] | None:
    """A guide, and where it starts: that Gaussian, with the gates that the density has there. None
    where hardly any latent is driven by others, where gates do not explain how, or where there are
    too many to look.

    `loc` is a tree u, and `cov` (D, D), or variances (D,). The guide is `driven` by what `drivers`
    finds, over a mean field.
    """
    vector = ravel_rows(loc, 1)[0]
    if vector.size > MAX_SIZE:
        return None
    found = effects(key, model, data, vector, _sds_given_others(cov), NUM_DRAWS)
    first = drivers(model.latents, found.slope)
    rest = np.setdiff1d(np.arange(vector.size), first)
    if first.size == 0 or rest.size < max(_LEAST_SHARE * vector.size, 1):
        return None
    per_sd = gates(found, first, rest)
    if np.median(per_sd.explained) < _LEAST_EXPLAINED:
        return None
    guide = Driven(mean_field(model.latents, 1.0), tuple(first.tolist()))
    # The guide's unit is the sd, and that of the slopes is the sd given all others.
    unit = _sds(cov)[first] / _sds_given_others(cov)[first]
    standard = {"loc": np.zeros(vector.size), "log_scale": np.zeros(vector.size)}
    params = guide.params_at(vector, cov, per_sd.gate * unit, per_sd.bias, standard)
    dtype = trees.spec(model.latents).dtype
    return guide, jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def over_a_flow(key: Array, guide: Driven, params: Params) -> tuple[Driven, Params]:
    """The guide over a flow in place of the mean field, which starts as the same distribution."""
    flow = affine_coupling(guide.guide, num_layers=NUM_LAYERS, network=mlp(64, 64))
    x = _flow_params(flow, rbg_key(key, 6), params["x"])
    return replace(guide, guide=flow), {**params, "x": x}


# In one program, for it has dozens of operations.
@partial(HostProgram, static_argnames="flow", options=IN_HASTE)
def _flow_params(flow: Flow, key: Array, base: Params) -> Params:
    return flow.init(key, base=base)


def _sds(cov: np.ndarray) -> np.ndarray:
    variances = cov if cov.ndim == 1 else np.diagonal(cov)
    return np.sqrt(variances)


def _sds_given_others(cov: np.ndarray) -> np.ndarray:
    """sd (D,) of each latent given all others."""
    if cov.ndim == 1:
        return np.sqrt(cov)
    return np.diagonal(np.linalg.inv(cov)) ** -0.5
