"""max over phi of the ELBO: one step, many steps, and a whole run.

`init`, `update`, `evaluate` and `scan` are pure functions of arrays: jit, vmap and shard them at
will. `run` and `resume` drive `update` in compiled blocks and do between blocks what is not
mathematics: progress, Ctrl-C, failure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.data.batches import Chunks, FullBatch, Minibatches
from minisvi.guides.base import Guide
from minisvi.guides.foreign import member, weighted
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.objectives.elbo import ELBO
from minisvi.running.result import SVIResult
from minisvi.running.run import Options, run
from minisvi.tools import checks, inputs
from minisvi.tools.programs import BY_DEFAULT, CompilerOptions
from minisvi.tools.record import Record
from minisvi.tools.sharding import along, check_axes
from minisvi.tools.types import Data, Draw, Params, Weight

if TYPE_CHECKING:
    import optax


class SVIState(NamedTuple):
    """What the next step needs.

    `step` counts the steps taken, `num_skipped` those among them whose result was not finite and
    was dropped, and `num_failed` the latest unbroken run of these.
    """

    params: Params
    opt_state: Any
    key: Array
    step: Array
    num_skipped: Array
    num_failed: Array


class StepInfo(NamedTuple):
    """What a person wants to see of a step.

    `elbo` is the value of the objective in nats, before the step was taken: the ELBO's estimate, or
    that of another bound where the objective is another. It may be not finite where the step was
    `skipped`.
    """

    elbo: Array
    skipped: Array


@dataclass(frozen=True, eq=False)
class SVI(Record):
    """Stochastic variational inference: ascend the ELBO of `guide` for `model` with any optax
    optimiser.

    **Arguments**

    - `model`, `guide`: what is inferred, and the family that q is chosen from.
    - `optimizer`: an optax gradient transformation. It is given the loss -ELBO as `value`, with
      `grad` and `value_fn`. Optax optimisers compare by identity: build one and keep it, for a
      rebuilt one compiles again.
    - `objective`: the estimator of the ELBO, or of another bound, and of its gradient.
    - `batches`: the rows that a step sees.

    Records that are equal share one compilation; data are arguments of it, never constants. Data
    are arrays, or trees of them; `init`, `run` and `resume` also take lists of numbers and data
    frames (see `inputs.arrays`). TypeError for what is no model, guide or optimiser.
    """

    model: Model
    guide: Guide
    optimizer: "optax.GradientTransformation"
    objective: Callable[..., Array] = ELBO()
    batches: FullBatch | Minibatches | Chunks = FullBatch()

    # Of the loop of `run`: thousands of steps are worth the compiler's best.
    compiler_options: ClassVar[CompilerOptions] = BY_DEFAULT

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.model, "log_density"):
            raise TypeError(
                f"SVI: expected a `model`, such as Model(latents, log_joint); got {self.model!r}"
            )
        if not (hasattr(self.guide, "init") and hasattr(self.guide, "distribution")):
            raise TypeError(
                f"SVI: expected a `guide`, such as mean_field(latents); got {self.guide!r}"
            )
        if not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            rate = self.optimizer if isinstance(self.optimizer, float) else 0.01
            raise TypeError(
                f"SVI: expected an optax `optimizer`, such as optax.adam({rate}); "
                f"got {self.optimizer!r}"
            )

    @property
    def target(self) -> Model:
        """The model over what the guide draws: u, and theta itself where the guide is
        constrained.
        """
        return self.model.over(self.guide.constrained)

    def init(self, key: Array, *data: Any, params: Params = None) -> SVIState:
        """The state before the first step, at `params` or at the guide's own start.

        Static mistakes in the model, the guide or the data are raised here, with the leaf, what was
        expected and got.
        """
        check_axes((params, data))
        key, guide_key = jax.random.split(checks.prng_key(key))
        data = inputs.arrays(data)
        if params is None:
            params = self.guide.init(guide_key)
        else:
            checks.same_tree("params", jax.eval_shape(self.guide.init, guide_key), params)
        params = trees.strongly_typed(params)
        self._check(guide_key, params, data)
        opt_state = trees.strongly_typed(self.optimizer.init(params))
        zero = jnp.zeros((), jnp.int32)
        return SVIState(params, opt_state, key, step=zero, num_skipped=zero, num_failed=zero)

    def update(self, state: SVIState, *data: Any) -> tuple[SVIState, StepInfo]:
        """One step: phi <- phi + optimiser(grad ELBO).

        A step whose value or parameters are not finite is skipped: phi and the optimiser's state
        stay as they were. The key and `step` advance all the same, so that the next step has other
        draws and other rows, and `num_skipped` and `num_failed` count it. `update` never raises
        because of it: `run` and `resume` do, after ten in a row.
        """
        import optax  # here, so that `import minisvi` stays light

        key, step_key = jax.random.split(state.key)
        batch, weight = self.batches(state.step, data)

        def loss(params: Params) -> Array:
            return -self.objective(
                step_key, self.model, self.guide, params, *batch, weight=weight, step=state.step
            )

        value, grad = jax.value_and_grad(loss)(state.params)
        optimizer = optax.with_extra_args_support(self.optimizer)
        updates, opt_state = optimizer.update(
            grad, state.opt_state, state.params, value=value, grad=grad, value_fn=loss
        )
        params = optax.apply_updates(state.params, updates)

        finite = jnp.isfinite(value) & trees.all_finite(params)
        keep_if_finite = partial(jnp.where, finite)
        params = jax.tree.map(keep_if_finite, params, state.params)
        opt_state = jax.tree.map(keep_if_finite, opt_state, state.opt_state)
        skipped = (~finite).astype(jnp.int32)
        num_skipped = state.num_skipped + skipped
        num_failed = skipped * (state.num_failed + 1)
        state = SVIState(params, opt_state, key, state.step + 1, num_skipped, num_failed)
        # Not `~finite`: a second output of that reduction costs a small model a fifth of its step
        # on a CPU.
        return state, StepInfo(elbo=-value, skipped=num_failed > 0)

    def evaluate(self, state: SVIState, *data: Any) -> Array:
        """The objective's value, in nats, that the next step would see; the state is not changed.

        It is an estimate of the ELBO, or of the bound that the objective is of.
        """
        _, step_key = jax.random.split(state.key)
        batch, weight = self.batches(state.step, data)
        return self.objective(
            step_key, self.model, self.guide, state.params, *batch, weight=weight, step=state.step
        )

    def draw(self, key: Array, params: Params, *batch: Any) -> Draw:
        """One draw of the guide: u, or theta where the guide is constrained."""
        u, _ = member(self.guide, params, *batch).draw(key)
        return u

    def scan(self, state: SVIState, num_steps: int, *data: Any) -> tuple[SVIState, StepInfo]:
        """`num_steps` updates as one pure function; the infos are stacked, shape (num_steps,)."""

        def step(state: SVIState, _: None) -> tuple[SVIState, StepInfo]:
            return self.update(state, *data)

        num_steps = checks.positive_integer("num_steps", num_steps)
        return jax.lax.scan(step, state, length=num_steps)

    def run(
        self,
        key: Array,
        num_steps: int,
        *data: Any,
        params: Params = None,
        num_restarts: int = 1,
        **options: Unpack[Options],
    ) -> SVIResult:
        """A fit from the guide's start, or from `params`.

        `num_restarts=R`: R starts at the keys split(key, R), in one compiled loop. The best by the
        ELBO at 1,024 fresh draws of each, whatever the objective, is what the result holds; all are
        in `result.restarts`. A start that fails does not end the rest.

        The options, which `resume` takes as well:

        - `average=False`: `result.params` are the last iterate; or, with True, the mean over the
          last half, or more, of the steps of this call (see `Tail`).
        - `stop=None`: a rule of `stopping`, which sees `held_out`, rows of the form of the data,
          and chooses the parameters.
        - `seconds=inf`: a budget. At its end, or at Ctrl-C, the fit ends after the block that runs,
          with what is done.
        - `checkpoint_dir=None`: written to every `checkpoint_every=60` seconds, and at the end. The
          same call goes on from what it finds there, and ends bit by bit where it would have;
          ValueError if that is of another run.
        - `progress_bar=True`.
        - `on_failure="raise"`: NonFiniteError after ten steps in a row that were not finite, or
          after fewer if there was no other, and StreamError if a stream fails. With `"return"` the
          result's `reason` says so instead.

        It raises the static mistakes that `init` raises. Data that are not finite it learns of
        from the steps alone, since rows that a batch leaves out, or that are few, do no harm: ten
        steps in a row that fail raise NonFiniteError, which names these numbers.
        """
        start = partial(_init, key=checks.prng_key(key), params=params, num_restarts=num_restarts)
        return run(self, start, 0, num_steps, data, key, num_restarts, **options)

    def resume(
        self, state: SVIState, num_steps: int, *data: Any, **options: Unpack[Options]
    ) -> SVIResult:
        """`num_steps` more from a state, such as `result.state`: 500 and 500 steps equal 1,000,
        number by number. The options are those of `run`.
        """

        def start(*_: Any) -> SVIState:
            return state

        return run(self, start, int(state.step), num_steps, data, **options)

    def _check(self, key: Array, params: Params, data: Data) -> None:
        """Raise static mistakes, by traces alone; only numbers of the data that are not finite
        have terms computed (see `Model.check`).
        """
        batch, weight = self.batches(jnp.zeros((), jnp.int32), data)
        if weight is not None:
            checks.factored(self.model)
        self.model.check(*batch)
        draw = jax.eval_shape(partial(self.draw, key), params, *batch)
        expected = trees.unconstrained_like(trees.with_rows(self.target.latents, batch))
        checks.same_tree("guide's draw", expected, draw)
        if weight is not None:
            jax.eval_shape(partial(self._log_q, key, weight), params, *batch)

    def _log_q(self, key: Array, weight: Weight, params: Params, *batch: Any) -> Array:
        """log q at a draw, with the rows' terms counted `weight` times; ValueError if it has no
        term of each row.
        """
        q = weighted(member(self.guide, params, *batch), weight, self.model.latents)
        _, log_q = q.draw(key)
        return log_q


@partial(jax.jit, static_argnames=("svi", "num_restarts"))
def _init(svi: SVI, *data: Any, key: Array, params: Params, num_restarts: int) -> SVIState:
    """The state before the first step, stacked if there are several starts."""
    if num_restarts == 1:
        return svi.init(key, *data, params=params)
    keys = along("restarts", jax.random.split(key, num_restarts))
    return jax.vmap(lambda key: svi.init(key, *data, params=params))(keys)
