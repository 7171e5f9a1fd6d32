"""What to do next, where an answer is not good: what the weights lack, and the advice that follows.

It is read off the largest weights: a q that lacks part of the posterior has them there.
"""

from typing import NamedTuple

import numpy as np

from minisvi.auto.verdict import HIGH_ESS, Verdict
from minisvi.model.at_rows import ravel_rows
from minisvi.model.bijectors import Exp
from minisvi.model.model import Model
from minisvi.posterior.moments import MAX_KHAT, Moment
from minisvi.tools.names import entry_name, named_leaves
from minisvi.tools.types import Draw

_SHARE = 0.01  # of the draws, those with the largest weights
_FAR = 1.0  # sds, from where a mean is called far
_WIDE = 3.0  # mean square in sds, from where draws are called far out
_MOST_NAMED = 3
BLACKJAX = "or go on by NUTS: positions, mass_matrix = fit.to_blackjax(key, num_chains)"


class Lack(NamedTuple):
    """Where the largest weights are: the latent `name`, its dotted path `latent`, and the mean of
    its u in sds.
    """

    name: str
    latent: str
    mean: float
    mean_square: float


def advise(
    model: Model, u: Draw, log_w: np.ndarray, moments: list[Moment], verdict: Verdict
) -> tuple[str, ...]:
    """The worst entries, one per latent; where the largest weights are; and what that asks for.

    u (S, ...) are draws and `log_w` (S,) their log weights, to which the moments of theta and the
    `verdict` belong.
    """
    lines = []
    of_latents: dict[str, Moment] = {}
    for moment in sorted(moments, key=lambda moment: moment.error, reverse=True):
        of_latents.setdefault(moment.latent, moment)
    worst = [f"`{moment.entry}` ({moment.error:.2g} sd)" for moment in of_latents.values()]
    if worst:
        lines.append("worst: " + ", ".join(worst[:_MOST_NAMED]))
    if verdict.misses_a_mode():
        lines.append("the posterior has several modes: compare fits with a `start` at each")
    elif (lack := where_it_lacks(u, log_w)) is not None:
        lines += _of(model, lack)
    heavy = [f"`{moment.latent}`" for moment in moments if moment.khat >= MAX_KHAT]
    if heavy and verdict.ess >= HIGH_ESS:  # or else it is the weights that are heavy
        names = ", ".join(dict.fromkeys(heavy))
        lines.append(f"of {names} give quantiles, or a prior with lighter tails: NUTS has them too")
    return (*lines, BLACKJAX)


def where_it_lacks(u: Draw, log_w: np.ndarray) -> Lack | None:
    """The entry of u in which the draws of the largest weights are farthest from the others, or
    None if they are everywhere.
    """
    rows = ravel_rows(u, len(log_w))
    usable = np.isfinite(log_w)
    if not rows.shape[1] or usable.sum() < 1 / _SHARE:
        return None
    rows, log_w = rows[usable], log_w[usable]
    num = max(int(_SHARE * len(rows)), 1)
    top = np.argpartition(log_w, -num)[-num:]
    sd = np.std(rows, axis=0)
    z = (rows[top] - np.mean(rows, axis=0)) / np.where(sd == 0, 1.0, sd)
    mean, mean_square = np.mean(z, axis=0), np.mean(z**2, axis=0)
    place = int(np.argmax(mean_square))
    if abs(mean[place]) < _FAR and mean_square[place] < _WIDE:
        return None
    name, latent = _entries(u)[place]
    return Lack(name, latent, float(mean[place]), float(mean_square[place]))


def _entries(u: Draw) -> list[tuple[str, str]]:
    """The name of each entry of u, and that of its latent."""
    found = []
    for latent, leaf in named_leaves(u).items():
        found += [(entry_name(latent, index), latent) for index in np.ndindex(leaf.shape[1:])]
    return found


def _of(model: Model, lack: Lack) -> list[str]:
    if abs(lack.mean) < _FAR:
        return [
            f"the largest weights are far out on both sides of `{lack.name}`: q lacks its tails"
        ]
    side = "low" if lack.mean < 0 else "high"
    lines = [f"the largest weights are where `{lack.name}` is {side} ({lack.mean:+.1f} sd of u)"]
    support = named_leaves(model.latents)[lack.latent]
    if side == "low" and isinstance(support.bijector, Exp):
        lines.append(
            f"if `{lack.latent}` is the scale of a group, write the group as loc + scale * z with "
            "z ~ N(0, 1)"
        )
    return lines
