"""Draws for ArviZ, whose summaries, plots and model comparison then serve a variational fit as they
serve MCMC.
"""

from functools import partial
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax import Array

from minisvi.model.model import Model
from minisvi.posterior.draws import Draws
from minisvi.tools import checks, inputs
from minisvi.tools.batching import in_batches
from minisvi.tools.types import Data

_BATCH = 50  # draws at a time, to bound the memory


def to_arviz(draws: Draws, model: Model | None = None, *data: Any, log_weights: Any = None) -> Any:
    """An xarray DataTree of S draws, as one chain. Latents are named by their dotted path; a "/" in
    it, which a DataTree does not allow, becomes a dot too.

    **Arguments**

    - `draws`: `posterior.draws(key, S)`, or reweighted ones as `draws.resample(key, S)`: ArviZ
      knows no weights.
    - `model`, `data`: with them the tree gets `sample_stats["lp"]`, log p(theta, D) (S,) in nats,
      and `observed_data`, the arrays `data_0`, `data_1`, ... in their order (`data_0.x` if the
      first is a dict with an x). If the model has one term per row it also gets `log_likelihood`
      (S, N), which is what `arviz_stats.loo` and `compare` need.
    - `log_weights`: the importance weights that the draws had before they were resampled, (S,), for
      `sample_stats["log_weight"]`; `Fit.to_arviz` gives them.

    ImportError without arviz-base; ValueError for unequal weights, and for latents or data that
    share a name.
    """
    arviz_base = _arviz_base()
    # Written so that weights of NaN fail too.
    if not np.ptp(np.asarray(draws.log_weights)) == 0:
        raise ValueError(
            "`to_arviz`: expected draws of equal weight; "
            "got unequal weights: take draws.resample(key, n)"
        )
    groups = {"posterior": _as_chain(draws.theta)}
    stats = {}
    if log_weights is not None:
        stats["log_weight"] = log_weights
    if model is not None:
        data = inputs.arrays(data)
        terms = jax.device_get(_terms(model, draws, data))
        stats["lp"] = _log_joint(terms)
        if "log_likelihood" in terms and model.per_row:
            groups["log_likelihood"] = _as_chain({"log_likelihood": terms["log_likelihood"]})
        if jax.tree.leaves(data):
            groups["observed_data"] = _observed(data)
    if stats:
        groups["sample_stats"] = _as_chain(stats)
    return arviz_base.from_dict(groups, attrs={"/": {"inference_library": "minisvi"}})


def _arviz_base() -> ModuleType:
    try:
        import arviz_base
    except ImportError:
        raise ImportError("`to_arviz` needs arviz-base: pip install arviz-base") from None
    return arviz_base


def _as_chain(tree: Any) -> dict[str, np.ndarray]:
    """The leaves by name, each with an axis of one chain in front of that of the draws."""
    named = _named(tree, "latents")
    return {name: np.asarray(leaf)[None] for name, leaf in named.items()}


def _observed(data: Data) -> dict[str, np.ndarray]:
    named = _named(data, "data")
    return {f"data_{name}": np.asarray(leaf) for name, leaf in named.items()}


def _named(tree: Any, what: str) -> dict[str, Any]:
    """The leaves by their dotted path without a slash; ValueError if two have the same one."""
    named = checks.named_leaves(tree, what=what)
    names = [name.replace("/", ".") for name in named]
    if len(set(names)) < len(names):
        raise ValueError(f"{what}: expected names that differ when each / is a dot; got {[*named]}")
    return dict(zip(names, named.values(), strict=True))


@partial(jax.jit, static_argnames="model")
def _terms(model: Model, draws: Draws, data: Data) -> dict[str, Array]:
    """The terms of log p(theta, D) by name, each with a leading axis of draws."""

    def terms_of(draw: Draws) -> dict[str, Array]:
        return model.terms(draw.theta, *data)

    return in_batches(terms_of, draws, _BATCH)


def _log_joint(terms: dict[str, np.ndarray]) -> Any:
    """log p(theta, D) of each draw, (S,): the sum of its terms, over their rows too."""
    by_draw = [term.reshape(len(term), -1) for term in terms.values()]
    return sum(rows.sum(axis=1) for rows in by_draw)
