"""Patience on a held-out score."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import Array

from minisvi.objectives import scores
from minisvi.stopping.rules import choose, rule_key
from minisvi.tools import checks

Score = Literal["log_predictive", "elbo"]


class Scored(NamedTuple):
    """A check of `Patience`: the step, and its score in nats per row; stacked in `result.checks`."""

    step: Array
    score: Array


class PatienceMemory(NamedTuple):
    key: Array
    begin: Array
    progress: Scored  # the latest that counted
    best: Scored
    params: Any
    seen: Scored
    ended: Array


@dataclass(frozen=True)
class Patience:
    """Stop when a held-out score has not risen for long, and return the parameters that had the
    highest.

    **Arguments**

    - `score`, in nats per held-out row, over S = `num_draws` draws of q: `"log_predictive"`: mean_i
      log mean_s p(row_i | theta_s); `"elbo"`: (1/M) E_q[log p(D_val | theta)] - (1/N) KL, of M
      held-out and N training rows. It is the ELBO of a minibatch, so that local latents and
      amortised guides are counted as there: per row it compares with training, where a KL divided
      by M would make any guide look overfitted.
    - `tolerance`: a score above the last one that counted, by more than this, is progress.
    - `patience`, `growth`: stop at step t of the run if there was none in the last max(patience,
      growth t) steps.
    - `every`: steps between scores.

    All scores of a run are at the same draws, so that noise neither counts as progress nor hides
    it. A plateau is survived if it is shorter than `growth` of the steps so far, or if the score
    creeps up on it. Needs a factored model and `run(..., held_out=(x, y))`, rows of the form of the
    data: ValueError else. A high score says that q predicts well, not that q is the posterior.
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

    def init(self, svi: Any, state: Any, data: tuple[Any, ...], held_out: Any) -> PatienceMemory:
        checks.factored(svi.model, "Patience scores held-out rows, which")
        local = [
            name
            for name, support in checks.named_leaves(svi.model.latents).items()
            if support.local
        ]
        if local and self.score == "log_predictive":
            raise ValueError(
                f"latents {local} are local, and q has seen their rows: expected score='elbo'"
            )
        _check_rows(svi.batches(jnp.zeros((), jnp.int32), data)[0], held_out)
        nothing = Scored(state.step, jnp.full((), -jnp.inf))
        return PatienceMemory(
            rule_key(state), state.step, nothing, nothing, state.params, nothing, jnp.array(False)
        )

    def observe(self, memory: PatienceMemory, state: Any) -> PatienceMemory:
        del state
        return memory

    def check(
        self,
        svi: Any,
        memory: PatienceMemory,
        state: Any,
        params: Any,
        data: tuple[Any, ...],
        held_out: Any,
    ) -> tuple[Any, PatienceMemory]:
        function = (
            scores.log_predictive if self.score == "log_predictive" else scores.validation_elbo
        )
        score = function(
            memory.key,
            svi.model,
            svi.guide,
            params,
            self.num_draws,
            svi.batches.num_rows(data),
            held_out,
        )
        seen = Scored(
            state.step, jnp.where(jnp.isnan(score), -jnp.inf, score).astype(memory.best.score.dtype)
        )
        # Before the first finite score nothing is the best, and there is nothing to be patient
        # about.
        none = memory.best.score == -jnp.inf
        progress = choose(
            none | (seen.score > memory.progress.score + self.tolerance), seen, memory.progress
        )
        better = none | (seen.score > memory.best.score)
        best, params = choose(better, (seen, params), (memory.best, memory.params))
        waited, taken = state.step - progress.step, state.step - memory.begin
        ended = waited >= jnp.maximum(self.patience, self.growth * taken)
        return state, PatienceMemory(memory.key, memory.begin, progress, best, params, seen, ended)

    def params(self, memory: PatienceMemory, params: Any) -> Any:
        return choose(memory.best.score == -jnp.inf, params, memory.params)


def _check_rows(data: tuple[Any, ...], held_out: Any) -> None:
    """ValueError unless `held_out` has the form of the data, up to the number of rows."""

    def form(tree: Any) -> Any:
        return {
            name: jnp.shape(leaf)[1:]
            for name, leaf in checks.named_leaves(tree, what="data").items()
        }

    if not isinstance(held_out, tuple) or not data or form(held_out) != form(data):
        got = f"a {type(held_out).__name__}" if not isinstance(held_out, tuple) else form(held_out)
        raise ValueError(
            f"`held_out` must be a tuple of rows like the data, each row of shape {form(data)}; got {got}"
        )
