"""Why a fit failed, in words: which term, which latent, which gradient, which data is not finite."""

from typing import Any

import jax
import jax.numpy as jnp

from minisvi.data.batches import Chunks
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools import checks, finite_data


def explain(svi: Any, state: Any, data: tuple[Any, ...]) -> str:
    """When the steps of `svi` failed, and what is not finite at the guide's next draw."""
    _, step_key = jax.random.split(state.key)
    batch, _ = svi.batches(jnp.maximum(state.step - 1, 0), data)
    whole = (
        batch if isinstance(svi.batches, Chunks) else data
    )  # of a stream there is no more than the batch
    u, _ = svi.guide.distribution(state.params, *batch).sample_and_log_prob(seed=step_key)
    when = "from the start" if state.step == state.num_skipped else f"up to step {int(state.step)}"
    return (
        f"the ELBO or the parameters were not finite on {int(state.num_failed)} steps in a row, {when}. "
        f"At the guide's next draw: {_at(svi.target, u, batch, whole)}"
    )


def _at(model: Model, u: Any, batch: tuple[Any, ...], data: tuple[Any, ...]) -> str:
    theta, log_det = trees.constrain(model.latents, u)
    grad = jax.tree.map(_zero_if_discrete, jax.grad(model.log_density, allow_int=True)(u, *batch))
    terms = {"log|det J|": log_det} | model.terms(theta, *batch)
    lines = [
        *(_non_finite(name, term) for name, term in terms.items()),
        *_each(theta, "latent {}"),
        *_each(grad, "gradient for {}"),
        *finite_data.non_finite_data(data),
    ]
    return "; ".join(filter(None, lines)) or "all terms are finite at this point"


def _each(tree: Any, name: str) -> list[str]:
    leaves = zip(checks.leaf_names(tree), jax.tree.leaves(tree), strict=True)
    return [_non_finite(name.format(path), leaf) for path, leaf in leaves]


def _zero_if_discrete(grad: Any) -> Any:
    return 0.0 if grad.dtype == jax.dtypes.float0 else grad


def _non_finite(name: str, leaf: Any) -> str:
    bad = int(jnp.sum(~jnp.isfinite(leaf)))
    values = "" if jnp.ndim(leaf) else f" ({leaf})"
    return f"{name}: {bad} of {jnp.size(leaf)} values not finite{values}" if bad else ""
