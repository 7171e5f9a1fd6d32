"""Where a search for optima starts: near the origin, and far from it."""

import numpy as np

from minisvi.model import not_finite, trees
from minisvi.model.at_rows import ravel_rows
from minisvi.model.model import Model
from minisvi.second_order.fixed_draws import Fixed, log_p_at
from minisvi.tools import checks, finite_data
from minisvi.tools.types import Draw, Latents

_SCALE = 0.1
_NUM_TRIES = 32
_FAR = ((8.0, 1.0), (-8.0, 1.0), (0.0, 4.0), (0.0, 16.0))  # by how much starts are shifted, widened


def given(latents: Latents, start: Draw) -> np.ndarray:
    """The vector (D,) of a caller's tree u; ValueError unless it is like the latents."""
    checks.same_tree("loc", trees.unconstrained_like(latents), start)
    return ravel_rows(start, 1)[0]


def finite_starts(
    model: Model, num_restarts: int, rng: np.random.Generator, first: np.ndarray, fixed: Fixed
) -> np.ndarray:
    """Points x (R, 2 D) to start from; ValueError unless f is finite at one of them."""
    loc = np.zeros((num_restarts, first.size))
    missing = np.ones(num_restarts, bool)
    for attempt in range(_NUM_TRIES):
        drawn = _drawn_starts(rng, num_restarts, first.size, 0.5 ** (attempt // 4))
        if attempt == 0:
            drawn[0] = first
        loc[missing] = drawn[missing]
        missing[missing] = ~_is_finite(model, loc[missing], fixed)
        if not missing.any():
            break
    if missing.all():
        raise ValueError(
            f"expected a finite log density at one of {num_restarts * _NUM_TRIES} starts, "
            "uniform(-2, 2) and wider in unconstrained space: give a `start` where it is finite"
            f"{finite_data.or_the_data(fixed.data)}{_to_blame(model, loc[-1], fixed)}"
        )
    loc = loc[~missing]
    return np.concatenate([loc, np.full_like(loc, np.log(_SCALE))], axis=1)


def _to_blame(model: Model, loc: np.ndarray, fixed: Fixed) -> str:
    """The end of an error: what is not finite at a start, or nothing."""
    u = trees.unravel(model.latents, loc)
    parts = not_finite.parts(model, u, fixed.data)
    return f". Not finite at one of them: {', '.join(parts)}" if parts else ""


def _drawn_starts(rng: np.random.Generator, num: int, size: int, nearness: float) -> np.ndarray:
    """Locations (R, D), uniform(-2, 2), and the last half of them farther away: up to four, as
    `_FAR` says, by the factor `nearness`.
    """
    loc = rng.uniform(-2, 2, (num, size))
    far = _FAR[: num // 2]
    for start, (shift, width) in zip(loc[num - len(far) :], far):
        start *= max(nearness * width, 1.0)
        start += nearness * shift
    return loc


def _is_finite(model: Model, loc: np.ndarray, fixed: Fixed) -> np.ndarray:
    """Whether f is finite at each location (R, D)."""
    draws = loc[:, None] + _SCALE * fixed.eps
    rows = draws.reshape(len(loc) * len(fixed.eps), loc.shape[1])
    log_p = log_p_at(model, rows, fixed)
    return np.all(np.isfinite(log_p.reshape(len(loc), -1)), axis=1)
