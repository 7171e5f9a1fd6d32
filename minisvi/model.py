"""log p(theta, D): the log joint, and the same density in unconstrained space.

A model is a function. `Model(latents, log_joint)` takes the whole log joint; the factored form, `log_prior(theta)` and
`log_likelihood(theta, *data)` with one term per row of data, is what minibatches and pointwise scores need.
"""

import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi import checks, trees
from minisvi.record import Record
from minisvi.supports import Support, real


@dataclass(frozen=True, eq=False)
class Model(Record):
    """A log joint density and its latents.

    **Arguments**

    - `latents`: any pytree of supports (dict, tuple, NamedTuple, dataclass); fixes names, shapes and constraints.
    - `log_joint(theta, *data)`: log p(theta, D), a scalar in nats, normalised or not. Or, in its place,
    - `log_prior(theta)`: log p(theta), a scalar, and
    - `log_likelihood(theta, *data)`: log p(D_i | theta), shape (N,), one term per row, rows independent given theta.

    Equal models (equal latents, the same function objects) share one compilation.
    """

    latents: Any
    log_joint: Callable[..., Array] | None = None
    log_prior: Callable[..., Array] | None = None
    log_likelihood: Callable[..., Array] | None = None

    def __post_init__(self) -> None:
        factored = self.log_prior is not None and self.log_likelihood is not None
        neither = self.log_prior is None and self.log_likelihood is None
        if not (factored if self.log_joint is None else neither):
            raise TypeError("Model: expected either `log_joint`, or both `log_prior` and `log_likelihood`")
        for name, support in checks.named_leaves(self.latents).items():
            if not isinstance(support, Support):
                raise TypeError(f"latent `{name}`: expected a support, such as minisvi.real(); got {support!r}")

    def log_density(self, u: Any, *data: Any, scale: Any = None) -> Array:
        """log p(T(u), D) + log|det J_T(u)|: a scalar in nats, the target density on unconstrained space.

        `scale` = N/B multiplies the likelihood of a minibatch of B of the N rows, which makes it unbiased for that of
        all rows (Hoffman et al. 2013, eq. 20). ValueError if it is given and the model is not factored.
        """
        theta, log_det = trees.constrain(self.latents, u)
        return self._log_joint(theta, data, scale) + log_det

    def _log_joint(self, theta: Any, data: tuple[Any, ...], scale: Any) -> Array:
        terms = self._terms(theta, data)
        if "log_joint" not in terms:
            log_likelihood = jnp.sum(terms["log_likelihood"])
            return terms["log_prior"] + (log_likelihood if scale is None else scale * log_likelihood)
        if scale is not None:
            raise ValueError("a minibatch needs a factored model: give `log_prior` and `log_likelihood`")
        return terms["log_joint"]

    def _terms(self, theta: Any, data: tuple[Any, ...]) -> dict[str, Array]:
        if self.log_prior is None or self.log_likelihood is None:
            assert self.log_joint is not None
            return {"log_joint": self.log_joint(theta, *data)}
        return {"log_prior": self.log_prior(theta), "log_likelihood": self.log_likelihood(theta, *data)}

    def constrain(self, u: Any) -> Any:
        """theta = T(u)."""
        return trees.constrain(self.latents, u)[0]

    def unconstrain(self, theta: Any) -> Any:
        """u = T^-1(theta); ValueError names the leaf that is misspelt, misshapen or outside its support."""
        return trees.unconstrain(self.latents, theta)

    def over(self, constrained: Any) -> "Model":
        """The same model with T the identity wherever `constrained`, a prefix tree of bools, is True.

        For guides with a part over theta itself: there log q is a density over theta, so no log-determinant is due.
        """
        if not any(jax.tree.leaves(constrained)):
            return self

        def identity(flag: bool, latents: Any) -> Any:
            return jax.tree.map(lambda s: real(s.shape, s.dtype), latents) if flag else latents

        return replace(self, latents=jax.tree.map(identity, constrained, self.latents))

    def check(self, *data: Any) -> None:
        """Raise on a static mistake, by shapes alone: nothing is computed or compiled.

        ValueError or TypeError if a term is not a float of the right shape, if the log joint asks for a latent that
        is not there, or if a (N,) array meets a (N, 1) one, which would silently become (N, N).
        """
        theta = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.float_dtype), self.latents)
        if self.log_joint is not None:
            self._check_term("log_joint", (), theta, *data)
            return
        self._check_term("log_prior", (), theta)
        leaves = jax.tree.leaves(data)
        rows = jnp.shape(leaves[0])[:1] if leaves else None
        self._check_term("log_likelihood", rows, theta, *data)

    def _check_term(self, name: str, shape: tuple[int, ...] | None, *args: Any) -> None:
        try:
            term = _eval_shape_without_outer_broadcast(name, getattr(self, name), *args)
        except (KeyError, AttributeError) as error:
            known = list(checks.named_leaves(self.latents))
            raise ValueError(f"`{name}` failed with {error!r}; the model's latents are {known}") from error
        what = "one term per row" if name == "log_likelihood" else "a scalar"
        if not isinstance(term, jax.ShapeDtypeStruct):
            raise TypeError(f"`{name}` must return {what}: expected an array; got {type(term).__name__}")
        shape = term.shape[:1] if shape is None else shape  # without data no one knows how many rows there are
        if term.shape != shape or not jnp.issubdtype(term.dtype, jnp.floating):
            raise ValueError(
                f"`{name}` must return {what}: expected float{list(shape)}; got {term.dtype}{list(term.shape)}"
            )

    def explain(self, u: Any, *data: Any) -> str:
        """What is not finite at u, in words: the terms of the log density, its gradient's leaves, the data."""
        theta, log_det = trees.constrain(self.latents, u)
        groups = {
            "": {"log|det J|": log_det} | self._terms(theta, data),
            "latent ": checks.named_leaves(theta),
            "gradient for ": checks.named_leaves(jax.grad(self.log_density)(u, *data)),
            "data": {f"[{name}]": leaf for name, leaf in checks.named_leaves(data).items()},
        }
        lines = [_non_finite(kind + name, leaf) for kind, group in groups.items() for name, leaf in group.items()]
        return "; ".join(filter(None, lines)) or "all terms are finite at this point"


def _non_finite(name: str, leaf: Any) -> str:
    bad = int(jnp.sum(~jnp.isfinite(leaf)))
    values = "" if jnp.ndim(leaf) else f" ({leaf})"
    return f"{name}: {bad} of {jnp.size(leaf)} values not finite{values}" if bad else ""


def _eval_shape_without_outer_broadcast(name: str, function: Callable[..., Any], *args: Any) -> Any:
    # JAX warns of every rank promotion when asked to; of these only (N,) against (..., N, 1) is surely a mistake.
    with jax.numpy_rank_promotion("warn"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shape = jax.eval_shape(function, *args)
    for warning in caught:
        found = re.search(r"rank promotion for (\S+) on shapes (.*?)\. Set", str(warning.message))
        shapes = re.findall(r"\([^()]*\)", found[2]) if found else []
        sizes = [tuple(map(int, re.findall(r"\d+", text))) for text in shapes]
        for low, high in itertools.permutations(sizes, 2):
            if len(low) == 1 and low[0] > 1 and high[-2:] == (low[0], 1):
                raise ValueError(
                    f"`{name}`: {found and found[1]} met shapes {low} and {high}, which broadcast to "
                    f"{(*high[:-1], *low)}: expected equal shapes. Reshape one; write x[None, :] if the table is meant"
                )
    return shape
