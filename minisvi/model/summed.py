"""Finite latents summed out of a model exactly.

There is no enumeration machinery: the density is mapped over the latents' values by `vmap`, and
summed by `logsumexp`.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.model.supports import Support
from minisvi.tools.names import named_leaves
from minisvi.tools.record import Record
from minisvi.tools.types import Data, Draw

MAX_STATES = 4096


def sum_out(model: Model, *names: str) -> Model:
    """The model without its finite latents `names`:

        log p(theta, D) = logsumexp_z log p(theta, z, D)

    `names` are keys of `model.latents`, a dict.

    Local latents are summed row by row, n values for each row, where the rows' terms say all about
    them:

        log p(D_i | theta) = logsumexp_z [log p(D_i | theta, z) + log p(z | theta)]

    Here p(z) is from `prior`, or inside `log_likelihood`. The model stays factored, and priors of
    other local latents, which may depend on z, move into its likelihood. Latents that are not local
    are summed jointly over all their values, at most 4,096, and the model becomes a log joint.

    ValueError for a name that is no finite latent, for too many values, for local and other latents
    at once, and for local ones of a model that is not factored.
    """
    _check(model, names)
    kept = _without(model, names)
    if not _are_local(model, names):
        return Model(kept, log_joint=_JointSum(model, names))
    likelihood = _RowSum(model, names)
    if model.prior is None:
        return Model(kept, log_prior=model.log_prior, log_likelihood=likelihood)
    return Model(kept, prior=_GlobalPriors(model, names), log_likelihood=likelihood)


def log_conditional(
    model: Model, names: str | tuple[str, ...], theta: Draw, *data: Any
) -> tuple[dict[str, Array], Array]:
    """log p(z | theta, D) of what `sum_out` left out, at the other latents' theta.

    `names` is one name, or a tuple of them. Returns the S values of z, a dict of arrays with S in
    front, and their log probabilities, (S,), or (B, S) for local latents.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    _check(model, names)
    summed = _RowSum if _are_local(model, names) else _JointSum
    terms = summed(model, names).terms(theta, *data)
    log_p = jax.nn.log_softmax(terms, axis=0)
    return _values(model, names), log_p.T


def _check(model: Model, names: tuple[str, ...]) -> None:
    """ValueError unless these latents can be summed out of the model together."""
    latents = model.latents
    given = list(names)
    if not isinstance(latents, dict) or not names:
        raise ValueError(f"sum_out: expected names of latents in a dict; got {given} of {latents}")
    finite = [name for name, support in latents.items() if _is_finite(support)]
    if any(name not in finite for name in names):
        raise ValueError(f"sum_out: expected some of the finite latents {finite}; got {given}")
    if len({latents[name].local for name in names}) > 1:
        raise ValueError(
            f"sum_out: expected latents that are all local, or none; got {given}: sum in two calls"
        )
    if _are_local(model, names) and model.log_likelihood is None:
        raise ValueError(
            "sum_out of local latents needs a factored model, with one likelihood term per row"
        )
    count = math.prod(_num_states(latents[name]) for name in names)
    if count > MAX_STATES:
        raise ValueError(
            f"sum_out: {given} have {count} joint values: expected at most {MAX_STATES}"
        )


def _is_finite(node: Any) -> bool:
    """True for the support of a finite latent. A key of the dict may also hold a subtree."""
    return getattr(node, "num_values", None) is not None


def _are_local(model: Model, names: tuple[str, ...]) -> bool:
    return model.latents[names[0]].local


def _without(model: Model, names: tuple[str, ...]) -> dict[str, Any]:
    """The latents that are kept."""
    return {name: support for name, support in model.latents.items() if name not in names}


def _num_states(support: Support) -> int:
    """How many values a finite latent has, all of its coordinates together."""
    assert support.num_values is not None
    return support.num_values ** math.prod(support.shape)


def _values(model: Model, names: tuple[str, ...]) -> dict[str, Array]:
    """All joint values of the latents, each array with a leading axis S."""
    supports = {name: model.latents[name] for name in names}
    radices: list[int] = []
    for support in supports.values():
        radices += [support.num_values] * math.prod(support.shape)
    # A row for each joint value, a column for each coordinate of all latents.
    table = np.indices(radices).reshape(len(radices), -1).T
    values = {}
    start = 0
    for name, support in supports.items():
        end = start + math.prod(support.shape)
        columns = table[:, start:end].reshape(-1, *support.shape)
        values[name] = jnp.asarray(columns, jnp.int32)
        start = end
    return values


# Records, and not closures, so that equal models summed out alike are equal and share one
# compilation.


@dataclass(frozen=True, eq=False)
class _Sum(Record):
    """logsumexp of `terms`, each the log density at one joint value of the latents `names`."""

    model: Model
    names: tuple[str, ...]

    def __call__(self, theta: Draw, *data: Any) -> Array:
        return jax.nn.logsumexp(self.terms(theta, *data), axis=0)

    def terms(self, theta: Draw, *data: Any) -> Array:
        raise NotImplementedError


class _JointSum(_Sum):
    """log p(theta, D)."""

    def terms(self, theta: Draw, *data: Any) -> Array:
        """log p(theta, z, D), (S,)."""

        def joint(z: dict[str, Array]) -> Array:
            return self.model.joint({**theta, **z}, *data)

        return jax.vmap(joint)(_values(self.model, self.names))


class _RowSum(_Sum):
    """log p(D_i | theta), and log p of what local latents are left, (N,)."""

    def terms(self, theta: Draw, *data: Any) -> Array:
        """log p(D_i, z_i | theta), (S, N), where all rows have the same z."""
        num = _num_rows(data)

        def rows(z: dict[str, Array]) -> Array:
            of_rows = {name: jnp.broadcast_to(z[name], (num, *z[name].shape)) for name in z}
            whole = {**theta, **of_rows}
            log_likelihood = self.model.rows(whole, *data)
            return log_likelihood + self._log_priors(whole, num)

        return jax.vmap(rows)(_values(self.model, self.names))

    def _log_priors(self, theta: Draw, num: int) -> Array:
        """log p of all local latents, since those that are kept may depend on z; (N,)."""
        if self.model.prior is None:
            return jnp.zeros(num)
        priors = self.model.priors(theta)
        values = named_leaves(theta)
        terms = []
        for name in trees.local_names(self.model.latents):
            if priors[name] is not None:
                log_p = priors[name].log_prob(values[name])
                terms.append(jnp.reshape(log_p, (num, -1)).sum(-1))
        return sum(terms, jnp.zeros(num))


def _num_rows(data: Data) -> int:
    shape = trees.row_shape(data)
    if shape is None:
        raise ValueError(
            "sum_out of local latents: expected data, whose leading axis is the rows; got none"
        )
    return shape[0]


@dataclass(frozen=True, eq=False)
class _GlobalPriors(Record):
    """The priors of the kept latents that are not local; those of local ones are in the rows."""

    model: Model
    names: tuple[str, ...]

    def __call__(self, theta: Draw) -> Any:
        # The priors kept here are of globals, which depend on no row's z: any value will do.
        any_value = {}
        for name in self.names:
            any_value[name] = jnp.zeros((1, *self.model.latents[name].shape), jnp.int32)
        priors = self.model.priors({**theta, **any_value})
        kept = _without(self.model, self.names)
        leaves = []
        for path, support in named_leaves(kept).items():
            leaves.append(None if support.local else priors[path])
        return jax.tree.unflatten(jax.tree.structure(kept), leaves)
