"""Why a run failed, in words: which term, latent, gradient or data are not finite."""

from typing import Any

import jax
import jax.numpy as jnp

from minisvi.data.batches import Chunks
from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools import finite_data
from minisvi.tools.names import leaf_names
from minisvi.tools.types import Data, Draw, Engine


def explain(svi: Engine, state: Any, data: Data) -> str:
    """When the steps of `svi` failed, and what is not finite at the guide's next draw."""
    _, step_key = jax.random.split(state.key)
    last_step = jnp.maximum(state.step - 1, 0)
    batch, _ = svi.batches(last_step, data)
    # Of a stream there is no more than the batch.
    whole = batch if isinstance(svi.batches, Chunks) else data
    u = svi.draw(step_key, state.params, *batch)
    from_the_start = state.step == state.num_skipped
    when = "from the start" if from_the_start else f"up to step {int(state.step)}"
    return (
        f"the ELBO or the parameters were not finite on {int(state.num_failed)} steps in a row, "
        f"{when}. At the guide's next draw: {_at(svi.target, u, batch, whole)}"
    )


def _at(model: Model, u: Draw, batch: Data, data: Data) -> str:
    """What is not finite at the draw u."""
    theta, log_det = trees.constrain(model.latents, u)
    grad = jax.grad(model.log_density, allow_int=True)(u, *batch)
    grad = jax.tree.map(_zero_if_discrete, grad)
    terms = {"log|det J|": log_det} | model.terms(theta, *batch)
    lines = [
        *(_non_finite(name, term) for name, term in terms.items()),
        *_each(theta, "latent {}"),
        *_each(grad, "gradient for {}"),
        *finite_data.non_finite_data(data),
    ]
    return "; ".join(filter(None, lines)) or "all terms are finite at this point"


def _each(tree: Any, name: str) -> list[str]:
    paths = leaf_names(tree)
    leaves = jax.tree.leaves(tree)
    return [_non_finite(name.format(path), leaf) for path, leaf in zip(paths, leaves, strict=True)]


def _zero_if_discrete(grad: Any) -> Any:
    return 0.0 if grad.dtype == jax.dtypes.float0 else grad


def _non_finite(name: str, leaf: Any) -> str:
    num_bad = int(jnp.sum(~jnp.isfinite(leaf)))
    if not num_bad:
        return ""
    value = "" if jnp.ndim(leaf) else f" ({leaf})"
    return f"{name}: {num_bad} of {jnp.size(leaf)} values not finite{value}"
