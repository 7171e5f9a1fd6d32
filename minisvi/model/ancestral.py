"""Draws from a prior that is given latent by latent: each after those that its distribution depends
on.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import partial_eval

from minisvi.model import trees
from minisvi.tools.names import named_leaves

Priors = Callable[[Any], dict[str, Any]]


def draw(prior: Any, key: Array, shape: tuple[int, ...]) -> Array:
    """A draw of this shape, of which the distribution may have the last axes, from a Distrax, TFP
    or NumPyro one.

    ValueError if its own shape is not the end of `shape`, or it cannot be drawn from.
    """
    own = (*getattr(prior, "batch_shape", ()), *getattr(prior, "event_shape", ()))
    num_more = len(shape) - len(own)
    if num_more < 0 or shape[num_more:] != own:
        raise ValueError(f"expected a prior whose shape is the end of {shape}; got {own}")
    more = shape[:num_more]
    try:
        if "seed" in inspect.signature(prior.sample).parameters:
            return prior.sample(seed=key, sample_shape=more)
        return prior.sample(key, sample_shape=more)  # NumPyro's name for it is another
    except NotImplementedError:
        raise ValueError(f"{type(prior).__name__} cannot be drawn from") from None


def levels(latents: Any, priors: Priors) -> list[list[str]]:
    """The latents' names in groups, each of which depends on those before it alone. ValueError if
    there is a circle.
    """
    depends = _parents(latents, priors)
    known: list[str] = []
    groups: list[list[str]] = []
    while len(known) < len(depends):
        group = [
            name for name, parents in depends.items() if name not in known and parents <= set(known)
        ]
        if not group:
            circle = {
                name: sorted(parents) for name, parents in depends.items() if name not in known
            }
            raise ValueError(
                f"`prior`: expected no circle; got latents that depend on each other: {circle}"
            )
        groups.append(group)
        known += group
    return groups


def _parents(latents: Any, priors: Priors) -> dict[str, set[str]]:
    """The latents that the prior of each depends on, read off the program that computes its log
    density.
    """
    theta = trees.at_zero(latents)
    values = named_leaves(theta)

    def terms(theta: Any) -> list[Array]:
        # At a value that is no function of theta, so that only what the distribution depends on
        # counts.
        return [jnp.sum(prior.log_prob(values[name])) for name, prior in priors(theta).items()]

    jaxpr = jax.make_jaxpr(terms)(theta).jaxpr
    parents = {}
    for place, name in enumerate(values):
        wanted = [place == other for other in range(len(values))]
        _, used = partial_eval.dce_jaxpr(jaxpr, wanted)
        parents[name] = {other for other, is_used in zip(values, used) if is_used}
    return parents


def sample(key: Array, latents: Any, priors: Priors, groups: list[list[str]]) -> Any:
    """One draw of theta, the latents of a group at a time; ValueError names the latent whose prior
    is of no use.
    """
    theta = trees.at_zero(latents)  # placeholders for what is not drawn yet
    names, treedef = list(named_leaves(latents)), jax.tree.structure(latents)
    keys = dict(zip(names, jax.random.split(key, len(names))))
    supports, values = named_leaves(latents), named_leaves(theta)
    for group in groups:
        given = priors(jax.tree.unflatten(treedef, values.values()))
        values |= {
            name: _draw_named(name, given[name], keys[name], supports[name]) for name in group
        }
    return jax.tree.unflatten(treedef, values.values())


def _draw_named(name: str, prior: Any, key: Array, support: Any) -> Array:
    try:
        return jnp.asarray(draw(prior, key, support.shape), support.value_dtype)
    except ValueError as error:
        raise ValueError(f"the prior of latent `{name}`: {error}") from error
