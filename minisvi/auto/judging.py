"""Can it be trusted? A fitted guide judged by its importance weights, in figures and in words."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.auto import defensive
from minisvi.auto.centred import Centred, centred
from minisvi.guides.base import Guide
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.posterior import diagnostics
from minisvi.posterior.diagnostics import Optima
from minisvi.posterior.draws import Draws
from minisvi.posterior.moments import MAX_KHAT, Moment, moments
from minisvi.posterior.posterior import Posterior, weigh
from minisvi.tools import checks, inputs
from minisvi.tools.interrupts import interrupted
from minisvi.tools.sharding import to_host

Level = Literal["good", "bulk good, tails unverified", "not trusted"]
NUM_BATCHES = 4
GOOD_ERROR, BULK_ERROR = 0.03, 0.1  # sds
HIGH_ESS, FAIR_ESS, LOW_ESS = 0.85, 0.1, 0.02  # of S
MAX_SPACING = 0.1  # nats
_MOST_NAMED = 3


@dataclass(frozen=True)
class Verdict:
    """What the importance weights of S draws say of a fit; `str` gives a short table.

    - `level`, `reason`: `good`: the weighted draws may be used as the posterior's; `bulk good,
      tails unverified`: their quantiles, means and sds may, to about a tenth of an sd, but for the
      moments that the reason names; `not trusted`. The reason is one line.
    - `khat`: the largest of four batches', beside its `threshold`; `ess`: the weights' ESS / S.
    - `error`: the standard error of the weighted means and sds of theta, in sds, of the `worst`
      latent, by its name; `error_u`: the same of u, of which quantiles are those of theta.
    - `unreached`: the means and sds of theta that the draws do not give to 0.03 sd, in words: a
      moment that does not exist, one that rare draws decide, and one that has too few draws.
    - `of_weights`: the level without what was found of theta's moments and of the `spacing`, which
      is that of the dtype's numbers at log p, in nats.
    - `shift`: how far weighting moves the mean of the worst coordinate, in sds: how wrong q is
      without it.
    - `elbo`, `log_evidence`, each with its standard error `_se`, in nats.
    - `broken`: draws with a density of NaN or +inf.
    - `optima`: how many distinct ones the restarts converged to, at least one; `missed`: the
      largest mass, relative to the best, of where any of them ended that q does not reach; None
      without restarts. `optimism`: nats that fixed draws promised beyond fresh ones, or None.
    """

    level: Level
    reason: str
    khat: float
    threshold: float
    ess: float
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

    def __str__(self) -> str:
        rows = [
            ("verdict", f"{self.level}: {self.reason}"),
            (
                "k-hat",
                f"{self.khat:.2f} (threshold {self.threshold:.2f}, largest of {NUM_BATCHES} batches)",
            ),
            ("ESS / S", f"{self.ess:.3f} of {self.num_draws} draws"),
            (
                "error",
                f"{self.error:.3f} sd, of weighted means and sds at the worst latent, `{self.worst}`",
            ),
            ("shift", f"{self.shift:.3f} sd, from q's means to the weighted ones"),
            ("ELBO", f"{self.elbo:.3f} +- {self.elbo_se:.3f} nats"),
            ("log evidence", f"{self.log_evidence:.3f} +- {self.log_evidence_se:.3f} nats"),
        ]
        if self.optima is not None:
            rows.append(
                (
                    "optima",
                    f"{self.optima} distinct, of which q misses {self.missed:.2g} of the best's mass",
                )
            )
        if self.optimism is not None:
            rows.append(("optimism", f"{self.optimism:.2f} nats, of fixed draws over fresh ones"))
        return "\n".join(f"{name:13} {text}" for name, text in rows)


class Judged(NamedTuple):
    """The verdict on a guide, and its weighted draws of theta."""

    verdict: Verdict
    draws: Draws


def judge(
    key: Array,
    model: Model,
    guide: Guide,
    params: Any,
    *data: Any,
    num_draws: int = 20_000,
    max_draws: int = 80_000,
    optima: Optima | None = None,
    optimism: float | None = None,
) -> Judged:
    """The verdict on any fitted guide, from `num_draws` draws of it and their log weights; from
    four times as many, up to `max_draws`, where that alone would make it good.

    k-hat alone errs both ways: it refuses flows whose weights are nearly equal, and does not see a
    mode that no draw reached. So the rule also has ESS, errors and, where the `optima` of
    `deterministic` are given, those that q gives less density than the posterior does at any of its
    draws. Let k be the largest k-hat of four batches, S the number of draws, and the error the
    standard error of the weighted means and sds of u at the worst latent:

    - `good`: k below min(1 - 1/log10(S/4), 0.7) and 0.35 + ESS/S, or below 1 with ESS/S >= 0.85; an
      error of at most 0.03 sd; and for each mean and sd of theta the same error, and terms with a
      tail of shape below 0.7 (1 where ESS/S < 0.85; see `moments`);
    - `bulk good, tails unverified`: k below the same threshold with ESS/S >= 0.02, or below 1 with
      ESS/S >= 0.1; and an error of at most 0.1 sd. The reason names the moments of theta that are
      not given: their quantiles hold;
    - `not trusted` otherwise, and wherever a draw has a density of NaN or +inf, an optimum is
      missed that has more than a hundredth of the best one's mass, or log p is so large that the
      dtype's numbers there are more than 0.1 nats apart, so that the weights are rounding. Of a
      likelihood by rows differences are taken before sums then, in a second pass over the draws
      (see `centred`).

    That fewer draws should carry the weight only where their tail is lighter is what
    `benchmarks/verdicts.py` taught. TypeError or ValueError unless num_draws is an integer >= 100.
    """
    check_num_draws(num_draws)
    data = inputs.arrays(data)
    noise, log_ratio = defensive.noise(checks.prng_key(key), guide, params, data, num_draws)
    u, log_w, target = _weighed(model, guide, params, data, noise)
    draws, log_w_all, figures = _figures(model.over(guide.constrained), u, log_w, log_ratio)
    values: dict[str, Any] = {name: value.item() for name, value in figures.items()}
    values |= {
        "num_draws": num_draws,
        "threshold": diagnostics.khat_threshold(num_draws // NUM_BATCHES),
    }
    values["spacing"] = _spacing(log_w.dtype, values["log_evidence"])
    known = moments(draws.theta, log_w_all, draws.log_weights)
    if optima is not None:
        # A start that has not converged is no optimum, but it may have ended at a mode.
        ends, converged = np.asarray(optima.optimum), np.asarray(optima.converged)
        several = len(np.unique(ends)) > 1
        missed = (
            _missed(model, target.model, guide, params, data, target.reference, optima, log_w)
            if several
            else 0.0
        )
        missed = float(missed)
        values |= {"optima": max(1, len(np.unique(ends[converged]))), "missed": missed}
    if optimism is not None:
        values["optimism"] = float(optimism)
    of_weights = _of_weights(**values)
    level, reason = _rule(known, of_weights, **values)
    if (
        level != "good"
        and _more_would_do(known, values)
        and 4 * num_draws <= max_draws
        and not interrupted()
    ):
        args = key, model, guide, params, *data
        return judge(
            *args, num_draws=4 * num_draws, max_draws=max_draws, optima=optima, optimism=optimism
        )
    worst = max(known, key=lambda moment: moment.error, default=Moment("none", 1, 0.0, 0.0))
    unreached = tuple(
        str(moment) for moment in known if not moment.holds(GOOD_ERROR, _max_khat(values["ess"]))
    )
    values |= {
        "of_weights": of_weights[0],
        "error": worst.error,
        "worst": worst.latent,
        "unreached": unreached,
    }
    values |= {
        "elbo": values["elbo"] + target.offset,
        "log_evidence": values["log_evidence"] + target.offset,
    }
    return Judged(Verdict(level, reason, **values), draws)


def _more_would_do(known: list[Moment], values: dict[str, Any]) -> bool:
    """Whether it would be good if all errors were half as large, as they are with four times as
    many draws.
    """
    halved = [moment._replace(error=moment.error / 2) for moment in known]
    of_weights = _of_weights(**values | {"error_u": values["error_u"] / 2})
    return _rule(halved, of_weights, **values)[0] == "good"


def _weighed(
    model: Model, guide: Guide, params: Any, data: tuple[Any, ...], noise: Array
) -> tuple[Any, Array, Centred]:
    """Draws and log weights, and the density that these are of: where rounding would decide about
    them, it is that of differences from the rows' terms at the draw of the largest weight.
    """
    u, log_w = weigh(model, guide, params, data, noise)
    known = to_host(log_w)
    best = int(np.argmax(np.where(np.isfinite(known), known, -np.inf)))
    if not _spacing(known.dtype, known[best]) > MAX_SPACING:
        return u, log_w, Centred(model)
    reference_point = jax.tree.map(lambda leaf: leaf[best], u)
    target = centred(model.over(guide.constrained), reference_point, data)
    if not target.reference:
        return u, log_w, Centred(model)
    target = target._replace(model=replace(target.model, latents=model.latents))
    u, log_w = weigh(target.model, guide, params, data, noise, reference=target.reference)
    return u, log_w, target


def _spacing(dtype: Any, log_p: float) -> float:
    """How far apart numbers of the dtype are at log p, in nats."""
    return float(np.finfo(dtype).eps) * abs(float(log_p))


def unjudged(
    key: Array,
    model: Model,
    guide: Guide,
    params: Any,
    data: tuple[Any, ...],
    reason: str,
    num_draws: int = 1000,
) -> Judged:
    """Plain draws of a guide that nobody has looked at: `not trusted`, with that reason, and
    figures of NaN.
    """
    figures = ("khat", "threshold", "ess", "error", "error_u", "shift", "spacing")
    in_nats = ("elbo", "elbo_se", "log_evidence", "log_evidence_se")
    unknown: dict[str, Any] = dict.fromkeys(figures + in_nats, np.nan)
    verdict = Verdict(
        "not trusted",
        reason,
        worst="unknown",
        unreached=(),
        of_weights="not trusted",
        num_draws=num_draws,
        broken=0,
        **unknown,
    )
    return Judged(verdict, Posterior(model, guide, params, data).draws(key, num_draws))


def check_num_draws(num_draws: Any) -> None:
    """Raise unless `num_draws` is an integer that leaves every batch the 25 draws in which `psis`
    can see a tail.
    """
    least = 25 * NUM_BATCHES
    if checks.positive_integer("num_draws", num_draws) < least:
        raise ValueError(
            f"`num_draws` must be an integer >= {least}, to see a tail by; got {num_draws}"
        )


@partial(jax.jit, static_argnames="target")
def _figures(
    target: Model, u: Any, log_w: Array, log_ratio: Array
) -> tuple[Draws, Array, dict[str, Array]]:
    plain = defensive.is_plain(log_w.size) | jnp.all(log_ratio == 0)
    elbo, elbo_se = diagnostics.elbo(log_w, where=plain)
    log_w = log_w + log_ratio
    smoothed = diagnostics.psis(log_w)
    batches = log_w[: log_w.size // NUM_BATCHES * NUM_BATCHES].reshape(NUM_BATCHES, -1)
    columns = [leaf.reshape(log_w.size, -1).astype(log_w.dtype) for leaf in jax.tree.leaves(u)]
    x = jnp.concatenate([jnp.zeros((log_w.size, 0), log_w.dtype), *columns], axis=1)
    errors = (diagnostics.weighted_mcse, diagnostics.weighted_sd_mcse)
    error = jnp.maximum(*(error(x, smoothed.log_weights) for error in errors))
    log_evidence, log_evidence_se = diagnostics.log_evidence(log_w)
    draws = Draws(jax.vmap(target.constrain, axis_size=log_w.size)(u), smoothed.log_weights)
    return (
        draws,
        log_w,
        {
            "khat": jnp.maximum(
                jnp.max(jax.vmap(lambda log_w: diagnostics.psis(log_w).khat)(batches)),
                smoothed.khat,
            ),
            "ess": diagnostics.importance_ess(smoothed.log_weights) / log_w.size,
            "error_u": jnp.max(error, initial=0.0),
            "shift": jnp.max(diagnostics.mean_shift(x, smoothed.log_weights), initial=0.0),
            "elbo": elbo,
            "elbo_se": elbo_se,
            "log_evidence": log_evidence,
            "log_evidence_se": log_evidence_se,
            "broken": jnp.sum(jnp.isnan(log_w) | (log_w == jnp.inf)),
        },
    )


@partial(jax.jit, static_argnames=("model", "density", "guide"))
def _missed(
    model: Model,
    density: Model,
    guide: Guide,
    params: Any,
    data: Any,
    reference: Any,
    optima: Optima,
    log_w: Array,
) -> Array:
    """The largest mass, relative to the best optimum's by their ELBOs, of one where p/q is above
    all that q drew, and above what it is at the optimum of the highest q: there q is, and many
    latents may have a mode that no draw reaches. `log_w` is of `density`, which wants the
    `reference` behind the data.
    """
    q = guide.distribution(params, *data)

    def at(loc: Array) -> tuple[Array, Array, Array]:
        u = trees.unravel(model.latents, loc)
        # A guide over theta has a density over theta, and so has its target.
        point = jax.tree.map(
            lambda flag, theta, u: theta if flag else u, guide.constrained, model.constrain(u), u
        )
        log_q = q.log_prob(point)
        log_p = density.over(guide.constrained).log_density(point, *data, *reference)
        return log_p - log_q, log_q, model.log_density(u, *data)

    log_p_over_q, log_q, peak = jax.lax.map(at, optima.loc)
    own = log_p_over_q[jnp.nanargmax(log_q)]
    uncovered = log_p_over_q > jnp.fmax(jnp.nanmax(log_w), own)
    # One draw can spoil an ELBO, and then the mass is taken as that of a Gaussian with this peak
    # and these sds.
    log_volume = jnp.sum(optima.log_scale + 0.5 * jnp.log(2 * jnp.pi), axis=1)
    known = jnp.isfinite(optima.elbo)
    mass = jnp.exp(
        jnp.where(known, optima.elbo, peak + log_volume)
        - jnp.max(jnp.where(known, optima.elbo, -jnp.inf))
    )
    return jnp.max(jnp.where(uncovered, mass, 0.0))


def _rule(
    known: list[Moment],
    of_weights: tuple[Level, str],
    ess: float,
    spacing: float,
    log_evidence: float,
    **_: Any,
) -> tuple[Level, str]:
    """The level that the weights have, held against the spacing of log p and against each moment of
    theta.
    """
    level, reason = of_weights
    if MAX_SPACING < spacing < np.inf:
        return (
            "not trusted",
            f"log p is about {log_evidence:.2g}, where the dtype's numbers are {spacing:.2g} nats apart: the weights "
            "are rounding. Take constants out of the density, give the likelihood by row, or enable x64",
        )
    limit = GOOD_ERROR if level == "good" else BULK_ERROR
    failing = [moment for moment in known if not moment.holds(limit, _max_khat(ess))]
    if level == "not trusted" or not failing:
        return level, reason
    return "bulk good, tails unverified", f"{_in_words(failing, ess)}; {reason}"


def _max_khat(ess: float) -> float:
    """Of the terms of a moment. Where weights are nearly equal a heavy tail is theta's own, and no
    better q would make it lighter. Otherwise it is partly that of the weights, which have been
    judged already, and the terms' error tells.
    """
    return MAX_KHAT if ess >= HIGH_ESS else 1.0


def _in_words(failing: list[Moment], ess: float) -> str:
    """Which moments fail, and how: those whose tail is too heavy first, which more draws would not
    mend.
    """
    failing = sorted(failing, key=lambda moment: (moment.khat, moment.error), reverse=True)
    names = ", ".join(str(moment) for moment in failing[:_MOST_NAMED])
    others = len(failing) - _MOST_NAMED
    if others > 0:
        names += f" and {others} more"
    worst = failing[0]
    if worst.khat < _max_khat(ess):
        return f"quantiles hold, but not {names}: the error is {worst.error:.2f} sd"
    why = (
        "it may not exist, or rare draws decide it"
        if ess >= HIGH_ESS
        else "the weights do not reach it"
    )
    return f"quantiles hold, but not {names}: {why} (a tail of shape {worst.khat:.2f})"


def _of_weights(
    khat: float,
    threshold: float,
    ess: float,
    error_u: float,
    broken: int,
    missed: float | None = None,
    **_: Any,
) -> tuple[Level, str]:
    if broken:
        return "not trusted", f"{broken} draws have a density of NaN or +inf"
    if missed is not None and missed > 0.01:
        return (
            "not trusted",
            f"a restart found another optimum, with {missed:.2g} of the best one's mass, that q misses",
        )
    light = khat < threshold
    if error_u <= GOOD_ERROR and ((light and khat < 0.35 + ess) or (khat < 1 and ess >= HIGH_ESS)):
        return "good", f"k-hat {khat:.2f} and ESS/S {ess:.2f}: weighting makes up for what q lacks"
    if error_u <= BULK_ERROR and ((light and ess >= LOW_ESS) or (khat < 1 and ess >= FAIR_ESS)):
        return (
            "bulk good, tails unverified",
            f"k-hat {khat:.2f}, ESS/S {ess:.2f}, error {error_u:.2f} sd",
        )
    if not khat < 1:
        return (
            "not trusted",
            f"k-hat {khat:.2f}: the weights have no mean, so q lacks part of the posterior",
        )
    return (
        "not trusted",
        f"k-hat {khat:.2f}, ESS/S {ess:.3f}, error {error_u:.2f} sd: too few draws carry the weight",
    )
