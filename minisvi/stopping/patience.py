"""Patience on a held-out score."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import Array

from minisvi.objectives import scores
from minisvi.stopping.rules import Rule, choose, rule_key
from minisvi.tools import checks
from minisvi.tools.types import Data, Params

Score = Literal["log_predictive", "elbo"]
_SCORES = {"log_predictive": scores.log_predictive, "elbo": scores.validation_elbo}


class Scored(NamedTuple):
    """A check of `Patience`: the step, and its score in nats per row. `result.checks` has all of
    them, stacked.
    """

    step: Array
    score: Array


class PatienceMemory(NamedTuple):
    """What `Patience` remembers: its key for draws, the step at which the run began, the latest
    score that counted as progress, the best score and its parameters, and the latest check.
    """

    key: Array
    begin: Array
    progress: Scored
    best: Scored
    params: Params
    seen: Scored
    ended: Array


@dataclass(frozen=True)
class Patience(Rule[PatienceMemory]):
    """Stop when a held-out score has not risen for long, and return the parameters that had the
    highest one.

    **Arguments**

    - `score`, in nats per held-out row, over S = `num_draws` draws of q. `"log_predictive"` is
      mean_i log mean_s p(row_i | theta_s). `"elbo"` is (1/M) E_q[log p(D_val | theta)] - (1/N) KL,
      of M held-out and N training rows. It is the ELBO of a minibatch, so that local latents and
      amortised guides count as they do there, and per row it compares with training: a KL divided
      by M would make any guide look overfitted.
    - `tolerance`: a score is progress if it exceeds the last one that counted by more than this.
    - `patience`, `growth`: the fit stops at step t of the run if there was no progress in the last
      max(patience, growth t) steps.
    - `every`: the number of steps between scores.

    All scores of a run are at the same draws, so that noise neither counts as progress nor hides
    it. A plateau is survived if it is shorter than `growth` of the steps so far, or if the score
    creeps up on it. A high score says that q predicts well, not that q is the posterior.

    ValueError unless the model is factored and `run(..., held_out=(x, y))` has rows of the form of
    the data.
    """

    score: Score = "log_predictive"
    patience: int = 2000
    growth: float = 0.5
    tolerance: float = 1e-3
    every: int = 100
    num_draws: int = 64

    reason: ClassVar[str] = "patience"

    def __post_init__(self) -> None:
        for name in ("patience", "every", "num_draws"):
            checks.positive_integer(name, getattr(self, name))
        if self.score not in get_args(Score):
            raise ValueError(f"`score` must be one of {get_args(Score)}; got {self.score!r}")
        if not 0 <= self.growth < 1:
            raise ValueError(f"`growth` must be in [0, 1); got {self.growth}")
        if not self.tolerance >= 0:
            raise ValueError(f"`tolerance` must be >= 0; got {self.tolerance}")

    def init(self, svi: Any, state: Any, data: Data, held_out: Any) -> PatienceMemory:
        checks.factored(svi.model, "Patience scores held-out rows, which")
        if self.score == "log_predictive":
            _check_no_local(svi.model.latents)
        first_step = jnp.zeros((), jnp.int32)
        batch, _ = svi.batches(first_step, data)
        _check_rows(batch, held_out)
        nothing = Scored(state.step, jnp.full((), -jnp.inf))
        return PatienceMemory(
            key=rule_key(state),
            begin=state.step,
            progress=nothing,
            best=nothing,
            params=state.params,
            seen=nothing,
            ended=jnp.array(False),
        )

    def observe(self, memory: PatienceMemory, state: Any) -> PatienceMemory:
        del state
        return memory

    def check(
        self,
        svi: Any,
        memory: PatienceMemory,
        state: Any,
        params: Params,
        data: Data,
        held_out: Any,
    ) -> tuple[Any, PatienceMemory]:
        score = self._score(svi, memory.key, params, data, held_out)
        seen = Scored(state.step, score.astype(memory.best.score.dtype))
        # Before the first finite score nothing is the best, and there is nothing to be patient
        # about.
        first = memory.best.score == -jnp.inf
        counts = first | (seen.score > memory.progress.score + self.tolerance)
        progress = choose(counts, seen, memory.progress)
        better = first | (seen.score > memory.best.score)
        best = choose(better, seen, memory.best)
        params = choose(better, params, memory.params)
        waited = state.step - progress.step
        taken = state.step - memory.begin
        ended = waited >= jnp.maximum(self.patience, self.growth * taken)
        return state, memory._replace(
            progress=progress, best=best, params=params, seen=seen, ended=ended
        )

    def params(self, memory: PatienceMemory, params: Params) -> Params:
        nothing = memory.best.score == -jnp.inf
        return choose(nothing, params, memory.params)

    def _score(self, svi: Any, key: Array, params: Params, data: Data, held_out: Any) -> Array:
        """The score of `params` in nats per row; -inf where it is NaN."""
        function = _SCORES[self.score]
        num_rows = svi.batches.num_rows(data)
        score = function(key, svi.model, svi.guide, params, self.num_draws, num_rows, held_out)
        return jnp.where(jnp.isnan(score), -jnp.inf, score)


def _check_no_local(latents: Any) -> None:
    """ValueError if there are local latents. Their q has seen the rows that it would predict."""
    supports = checks.named_leaves(latents)
    local = [name for name, support in supports.items() if support.local]
    if local:
        raise ValueError(
            f"latents {local} are local, and q has seen their rows: expected score='elbo'"
        )


def _check_rows(data: Data, held_out: Any) -> None:
    """ValueError unless `held_out` has the form of the data, up to the number of rows."""
    expected = _row_shapes(data)
    if not isinstance(held_out, tuple):
        got: Any = f"a {type(held_out).__name__}"
    else:
        got = _row_shapes(held_out)
    if not data or got != expected:
        raise ValueError(
            "`held_out` must be a tuple of rows like the data, "
            f"each row of shape {expected}; got {got}"
        )


def _row_shapes(data: Any) -> dict[str, tuple[int, ...]]:
    """The shape of a row of each leaf of the data, by name."""
    named = checks.named_leaves(data, what="data")
    return {name: jnp.shape(leaf)[1:] for name, leaf in named.items()}
