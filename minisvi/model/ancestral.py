"""Draws from a prior that is given latent by latent.

Each latent is drawn after those that its distribution depends on.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.interpreters import partial_eval

from minisvi.model import trees
from minisvi.model.supports import Support
from minisvi.tools.names import named_leaves
from minisvi.tools.record import Record
from minisvi.tools.types import Draw, Latents

if TYPE_CHECKING:  # the model itself imports this file
    from minisvi.model.model import Model

Priors = Callable[[Draw], dict[str, Any]]
"""A function of theta that gives the latents' priors by dotted path, such as `Model.priors`."""


def draw(prior: Any, key: Array, shape: tuple[int, ...]) -> Array:
    """A draw of this shape from a Distrax, TFP or NumPyro distribution.

    The distribution may itself have the last axes of the shape. ValueError if its own shape is not
    the end of `shape`, or if it cannot be drawn from.
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


def sample_all(model: "Model", latents: Latents, keys: Array) -> Draw:
    """A draw of theta for each key, stacked; `latents` are those of a batch (`trees.with_rows`).

    ValueError names the latent whose prior cannot be used, and latents that depend on each other in
    a circle.
    """
    return _sample_all(model, _Static(latents), keys)


@dataclass(frozen=True, eq=False)
class _Static(Record):
    """A tree of supports, which may be a dict, as a static argument."""

    latents: Latents


@partial(jax.jit, static_argnames=("model", "static"))
def _sample_all(model: "Model", static: _Static, keys: Array) -> Draw:
    latents = static.latents
    groups = levels(latents, model.priors)
    return jax.vmap(lambda key: sample(key, latents, model.priors, groups))(keys)


def levels(latents: Latents, priors: Priors) -> list[list[str]]:
    """The latents' names in groups, each of which depends on the groups before it alone.

    ValueError if there is a circle.
    """
    waiting = _parents(latents, priors)
    known: set[str] = set()
    groups: list[list[str]] = []
    while waiting:
        group = [name for name, parents in waiting.items() if parents <= known]
        if not group:
            circle = {name: sorted(parents) for name, parents in waiting.items()}
            raise ValueError(
                f"`prior`: expected no circle; got latents that depend on each other: {circle}"
            )
        groups.append(group)
        known.update(group)
        for name in group:
            del waiting[name]
    return groups


def _parents(latents: Latents, priors: Priors) -> dict[str, set[str]]:
    """The latents that the prior of each depends on.

    They are read off the program that computes the prior's log density.
    """
    theta = trees.at_zero(latents)
    values = named_leaves(theta)

    def terms(theta: Draw) -> list[Array]:
        # At a value that is no function of theta, so that only what the distribution depends on
        # counts.
        return [jnp.sum(prior.log_prob(values[name])) for name, prior in priors(theta).items()]

    jaxpr = jax.make_jaxpr(terms)(theta).jaxpr
    names = list(values)
    parents = {}
    for name in names:
        is_wanted = [name == other for other in names]
        _, is_used = partial_eval.dce_jaxpr(jaxpr, is_wanted)
        parents[name] = {other for other, used in zip(names, is_used) if used}
    return parents


def sample(key: Array, latents: Latents, priors: Priors, groups: list[list[str]]) -> Draw:
    """One draw of theta, the latents of a group at a time.

    ValueError names the latent whose prior cannot be used.
    """
    treedef = jax.tree.structure(latents)
    supports = named_leaves(latents)
    keys = dict(zip(supports, jax.random.split(key, len(supports))))
    values = named_leaves(trees.at_zero(latents))  # placeholders for what is not drawn yet
    for group in groups:
        theta = jax.tree.unflatten(treedef, values.values())
        given = priors(theta)
        for name in group:
            values[name] = _draw_named(name, given[name], keys[name], supports[name])
    return jax.tree.unflatten(treedef, values.values())


def _draw_named(name: str, prior: Any, key: Array, support: Support) -> Array:
    try:
        value = draw(prior, key, support.shape)
    except ValueError as error:
        raise ValueError(f"the prior of latent `{name}`: {error}") from error
    return jnp.asarray(value, support.value_dtype)
