"""Whether a prior has mass outside of its latent's support, as far as its library tells.

NumPyro's distributions have a constraint as their `support`, TFP's have a bijector onto it, and
Distrax's are told by their class. Only supports that are intervals, the same for all coordinates,
are compared; nothing is said of others.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from minisvi.model import bijectors
from minisvi.model.supports import Support


class Interval(NamedTuple):
    """The numbers from `low` to `high`, where None is a bound that is not known."""

    low: float | None
    high: float | None


_REALS = Interval(-math.inf, math.inf)
_POSITIVE = Interval(0.0, math.inf)
_UNIT = Interval(0.0, 1.0)
_WRAPPERS = {"Independent", "Sample", "ExpandedDistribution", "MaskedDistribution"}
_POINTS = {"Delta", "Deterministic"}
_DISTRAX = {
    "Normal": _REALS,
    "Laplace": _REALS,
    "Logistic": _REALS,
    "Gumbel": _REALS,
    "MultivariateNormalFromBijector": _REALS,
    "Gamma": _POSITIVE,
    "Beta": _UNIT,
}
_TFP = {
    "Identity": _REALS,
    "Exp": _POSITIVE,
    "Softplus": _POSITIVE,
    "Sigmoid": _UNIT,
}
_NOT_INTERVALS: dict[type, str] = {
    bijectors.StickBreaking: "on the simplex",
    bijectors.Ordered: "ordered",
    bijectors.LowerCholesky: "a Cholesky factor",
    bijectors.CorrelationCholesky: "a Cholesky factor of correlations",
}


class PriorSupportWarning(UserWarning):
    """A prior has mass where its latent cannot be.

    The log evidence is then off by a constant or more.
    """


def complaint(name: str, support: Support, prior: Any) -> str | None:
    """A warning in words if the prior is known to have mass outside of the latent's support."""
    if support.num_values is not None or prior is None:
        return None
    of_prior = bounds(prior)
    if of_prior is None:
        return None
    what = _name_of_smaller_set(support)
    if what is None:
        of_latent = _interval_of(support)
        if of_latent is None or not _reaches_beyond(of_prior, of_latent):
            return None
        what = _short_words(of_latent)
    remedy = "Use a distribution on the latent's support, such as a half or a truncated one"
    if isinstance(support.bijector, bijectors.Ordered):
        remedy = (
            "For n values with one prior it lacks log n!, and all else is right; a prior by an "
            "ordering transform, as NumPyro's `TransformedDistribution(base, OrderedTransform())`, "
            "is normalised"
        )
    kind = type(_unwrapped(prior)).__name__
    return (
        f"`{name}`: the prior {kind} has the support of {_words(of_prior)}, and the latent is "
        f"{what}: its density is not normalised there, so the log evidence is off. {remedy}"
    )


def bounds(prior: Any) -> Interval | None:
    """The interval in which all coordinates of a prior are; None if it is not known to be one."""
    prior = _unwrapped(prior)
    kind = type(prior)
    if kind.__name__ in _POINTS:  # they claim all of R
        return None
    if hasattr(prior, "experimental_default_event_space_bijector"):
        return _of_tfp(prior.experimental_default_event_space_bijector())
    if kind.__module__.startswith("distrax"):
        return _of_distrax(kind)
    return _of_constraint(getattr(prior, "support", None))


def _unwrapped(prior: Any) -> Any:
    """The distribution of which this one is a shape, a batch or a mask."""
    while type(prior).__name__ in _WRAPPERS:
        prior = prior.base_dist if hasattr(prior, "base_dist") else prior.distribution
    return prior


def _of_tfp(bijector: Any) -> Interval | None:
    interval = _TFP.get(type(bijector).__name__)
    if interval is None:
        return None
    return _with_bounds(interval, getattr(bijector, "low", None), getattr(bijector, "high", None))


def _of_distrax(kind: type) -> Interval | None:
    for base in kind.__mro__:
        if base.__name__ in _DISTRAX:
            return _DISTRAX[base.__name__]
    return None


def _of_constraint(constraint: Any) -> Interval | None:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    low = getattr(constraint, "lower_bound", None)
    high = getattr(constraint, "upper_bound", None)
    if low is None and high is None:
        return _REALS if type(constraint).__name__ == "_Real" else None
    return _with_bounds(_REALS, low, high)


def _with_bounds(interval: Interval, low: Any, high: Any) -> Interval:
    """The interval with those bounds, each of which may be an array, or None where it stays."""
    if low is not None:
        interval = interval._replace(low=_extreme(np.min, low))
    if high is not None:
        interval = interval._replace(high=_extreme(np.max, high))
    return interval


def _extreme(extreme: Callable[[np.ndarray], Any], value: Any) -> float | None:
    """The least or the largest value of a bound; None where it is not known yet, as in a trace."""
    if isinstance(value, jax.core.Tracer):
        return None
    return float(extreme(np.asarray(value)))


def _name_of_smaller_set(support: Support) -> str | None:
    """What a latent is whose support no product of intervals fits into; None for other latents."""
    if type(support.bijector) in _NOT_INTERVALS and support.shape[-1] > 1:
        return _NOT_INTERVALS[type(support.bijector)]
    return None


def _interval_of(support: Support) -> Interval | None:
    """The interval in which a latent is; None if it is in all of R, or not known to be in one."""
    bijector = support.bijector
    if isinstance(bijector, bijectors.Exp):
        return Interval(bijector.lower, math.inf)
    if isinstance(bijector, bijectors.Sigmoid):
        return Interval(bijector.low, bijector.high)
    return None


def _reaches_beyond(outer: Interval, inner: Interval) -> bool:
    """Whether `outer` is known to have numbers that are not in `inner`, up to rounding."""
    assert inner.low is not None
    assert inner.high is not None
    below = outer.low is not None and outer.low < inner.low - _rounding(inner.low)
    above = outer.high is not None and outer.high > inner.high + _rounding(inner.high)
    return below or above


def _rounding(bound: float) -> float:
    return 1e-5 * abs(bound) if math.isfinite(bound) else 0.0


def _short_words(interval: Interval) -> str:
    """A latent's interval as an adjective."""
    if interval == _POSITIVE:
        return "positive"
    if interval.high == math.inf:
        return f"above {interval.low:g}"
    return f"between {interval.low:g} and {interval.high:g}"


def _words(interval: Interval) -> str:
    """A prior's interval as a noun."""
    if interval == _REALS:
        return "all real numbers"
    if interval == _POSITIVE:
        return "all positive numbers"
    is_bounded_below = interval.low is not None and interval.low > -math.inf
    is_bounded_above = interval.high is not None and interval.high < math.inf
    if is_bounded_below and is_bounded_above:
        return f"the numbers from {interval.low:g} to {interval.high:g}"
    if is_bounded_below:
        return f"the numbers above {interval.low:g}"
    if is_bounded_above:
        return f"the numbers below {interval.high:g}"
    return "numbers without a bound"
