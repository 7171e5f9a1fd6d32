"""Finite latents summed out of a model exactly, by vmap over their values and logsumexp: no
enumeration machinery.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minisvi.model.model import Model
from minisvi.tools.names import named_leaves
from minisvi.tools.record import Record

MAX_STATES = 4096


def sum_out(model: Model, *names: str) -> Model:
    """The model without its finite latents `names`: log p(theta, D) = logsumexp_z log p(theta, z,
    D).

    `names` are keys of `model.latents`, a dict. Local ones are summed row by row, n values for each
    row, where the rows' terms say all about them: log p(D_i | theta) = logsumexp_z [log p(D_i |
    theta, z) + log p(z | theta)], with p(z) from `prior`, or inside `log_likelihood`; the model
    stays factored (priors of other local latents, which may depend on z, move into its likelihood).
    Others are summed jointly over all their values, at most 4,096, and the model becomes a log
    joint.

    ValueError for a name that is no finite latent, for too many values, for local and other latents
    at once, and for local ones of a model that is not factored.
    """
    kept = {name: support for name, support in _supports(model, names).items() if name not in names}
    if not model.latents[names[0]].local:
        return Model(kept, log_joint=_JointSum(model, names))
    rest = {"prior": _Without(model, names)} if model.prior else {"log_prior": model.log_prior}
    return Model(kept, log_likelihood=_RowSum(model, names), **rest)


def log_conditional(
    model: Model, names: str | tuple[str, ...], theta: Any, *data: Any
) -> tuple[Any, Array]:
    """log p(z | theta, D) of what `sum_out` left out, at the other latents' theta; one name, or a
    tuple of them.

    Returns the S values of z (a dict of arrays, S in front) and their log probabilities, (S,), or
    (B, S) if local.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    _supports(model, names)
    sums = _RowSum if model.latents[names[0]].local else _JointSum
    terms = sums(model, names).terms(theta, *data)
    return _values(model, names), jax.nn.log_softmax(terms, axis=0).T


def _supports(model: Model, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(model.latents, dict) or not names:
        raise ValueError(
            f"sum_out: expected names of latents in a dict; got {list(names)} of {model.latents}"
        )
    finite = [
        name for name, s in model.latents.items() if getattr(s, "num_values", None) is not None
    ]
    if any(name not in finite for name in names):
        raise ValueError(
            f"sum_out: expected some of the finite latents {finite}; got {list(names)}"
        )
    if len({model.latents[name].local for name in names}) > 1:
        raise ValueError(
            f"sum_out: expected latents that are all local, or none; got {list(names)}: sum in two calls"
        )
    if model.latents[names[0]].local and model.log_likelihood is None:
        raise ValueError(
            "sum_out of local latents needs a factored model, with one likelihood term per row"
        )
    count = math.prod(
        model.latents[n].num_values ** math.prod(model.latents[n].shape) for n in names
    )
    if count > MAX_STATES:
        raise ValueError(
            f"sum_out: {list(names)} have {count} joint values: expected at most {MAX_STATES}"
        )
    return model.latents


def _values(model: Model, names: tuple[str, ...]) -> dict[str, Array]:
    """All joint values of the latents, each array with a leading axis S."""
    sizes = {name: math.prod(model.latents[name].shape) for name in names}
    radices = [model.latents[name].num_values for name in names for _ in range(sizes[name])]
    grid = np.indices(radices).reshape(len(radices), -1).T
    ends = np.cumsum(list(sizes.values()))
    blocks = {name: grid[:, end - sizes[name] : end] for name, end in zip(names, ends)}
    return {
        n: jnp.asarray(b.reshape(-1, *model.latents[n].shape), jnp.int32) for n, b in blocks.items()
    }


# Records, and not closures, so that equal models summed out alike are equal and share one
# compilation.


@dataclass(frozen=True, eq=False)
class _Sum(Record):
    model: Model
    names: tuple[str, ...]

    def __call__(self, theta: Any, *data: Any) -> Array:
        return jax.nn.logsumexp(self.terms(theta, *data), axis=0)

    def terms(self, theta: Any, *data: Any) -> Array:
        raise NotImplementedError


class _JointSum(_Sum):
    def terms(self, theta: Any, *data: Any) -> Array:
        return jax.vmap(lambda z: self.model.joint({**theta, **z}, *data))(
            _values(self.model, self.names)
        )


class _RowSum(_Sum):
    def terms(self, theta: Any, *data: Any) -> Array:
        model, leaves = self.model, jax.tree.leaves(data)
        if not leaves:
            raise ValueError(
                "sum_out of local latents: expected data, whose leading axis is the rows; got none"
            )
        num = jnp.shape(leaves[0])[0]

        def rows(z: dict[str, Array]) -> Array:
            z = {name: jnp.broadcast_to(value, (num, *value.shape)) for name, value in z.items()}
            return model.rows({**theta, **z}, *data) + self._log_priors({**theta, **z}, num)

        return jax.vmap(rows)(_values(model, self.names))

    def _log_priors(self, theta: Any, num: int) -> Array:
        """Of all local latents, since those that are kept may depend on z; (num,)."""
        priors = {} if self.model.prior is None else self.model.priors(theta)
        values, supports = named_leaves(theta), named_leaves(self.model.latents)
        local = [
            name for name, prior in priors.items() if prior is not None and supports[name].local
        ]
        terms = [
            jnp.reshape(priors[name].log_prob(values[name]), (num, -1)).sum(-1) for name in local
        ]
        return sum(terms, jnp.zeros(num))


@dataclass(frozen=True, eq=False)
class _Without(Record):
    model: Model
    names: tuple[str, ...]

    def __call__(self, theta: Any) -> Any:
        # What is kept here is over globals, which depend on no row's z, so that any value will do.
        zeros = {
            name: jnp.zeros((1, *self.model.latents[name].shape), jnp.int32) for name in self.names
        }
        priors = self.model.priors({**theta, **zeros})
        kept = {
            name: support for name, support in self.model.latents.items() if name not in self.names
        }
        leaves = [
            None if support.local else priors[path] for path, support in named_leaves(kept).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(kept), leaves)
