"""max over phi of the ELBO: one step, many steps, and a whole fit.

`init`, `update`, `evaluate` and `scan` are pure functions of arrays: jit, vmap and shard them at will. `run` and
`resume` drive `update` in compiled blocks and do between blocks what is not mathematics: progress, Ctrl-C, failure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from minisvi import checks, failure, loop, trees
from minisvi.batches import FullBatch, Minibatches
from minisvi.elbo import ELBO
from minisvi.guides import Guide
from minisvi.model import Model
from minisvi.record import Record


class SVIState(NamedTuple):
    """What the next step needs.

    `step` counts the steps taken, `num_skipped` those among them whose result was not finite and was dropped, and
    `num_failed` the latest unbroken run of these.
    """

    params: Any
    opt_state: Any
    key: Array
    step: Array
    num_skipped: Array
    num_failed: Array


class StepInfo(NamedTuple):
    """What a person wants to see of a step: its ELBO estimate (nats; not finite where it was `skipped`)."""

    elbo: Array
    skipped: Array


class SVIResult(NamedTuple):
    """A fit. `elbo` holds one estimate a step, in nats, of the steps that this call took.

    `reason`: `"finished"`, `"interrupted"` (Ctrl-C) or `"non-finite"` (ten steps in a row; `params` are the last good).
    """

    params: Any
    state: SVIState
    elbo: np.ndarray
    num_skipped: int
    reason: Literal["finished", "interrupted", "non-finite"]


class NonFiniteError(FloatingPointError):
    """Ten steps in a row were not finite. `result` holds the fit up to the last good state."""

    def __init__(self, message: str, result: SVIResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True, eq=False)
class SVI(Record):
    """Stochastic variational inference: ascend the ELBO of `guide` for `model` with any optax optimiser.

    **Arguments**

    - `model`, `guide`: what is inferred, and the family that q is chosen from.
    - `optimizer`: an optax gradient transformation. It is given the loss -ELBO as `value`, with `grad` and `value_fn`.
      Optax optimisers compare by identity: build one and keep it, for a rebuilt one compiles again.
    - `objective`: the estimator of the ELBO, or of another bound, and of its gradient.
    - `batches`: the rows that a step sees.

    Records that are equal share one compilation; data are arguments of it, never constants.
    """

    model: Model
    guide: Guide
    optimizer: optax.GradientTransformation
    objective: Callable[..., Array] = ELBO()
    batches: FullBatch | Minibatches = FullBatch()

    @property
    def target(self) -> Model:
        """The model over what the guide draws: u, and theta itself where the guide is constrained."""
        return self.model.over(self.guide.constrained)

    def init(self, key: Array, *data: Any, params: Any = None) -> SVIState:
        """The state before the first step, at `params` or at the guide's own start.

        Static mistakes in the model, the guide or the data are raised here, with the leaf, what was expected and got.
        """
        key, guide_key = jax.random.split(checks.prng_key(key))
        fresh = self.guide.init(guide_key)
        if params is not None:
            checks.same_tree("params", fresh, params)
        params = trees.strongly_typed(fresh if params is None else params)
        self._check(guide_key, params, data)
        zero = jnp.zeros((), jnp.int32)
        return SVIState(params, trees.strongly_typed(self.optimizer.init(params)), key, zero, zero, zero)

    def update(self, state: SVIState, *data: Any) -> tuple[SVIState, StepInfo]:
        """One step: phi <- phi + optimiser(grad ELBO). One that is not finite changes neither phi nor the optimiser."""
        key, step_key = jax.random.split(state.key)
        batch, scale = self.batches(state.step, data)

        def loss(params: Any) -> Array:
            return -self.objective(step_key, self.model, self.guide, params, *batch, scale=scale, step=state.step)

        value, grad = jax.value_and_grad(loss)(state.params)
        optimizer = optax.with_extra_args_support(self.optimizer)
        updates, opt_state = optimizer.update(
            grad, state.opt_state, state.params, value=value, grad=grad, value_fn=loss
        )
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(value) & _all_finite(params)
        params, opt_state = jax.tree.map(
            partial(jnp.where, finite), (params, opt_state), (state.params, state.opt_state)
        )
        skipped = (~finite).astype(jnp.int32)
        num_failed = skipped * (state.num_failed + 1)
        state = SVIState(params, opt_state, key, state.step + 1, state.num_skipped + skipped, num_failed)
        # Not `~finite`: a second output of that reduction costs a small model a fifth of its step on a CPU.
        return state, StepInfo(-value, num_failed > 0)

    def evaluate(self, state: SVIState, *data: Any) -> Array:
        """The ELBO estimate, in nats, that the next step would see; the state is not changed."""
        _, step_key = jax.random.split(state.key)
        return self.objective(step_key, self.model, self.guide, state.params, *data, step=state.step)

    def scan(self, state: SVIState, num_steps: int, *data: Any) -> tuple[SVIState, StepInfo]:
        """`num_steps` updates as one pure function; the infos are stacked, shape (num_steps,)."""
        num_steps = checks.positive_integer("num_steps", num_steps)
        return jax.lax.scan(lambda state, _: self.update(state, *data), state, length=num_steps)

    def run(
        self,
        key: Array,
        num_steps: int,
        *data: Any,
        params: Any = None,
        progress_bar: bool = True,
        on_failure: Literal["raise", "return"] = "raise",
    ) -> SVIResult:
        """A fit from the guide's start, or from `params`; see `resume`."""
        checks.positive_integer("num_steps", num_steps)
        state = _init(self, checks.prng_key(key), data, params)
        return self.resume(state, num_steps, *data, progress_bar=progress_bar, on_failure=on_failure)

    def resume(
        self,
        state: SVIState,
        num_steps: int,
        *data: Any,
        progress_bar: bool = True,
        on_failure: Literal["raise", "return"] = "raise",
    ) -> SVIResult:
        """`num_steps` more from a state, such as `result.state`: 500 and 500 steps equal 1,000, number by number.

        Ctrl-C ends the fit after the block that runs, with what is done. NonFiniteError after ten steps in a row that
        were not finite, unless `on_failure="return"`: then the result's `reason` says so.
        """
        checks.positive_integer("num_steps", num_steps)
        if on_failure not in ("raise", "return"):
            raise ValueError(f"`on_failure` must be 'raise' or 'return'; got {on_failure!r}")
        state = state._replace(num_failed=jnp.zeros_like(state.num_failed))  # a fit that ended in failure may try again
        state, trace, reason = loop.run(self, state, num_steps, data, progress_bar)
        result = SVIResult(state.params, state, trace, int(state.num_skipped), reason)
        if reason == "non-finite" and on_failure == "raise":
            raise NonFiniteError(failure.explain(self, state, data), result)
        return result

    def _check(self, key: Array, params: Any, data: tuple[Any, ...]) -> None:
        batch, _ = self.batches(jnp.zeros((), jnp.int32), data)
        self.model.check(*batch)
        draw = jax.eval_shape(lambda p: self.guide.distribution(p, *batch).sample_and_log_prob(seed=key)[0], params)
        expected = trees.unconstrained_like(trees.with_rows(self.target.latents, batch))
        checks.same_tree("guide's draw", expected, draw)


@partial(jax.jit, static_argnames="svi")
def _init(svi: SVI, key: Array, data: tuple[Any, ...], params: Any) -> SVIState:
    return svi.init(key, *data, params=params)


def _all_finite(tree: Any) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)] or [jnp.array(True)]))
