"""What the stages of a fit share: what is asked of them, and what they come to."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisvi.auto.verdict import HIGH_ESS, MAX_SPACING, Verdict
from minisvi.guides.base import Guide
from minisvi.posterior.moments import MAX_UNSEEN
from minisvi.running.progress import StageDisplay
from minisvi.second_order.deterministic import Deterministic
from minisvi.tools.interrupts import time_is_up
from minisvi.tools.types import Draw, Params

MAX_DENSE = 2000  # latents, for a D x D covariance: docs/did_it_work.md says what it takes


@dataclass(frozen=True)
class Settings:
    """What a fit is asked for besides its model and data."""

    batch_size: int | None
    start: Draw | None
    deadline: float
    checkpoint_dir: Path | None
    checkpoint_every: float
    display: StageDisplay

    def over(self) -> bool:
        return time_is_up(self.deadline)


class Candidate(NamedTuple):
    """What a stage comes to, to be judged: a fitted guide, and the deterministic fit behind it; and
    the latents whose labels are `exchangeable`, as far as that was looked for.

    It is not good if log evidence - ELBO, which is KL(q || p) where the weights see all of p, is
    above `max_kl`, in nats.
    """

    name: str
    guide: Guide
    params: Params
    deterministic: Deterministic
    exchangeable: tuple[str, ...] = ()
    max_kl: float = np.inf


class Around(NamedTuple):
    """A mean, as a tree u, and a covariance (D, D), or variances (D,)."""

    loc: Draw
    cov: np.ndarray


def no_other_helps(verdict: Verdict) -> bool:
    """Whether a better guide would be no use: it is good; or the weights are nearly equal and
    nothing lies beyond the draws, so that what is missing is missing in the moments themselves; or
    the density is rounding.
    """
    all_seen = verdict.of_weights != "not trusted" and verdict.unseen <= MAX_UNSEEN
    nearly_equal = all_seen and verdict.ess >= HIGH_ESS
    return verdict.level == "good" or nearly_equal or verdict.spacing > MAX_SPACING
