"""KL(q_i || p_i) in closed form, latent by latent, for the parts of a guide and the priors of a
model that have one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import is_distribution
from minisvi.model import bijectors, trees
from minisvi.model.model import Model


def sampled_minus_closed(q: Any, model: Model, u: Any, weight: Any) -> Array:
    """sum_i (log q_i(u_i) - log p_i(theta_i)) - KL(q_i || p_i) over the latents whose KL is closed,
    given the others' draw.

    Its mean is zero: added to log w it puts the closed KL in the sampled one's place. Only latents
    that T leaves as they are count, since q_i and p_i have to be densities of the same variable.
    ValueError if the model has no `prior`.
    """
    if model.prior is None:
        raise ValueError(
            "closed_form_kl needs a factored model with prior distributions: give `prior`, not `log_prior`"
        )
    parts, priors = _marginals(q, u), model.priors(model.constrain(u))
    leaves = jax.tree_util.tree_leaves_with_path(u)
    terms = [
        trees.weigh(support, _terms(parts[path], prior, leaf), weight)
        for (path, leaf), support, prior in zip(
            leaves, jax.tree.leaves(model.latents), priors.values(), strict=True
        )
        if path in parts and isinstance(support.bijector, bijectors.Identity) and prior is not None
    ]
    return jnp.asarray(sum(terms, 0.0))


def _marginals(q: Any, u: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """The distributions that q is a product of, by their path; conditional ones given the draw u."""
    if hasattr(q, "resolved"):
        q = q.resolved(u)
    parts = getattr(q, "parts", None)
    if parts is None:
        return {path: q}
    found: dict[tuple[Any, ...], Any] = {}
    structure: Any = jax.tree.structure(parts, is_leaf=is_distribution)
    named = jax.tree_util.tree_leaves_with_path(parts, is_leaf=is_distribution)
    for (below, part), subtree in zip(named, structure.flatten_up_to(u), strict=True):
        found |= _marginals(part, subtree, path + below)
    return found


def _terms(q: Any, p: Any, u: Array) -> Array:
    try:
        divergence = q.kl_divergence(p)
    except (AttributeError, NotImplementedError):
        return jnp.zeros(jnp.shape(u)[:1])
    if divergence.shape != jnp.broadcast_shapes(
        q.batch_shape
    ):  # a prior of another shape than the latent
        return jnp.zeros(jnp.shape(u)[:1])
    return q.log_prob(u) - p.log_prob(u) - divergence
