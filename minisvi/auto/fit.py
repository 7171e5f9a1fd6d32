"""Without tuning: a cascade of fits, each judged by its importance weights, until one is good."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from minisvi.auto.cascade import cascade, runaway
from minisvi.auto.handover import restart
from minisvi.auto.judging import check_num_draws, judge, unjudged
from minisvi.auto.stages import Candidate, Settings
from minisvi.auto.verdict import LEVELS, Judged, Verdict
from minisvi.data.batches import Minibatches
from minisvi.data.streams import Stream
from minisvi.guides.base import Guide
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.posterior.draws import Draws, plain
from minisvi.posterior.export import to_arviz
from minisvi.posterior.posterior import Posterior
from minisvi.posterior.summary import Summary
from minisvi.running.identity import claim, describe, fingerprint
from minisvi.running.progress import StageDisplay
from minisvi.second_order.deterministic import Deterministic
from minisvi.tools import blas, checks, inputs
from minisvi.tools.interrupts import deferred_interrupt
from minisvi.tools.sharding import check_axes
from minisvi.tools.types import Data, Draw, Params


class Stage(NamedTuple):
    """One stage of the cascade: a fitted guide, and how it was judged. Both together took so many
    `seconds`.
    """

    name: str
    guide: Guide
    params: Params
    judged: Judged
    seconds: float


@dataclass(frozen=True)
class Fit:
    """What `fit` comes to. Its figures are those of the best stage, by level and then by ELBO.

    - `draws`: theta with importance weights (`mean`, `sd`, `quantiles`, `resample`, `predictive`).
    - `verdict`: whether to trust them; print it. `log_evidence` and `elbo`, in nats, are among its
      figures.
    - `guide`, `params`: q itself, without weights; `posterior` has it with the data.
    - `stages`: all that were tried; `deterministic`: the first fit, with its restarts and whether
      it converged, which says how the optimiser did and nothing of q.
    """

    model: Model
    data: Data
    stages: tuple[Stage, ...]
    deterministic: Deterministic

    @property
    def best(self) -> Stage:
        """The stage of the highest level, and among these of the highest ELBO, whose q is the
        nearest to the posterior.
        """

        def rank(stage: Stage) -> tuple[int, float]:
            verdict = stage.judged.verdict
            elbo = verdict.elbo if np.isfinite(verdict.elbo) else -np.inf
            return LEVELS.index(verdict.level), elbo

        return max(self.stages, key=rank)

    @property
    def guide(self) -> Guide:
        """The family of q."""
        return self.best.guide

    @property
    def params(self) -> Params:
        """The parameters of q in it."""
        return self.best.params

    @property
    def verdict(self) -> Verdict:
        """Whether the draws can be trusted, and why; print it."""
        return self.best.judged.verdict

    @property
    def draws(self) -> Draws:
        """Draws of theta, `draws.theta`, and their weights, `draws.log_weights`."""
        return self.best.judged.draws

    @property
    def posterior(self) -> Posterior:
        """q with the model and the data, for draws without weights."""
        return Posterior(self.model, self.guide, self.params, self.data)

    def to_arviz(self, key: Array, num_samples: int = 2000) -> Any:
        """`minisvi.to_arviz` of draws resampled by their weights, which
        `sample_stats["log_weight"]` keeps.
        """
        log_weights = self.draws.log_weights
        with_weights = Draws((self.draws.theta, log_weights), log_weights)
        theta, kept_weights = with_weights.resample(key, num_samples).theta
        draws = plain(theta, num_samples)
        return to_arviz(draws, self.model, *self.data, log_weights=kept_weights)

    def to_blackjax(self, key: Array, num_chains: int) -> tuple[Draw, np.ndarray]:
        """Where NUTS may go on: positions u, a tree with a leading axis of `num_chains`, and an
        inverse mass matrix C, both from the weighted draws.

            C = s C_posterior + (1 - s) C_q,  s = ESS / (ESS + D)

        C_posterior is the covariance of the weighted draws, and C_q that of q: of few draws that
        count, the first would be singular.

        `blackjax.nuts(logdensity, step_size, inverse_mass_matrix)` takes them, with
        `logdensity = lambda u: model.log_density(u, *data)`. C is (D, D), or the variances (D,) of
        more than 2,000 latents.
        """
        num_chains = checks.positive_integer("num_chains", num_chains)
        return restart(checks.prng_key(key), self.posterior, num_chains)

    def summary(self) -> Summary:
        """A table of the weighted draws, a row for each scalar entry of theta; print it. Its last
        line has the moments that the verdict says these draws do not give.
        """
        return replace(self.draws.summary(), unreached=self.verdict.unreached)

    def __str__(self) -> str:
        lines = [_line(stage) for stage in self.stages]
        return "\n".join([*lines, str(self.verdict)])


def _line(stage: Stage) -> str:
    return f"{stage.name:28} {stage.seconds:6.1f} s  {stage.judged.verdict.level}"


def fit(
    key: Array,
    model: Model,
    *data: Any,
    batch_size: int | None = None,
    start: Draw | None = None,
    num_draws: int = 20_000,
    seconds: float = np.inf,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: float = 60.0,
    progress_bar: bool = True,
) -> Fit:
    """Posterior draws, the log evidence and a verdict, from a model and nothing else.

    Each stage starts from the last one's result and ends in `judge`; the first that is good is the
    last.

    1. The deterministic mean field, from eight starts, or four for more than 64 latents; its linear
       response C; and q = N(loc, C).
    2. Where the starts ended at several optima that have mass: the mixture of the Gaussians at all
       of them. If the Gaussian misses one of them there is no other stage, for no flow around it
       would find the others. Where p(theta, D) stays the same when latents change their labels, an
       optimum counts in every order of these.
    3. Where the fixed draws promised more than a nat too much: stage 1 on four times as many.
    4. Where some latents drive the scales of others, the guide `driven`, from how they do so, by
       sticking the landing: 2,000 steps; and 6,000 more if it is not good, but has an ESS of at
       least half of its draws.
    5. A flow: eight affine couplings in the coordinates of that Gaussian, or of the mean field if
       its ELBO is higher; or four couplings below the guide of stage 4. 2,000 steps; and 6,000
       more unless it is good and within 0.01 nats of the evidence, for a flow that has only just
       left its Gaussian has no tails yet by which it could be judged.

    What stages 4 and 5 come to is not called good if it is more than 0.15 nats from the evidence.

    Compiled is what holds the density, two programs up to stage 3, or the flow's network. All else
    is NumPy on the host, in double precision, from the key's bits.

    For more than 2,000 latents C is too large: stage 1 is the mean field, and stage 5 a low-rank
    Gaussian in its coordinates. With a `batch_size` the starts of stage 1 see 16 times as many
    rows, and the best goes on with all; stage 5 is a Gaussian of any covariance, on minibatches;
    all stages are judged on all rows.

    **Arguments**

    - `batch_size`: rows a step, in 1..N; for a factored model. TypeError or ValueError for any
      other.
    - `start`: where the first of the starts is, a tree of unconstrained u, as
      `model.unconstrain(theta)` gives.
    - `num_draws`: of q, for the weights, at least 100; four or sixteen times as many are made where
      that alone would make them good.
    - `seconds`: a budget, looked at between stages and inside them between blocks of steps. What
      there is when it is spent is judged, and returned.
    - `checkpoint_dir`: keeps the deterministic fit, and the flow as `SVI.run` does, every
      `checkpoint_every` seconds. The same call goes on from there; ValueError if the directory is
      of another fit.
    - `progress_bar`: shows the stage, and what the former ones came to, if tqdm is installed.

    Ctrl-C lets what is being computed end, and returns the stages that have been judged, or the
    first one as it is, `not trusted`; the reason says so. A second one interrupts as usual.

    Equal models and shapes are compiled once; equal keys give equal fits, unless the budget ends
    them.
    """
    data = _checked(model, data, batch_size, num_draws, seconds)
    key = checks.prng_key(key)
    begin = time.monotonic()
    deadline = begin + seconds
    directory = _claimed(checkpoint_dir, key, model, data, batch_size, start)
    stages: list[Stage] = []
    verdicts: list[Verdict] = []
    one_thread = blas.threads_for(trees.spec(model.latents).shape[0])
    with one_thread, StageDisplay(progress_bar) as display, deferred_interrupt() as ctrl_c:
        settings = Settings(batch_size, start, deadline, directory, checkpoint_every, display)
        for candidate in cascade(key, model, data, settings, verdicts):
            if ctrl_c.is_set():
                break
            display.begin(f"judging {candidate.name}")
            judged = _judged(key, model, data, candidate, num_draws, deadline)
            verdicts.append(judged.verdict)
            stages.append(_stage(candidate, judged, begin))
            display.end(f"{candidate.name}: {judged.verdict.level}, {judged.verdict.reason}")
            begin = time.monotonic()
            if begin > deadline:
                break
        if ctrl_c.is_set():
            stages = [_interrupted(stage) for stage in stages]
        if not stages:
            posterior = Posterior(model, candidate.guide, candidate.params, data)
            judged = unjudged(key, posterior, "interrupted before anything was judged")
            stages.append(_stage(candidate, judged, begin))
    return Fit(model, data, tuple(stages), candidate.deterministic)


def _checked(
    model: Model, data: Data, batch_size: int | None, num_draws: int, seconds: float
) -> Data:
    """The data as arrays; TypeError or ValueError for arguments that will not do."""
    if any(isinstance(part, Stream) for part in data):
        raise TypeError(
            "`fit` judges on all rows, in memory: give it arrays, or fit a Stream by SVI.run"
        )
    data = inputs.arrays(data)
    check_num_draws(num_draws)
    checks.seconds(seconds)
    check_axes(data)
    if batch_size is not None:
        checks.factored(model)
        Minibatches(batch_size).num_rows(data)
    return data


def _claimed(
    checkpoint_dir: str | Path | None,
    key: Array,
    model: Model,
    data: Data,
    batch_size: int | None,
    start: Draw | None,
) -> Path | None:
    """The directory of the checkpoints, marked as this fit's; ValueError if it is another's."""
    if checkpoint_dir is None:
        return None
    directory = Path(checkpoint_dir).absolute()
    about = {
        "model": model,
        "data": data,
        "batch_size": batch_size,
        "start": start,
        "key": fingerprint(key),
    }
    claim(directory, describe("fit", about))
    return directory


def _stage(candidate: Candidate, judged: Judged, begin: float) -> Stage:
    """The stage that began at that time, of `time.monotonic()`, and is now over."""
    seconds = time.monotonic() - begin
    return Stage(candidate.name, candidate.guide, candidate.params, judged, seconds)


def _judged(
    key: Array,
    model: Model,
    data: Data,
    candidate: Candidate,
    num_draws: int,
    deadline: float,
) -> Judged:
    det = candidate.deterministic
    judged = judge(
        key,
        model,
        candidate.guide,
        candidate.params,
        *data,
        num_draws=num_draws,
        max_draws=16 * num_draws,
        optima=det.optima,
        optimism=det.optimism,
        max_kl=candidate.max_kl,
        deadline=deadline,
    )
    verdict = replace(judged.verdict, exchangeable=candidate.exchangeable)
    judged = judged._replace(verdict=verdict)
    found = runaway(det)
    return _not_trusted(judged, found) if found else judged


def _not_trusted(judged: Judged, reason: str) -> Judged:
    verdict = replace(judged.verdict, level="not trusted", of_weights="not trusted", reason=reason)
    return judged._replace(verdict=verdict)


def _interrupted(stage: Stage) -> Stage:
    verdict = stage.judged.verdict
    verdict = replace(verdict, reason=f"interrupted; {verdict.reason}")
    return stage._replace(judged=stage.judged._replace(verdict=verdict))
