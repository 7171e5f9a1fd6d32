"""What a verdict says: its figures, and the rule that gives the level and the reason."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from minisvi.posterior.draws import Draws
from minisvi.posterior.moments import MAX_KHAT, MAX_UNSEEN, Moment

Level = Literal["not trusted", "bulk good, tails unverified", "good"]
LEVELS: tuple[Level, ...] = get_args(Level)  # from the worst to the best
NUM_BATCHES = 4
GOOD_ERROR, BULK_ERROR = 0.03, 0.1  # sds
HIGH_ESS = 0.85  # of S
MAX_TAIL = 0.1  # of all weight
MAX_SPACING = 0.1  # nats
MAX_MISSED = 0.01  # of the best optimum's mass
_GOOD_KHAT = 0.9
_MOST_NAMED = 3


@dataclass(frozen=True)
class Verdict:
    """What the importance weights of S draws say of a fit; `str` gives a short table.

    - `level`, `reason`: `good`: the weighted draws may be used as the posterior's; `bulk good,
      tails unverified`: their quantiles, means and sds may, to about a tenth of an sd, but for the
      moments that the reason names; `not trusted`. The reason is one line.
    - `khat`: the largest of four batches' and of all; `ess`: the weights' ESS / S.
    - `tail`: the share of all weight by which the largest exceed the next one.
    - `unseen`: how far the posterior beyond the draws may move anything: a probability, or a mean
      or an sd of theta, in sds.
    - `error`: the standard error of the weighted means and sds of theta, in sds, at the `worst`
      entry, such as `effects[3]`; `error_u`: the same of u, of which quantiles are those of theta.
    - `unreached`: the means and sds of theta that the draws do not give to 0.03 sd, in words: a
      moment that does not exist, one that rare draws decide, and one that has too few draws.
    - `of_weights`: the level without what was found of theta's moments and of the `spacing`, which
      is that of the dtype's numbers at log p, in nats.
    - `shift`: how far weighting moves the mean of the worst coordinate, in sds: how wrong q is
      without it.
    - `elbo`, `log_evidence`, each with its standard error `_se`, in nats; that of the evidence
      has in it what may lie beyond the draws.
    - `broken`: how many draws have a density of NaN or +inf. Up to a thousandth of NaN count as if
      it were zero, and the level is not `good` then.
    - `optima`: how many distinct ones the restarts converged to, at least one; `missed`: the
      largest mass, relative to the best, of where any of them ended that q does not reach; None
      without restarts. `optimism`: nats that fixed draws promised beyond fresh ones, or None.
    - `exchangeable`: the latents whose labels may be exchanged, so that optima come in every order.
    - `advice`: of what is not good, the worst entries, where the largest weights are, and what that
      asks for.
    """

    level: Level
    reason: str
    khat: float
    ess: float
    tail: float
    unseen: float
    error: float
    worst: str
    error_u: float
    unreached: tuple[str, ...]
    of_weights: Level
    spacing: float
    shift: float
    elbo: float
    elbo_se: float
    log_evidence: float
    log_evidence_se: float
    num_draws: int
    broken: int
    optima: int | None = None
    missed: float | None = None
    optimism: float | None = None
    exchangeable: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def kl(self) -> float:
        """log evidence - ELBO, in nats: KL(q || p), where the weights see all of the posterior."""
        return self.log_evidence - self.elbo

    def misses_a_mode(self) -> bool:
        """Whether q misses one of several optima; what it misses of the only one is no mode."""
        several = self.optima is not None and self.optima > 1
        return several and self.missed is not None and self.missed > MAX_MISSED

    def __str__(self) -> str:
        lines = [f"{name:13} {text}" for name, text in self._rows().items()]
        lines += [f"{'next':13} {text}" for text in self.advice]
        return "\n".join(lines)

    def _rows(self) -> dict[str, str]:
        where = f"of weighted means and sds at the worst entry, `{self.worst}`"
        evidence = f"{self.log_evidence:.3f} +- {self.log_evidence_se:.3f}"
        rows = {}
        rows["verdict"] = f"{self.level}: {self.reason}"
        rows["k-hat"] = f"{self.khat:.2f}, largest of {NUM_BATCHES} batches and all draws"
        rows["ESS / S"] = f"{self.ess:.3f} of {self.num_draws} draws"
        rows["tail"] = f"{self.tail:.3f} of all weight, {self.unseen:.3f} may lie beyond the draws"
        rows["error"] = f"{self.error:.3f} sd, {where}"
        rows["shift"] = f"{self.shift:.3f} sd, from q's means to the weighted ones"
        rows["ELBO"] = f"{self.elbo:.3f} +- {self.elbo_se:.3f} nats"
        rows["log evidence"] = f"{evidence} nats"
        if self.optima is not None:
            misses = f"of which q misses {self.missed:.2g} of the best's mass"
            rows["optima"] = f"{self.optima} distinct, {misses}"
        if self.optimism is not None:
            rows["optimism"] = f"{self.optimism:.2f} nats, of fixed draws over fresh ones"
        if self.exchangeable:
            names = ", ".join(f"`{name}`" for name in self.exchangeable)
            rows["labels"] = f"of {names} are exchangeable: each optimum is there in every order"
        return rows


class Judged(NamedTuple):
    """The verdict on a guide, and its weighted draws of theta."""

    verdict: Verdict
    draws: Draws


class Ruling(NamedTuple):
    """A level, and the reason for it in one line."""

    level: Level
    reason: str


def rule_on_weights(
    khat: float,
    ess: float,
    tail: float,
    unseen: float,
    error_u: float,
    broken: int,
    missed: float | None = None,
    kl: float = 0.0,
    max_kl: float = np.inf,
) -> Ruling:
    """The level that the weights have by themselves; `judge` has the rule in words."""
    said_broken = f"{broken} draws have a density of NaN or +inf"
    if broken and khat == np.inf:
        return Ruling("not trusted", said_broken)
    if missed is not None and missed > MAX_MISSED:
        mass = f"{missed:.2g} of the best one's mass"
        reason = f"a restart ended at an optimum, with {mass}, that q misses"
        return Ruling("not trusted", reason)
    if not unseen <= MAX_UNSEEN:
        share = f"{unseen:.2g} of the posterior may lie beyond the draws"
        return Ruling("not trusted", f"k-hat {khat:.2f}: {share}, so q lacks part of it")
    if error_u <= GOOD_ERROR and tail <= MAX_TAIL:
        reason = f"the weights make up for what q lacks (k-hat {khat:.2f}, ESS/S {ess:.2f})"
        if broken:
            return Ruling("bulk good, tails unverified", f"{said_broken}; {reason}")
        if not kl <= max_kl:
            far = f"q is {kl:.2g} nats from the posterior, and may lack what no draw comes near"
            return Ruling("bulk good, tails unverified", f"{far}; {reason}")
        return Ruling("good", reason)
    figures = f"k-hat {khat:.2f}, ESS/S {ess:.3f}, tail {tail:.2f}, error {error_u:.2f} sd"
    if error_u <= BULK_ERROR:
        return Ruling("bulk good, tails unverified", figures)
    return Ruling("not trusted", f"{figures}: too few draws carry the weight")


def rule(
    known: list[Moment],
    by_weights: Ruling,
    ess: float,
    spacing: float,
    log_evidence: float,
) -> Ruling:
    """The ruling on the weights, held against the spacing of log p and against each moment of
    theta.
    """
    level, reason = by_weights
    if MAX_SPACING < spacing < np.inf:
        return Ruling("not trusted", _of_rounding(spacing, log_evidence))
    max_error = GOOD_ERROR if level == "good" else BULK_ERROR
    khat = max_khat(level, ess)
    failing = [moment for moment in known if not moment.holds(max_error, khat)]
    if level == "not trusted" or not failing:
        return Ruling(level, reason)
    why = _of_moments(failing, khat, ess)
    return Ruling("bulk good, tails unverified", f"{why}; {reason}")


def max_khat(level: Level, ess: float) -> float:
    """The heaviest tail that the terms of a moment may have, by the level of the weights.

    Where the weights are nearly equal a heavy tail is theta's own, and no better q would make it
    lighter. Otherwise it is partly the tail of the weights, and more is let pass where these have
    been found good. Of exact draws of Neal's funnel the terms have 0.9 to 1.2, and the sd is off by
    up to five times the error that they show.
    """
    return _GOOD_KHAT if level == "good" and ess < HIGH_ESS else MAX_KHAT


def _of_rounding(spacing: float, log_evidence: float) -> str:
    numbers = f"the dtype's numbers are {spacing:.2g} nats apart"
    return (
        f"log p is about {log_evidence:.2g}, where {numbers}: the weights "
        "are rounding. Take constants out of the density, give the likelihood by row, or enable x64"
    )


def _of_moments(failing: list[Moment], khat: float, ess: float) -> str:
    """Which moments fail, and how: first come those whose tail is too heavy, for which more draws
    would not help.
    """
    failing = sorted(failing, key=lambda moment: (moment.khat, moment.error), reverse=True)
    names = ", ".join(str(moment) for moment in failing[:_MOST_NAMED])
    num_others = len(failing) - _MOST_NAMED
    if num_others > 0:
        names += f" and {num_others} more"
    worst = failing[0]
    return f"quantiles hold, but not {names}: {_of_the_worst(worst, khat, ess)}"


def _of_the_worst(moment: Moment, khat: float, ess: float) -> str:
    """Why that moment fails."""
    if moment.khat >= khat:
        why = "the weights do not reach it"
        if ess >= HIGH_ESS:
            why = "it may not exist, or rare draws decide it"
        return f"{why} (a tail of shape {moment.khat:.2f})"
    if moment.unseen > MAX_UNSEEN:
        return f"what lies beyond the draws may move it by {moment.unseen:.2f} sd"
    return f"the error is {moment.error:.2f} sd"
