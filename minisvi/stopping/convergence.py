"""Convergence: the iterates have settled, and settle at the same q at half the learning rate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from minisvi.guides.base import Distribution
from minisvi.guides.foreign import member
from minisvi.stopping.chains import chain_ess, mcse, split_rhat
from minisvi.stopping.rules import Rule, choose, rule_key
from minisvi.tools import checks
from minisvi.tools.types import Data, Params

_NUM_WATCHED = 32  # draws of q, for its means and sds at a snapshot
_NUM_COMPARED = 1000  # draws of each q, for the divergence of two
_BATCH = 50  # draws at a time, to bound the memory

Member: TypeAlias = Callable[[Array], Distribution]  # the q at a parameter vector (P,)

# How the path of a learning rate ends in the state of `optax.inject_hyperparams`, and what is in
# that of one which follows a schedule.
_RATE = ".hyperparams['learning_rate']"
_SCHEDULE = ".hyperparams_states['learning_rate']"


class Converging(NamedTuple):
    """A check of `Convergence`. `result.checks` has all of them, stacked.

    `rhat`, `ess` and `mcse` are the largest split R-hat, the smallest ESS and the largest MCSE of
    what is watched. `divergence` is the symmetric KL (nats) of the latest two averages, NaN where
    there were not two to compare. `learning_rate` is NaN if it cannot be set.
    """

    step: Array
    rhat: Array
    ess: Array
    mcse: Array
    divergence: Array
    learning_rate: Array


class ConvergenceMemory(NamedTuple):
    """What `Convergence` remembers.

    `snapshots` (K + 1, P) are parameter vectors, of which `num` are taken, one every `stride`
    steps; the last row is scratch. `steps` counts those at the current learning rate. `average` is
    the latest average of parameters, of which there were `rounds`.
    """

    key: Array
    snapshots: Array
    num: Array
    stride: Array
    steps: Array
    average: Array
    rounds: Array
    seen: Converging
    ended: Array


class _Look(NamedTuple):
    """What a window of snapshots shows: whether they are stationary, and their mean accurate; the
    worst figures of what is watched; and the mean, a parameter vector.
    """

    stationary: Array
    accurate: Array
    rhat: Array
    ess: Array
    mcse: Array
    average: Array


@dataclass(frozen=True)
class Convergence(Rule[ConvergenceMemory]):
    """Stop when the iterates have settled at a fixed learning rate, halve the rate, and end when
    that no longer changes q.

    This follows FASO and RAABBVI (Dhaka et al. 2020; Welandawe et al. 2022). At snapshots of the
    parameters the rule watches E_q[u_i] in units of q's sd, and log sd_q[u_i], at the same draws
    throughout, so that any guide is watched alike. Every `every` steps it asks three questions.

    1. Are the iterates stationary? The last K / 2 snapshots are or, failing that, the last K / 4,
       if split R-hat <= `rhat` in every coordinate. They have to span at least `every` steps, and
       at most 95 % of those at this rate.
    2. Is their mean accurate? It is if MCSE < `mcse` 2^-j and ESS > window / 8 in every coordinate.
       The mean is then average j = 0, 1, ...
    3. Does the rate still matter? With `optax.inject_hyperparams` the rate is halved and the
       iterate goes on from the average, until the symmetric KL between successive averages is <
       `divergence` nats. With any other optimiser the fit ends at its first average.

    `snapshots` = K parameter vectors are kept. When they are full every second one goes, and the
    stride doubles. The fit returns the latest average, or the last iterate if there is none. A
    decaying rate looks like convergence, so give a fixed one.

    Two things protect from a plateau: all coordinates have to be stationary over a share of the
    whole run, and a second, independent run of the rule from there has to find the same q.
    "Optimiser converged" never means that q is right.
    """

    every: int = 200
    rhat: float = 1.1
    mcse: float = 0.1
    divergence: float = 0.01
    snapshots: int = 200

    reason: ClassVar[str] = "converged"

    def __post_init__(self) -> None:
        checks.positive_integer("every", self.every)
        if checks.positive_integer("snapshots", self.snapshots) % 8:
            raise ValueError(f"`snapshots` must be a multiple of 8; got {self.snapshots}")
        for name, low in {"rhat": 1, "mcse": 0, "divergence": 0}.items():
            value = getattr(self, name)
            if not value > low:
                raise ValueError(f"`{name}` must be above {low}; got {value}")

    @property
    def first_stride(self) -> int:
        """The number of steps from one snapshot to the next, as long as the rule has not thinned
        them. Half of the snapshots are then taken between two checks.
        """
        return -(-2 * self.every // self.snapshots)

    def init(self, svi: Any, state: Any, data: Data, held_out: Any) -> ConvergenceMemory:
        if held_out is not None:
            raise ValueError("`held_out` is for Patience: Convergence looks at the iterates alone")
        flat, _ = ravel_pytree(state.params)
        zero = jnp.zeros((), jnp.int32)
        nan = jnp.full((), jnp.nan)
        return ConvergenceMemory(
            key=rule_key(state),
            snapshots=jnp.zeros((self.snapshots + 1, flat.size), flat.dtype),
            num=zero,
            stride=jnp.full_like(zero, self.first_stride),
            steps=zero,
            average=flat,
            rounds=zero,
            seen=Converging(state.step, nan, nan, nan, nan, nan),
            ended=jnp.array(False),
        )

    def observe(self, memory: ConvergenceMemory, state: Any) -> ConvergenceMemory:
        flat, _ = ravel_pytree(state.params)
        steps = memory.steps + 1
        # Written at each step into the next free row, and kept by counting it.
        snapshots = jax.lax.dynamic_update_index_in_dim(memory.snapshots, flat, memory.num, 0)
        kept = steps % memory.stride == 0
        return memory._replace(snapshots=snapshots, num=memory.num + kept, steps=steps)

    def check(
        self,
        svi: Any,
        memory: ConvergenceMemory,
        state: Any,
        params: Params,
        data: Data,
        held_out: Any,
    ) -> tuple[Any, ConvergenceMemory]:
        del params, held_out
        _, unravel = ravel_pytree(state.params)
        first_step = jnp.zeros((), jnp.int32)
        batch, _ = svi.batches(first_step, data)

        def of_iterate(flat: Array) -> Distribution:
            return member(svi.guide, unravel(flat), *batch)

        look = self._look(memory, of_iterate)
        divergence = _divergence(memory, look, of_iterate)
        rates = _learning_rates(state.opt_state)
        # A rate that cannot be set ends the fit at its first average.
        settled = look.accurate
        if rates:
            settled = look.accurate & (divergence < self.divergence)
        again = look.accurate & ~settled
        opt_state = choose(again, _halve_rates(state.opt_state), state.opt_state)
        params = choose(again, unravel(look.average), state.params)
        rate = jnp.asarray(rates[0] if rates else jnp.nan, float)
        seen = Converging(state.step, look.rhat, look.ess, look.mcse, divergence, rate)
        memory = memory._replace(seen=seen, ended=settled)
        memory = self._restarted(self._thinned(memory), look)
        return state._replace(opt_state=opt_state, params=params), memory

    def params(self, memory: ConvergenceMemory, params: Params) -> Params:
        _, unravel = ravel_pytree(params)
        return choose(memory.rounds > 0, unravel(memory.average), params)

    def _look(self, memory: ConvergenceMemory, member: Member) -> _Look:
        """What the last half of the snapshots shows if it is stationary, else the last quarter."""
        half = self.snapshots // 2
        quarter = half // 2
        keys = jax.random.split(memory.key, _NUM_WATCHED)
        latest = jax.lax.dynamic_slice_in_dim(memory.snapshots, memory.num - half, half)
        moments = jax.lax.map(lambda flat: _moments(keys, member(flat)), latest)
        long = self._judge(memory, latest, moments)
        short = self._judge(memory, latest[-quarter:], moments[-quarter:])
        return choose(long.stationary, long, short)

    def _judge(self, memory: ConvergenceMemory, snapshots: Array, moments: Array) -> _Look:
        """What the snapshots (W, P) show, whose moments are (W, 2, D)."""
        window = len(snapshots)
        steps = window * memory.stride
        enough = memory.num >= self.snapshots // 2
        allowed = enough & (steps >= self.every) & (steps <= 0.95 * memory.steps)
        bar = self.mcse * 0.5**memory.rounds
        rhat, ess, error = _worst(moments, 0.1 * bar)
        stationary = allowed & (rhat <= self.rhat)
        accurate = stationary & (error < bar) & (ess > window / 8)
        return _Look(stationary, accurate, rhat, ess, error, jnp.mean(snapshots, axis=0))

    def _thinned(self, memory: ConvergenceMemory) -> ConvergenceMemory:
        """The memory with every second snapshot gone, if there is no room for those until the next
        check.
        """
        full = memory.num + self.every // memory.stride > self.snapshots
        kept = memory.snapshots[1 : self.snapshots : 2]
        thinned = memory.snapshots.at[: len(kept)].set(kept)
        return memory._replace(
            snapshots=jnp.where(full, thinned, memory.snapshots),
            num=jnp.where(full, memory.num // 2, memory.num),
            stride=jnp.where(full, 2 * memory.stride, memory.stride),
        )

    def _restarted(self, memory: ConvergenceMemory, look: _Look) -> ConvergenceMemory:
        """The memory after an average, if the look gave one: it has no snapshots, and is ready for
        the next rate.
        """
        done = look.accurate
        return memory._replace(
            num=jnp.where(done, 0, memory.num),
            stride=jnp.where(done, self.first_stride, memory.stride),
            steps=jnp.where(done, 0, memory.steps),
            average=jnp.where(done, look.average, memory.average),
            rounds=memory.rounds + done,
        )


def _moments(keys: Array, q: Distribution) -> Array:
    """E_q[u_i] and log sd_q[u_i] over the draws of `keys`, (2, D). The log sd of what does not vary
    counts as 0.
    """

    def flat_draw(key: Array) -> Array:
        u, _ = q.draw(key)
        flat, _ = ravel_pytree(u)
        return flat.astype(float)

    u = jax.vmap(flat_draw)(keys)
    sd = jnp.std(u, axis=0)
    log_sd = jnp.log(jnp.where(sd == 0, 1.0, sd))
    return jnp.stack([jnp.mean(u, axis=0), log_sd])


def _worst(moments: Array, negligible: Array) -> tuple[Array, Array, Array]:
    """Largest split R-hat, smallest ESS and largest MCSE of (mean / sd, log sd), from moments
    (W, 2, D).

    A coordinate that moves less than is `negligible` passes: R-hat and ESS would be those of its
    rounding errors.
    """
    mean, log_sd = jnp.moveaxis(moments, 1, 0)
    centred = mean - jnp.mean(mean, axis=0, keepdims=True)
    usual_log_sd = jnp.mean(log_sd, axis=0, keepdims=True)
    watched = jnp.stack([centred * jnp.exp(-usual_log_sd), log_sd])
    chains = jnp.moveaxis(watched, 0, 1)[None]
    spread = jnp.std(chains[0], axis=0)
    still = spread <= negligible
    rhat = jnp.where(still, 1.0, split_rhat(chains))
    ess = jnp.where(still, float(len(moments)), chain_ess(chains))
    error = jnp.where(still, spread, mcse(chains))
    return jnp.max(rhat), jnp.min(ess), jnp.max(error)


def _divergence(memory: ConvergenceMemory, look: _Look, member: Member) -> Array:
    """The symmetric KL between the average of the look and the one before, in nats; NaN where there
    are not two.
    """
    return jax.lax.cond(
        look.accurate & (memory.rounds > 0),
        lambda: _symmetric_kl(memory.key, member(look.average), member(memory.average)),
        lambda: jnp.full((), jnp.nan),
    )


def _symmetric_kl(key: Array, p: Distribution, q: Distribution) -> Array:
    """KL(p || q) + KL(q || p) in nats, by draws.

    Each is the mean under p of q/p - 1 - log q/p, no term of which is negative.
    """

    def kl_term(key: Array, p: Distribution, q: Distribution) -> Array:
        u, log_p = p.draw(key)
        log_ratio = log_p - q.log_prob(u)
        return jnp.expm1(-log_ratio) + log_ratio

    def terms(key: Array) -> Array:
        return kl_term(key, p, q) + kl_term(key, q, p)

    keys = jax.random.split(key, _NUM_COMPARED)
    values = jax.lax.map(terms, keys, batch_size=_BATCH)
    return jnp.mean(values).astype(float)


def _learning_rates(opt_state: Any) -> list[Array]:
    """The learning rates that can be set: those of `optax.inject_hyperparams`, unless they follow a
    schedule.
    """
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    if any(_SCHEDULE in name for name, _ in named):
        return []
    return [leaf for name, leaf in named if name.endswith(_RATE)]


def _halve_rates(opt_state: Any) -> Any:
    def halve(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        return leaf / 2 if name.endswith(_RATE) else leaf

    return jax.tree_util.tree_map_with_path(halve, opt_state)
