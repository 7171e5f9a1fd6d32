"""Whether a prior has mass outside of its latent's support, as far as its library tells.

NumPyro's distributions have a constraint as their `support`, TFP's a bijector onto it, and
Distrax's are told by their class. Only supports that are intervals, the same for all coordinates,
are compared; of others nothing is said.
"""

import math
from typing import Any

import jax
import numpy as np

from minisvi.model import bijectors
from minisvi.model.supports import Support

Bounds = tuple[float | None, float | None]  # None is not known
_REALS, _POSITIVE, _UNIT = (-math.inf, math.inf), (0.0, math.inf), (0.0, 1.0)
_WRAPPERS = {"Independent", "Sample", "ExpandedDistribution", "MaskedDistribution"}
_DISTRAX = {
    "Normal": _REALS,
    "Laplace": _REALS,
    "Logistic": _REALS,
    "Gumbel": _REALS,
    "MultivariateNormalFromBijector": _REALS,
    "Gamma": _POSITIVE,
    "Beta": _UNIT,
}
_TFP: dict[str, Bounds] = {
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
    """A prior has mass where its latent cannot be, so that the log evidence is off by a constant or
    more.
    """


def complaint(name: str, support: Support, prior: Any) -> str | None:
    """What to warn of, in words, if the prior is known to have mass outside of the latent's
    support.
    """
    if support.num_values is not None or prior is None:
        return None
    inside, outside = _latent(support), bounds(prior)
    if inside is None or outside is None or not _beyond(outside, inside[0]):
        return None
    remedy = "Use a distribution on the latent's support, such as a half or a truncated one"
    if isinstance(support.bijector, bijectors.Ordered):
        remedy = "For n values with one prior it lacks log n!; all else is right"
    return (
        f"`{name}`: the prior {type(_unwrapped(prior)).__name__} has the support of {_words(outside)}, and the latent "
        f"is {inside[1]}: its density is not normalised there, so the log evidence is off. {remedy}"
    )


def bounds(prior: Any) -> Bounds | None:
    """The interval in which all coordinates of a prior are; None if it is not known to be one."""
    prior = _unwrapped(prior)
    if type(prior).__name__ in ("Delta", "Deterministic"):  # points, which claim all of R
        return None
    if hasattr(prior, "experimental_default_event_space_bijector"):
        return _of_tfp(prior.experimental_default_event_space_bijector())
    if type(prior).__module__.startswith("distrax"):
        return next(
            (_DISTRAX[kind.__name__] for kind in type(prior).__mro__ if kind.__name__ in _DISTRAX),
            None,
        )
    return _of_constraint(getattr(prior, "support", None))


def _unwrapped(prior: Any) -> Any:
    while type(prior).__name__ in _WRAPPERS:
        prior = prior.base_dist if hasattr(prior, "base_dist") else prior.distribution
    return prior


def _of_tfp(bijector: Any) -> Bounds | None:
    kind = type(bijector).__name__
    if kind not in _TFP:
        return None
    low, high = getattr(bijector, "low", None), getattr(bijector, "high", None)
    standard = _TFP[kind]
    return (
        standard[0] if low is None else _number(low, np.min),
        standard[1] if high is None else _number(high, np.max),
    )


def _of_constraint(constraint: Any) -> Bounds | None:
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if low is None and high is None:
        return _REALS if type(constraint).__name__ == "_Real" else None
    return (
        -math.inf if low is None else _number(low, np.min),
        math.inf if high is None else _number(high, np.max),
    )


def _number(value: Any, extreme: Any) -> float | None:
    """The extreme of a bound's values; None where they are not known yet, as in a trace."""
    return None if isinstance(value, jax.core.Tracer) else float(extreme(np.asarray(value)))


def _latent(support: Support) -> tuple[Bounds | None, str] | None:
    """The latent's interval, or None where it is a smaller set than that, and what it is in words."""
    bijector = support.bijector
    if isinstance(bijector, bijectors.Exp):
        return (
            bijector.lower,
            math.inf,
        ), "positive" if bijector.lower == 0 else f"above {bijector.lower:g}"
    if isinstance(bijector, bijectors.Sigmoid):
        return (bijector.low, bijector.high), f"between {bijector.low:g} and {bijector.high:g}"
    if type(bijector) in _NOT_INTERVALS and support.shape[-1] > 1:
        return None, _NOT_INTERVALS[type(bijector)]
    return None


def _beyond(outside: Bounds, inside: Bounds | None) -> bool:
    if inside is None:  # no product of intervals is a smaller set than that
        return True
    (low, high), (least, most) = outside, inside
    assert least is not None
    assert most is not None
    return (low is not None and low < least - _rounding(least)) or (
        high is not None and high > most + _rounding(most)
    )


def _rounding(bound: float) -> float:
    return 1e-5 * abs(bound) if math.isfinite(bound) else 0.0


def _words(interval: Bounds) -> str:
    low, high = interval
    if interval == _REALS:
        return "all real numbers"
    if interval == _POSITIVE:
        return "all positive numbers"
    if low is None or low == -math.inf:
        return (
            f"the numbers below {high:g}"
            if high is not None and high < math.inf
            else "numbers without a bound"
        )
    return (
        f"the numbers above {low:g}"
        if high is None or high == math.inf
        else f"the numbers from {low:g} to {high:g}"
    )
