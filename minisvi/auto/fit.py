"""Without tuning: a cascade of fits, each judged by its importance weights, until one is good."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from minisvi.auto.cascade import Settings, cascade
from minisvi.auto.verdict import Judged, Verdict, check_num_draws, judge, unjudged
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
from minisvi.tools import checks, inputs
from minisvi.tools.interrupts import deferred_interrupt
from minisvi.tools.sharding import check_axes

_ORDER = ("not trusted", "bulk good, tails unverified", "good")


class Stage(NamedTuple):
    """One stage of the cascade: a fitted guide, and what was judged of it. `seconds` are those of
    both.
    """

    name: str
    guide: Guide
    params: Any
    judged: Judged
    seconds: float


@dataclass(frozen=True)
class Fit:
    """What `fit` comes to. Its figures are those of the best stage, by level and then by ESS.

    - `draws`: theta with importance weights (`mean`, `sd`, `quantiles`, `resample`, `predictive`).
    - `verdict`: whether to trust them; print it. `log_evidence` and `elbo`, in nats, are among its
      figures.
    - `guide`, `params`: q itself, without weights; `posterior` has it with the data.
    - `stages`: all that were tried; `deterministic`: the first fit, with its restarts and whether
      it converged, which is the optimiser's business and says nothing of q.
    """

    model: Model
    data: tuple[Any, ...]
    stages: tuple[Stage, ...]
    deterministic: Deterministic

    @property
    def best(self) -> Stage:
        return max(
            self.stages, key=lambda s: (_ORDER.index(s.judged.verdict.level), s.judged.verdict.ess)
        )

    @property
    def guide(self) -> Guide:
        return self.best.guide

    @property
    def params(self) -> Any:
        return self.best.params

    @property
    def verdict(self) -> Verdict:
        return self.best.judged.verdict

    @property
    def draws(self) -> Draws:
        return self.best.judged.draws

    @property
    def posterior(self) -> Posterior:
        return Posterior(self.model, self.guide, self.params, self.data)

    def to_arviz(self, key: Array, num_samples: int = 2000) -> Any:
        """`minisvi.to_arviz` of draws resampled by their weights, which
        `sample_stats["log_weight"]` keeps.
        """
        weighted = Draws((self.draws.theta, self.draws.log_weights), self.draws.log_weights)
        theta, log_weights = weighted.resample(key, num_samples).theta
        return to_arviz(plain(theta, num_samples), self.model, *self.data, log_weights=log_weights)

    def summary(self) -> Summary:
        """A table of the weighted draws, a row for each scalar entry of theta; print it."""
        return self.draws.summary()

    def __str__(self) -> str:
        lines = [f"{s.name:28} {s.seconds:6.1f} s  {s.judged.verdict.level}" for s in self.stages]
        return "\n".join([*lines, str(self.verdict)])


def fit(
    key: Array,
    model: Model,
    *data: Any,
    batch_size: int | None = None,
    start: Any = None,
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
    response C; and
       q = N(loc, C).
    2. Where its fixed draws promised more than a nat too much: the same on four times as many. 3. A
    flow (eight affine couplings) in the coordinates of that Gaussian, or of the mean field if its
    ELBO is higher,
       by sticking the landing: 2,000 steps; and 6,000 more unless it is good and within 0.01 nats of the evidence, for
       a flow has no tails yet to judge it by where it has just left its Gaussian.

    For more than 2,000 latents C is too large: stage 1 is the mean field, and stage 3 a low-rank
    Gaussian in its coordinates. With a `batch_size` the starts of stage 1 see 16 times as many
    rows, and the best goes on with all; stage 3 is a Gaussian of any covariance, on minibatches;
    all stages are judged on all rows.

    **Arguments**

    - `batch_size`: rows a step, in 1..N; for a factored model. TypeError or ValueError for any
      other.
    - `start`: a tree u for the first of the starts.
    - `num_draws`: of q, for the weights, at least 100; four times as many where only their error is
      in the way.
    - `seconds`: a budget, looked at between stages and inside them between blocks of steps. What is
      there when it is spent is judged, and returned.
    - `checkpoint_dir`: keeps the deterministic fit, and the flow as `SVI.run` does. The same call
      goes on from there; ValueError if that is of another fit.

    Ctrl-C returns the stages that have been judged, or the first one as it is, `not trusted`, after
    what is being computed; the reason says so. A second one interrupts as usual.

    Equal models and shapes are compiled once; equal keys give equal fits, unless the budget ends
    them.
    """
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
    judge_key, key = jax.random.split(checks.prng_key(key))
    begin = time.monotonic()
    directory = None if checkpoint_dir is None else Path(checkpoint_dir).absolute()
    if directory is not None:
        about = {
            "model": model,
            "data": data,
            "batch_size": batch_size,
            "start": start,
            "key": fingerprint(key),
        }
        claim(directory, describe("fit", about))
    stages: list[Stage] = []
    verdicts: list[Verdict] = []
    options: dict[str, Any] = {"num_draws": num_draws, "max_draws": 4 * num_draws}
    with StageDisplay(progress_bar) as display, deferred_interrupt() as ctrl_c:
        settings = Settings(
            batch_size, start, begin + seconds, directory, checkpoint_every, display
        )
        for name, guide, params, det in cascade(key, model, data, settings, verdicts):
            if ctrl_c.is_set():
                break
            display.begin(f"judging {name}")
            args = judge_key, model, guide, params, *data
            judged = judge(*args, **options, optima=det.optima, optimism=det.optimism)
            if runaway := _runaway(model, det):
                judged = _not_trusted(judged, runaway)
            verdicts.append(judged.verdict)
            stages.append(Stage(name, guide, params, judged, time.monotonic() - begin))
            display.end(f"{name}: {judged.verdict.level}, {judged.verdict.reason}")
            begin = time.monotonic()
            if begin > settings.deadline:
                break
        if ctrl_c.is_set():
            stages = [_interrupted(stage) for stage in stages]
        if not stages:
            judged = unjudged(
                judge_key, model, guide, params, data, "interrupted before anything was judged"
            )
            stages.append(Stage(name, guide, params, judged, time.monotonic() - begin))
    return Fit(model, data, tuple(stages), det)


def _not_trusted(judged: Judged, reason: str) -> Judged:
    verdict = replace(judged.verdict, level="not trusted", of_weights="not trusted", reason=reason)
    return judged._replace(verdict=verdict)


def _interrupted(stage: Stage) -> Stage:
    verdict = stage.judged.verdict
    verdict = replace(verdict, reason=f"interrupted; {verdict.reason}")
    return stage._replace(judged=stage.judged._replace(verdict=verdict))


def _runaway(model: Model, det: Deterministic) -> str | None:
    """In words, where Newton has not converged because a scale grows without end."""
    leaves = checks.named_leaves(trees.unravel(model.latents, np.asarray(det.params["log_scale"])))
    widest = {name: float(np.max(leaf)) for name, leaf in leaves.items() if leaf.size}
    name = max(widest, key=widest.__getitem__, default=None)
    if det.converged or name is None or widest[name] < np.log(1e3):
        return None
    sd = f"1e{widest[name] / np.log(10):.0f}"
    return f"the fit runs away along `{name}`, whose sd is {sd} and grows: the posterior looks improper"
