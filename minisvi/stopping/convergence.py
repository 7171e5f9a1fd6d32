"""When to stop: the iterates have settled, and settle at the same q at half the rate."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from minisvi.guides import base
from minisvi.posterior.diagnostics import chain_ess, mcse, split_rhat
from minisvi.stopping.rules import choose, rule_key
from minisvi.tools import checks

_NUM_WATCHED, _NUM_COMPARED, _CHUNK = (
    32,
    1000,
    50,
)  # draws behind the moments, and behind a KL; at a time


class Converging(NamedTuple):
    """A check of `Convergence`: the step, the largest split R-hat, smallest ESS and largest MCSE
    over what is watched; the symmetric KL (nats) of the latest two averages, NaN where there was
    none to compare; and the learning rate, NaN if it cannot be set.
    """

    step: Array
    rhat: Array
    ess: Array
    mcse: Array
    divergence: Array
    learning_rate: Array


class ConvergenceMemory(NamedTuple):
    key: Array
    snapshots: Array  # (K + 1, P): one for each of `stride` steps, the last row is scratch
    num: Array
    stride: Array
    steps: Array  # at this rate
    average: Any
    rounds: Array
    seen: Converging
    ended: Array


@dataclass(frozen=True)
class Convergence:
    """Stop when the iterates have settled at a fixed rate, halve the rate, and end when that
    changes q no more.

    FASO and RAABBVI (Dhaka et al. 2020; Welandawe et al. 2022). What is watched at each snapshot of
    the parameters is what they say: E_q[u_i] in units of q's sd, and log sd_q[u_i], at the same
    draws throughout, so that any guide is watched alike. Every `every` steps:

    1. stationary: the last K / 2 snapshots or, failing that, the last K / 4, if they take at least
    `every` steps and at
       most 95 % of those at this rate, with split R-hat <= `rhat` in every coordinate;
    2. accurate: MCSE < `mcse` 2^-j and ESS > window / 8 in every coordinate: its mean is average j
    = 0, 1, ...; 3. with `optax.inject_hyperparams`, the rate is halved and the iterate goes on from
    the average, until the symmetric
       KL between successive averages is < `divergence` nats. Any other optimiser ends at its first average.

    `snapshots` = K parameter vectors are kept; when they are full every second one goes and the
    stride doubles. The fit returns the latest average, or the last iterate before there is one; a
    decaying rate looks like convergence, so give a fixed one. What protects from a plateau: all
    coordinates have to be stationary over a share of the whole run, and a second, independent run
    of the rule from there has to find the same q. "Optimiser converged" never means that q is
    right.
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
            if not getattr(self, name) > low:
                raise ValueError(f"`{name}` must be above {low}; got {getattr(self, name)}")

    @property
    def first_stride(self) -> int:
        return -(-2 * self.every // self.snapshots)

    def init(self, svi: Any, state: Any, data: tuple[Any, ...], held_out: Any) -> ConvergenceMemory:
        if held_out is not None:
            raise ValueError("`held_out` is for Patience: Convergence looks at the iterates alone")
        flat, _ = ravel_pytree(state.params)
        zero, nan = jnp.zeros((), jnp.int32), jnp.full((), jnp.nan)
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
        # Written at each step, in the next free row, and kept by counting it.
        snapshots = jax.lax.dynamic_update_index_in_dim(memory.snapshots, flat, memory.num, 0)
        return memory._replace(
            snapshots=snapshots, num=memory.num + (steps % memory.stride == 0), steps=steps
        )

    def check(
        self,
        svi: Any,
        memory: ConvergenceMemory,
        state: Any,
        params: Any,
        data: tuple[Any, ...],
        held_out: Any,
    ) -> tuple[Any, ConvergenceMemory]:
        del params, held_out
        _, unravel = ravel_pytree(state.params)
        batch, _ = svi.batches(jnp.zeros((), jnp.int32), data)

        def member(flat: Array) -> Any:
            return svi.guide.distribution(unravel(flat), *batch)

        look = self._look(memory, member)
        divergence = jax.lax.cond(
            look.accurate & (memory.rounds > 0),
            lambda: _symmetric_kl(memory.key, member(look.average), member(memory.average)),
            lambda: jnp.full((), jnp.nan),
        )
        rates = _learning_rates(state.opt_state)
        settled = look.accurate & (divergence < self.divergence if rates else True)
        again = look.accurate & ~settled
        halved = _halve_rates(state.opt_state), unravel(look.average)
        opt_state, params = choose(again, halved, (state.opt_state, state.params))
        rate = jnp.asarray(rates[0] if rates else jnp.nan, float)
        seen = Converging(state.step, look.rhat, look.ess, look.mcse, divergence, rate)
        memory = self._thinned(memory)._replace(seen=seen, ended=settled)
        return state._replace(opt_state=opt_state, params=params), self._restarted(memory, look)

    def params(self, memory: ConvergenceMemory, params: Any) -> Any:
        _, unravel = ravel_pytree(params)
        return choose(memory.rounds > 0, unravel(memory.average), params)

    def _look(self, memory: ConvergenceMemory, member: Any) -> "_Look":
        """Half of the snapshots if they are stationary, else the last quarter."""
        half, keys = self.snapshots // 2, jax.random.split(memory.key, _NUM_WATCHED)
        latest = jax.lax.dynamic_slice_in_dim(memory.snapshots, memory.num - half, half)
        moments = jax.lax.map(lambda flat: _moments(keys, member(flat)), latest)
        bar = self.mcse * 0.5**memory.rounds

        def look(size: int) -> _Look:
            steps = size * memory.stride
            allowed = (memory.num >= half) & (steps >= self.every) & (steps <= 0.95 * memory.steps)
            rhat, ess, error = _worst(moments[-size:], 0.1 * bar)
            stationary = allowed & (rhat <= self.rhat)
            accurate = stationary & (error < bar) & (ess > size / 8)
            return _Look(stationary, accurate, rhat, ess, error, jnp.mean(latest[-size:], axis=0))

        long, short = look(half), look(half // 2)
        return choose(long.stationary, long, short)

    def _thinned(self, memory: ConvergenceMemory) -> ConvergenceMemory:
        """With room for the snapshots until the next check."""
        full = memory.num + self.every // memory.stride > self.snapshots
        kept = memory.snapshots[1 : self.snapshots : 2]
        return memory._replace(
            snapshots=jnp.where(full, memory.snapshots.at[: len(kept)].set(kept), memory.snapshots),
            num=jnp.where(full, memory.num // 2, memory.num),
            stride=jnp.where(full, 2 * memory.stride, memory.stride),
        )

    def _restarted(self, memory: ConvergenceMemory, look: "_Look") -> ConvergenceMemory:
        """After an average: with no snapshots, for the next rate."""
        done = look.accurate
        return memory._replace(
            num=jnp.where(done, 0, memory.num),
            stride=jnp.where(done, self.first_stride, memory.stride),
            steps=jnp.where(done, 0, memory.steps),
            average=jnp.where(done, look.average, memory.average),
            rounds=memory.rounds + done,
        )


class _Look(NamedTuple):
    stationary: Array
    accurate: Array
    rhat: Array
    ess: Array
    mcse: Array
    average: Array


def _moments(keys: Array, q: Any) -> Array:
    """E_q[u_i] and log sd_q[u_i] over the draws of `keys`, (2, D); the log sd of what does not vary
    counts as 0.
    """
    u = jax.vmap(lambda key: ravel_pytree(base.draw(q, key)[0])[0].astype(float))(keys)
    sd = jnp.std(u, axis=0)
    return jnp.stack([jnp.mean(u, axis=0), jnp.log(jnp.where(sd == 0, 1.0, sd))])


def _worst(moments: Array, negligible: Any) -> tuple[Array, Array, Array]:
    """Largest split R-hat, smallest ESS and largest MCSE of (mean / sd, log sd), moments (W, 2, D).

    A coordinate that moves less than is `negligible` passes: R-hat and ESS would be those of its
    rounding errors.
    """
    mean, log_sd = jnp.moveaxis(moments, 1, 0)
    centred = mean - jnp.mean(mean, axis=0, keepdims=True)
    watched = jnp.stack([centred * jnp.exp(-jnp.mean(log_sd, axis=0, keepdims=True)), log_sd])
    chains = jnp.moveaxis(watched, 0, 1)[None]
    spread = jnp.std(chains[0], axis=0)
    still = spread <= negligible
    rhat = jnp.max(jnp.where(still, 1.0, split_rhat(chains)))
    ess = jnp.min(jnp.where(still, float(len(moments)), chain_ess(chains)))
    return rhat, ess, jnp.max(jnp.where(still, spread, mcse(chains)))


def _symmetric_kl(key: Array, p: Any, q: Any) -> Array:
    """KL(p || q) + KL(q || p) in nats, each the mean of q/p - 1 - log q/p under p, no term of which
    is negative.
    """

    def terms(key: Array) -> Array:
        def gap(p: Any, q: Any) -> Array:
            u, log_p = base.draw(p, key)
            log_ratio = log_p - q.log_prob(u)
            return jnp.expm1(-log_ratio) + log_ratio

        return gap(p, q) + gap(q, p)

    return jnp.mean(
        jax.lax.map(terms, jax.random.split(key, _NUM_COMPARED), batch_size=_CHUNK)
    ).astype(float)


def _is_rate(path: Any) -> bool:
    return jax.tree_util.keystr(path).endswith(".hyperparams['learning_rate']")


def _learning_rates(opt_state: Any) -> list[Array]:
    """The rates that can be set: those of `optax.inject_hyperparams`, unless they follow a
    schedule.
    """
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    scheduled = any(
        ".hyperparams_states['learning_rate']" in jax.tree_util.keystr(path) for path, _ in leaves
    )
    return [] if scheduled else [leaf for path, leaf in leaves if _is_rate(path)]


def _halve_rates(opt_state: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf / 2 if _is_rate(path) else leaf, opt_state
    )
