"""Four pictures of a fit: has it converged, which restart is best, is q right, and can the weights
that correct it be trusted.

Each draws on Matplotlib axes `ax`, or on a new figure, and returns them. ImportError without
Matplotlib.
"""

import math
from types import ModuleType
from typing import Any

import numpy as np

from minisvi.posterior import diagnostics
from minisvi.posterior.diagnostics import PSIS
from minisvi.posterior.draws import Draws
from minisvi.posterior.weighted import normalised, quantiles
from minisvi.tools import checks
from minisvi.tools.names import entry_name, named_leaves
from minisvi.tools.sharding import to_host

# Two of Okabe and Ito's colours, which the colour-blind tell apart, and a grey for what lies
# behind.
_GREY = "#bcc4cc"
_BLUE = "#0072b2"
_ORANGE = "#d55e00"


def loss(elbo: Any, average: int | None = None, ax: Any = None) -> Any:
    """The ELBO estimate of each step (N,), in nats, and its mean over the last `average` steps
    (N/20, at most 1,000).

    Steps that were not finite are left out. The range is that of the later half of the steps,
    without their lowest and highest 1 %: the earlier ones are seen to rise into it. ValueError for
    `average` outside 1..N.
    """
    elbo = np.asarray(elbo, float)
    if average is None:
        average = min(max(elbo.size // 20, 1), 1000)
    window = checks.positive_integer("average", average)
    if window > elbo.size:
        raise ValueError(f"`average` must be in 1..{elbo.size}, the number of steps; got {window}")
    ax = _axes(ax)
    steps = np.arange(1, elbo.size + 1)
    known = np.where(np.isfinite(elbo), elbo, np.nan)
    ax.plot(steps, known, color=_GREY, linewidth=0.7, label="one step")
    mean = _moving_mean(known, window)
    ends = steps[window - 1 :]
    ax.plot(ends, mean, color=_BLUE, linewidth=1.6, label=f"mean of {window} steps")
    late = known[elbo.size // 2 :]
    late = late[~np.isnan(late)]
    if late.size:
        low, high = np.quantile(late, [0.01, 0.99])
        _limit_y(ax, low, high, below=1.0)
    ax.set(xlabel="step", ylabel="ELBO (nats)")
    ax.legend(frameon=False, loc="lower right")
    return ax


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each `window` values in a row, of those that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    ones = np.ones(window)
    sums = np.convolve(np.where(known, values, 0.0), ones, "valid")
    counts = np.convolve(known, ones, "valid")
    means = np.full_like(sums, np.nan)
    return np.divide(sums, counts, out=means, where=counts > 0)


def restarts(elbo: Any, elbo_se: Any, ax: Any = None) -> Any:
    """The ELBO of each of R restarts (R,), in nats, with two standard errors either side. The best
    one is marked.

    Those far below most others, and those that are not finite, are arrows at the foot.
    """
    ax = _axes(ax)
    elbo = np.asarray(elbo, float)
    error = 2 * np.asarray(elbo_se, float)
    finite = np.isfinite(elbo)
    if not np.any(finite):
        raise ValueError(f"`restarts`: expected a finite ELBO; got {elbo}")
    best = int(np.argmax(np.where(finite, elbo, -np.inf)))
    shown = finite & (elbo >= _least_shown(elbo, error, best))
    number = np.arange(elbo.size)
    rest = shown & (number != best)
    style = {"fmt": "o", "markersize": 5, "elinewidth": 1.2}
    ax.errorbar(number[rest], elbo[rest], error[rest], color=_BLUE, **style)
    label = f"best: {elbo[best]:.2f} ± {error[best] / 2:.2g}"
    ax.errorbar(number[[best]], elbo[[best]], error[[best]], color=_ORANGE, label=label, **style)
    low = np.min((elbo - error)[shown])
    high = np.max((elbo + error)[shown])
    foot = _limit_y(ax, low, high)
    if not np.all(shown):
        x = number[~shown]
        y = np.full(x.size, foot)
        ax.plot(x, y, "v", color=_GREY, clip_on=False, label="far below, or not finite")
    ax.set(xlabel="restart", ylabel="ELBO (nats), ± 2 standard errors")
    ax.xaxis.get_major_locator().set_params(integer=True)
    _legend_above(ax)
    return ax


def _least_shown(elbo: np.ndarray, error: np.ndarray, best: int) -> float:
    """The ELBO below which a restart is too far from the best to be in the range."""
    finite = np.isfinite(elbo)
    to_median = elbo[best] - np.median(elbo[finite])
    reach = max(to_median, np.median(error[finite]))
    return elbo[best] - 5 * reach


def marginals(draws: Draws, reweighted: Draws, num: int = 6, ax: Any = None) -> Any:
    """Histograms of the first `num` scalars of theta under q, and as the weights correct them. Each
    has a panel.

    `ax` is an array of as many axes; the panels come back as such an array, flat. The range of each
    holds 99 % of both histograms.
    """
    pairs = list(zip(_scalars(draws, num), _scalars(reweighted, num), strict=True))
    panels = _panels(len(pairs)) if ax is None else np.ravel(ax)
    for panel, ((name, x), (_, y)) in zip(panels, pairs, strict=True):
        edges = _edges(_central_range(x, draws), _central_range(y, reweighted))
        plain = _density(x, draws, edges)
        corrected = _density(y, reweighted, edges)
        panel.stairs(plain, edges, fill=True, color=_GREY, label="q")
        panel.stairs(corrected, edges, color=_BLUE, linewidth=1.4, label="reweighted")
        panel.set(xlabel=name, yticks=[], ylim=(0, None))
        panel.locator_params(axis="x", nbins=4)
        _axes(panel).spines["left"].set_visible(False)
    _legend_above(panels[0])
    return panels


def _scalars(draws: Draws, num: int) -> list[tuple[str, Any]]:
    """The first `num` scalars (S,) by name, such as `net.bias[0]`."""
    found: list[tuple[str, Any]] = []
    for name, leaf in named_leaves(to_host(draws.theta)).items():
        for index in np.ndindex(leaf.shape[1:]):
            if len(found) == num:
                return found
            scalar = leaf[(slice(None), *index)]
            found.append((entry_name(name, index), scalar))
    return found


def _central_range(x: Any, draws: Draws) -> np.ndarray:
    """The ends of the middle 99 % of draws x (S,)."""
    ends = np.array([0.005, 0.995])
    return quantiles(x, draws.log_weights, ends)


def _edges(*ranges: np.ndarray) -> np.ndarray:
    """The edges of 40 bins that cover all the ranges."""
    low = np.min(ranges)
    high = np.max(ranges)
    if high <= low:  # a constant
        low, high = low - 0.5, low + 0.5
    return np.linspace(low, high, 41)


def _density(x: Any, draws: Draws, edges: np.ndarray) -> np.ndarray:
    weights = normalised(draws.log_weights)
    share, _ = np.histogram(x, edges, weights=weights)
    return share / np.diff(edges)


def weights(log_w: Any, ax: Any = None) -> Any:
    """The largest of the weights exp(log_w) (S,), in units of their mean, and the Pareto tail that
    is fitted to them.

    Both axes are logarithmic. A straight line is a power law, and the steeper it is the better.
    k-hat is in the title.
    """
    fit = diagnostics.psis(log_w)
    ax = _axes(ax)
    log_w = np.asarray(log_w)
    broken = np.isnan(log_w) | (log_w == np.inf)
    log_w = np.where(broken, -np.inf, log_w)
    if np.max(log_w) == -np.inf:
        raise ValueError("`weights`: expected log weights of which some are finite; got none")
    num = max(diagnostics.tail_size(log_w.size), 1)
    above = (np.arange(num, 0, -1) - 0.5) / log_w.size
    log_raw = np.sort(log_w)[-num:] - fit.log_evidence
    log_smoothed = np.sort(fit.log_weights)[-num:] + math.log(log_w.size)
    raw = np.exp(log_raw)
    ax.loglog(raw, above, "o", color=_GREY, markersize=4, label="weights")
    ax.loglog(np.exp(log_smoothed), above, color=_BLUE, label="Pareto fit, to the largest")
    # Within one decade only the minor ticks have room for numbers.
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}" if raw[-1] < 10 * raw[0] else "")
    _title_khat(ax, fit, log_w.size)
    ax.set(xlabel="weight / mean weight", ylabel="fraction of draws above")
    ax.legend(frameon=False, loc="lower left")
    return ax


def _title_khat(ax: Any, fit: PSIS, num_draws: int) -> None:
    threshold = diagnostics.khat_threshold(num_draws)
    good = fit.khat <= threshold
    verdict = "below" if good else "above"
    color = "black" if good else _ORANGE
    ax.set_title(f"k-hat = {fit.khat:.2f}, {verdict} {threshold:.2f}", color=color)


def _legend_above(ax: Any) -> None:
    corner = (-0.05, 1.0)
    ax.legend(frameon=False, fontsize="small", ncols=2, loc="lower left", bbox_to_anchor=corner)


def _limit_y(ax: Any, low: float, high: float, below: float = 0.15) -> float:
    """Show the range from low to high, with a margin of `below` times its height at the foot; the
    value where the foot is comes back.
    """
    height = (high - low) or 1.0
    foot, _ = ax.set_ylim(low - below * height, high + 0.15 * height)
    return foot


def _pyplot() -> ModuleType:
    try:
        import matplotlib.pyplot
    except ImportError:
        raise ImportError(
            "`minisvi.posterior.plots` needs Matplotlib: pip install matplotlib"
        ) from None
    return matplotlib.pyplot


def _axes(ax: Any) -> Any:
    """The axes `ax`, or new ones, in the style of all the pictures."""
    if ax is None:
        _, ax = _pyplot().subplots(figsize=(6, 3.6), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    ax.ticklabel_format(useOffset=False)  # -1603.2, and not 0.8 with "-1.604e3" in a corner
    return ax


def _panels(num: int) -> Any:
    """Axes of `num` panels on a new figure, flat, with three in a row."""
    columns = min(num, 3)
    rows = -(-num // columns)
    size = (2.6 * columns, 2.1 * rows)
    _, axes = _pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    flat = axes.ravel()
    for spare in flat[num:]:
        spare.remove()
    return flat[:num]
