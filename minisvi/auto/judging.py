"""Can it be trusted? A fitted guide is judged by its importance weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from minisvi.auto import drawing
from minisvi.auto.advice import advise
from minisvi.auto.centred import Centred, centred
from minisvi.auto.figures import Figures, Measured, measure, missed_mass
from minisvi.auto.gaussians import Drawn
from minisvi.auto.verdict import (
    GOOD_ERROR,
    MAX_SPACING,
    NUM_BATCHES,
    Judged,
    Ruling,
    Verdict,
    max_khat,
    rule,
    rule_on_weights,
)
from minisvi.guides.base import Guide
from minisvi.model.at_rows import density_at_rows
from minisvi.model.model import Model
from minisvi.posterior.diagnostics import Optima
from minisvi.posterior.moments import Moment, moments
from minisvi.posterior.posterior import Posterior
from minisvi.tools import checks
from minisvi.tools.interrupts import time_is_up
from minisvi.tools.types import Draw, Params

_FACTORS = (4, 16)  # by which there may be more draws, if the first are not enough
# How many times as many draws a tail is foretold of. Where the weights of a Gaussian were foretold
# to be good by 16 times as many, for what these would reach, they had errors of up to 0.09 sd.
_MOST_REACH = 4
_MOST_NUMBERS = 2**25  # of all draws
_MOST_OF_MANY = 80_000  # draws of many latents


def judge(
    key: Array,
    model: Model,
    guide: Guide,
    params: Params,
    *data: Any,
    num_draws: int = 20_000,
    max_draws: int = 320_000,
    optima: Optima | None = None,
    optimism: float | None = None,
    max_kl: float = np.inf,
    deadline: float = np.inf,
) -> Judged:
    """The verdict on any fitted guide, from `num_draws` draws of it and their log weights; from
    more, up to `max_draws`, where that alone would make it good: four times as many, or 16 where
    the error is all that is in the way. For the sake of memory there are no more than 80,000 of
    them where these have more than 2^25 numbers.

    Weighted draws err in two ways: by chance, which standard errors tell, and by what no draw has
    reached, which the `tail` of the weights tells: the share of all by which the largest exceed the
    next one. `unseen` is the part of it that a generalised Pareto tail of shape k has beyond its
    draws, where k is the largest k-hat of four batches and all draws; and as much again as the tail
    where k is 1 or more, so that a heavy tail does no harm if it holds next to nothing
    (`diagnostics.excess_beyond`). It is a share of the posterior, and added to the weights it moves
    each mean and sd of theta by so many sds. The level is

    - `good`: of the weights and of each mean and sd of theta, `unseen` is at most 0.03, and the
      error at most 0.03 sd; the tail holds at most 0.1; the terms of each moment have a tail of
      shape below 0.7 (0.9 where ESS/S < 0.85; see `moments`); and log evidence - ELBO, which is
      KL(q || p) where the weights see all of p, is at most `max_kl`, in nats;
    - `bulk good, tails unverified`: `unseen` of the weights at most 0.03, and the error of u at
      most 0.1 sd. The reason names the moments of theta that are not given, to a tenth of an sd by
      terms of a shape below 0.7: their quantiles hold;
    - `not trusted` otherwise, and wherever a draw has a density of +inf, or more than a thousandth
      of them one of NaN (fewer count as zero, and leave `bulk good` at best), one of the `optima`
      of `deterministic` is missed that has more than a hundredth of the best one's mass: q gives it
      less density than the posterior does at any draw; or log p is so large that the dtype's
      numbers there are more than 0.1 nats apart, so that the weights are rounding. Of a likelihood
      by rows differences are taken before sums then, in a second pass over the draws (see
      `centred`).

    At the `deadline`, of `time.monotonic()`, and at Ctrl-C it makes do with the draws whose
    densities are known, which are some 2,000 at least.

    A mode that neither a draw nor a start has come near is not seen. TypeError or ValueError
    unless num_draws is an integer >= 100.
    """
    check_num_draws(num_draws)
    posterior = Posterior(model, guide, params, data)
    data = posterior.data
    key = checks.prng_key(key)
    over = partial(time_is_up, deadline)

    def look(num: int) -> _Look:
        drawn = drawing.draw(key, model, guide, params, data, num)
        weighed = _weighed(posterior, drawn, over)
        u, log_ratio = _first((drawn.u, drawn.log_ratio), len(weighed.log_w))
        measured = measure(u, weighed.theta, weighed.log_w, log_ratio)
        evidence = _evidence(posterior, weighed, measured, optima, max_kl)
        return _Look(u, weighed.density, measured, evidence)

    found = look(num_draws)
    most = min(max_draws, _most_draws(found.u))
    for num in [factor * num_draws for factor in _FACTORS]:
        if num <= most and not over() and _helps(found.evidence, num, _MOST_REACH * num_draws):
            found = look(num)
    verdict = _verdict(found.evidence, found.density.offset, optimism)
    if verdict.level != "good":
        target = model.over(guide.constrained)
        advice = advise(target, found.u, found.measured.log_w, found.evidence.moments, verdict)
        verdict = replace(verdict, advice=advice)
    return Judged(verdict, found.measured.draws)


class _Weighed(NamedTuple):
    """theta at the draws, their log weights (S,), and the `density` that these are of."""

    theta: Draw
    log_w: np.ndarray
    density: Centred


def _weighed(posterior: Posterior, drawn: Drawn, over: Callable[[], bool]) -> _Weighed:
    """Log weights of the model's density; or, where rounding would decide about these, of the
    differences from the rows' terms at the draw of the largest weight.
    """
    model, guide, data = posterior.model, posterior.guide, posterior.data
    target = model.over(guide.constrained)
    theta, log_p = density_at_rows(target, drawn.u, len(drawn.log_q), data, over=over)
    num = len(log_p)
    u, log_q = _first((drawn.u, drawn.log_q), num)
    log_w = _difference(log_p, log_q)
    weighed = _Weighed(theta, log_w, Centred(model))
    best = int(np.argmax(np.where(np.isfinite(log_w), log_w, -np.inf)))
    if not _spacing(log_w.dtype, log_w[best]) > MAX_SPACING:
        return weighed
    density = centred(target, jax.tree.map(lambda leaf: leaf[best], u), data)
    if not density.reference:
        return weighed
    _, log_p = density_at_rows(density.model, u, num, data, reference=density.reference)
    density = density._replace(model=replace(density.model, latents=model.latents))
    return _Weighed(theta, _difference(log_p, log_q), density)


def _first(tree: Any, num: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:num], tree)


def _difference(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """log p - log q, in the dtype of log p: it is no more precise than that."""
    with np.errstate(invalid="ignore"):  # inf - inf
        return (log_p - log_q).astype(log_p.dtype)


def _spacing(dtype: Any, log_p: float) -> float:
    """How far apart numbers of the dtype are at log p, in nats."""
    return float(np.finfo(dtype).eps) * abs(float(log_p))


class _Evidence(NamedTuple):
    """All that the rule knows, on the host; `Verdict` says what each is. Of a density that is
    `centred` the `figures` have the ELBO and the log evidence without its offset.
    """

    figures: Figures
    moments: list[Moment]
    num_draws: int
    spacing: float
    optima: int | None
    missed: float | None
    max_kl: float


class _Look(NamedTuple):
    """Draws u (S, ...), the `density` that their weights are of, and what these show."""

    u: Draw
    density: Centred
    measured: Measured
    evidence: _Evidence


def _evidence(
    posterior: Posterior,
    weighed: _Weighed,
    measured: Measured,
    optima: Optima | None,
    max_kl: float,
) -> _Evidence:
    figures = measured.figures
    num_draws = weighed.log_w.size
    draws = measured.draws
    num_optima, missed = None, None
    if optima is not None:
        num_optima = _num_converged(optima)
        missed = _missed(posterior, weighed, optima)
    return _Evidence(
        figures=figures,
        moments=moments(draws.theta, measured.log_w, draws.log_weights, measured.unseen),
        num_draws=num_draws,
        spacing=_spacing(weighed.log_w.dtype, figures.log_evidence),
        optima=num_optima,
        missed=missed,
        max_kl=max_kl,
    )


def _num_converged(optima: Optima) -> int:
    """How many distinct optima the starts have converged to, at least one."""
    converged = np.asarray(optima.converged)
    found = np.unique(np.asarray(optima.optimum)[converged])
    return max(1, len(found))


def _missed(posterior: Posterior, weighed: _Weighed, optima: Optima) -> float:
    """The largest mass that q misses. Every end of a start counts: one that has not converged is no
    optimum, but may be at a mode.
    """
    if len(np.unique(np.asarray(optima.optimum))) <= 1:
        return 0.0
    return missed_mass(posterior, weighed.density, optima, weighed.log_w)


def _rulings(evidence: _Evidence) -> tuple[Ruling, Ruling]:
    """What the rule says of the weights alone, and of everything."""
    figures = evidence.figures
    by_weights = rule_on_weights(
        khat=figures.khat,
        ess=figures.ess,
        tail=figures.tail,
        unseen=figures.unseen,
        error_u=figures.error_u,
        broken=figures.broken,
        missed=evidence.missed,
        kl=figures.log_evidence - figures.elbo,
        max_kl=evidence.max_kl,
    )
    of_all = rule(
        known=evidence.moments,
        by_weights=by_weights,
        ess=figures.ess,
        spacing=evidence.spacing,
        log_evidence=figures.log_evidence,
    )
    return by_weights, of_all


def _most_draws(u: Draw) -> int:
    """How many draws there may be: of many latents fewer than of few, for memory's sake."""
    size = sum(leaf[0].size for leaf in jax.tree.leaves(u))
    return max(_MOST_OF_MANY, _MOST_NUMBERS // max(size, 1))


def _helps(evidence: _Evidence, num: int, reach: int) -> bool:
    """Whether it is not good, but would be with `num` draws, as far as `_with_more_draws` tells."""
    _, now = _rulings(evidence)
    _, then = _rulings(_with_more_draws(evidence, num, reach))
    return now.level != "good" and then.level == "good"


def _with_more_draws(evidence: _Evidence, num: int, reach: int) -> _Evidence:
    """What is to be expected of `num` draws. Errors fall as the square root of their number. Of n
    times as many, of a Pareto tail of shape k, n^(k - 1) of what is unseen is left; the tail is the
    largest sqrt(n) of what it was, and has n^((k - 1) / 2) of its share. That is foretold of up to
    `reach` draws.
    """
    figures = evidence.figures
    smaller = np.sqrt(evidence.num_draws / num)
    farther = max(min(num, reach) / evidence.num_draws, 1.0)
    still_unseen = farther ** (min(figures.khat, 1.0) - 1)
    moments = [
        moment._replace(error=moment.error * smaller, unseen=moment.unseen * still_unseen)
        for moment in evidence.moments
    ]
    figures = figures._replace(
        error_u=figures.error_u * smaller,
        tail=figures.tail * np.sqrt(still_unseen),
        unseen=figures.unseen * still_unseen,
    )
    return evidence._replace(figures=figures, moments=moments)


def _verdict(evidence: _Evidence, offset: float, optimism: float | None) -> Verdict:
    by_weights, of_all = _rulings(evidence)
    figures = evidence.figures
    unseen = max([figures.unseen, *(moment.unseen for moment in evidence.moments)])
    in_full = figures._replace(
        elbo=figures.elbo + offset, log_evidence=figures.log_evidence + offset, unseen=unseen
    )
    nothing = Moment("none", 1, 0.0, 0.0, entry="none")
    worst = max(evidence.moments, key=lambda moment: moment.error, default=nothing)
    khat = max_khat(by_weights.level, figures.ess)
    unreached = [moment for moment in evidence.moments if not moment.holds(GOOD_ERROR, khat)]
    return Verdict(
        level=of_all.level,
        reason=of_all.reason,
        of_weights=by_weights.level,
        spacing=evidence.spacing,
        num_draws=evidence.num_draws,
        error=worst.error,
        worst=worst.entry,
        unreached=tuple(map(str, unreached)),
        optima=evidence.optima,
        missed=evidence.missed,
        optimism=None if optimism is None else float(optimism),
        **in_full._asdict(),
    )


def unjudged(key: Array, posterior: Posterior, reason: str, num_draws: int = 1000) -> Judged:
    """Plain draws of a guide that nobody has looked at: `not trusted`, with that reason, and
    figures of NaN.
    """
    unknown = Figures(**dict.fromkeys(Figures._fields, np.nan))
    verdict = Verdict(
        level="not trusted",
        reason=reason,
        of_weights="not trusted",
        spacing=np.nan,
        num_draws=num_draws,
        error=np.nan,
        worst="unknown",
        unreached=(),
        **unknown._replace(broken=0)._asdict(),
    )
    return Judged(verdict, posterior.draws(key, num_draws))


def check_num_draws(num_draws: Any) -> None:
    """Raise unless `num_draws` is an integer that leaves every batch the 25 draws in which `psis`
    can see a tail.
    """
    least = 25 * NUM_BATCHES
    if checks.positive_integer("num_draws", num_draws) < least:
        raise ValueError(
            f"`num_draws` must be an integer >= {least}, to see a tail by; got {num_draws}"
        )
