"""Draws for ArviZ, whose summaries, plots and model comparison then serve a variational fit as they
serve MCMC.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array

from minisvi.model.model import Model
from minisvi.posterior.draws import Draws
from minisvi.tools import checks, inputs
from minisvi.tools.batching import in_batches


def to_arviz(draws: Draws, model: Model | None = None, *data: Any, log_weights: Any = None) -> Any:
    """An xarray DataTree of S draws, as one chain, with latents named by their dotted path; a "/"
    in it, which a DataTree does not allow, becomes a dot too.

    **Arguments**

    - `draws`: `posterior.draws(key, S)`, or reweighted ones as `draws.resample(key, S)`: ArviZ
      knows no weights.
    - `model`, `data`: with them the tree gets `sample_stats["lp"]`, log p(theta, D) (S,) in nats,
      and `observed_data`, the arrays `data_0`, `data_1`, ... in their order (`data_0.x` if the
      first is a dict with an x); and, if the model has one term per row, `log_likelihood` (S, N),
      which is what `arviz_stats.loo` and `compare` need.

    - `log_weights`: the importance weights that the draws had before they were resampled, (S,), for
      `sample_stats["log_weight"]`; `Fit.to_arviz` gives them.

    ImportError without arviz-base; ValueError for unequal weights, and for latents or data that
    share a name.
    """
    try:
        import arviz_base
    except ImportError:
        raise ImportError("`to_arviz` needs arviz-base: pip install arviz-base") from None
    # Written so that weights of NaN fail too.
    if not np.ptp(np.asarray(draws.log_weights)) == 0:
        raise ValueError(
            "`to_arviz`: expected draws of equal weight; got unequal weights: take draws.resample(key, n)"
        )
    groups, stats = {"posterior": _as_chain(draws.theta)}, {}
    if log_weights is not None:
        stats["log_weight"] = log_weights
    if model is not None:
        data = inputs.arrays(data)
        terms = jax.device_get(_terms(model, draws, data))
        lp = sum(term.reshape(term.shape[0], -1).sum(axis=1) for term in terms.values())
        stats["lp"] = lp
        if "log_likelihood" in terms and model.per_row:
            groups["log_likelihood"] = _as_chain({"log_likelihood": terms["log_likelihood"]})
        arrays = {f"data_{name}": np.asarray(x) for name, x in _named(data, "data").items()}
        groups |= {"observed_data": arrays} if arrays else {}
    groups |= {"sample_stats": _as_chain(stats)} if stats else {}
    return arviz_base.from_dict(groups, attrs={"/": {"inference_library": "minisvi"}})


def _as_chain(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf)[None] for name, leaf in _named(tree, "latents").items()}


def _named(tree: Any, what: str) -> dict[str, Any]:
    """By their dotted path without a slash; ValueError if two have the same one."""
    named = checks.named_leaves(tree, what=what)
    names = [name.replace("/", ".") for name in named]
    if len(set(names)) < len(names):
        raise ValueError(f"{what}: expected names that differ when each / is a dot; got {[*named]}")
    return dict(zip(names, named.values(), strict=True))


@partial(jax.jit, static_argnames="model")
def _terms(model: Model, draws: Draws, data: tuple[Any, ...]) -> dict[str, Array]:
    return in_batches(lambda draw: model.terms(draw.theta, *data), draws, 50)
