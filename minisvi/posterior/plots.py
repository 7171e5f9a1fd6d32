"""Four pictures of a fit: has it converged, which restart, is q right, and can the weights that
correct it be trusted.

Each draws on Matplotlib axes `ax`, or on a new figure, and returns them. ImportError without
Matplotlib.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minisvi.posterior import diagnostics
from minisvi.posterior.draws import Draws, quantiles
from minisvi.tools import checks

# Two of Okabe and Ito's colours, which the colour-blind tell apart, and a grey for what lies
# behind.
_GREY, _BLUE, _ORANGE = "#bcc4cc", "#0072b2", "#d55e00"


def loss(elbo: Any, average: int | None = None, ax: Any = None) -> Any:
    """The ELBO estimate of each step (N,), in nats, and its mean over the last `average` steps
    (N/20, at most 1,000).

    Steps that were not finite are left out. The range is set by the later half of the steps, but
    for the lowest and the highest 1 % of these: the earlier ones are seen to rise into it.
    ValueError for `average` outside 1..N.
    """
    elbo = np.asarray(elbo, float)
    window = checks.positive_integer(
        "average", min(max(elbo.size // 20, 1), 1000) if average is None else average
    )
    if window > elbo.size:
        raise ValueError(f"`average` must be in 1..{elbo.size}, the number of steps; got {window}")
    ax, steps, known = _axes(ax), np.arange(1, elbo.size + 1), np.isfinite(elbo)
    ax.plot(steps, np.where(known, elbo, np.nan), color=_GREY, linewidth=0.7, label="one step")
    sums, counts = (
        np.convolve(x, np.ones(window), "valid") for x in (np.where(known, elbo, 0.0), known)
    )
    mean = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    ax.plot(steps[window - 1 :], mean, color=_BLUE, linewidth=1.6, label=f"mean of {window} steps")
    late = elbo[elbo.size // 2 :][known[elbo.size // 2 :]]
    if late.size:
        low, high = np.quantile(late, [0.01, 0.99])
        _limit_y(ax, low, high, below=1.0)
    ax.set(xlabel="step", ylabel="ELBO (nats)")
    ax.legend(frameon=False, loc="lower right")
    return ax


def restarts(elbo: Any, elbo_se: Any, ax: Any = None) -> Any:
    """The ELBO of each of R restarts (R,), in nats, with two standard errors either side, and the
    best one marked.

    Those far below most others, or not finite, are arrows at the foot.
    """
    ax, elbo, error = _axes(ax), np.asarray(elbo, float), 2 * np.asarray(elbo_se, float)
    finite = np.isfinite(elbo)
    if not np.any(finite):
        raise ValueError(f"`restarts`: expected a finite ELBO; got {elbo}")
    best = int(np.argmax(np.where(finite, elbo, -np.inf)))
    reach = 5 * max(elbo[best] - np.median(elbo[finite]), np.median(error[finite]))
    shown = finite & (elbo >= elbo[best] - reach)
    number = np.arange(elbo.size)
    rest = shown & (number != best)
    style = {"fmt": "o", "markersize": 5, "elinewidth": 1.2}
    ax.errorbar(number[rest], elbo[rest], error[rest], color=_BLUE, **style)
    label = f"best: {elbo[best]:.2f} ± {error[best] / 2:.2g}"
    ax.errorbar(number[[best]], elbo[[best]], error[[best]], color=_ORANGE, label=label, **style)
    low, high = np.min((elbo - error)[shown]), np.max((elbo + error)[shown])
    foot = _limit_y(ax, low, high)
    if not np.all(shown):
        x = number[~shown]
        ax.plot(
            x,
            np.full(x.size, foot),
            "v",
            color=_GREY,
            clip_on=False,
            label="far below, or not finite",
        )
    ax.set(xlabel="restart", ylabel="ELBO (nats), ± 2 standard errors")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(
        frameon=False, fontsize="small", ncols=2, loc="lower left", bbox_to_anchor=(-0.05, 1.0)
    )
    return ax


def marginals(draws: Draws, reweighted: Draws, num: int = 6, ax: Any = None) -> Any:
    """Histograms of the first `num` scalars of theta under q, and as the weights correct them; one
    panel each.

    `ax` is an array of as many axes; that of all panels comes back, flat. The range holds 99 % of
    both.
    """
    pairs = list(zip(_scalars(draws, num), _scalars(reweighted, num), strict=True))
    axes = _panels(len(pairs)) if ax is None else np.ravel(ax)
    for panel, ((name, x), (_, y)) in zip(axes, pairs, strict=True):
        edges = _edges((x, draws.log_weights), (y, reweighted.log_weights))
        panel.stairs(_density(x, draws, edges), edges, fill=True, color=_GREY, label="q")
        panel.stairs(
            _density(y, reweighted, edges), edges, color=_BLUE, linewidth=1.4, label="reweighted"
        )
        panel.set(xlabel=name, yticks=[], ylim=(0, None))
        panel.locator_params(axis="x", nbins=4)
        _axes(panel).spines["left"].set_visible(False)
    axes[0].legend(
        frameon=False, fontsize="small", ncols=2, loc="lower left", bbox_to_anchor=(-0.05, 1.0)
    )
    return axes


def weights(log_w: Any, ax: Any = None) -> Any:
    """The largest of the weights exp(log_w) (S,), in units of their mean, and the Pareto tail
    fitted to them.

    Both axes are logarithmic: a straight line is a power law, and the steeper the better. k-hat is
    in the title.
    """
    fit = jax.device_get(jax.jit(diagnostics.psis)(jnp.asarray(log_w)))
    ax, log_w = _axes(ax), np.asarray(log_w)
    log_w = np.where(np.isnan(log_w) | (log_w == np.inf), -np.inf, log_w)
    if np.max(log_w) == -np.inf:
        raise ValueError("`weights`: expected log weights of which some are finite; got none")
    num = max(diagnostics.tail_size(log_w.size), 1)
    above = (np.arange(num, 0, -1) - 0.5) / log_w.size
    raw = np.exp(np.sort(log_w)[-num:] - fit.log_evidence)
    smoothed = np.exp(np.sort(fit.log_weights)[-num:] + math.log(log_w.size))
    ax.loglog(raw, above, "o", color=_GREY, markersize=4, label="weights")
    ax.loglog(smoothed, above, color=_BLUE, label="Pareto fit, to the largest")
    # Within one decade only the minor ticks have room for numbers.
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}" if raw[-1] < 10 * raw[0] else "")
    most = diagnostics.khat_threshold(log_w.size)
    verdict = "below" if fit.khat <= most else "above"
    ax.set_title(
        f"k-hat = {fit.khat:.2f}, {verdict} {most:.2f}",
        color="black" if fit.khat <= most else _ORANGE,
    )
    ax.set(xlabel="weight / mean weight", ylabel="fraction of draws above")
    ax.legend(frameon=False, loc="lower left")
    return ax


def _scalars(draws: Draws, num: int) -> list[tuple[str, Any]]:
    """The first `num` scalars, by name, such as `net.bias[0]`: each (S,)."""
    found: list[tuple[str, Any]] = []
    for name, leaf in checks.named_leaves(draws.theta).items():
        for index in np.ndindex(leaf.shape[1:]):
            if len(found) == num:
                return found
            found.append(
                (
                    f"{name}[{', '.join(map(str, index))}]" if index else name,
                    leaf[(slice(None), *index)],
                )
            )
    return found


def _edges(*weighted: tuple[Any, Any]) -> np.ndarray:
    ends = [
        np.asarray(quantiles(x, log_weights, np.array([0.005, 0.995])))
        for x, log_weights in weighted
    ]
    low, high = np.min(ends), np.max(ends)
    return np.linspace(low, high, 41) if high > low else np.linspace(low - 0.5, low + 0.5, 41)


def _density(x: Any, draws: Draws, edges: np.ndarray) -> np.ndarray:
    share, _ = np.histogram(
        np.asarray(x), edges, weights=np.exp(np.asarray(draws.log_weights, float))
    )
    return share / np.diff(edges)


def _limit_y(ax: Any, low: float, high: float, below: float = 0.15) -> float:
    height = (high - low) or 1.0
    return ax.set_ylim(low - below * height, high + 0.15 * height)[0]


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot
    except ImportError:
        raise ImportError("`minisvi.plots` needs Matplotlib: pip install matplotlib") from None
    return matplotlib.pyplot


def _axes(ax: Any) -> Any:
    if ax is None:
        ax = _pyplot().subplots(figsize=(6, 3.6), layout="constrained")[1]
    ax.spines[["top", "right"]].set_visible(False)
    ax.ticklabel_format(useOffset=False)  # -1603.2, and not 0.8 with "-1.604e3" in a corner
    return ax


def _panels(num: int) -> Any:
    columns = min(num, 3)
    rows = -(-num // columns)
    size = (2.6 * columns, 2.1 * rows)
    _, axes = _pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for spare in axes.ravel()[num:]:
        spare.remove()
    return axes.ravel()[:num]
