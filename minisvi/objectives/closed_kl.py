"""KL(q_i || p_i) in closed form, latent by latent, for the parts of a guide and the priors of a
model that have one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import Distribution
from minisvi.guides.foreign import Foreign, adapted, is_distribution
from minisvi.model import bijectors, trees
from minisvi.model.model import Model
from minisvi.tools.types import Draw

Path = tuple[Any, ...]


def sampled_minus_closed(q: Distribution, model: Model, u: Draw, weight: Any) -> Array:
    """sum_i (log q_i(u_i) - log p_i(theta_i)) - KL(q_i || p_i) over the latents whose KL is closed,
    given the others' draw.

    Its mean is zero: added to log w it puts the closed KL in the sampled one's place. Only latents
    that T leaves as they are count, since q_i and p_i have to be densities of the same variable.
    ValueError if the model has no `prior`.
    """
    if model.prior is None:
        raise ValueError(
            "closed_form_kl needs a factored model with prior distributions: "
            "give `prior`, not `log_prior`"
        )
    parts = _parts(q, u)
    priors = model.priors(model.constrain(u))
    leaves = jax.tree_util.tree_leaves_with_path(u)
    supports = jax.tree.leaves(model.latents)
    total: Any = 0.0
    for (path, leaf), support, prior in zip(leaves, supports, priors.values(), strict=True):
        is_theta = isinstance(support.bijector, bijectors.Identity)
        if path in parts and is_theta and prior is not None:
            terms = _terms(parts[path], prior, leaf)
            total = total + trees.weigh(support, terms, weight)
    return jnp.asarray(total)


def _parts(q: Distribution, u: Draw, path: Path = ()) -> dict[Path, Distribution]:
    """The distributions that q is a product of by their path, given the draw u where some depend on
    others.
    """
    parts = q.parts_at(u)
    if parts is None:
        return {path: q}
    found: dict[Path, Distribution] = {}
    structure: Any = jax.tree.structure(parts, is_leaf=is_distribution)
    named = jax.tree_util.tree_leaves_with_path(parts, is_leaf=is_distribution)
    for (below, part), subtree in zip(named, structure.flatten_up_to(u), strict=True):
        found |= _parts(adapted(part), subtree, path + below)
    return found


def _terms(q: Distribution, p: Any, u: Array) -> Array:
    """log q(u) - log p(u) - KL(q || p), element by element; zero where the KL is not closed."""
    nothing = jnp.zeros(jnp.shape(u)[:1])
    if not isinstance(q, Foreign):
        return nothing
    try:
        divergence = q.q.kl_divergence(p)
    except (AttributeError, NotImplementedError):
        return nothing
    if divergence.shape != jnp.broadcast_shapes(q.q.batch_shape):
        return nothing  # the prior has another shape than the latent
    return q.q.log_prob(u) - p.log_prob(u) - divergence
