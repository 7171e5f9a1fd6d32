"""log p(theta, D): the log joint, and the same density in unconstrained space.

A model is a function. `Model(latents, log_joint)` takes the whole log joint. The factored form, a
prior and `log_likelihood(theta, *data)`, is what annealing and closed-form KLs need, and with one
term per row of data also minibatches and pointwise scores.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.model import ancestral, static_checks, trees
from minisvi.model.bijectors import Identity
from minisvi.tools import checks, finite_data, inputs
from minisvi.tools.names import leaf_names, named_leaves
from minisvi.tools.record import Record
from minisvi.tools.sharding import check_axes
from minisvi.tools.tracing import fresh
from minisvi.tools.types import Draw, Latents, Weight


@dataclass(frozen=True, eq=False)
class Model(Record):
    """A log joint density and its latents.

    **Arguments**

    - `latents`: any pytree of supports (dict, tuple, NamedTuple, dataclass). It fixes names, shapes
      and constraints.
    - `log_joint(theta, *data)`: log p(theta, D), a scalar in nats, normalised or not.

    In place of `log_joint`, a factored model has a likelihood and a prior:

    - `log_likelihood(theta, *data)`: log p(D_i | theta), shape (N,), one term per row. The rows are
      the leading axis of the data's first array, and are independent given theta. With
      `per_row=False` it is log p(D | theta), a scalar.
    - `log_prior(theta)`: log p(theta), a scalar; or, in its place,
    - `prior(theta)`: the NumPyro, TFP or Distrax distribution of each latent given the others, in a
      tree like the latents. None, for a latent or a subtree of them, is flat.

    `per_row=False` is for likelihoods that have no term per row, such as those of time series and
    Gaussian processes. Minibatches, held-out scores, local latents and ArviZ's `log_likelihood`
    need rows, and such a model has none.

    The prior of a `local` latent counts N/B times in a minibatch: give it by `prior`, or inside
    `log_likelihood`. Equal models (equal latents, the same function objects) share one compilation.

    TypeError or ValueError for latents that are no supports, or of which two have the same dotted
    path, as `{"a": {"b": ...}, "a.b": ...}` have, and for other forms of a model.
    """

    latents: Latents
    log_joint: Callable[..., Array] | None = None
    log_prior: Callable[..., Array] | None = None
    log_likelihood: Callable[..., Array] | None = None
    prior: Callable[[Draw], Any] | None = None
    per_row: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        trees.latents_of(self.latents)
        static_checks.functions(self)
        static_checks.says_whether_per_row(self)

    def log_density(self, u: Draw, *data: Any, weight: Weight = None) -> Array:
        """log p(T(u), D) + log|det J_T(u)|, a scalar in nats: the target density over u.

        `weight` = N/B multiplies the likelihood of B of the N rows, which makes it unbiased
        (Hoffman et al. 2013, eq. 20). An array (B,) is each row's own factor. ValueError if it is
        given and the model is not factored.
        """
        if self.log_joint is None:
            log_prior, log_likelihood = self.log_terms(u, *data, weight=weight)
            return log_prior + log_likelihood
        if weight is not None:
            checks.factored(self)
        theta, log_det = trees.constrain(self.latents, u)
        return self.log_joint(theta, *fresh(data)) + log_det

    def log_terms(self, u: Draw, *data: Any, weight: Weight = None) -> tuple[Array, Array]:
        """The two terms of `log_density`, each a scalar in nats.

        They are log p(theta) + log|det J_T(u)|, and `weight` times sum_i log p(D_i | theta).
        ValueError if the model is not factored.
        """
        if self.log_likelihood is None:
            raise ValueError(
                "expected a factored model: give `log_prior` and `log_likelihood`; got a "
                "`log_joint`"
            )
        if weight is not None:
            checks.factored(self)
        theta, log_det = trees.constrain(self.latents, u, weight)
        rows = self._likelihood(theta, *data)
        log_likelihood = trees.weighted_sum(rows, weight)
        log_prior = self.prior_term(theta, weight)
        return log_prior + log_det, log_likelihood

    def _likelihood(self, theta: Draw, *data: Any) -> Array:
        """log p(D_i | theta) of each row, or log p(D | theta) where the model has no rows."""
        assert self.log_likelihood is not None
        return self.log_likelihood(theta, *fresh(data))

    def prior_term(self, theta: Draw, weight: Weight = None) -> Array:
        """log p(theta) of a factored model, a scalar in nats.

        The priors of local latents count as their rows do, `weight` times.
        """
        if self.prior is None:
            assert self.log_prior is not None
            return self.log_prior(theta)
        priors = self.priors(theta)
        supports = named_leaves(self.latents)
        terms = []
        for (name, support), value in zip(supports.items(), jax.tree.leaves(theta)):
            prior = priors[name]
            if prior is not None:
                log_p = prior.log_prob(value)
                terms.append(trees.weigh(support, log_p, weight))
        return jnp.asarray(sum(terms, 0.0))

    def priors(self, theta: Draw) -> dict[str, Any]:
        """The prior of each latent given the others, by its dotted path; None is flat.

        ValueError unless what `prior` returns is a tree like the latents, or a prefix of it.
        """
        assert self.prior is not None
        prior = self.prior(theta)
        try:
            tree = jax.tree.map(_at_each_leaf, prior, self.latents, is_leaf=_is_prior)
        except ValueError:
            known = leaf_names(self.latents)
            found = leaf_names(prior, _is_prior)
            raise ValueError(
                f"`prior`: expected a tree with leaves {known}; got leaves {found}"
            ) from None
        return named_leaves(tree, _is_prior)

    def joint(self, theta: Draw, *data: Any) -> Array:
        """log p(theta, D), a scalar in nats, in either form of the model."""
        total = jnp.zeros(())
        for term in self.terms(theta, *data).values():
            total = total + jnp.sum(term)
        return total

    def terms(self, theta: Draw, *data: Any) -> dict[str, Array]:
        """The terms of the log density over theta by name, in nats.

        They are `log_joint`, or `log_prior` and `log_likelihood`, which is (N,) where the model has
        a term per row.
        """
        if self.log_likelihood is None:
            assert self.log_joint is not None
            return {"log_joint": self.log_joint(theta, *fresh(data))}
        return {
            "log_prior": self.prior_term(theta),
            "log_likelihood": self._likelihood(theta, *data),
        }

    def rows(self, theta: Draw, *data: Any) -> Array:
        """log p(D_i | theta), (N,), in nats; ValueError if the model has no term per row."""
        checks.factored(self, "the log likelihood of each row")
        return self._likelihood(theta, *data)

    def constrain(self, u: Draw) -> Draw:
        """theta = T(u)."""
        theta, _ = trees.constrain(self.latents, u)
        return theta

    def unconstrain(self, theta: Draw) -> Draw:
        """u = T^-1(theta).

        ValueError names the leaf that is misspelt, misshapen or outside its support.
        """
        return trees.unconstrain(self.latents, theta)

    def over(self, constrained: Any) -> "Model":
        """The same model with T the identity wherever `constrained`, a prefix tree of bools, is
        True.

        This is for guides with a part over theta itself. There log q is a density over theta, so
        that no log-determinant is due.
        """
        if not any(jax.tree.leaves(constrained)):
            return self
        latents = jax.tree.map(_over_theta, constrained, self.latents)
        return replace(self, latents=latents)

    def sample_prior(self, key: Array, num_samples: int, *data: Any) -> Draw:
        """Draws of theta from `prior`: a tree like the latents, each leaf with a leading axis of
        `num_samples`.

        Each latent is drawn after those that its prior depends on. `data` are for local latents,
        and only say how many rows there are. The priors are Distrax, TFP or NumPyro distributions.

        ValueError for a model without `prior`, a latent whose prior is flat, local latents without
        data, and priors that depend on each other in a circle.
        """
        num_samples = checks.positive_integer("num_samples", num_samples)
        latents = trees.with_rows(self.latents, inputs.arrays(data))
        static_checks.prior_can_be_drawn(self, latents, data)
        keys = jax.random.split(checks.prng_key(key), num_samples)
        return ancestral.sample_all(self, latents, keys)

    def check_terms(self, *data: Any) -> None:
        """Raise on a mistake in a term that its trace shows, and warn of one in a prior: nothing is
        compiled, and of what is computed only indices are known.

        `term_shapes.density_term` says what is a mistake; an index of the data that is out of
        bounds, as labels counted from 1 are, is an IndexError (see `indices.check`). A prior that
        is known to have mass outside of its latent's support gives a `PriorSupportWarning`, once a
        model. Data on a mesh with explicit axes are refused (see `sharding.check_axes`).
        """
        data = inputs.arrays(data)
        check_axes(data)
        static_checks.terms(self, trees.with_rows(self.latents, data), data)

    def check(self, *data: Any) -> None:
        """`check_terms`, and ValueError if a term is not finite because of the data.

        If the data hold numbers that are not finite, and are known, the terms are compiled and
        computed at T(0), with the data as they are and with finite rows in the place of the others.
        The error names the numbers of the data that are to blame.
        """
        self.check_terms(*data)
        data = inputs.arrays(data)
        latents = trees.with_rows(self.latents, data)

        def terms_at_zero(*data: Any) -> dict[str, Array]:
            return self.terms(trees.at_zero(latents), *data)

        finite_data.finite_terms(terms_at_zero, data)


def _is_prior(node: Any) -> bool:
    return node is None or hasattr(node, "log_prob")


def _at_each_leaf(prior: Any, latents: Latents) -> Any:
    """A prior of a subtree of latents, at each of its leaves."""
    return jax.tree.map(lambda _: prior, latents)


def _over_theta(constrained: bool, latents: Latents) -> Latents:
    if not constrained:
        return latents
    return jax.tree.map(lambda support: replace(support, bijector=Identity()), latents)
