"""log p(theta, D): the log joint, and the same density in unconstrained space.

A model is a function. `Model(latents, log_joint)` takes the whole log joint; the factored form, a prior and
`log_likelihood(theta, *data)` with one term per row of data, is what minibatches, pointwise scores, annealing and
closed-form KLs need.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi import checks, trees
from minisvi.record import Record
from minisvi.sharding import check_axes
from minisvi.supports import Support, real
from minisvi.tracing import isolated


@dataclass(frozen=True, eq=False)
class Model(Record):
    """A log joint density and its latents.

    **Arguments**

    - `latents`: any pytree of supports (dict, tuple, NamedTuple, dataclass); fixes names, shapes and constraints.
    - `log_joint(theta, *data)`: log p(theta, D), a scalar in nats, normalised or not. Or, in its place,
    - `log_likelihood(theta, *data)`: log p(D_i | theta), shape (N,), one term per row, rows independent given theta,
      and
    - `log_prior(theta)`: log p(theta), a scalar; or
    - `prior(theta)`: the Distrax or TFP distribution of each latent given the others, in a tree like the latents; None,
      for a latent or a subtree of them, is flat.

    The prior of a `local` latent counts N/B times in a minibatch: give it by `prior`, or inside `log_likelihood`.
    Equal models (equal latents, the same function objects) share one compilation. TypeError or ValueError for latents
    that are no supports, or of which two have the same dotted path, as `{"a": {"b": ...}, "a.b": ...}` have.
    """

    latents: Any
    log_joint: Callable[..., Array] | None = None
    log_prior: Callable[..., Array] | None = None
    log_likelihood: Callable[..., Array] | None = None
    prior: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        priors = (self.log_prior is not None) + (self.prior is not None)
        factored = priors == 1 and self.log_likelihood is not None
        neither = priors == 0 and self.log_likelihood is None
        if not (factored if self.log_joint is None else neither):
            raise TypeError(
                "Model: expected either `log_joint`, or both `log_prior` and `log_likelihood`, or `prior` in place of "
                "`log_prior`"
            )
        for name, support in checks.named_leaves(self.latents, what="latents").items():
            if not isinstance(support, Support):
                raise TypeError(f"latent `{name}`: expected a support, such as minisvi.real(); got {support!r}")

    def log_density(self, u: Any, *data: Any, scale: Any = None) -> Array:
        """log p(T(u), D) + log|det J_T(u)|: a scalar in nats, the target density on unconstrained space.

        `scale` = N/B multiplies the likelihood of B of the N rows, which makes it unbiased (Hoffman et al. 2013, eq.
        20); an array (B,) is each row's own factor. ValueError if it is given and the model is not factored.
        """
        if self.log_joint is None:
            log_prior, log_likelihood = self.log_terms(u, *data, scale=scale)
            return log_prior + log_likelihood
        if scale is not None:
            checks.factored(self)
        theta, log_det = trees.constrain(self.latents, u)
        return isolated(self.log_joint)(theta, *data) + log_det

    def joint(self, theta: Any, *data: Any) -> Array:
        """log p(theta, D), a scalar in nats, in either form of the model."""
        return sum((jnp.sum(term) for term in self.terms(theta, *data).values()), jnp.zeros(()))

    def terms(self, theta: Any, *data: Any) -> dict[str, Array]:
        """The log joint, or the log prior and the log likelihood of each row, by name."""
        if self.log_likelihood is None:
            assert self.log_joint is not None
            return {"log_joint": isolated(self.log_joint)(theta, *data)}
        return {"log_prior": self.prior_term(theta), "log_likelihood": self.rows(theta, *data)}

    def rows(self, theta: Any, *data: Any) -> Array:
        """log p(D_i | theta) of a factored model, (N,), in nats."""
        assert self.log_likelihood is not None
        return isolated(self.log_likelihood)(theta, *data)

    def log_terms(self, u: Any, *data: Any, scale: Any = None) -> tuple[Array, Array]:
        """The two terms of `log_density`: the prior's, with log|det J_T|, and the likelihood's. ValueError if the model
        is not factored.
        """
        if self.log_likelihood is None:
            raise ValueError("expected a factored model: give `log_prior` and `log_likelihood`; got a `log_joint`")
        theta, log_det = trees.constrain(self.latents, u, scale)
        log_likelihood = trees.weighted_sum(self.rows(theta, *data), scale)
        return self.prior_term(theta, scale) + log_det, log_likelihood

    def prior_term(self, theta: Any, scale: Any = None) -> Array:
        """log p(theta) of a factored model, a scalar in nats; local latents' counts as the rows do."""
        if self.prior is None:
            assert self.log_prior is not None
            return self.log_prior(theta)
        priors = self.priors(theta)
        terms = [
            trees.weigh(support, priors[name].log_prob(value), scale)
            for (name, support), value in zip(checks.named_leaves(self.latents).items(), jax.tree.leaves(theta))
            if priors[name] is not None
        ]
        return jnp.asarray(sum(terms, 0.0))

    def priors(self, theta: Any) -> dict[str, Any]:
        """The prior of each latent by its dotted path, given the others; ValueError unless `prior` has all of them."""
        assert self.prior is not None
        prior, is_prior = self.prior(theta), lambda node: node is None or hasattr(node, "log_prob")
        try:
            tree = jax.tree.map(lambda p, part: jax.tree.map(lambda _: p, part), prior, self.latents, is_leaf=is_prior)
        except ValueError:
            known, found = checks.leaf_names(self.latents), checks.leaf_names(prior, is_prior)
            raise ValueError(f"`prior`: expected a tree with leaves {known}; got leaves {found}") from None
        return checks.named_leaves(tree, is_prior)

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
            return jax.tree.map(lambda s: replace(s, bijector=real().bijector), latents) if flag else latents

        return replace(self, latents=jax.tree.map(identity, constrained, self.latents))

    def check(self, *data: Any) -> None:
        """Raise on a static mistake of a term (see `checks.density_term`), or for data on a mesh that is not minisvi's
        (see `sharding.check_axes`): nothing is computed or compiled.
        """
        check_axes(data)
        latents = trees.with_rows(self.latents, data)
        theta = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.value_dtype), latents)
        if self.log_joint is not None:
            checks.density_term("log_joint", self.log_joint, (), latents, theta, *data)
            return
        assert self.log_likelihood is not None
        checks.density_term("prior" if self.prior else "log_prior", self.prior_term, (), latents, theta)
        leaves = jax.tree.leaves(data)
        rows = jnp.shape(leaves[0])[:1] if leaves else None
        checks.density_term("log_likelihood", self.log_likelihood, rows, latents, theta, *data)
