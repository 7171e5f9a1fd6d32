"""log p(theta, D): the log joint, and the same density in unconstrained space.

A model is a function. `Model(latents, log_joint)` takes the whole log joint; the factored form, a
prior and `log_likelihood(theta, *data)`, is what annealing and closed-form KLs need, and with one
term per row of data also minibatches and pointwise scores.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.model import ancestral, prior_supports, term_shapes, trees
from minisvi.model.supports import real
from minisvi.tools import checks, finite_data, inputs
from minisvi.tools.names import leaf_names, named_leaves
from minisvi.tools.record import Record
from minisvi.tools.sharding import check_axes
from minisvi.tools.tracing import fresh


@dataclass(frozen=True, eq=False)
class Model(Record):
    """A log joint density and its latents.

    **Arguments**

    - `latents`: any pytree of supports (dict, tuple, NamedTuple, dataclass); fixes names, shapes
      and constraints.
    - `log_joint(theta, *data)`: log p(theta, D), a scalar in nats, normalised or not. Or, in its
      place,
    - `log_likelihood(theta, *data)`: log p(D_i | theta), shape (N,), one term per row, rows
      independent given theta, where the rows are the leading axis of the data's first array; or log
      p(D | theta), a scalar, with `per_row=False`; and
    - `log_prior(theta)`: log p(theta), a scalar; or
    - `prior(theta)`: the NumPyro, TFP or Distrax distribution of each latent given the others, in a
      tree like the latents; None, for a latent or a subtree of them, is flat.

    `per_row=False` is for likelihoods that have no term per row, such as those of time series and
    Gaussian processes. Minibatches, held-out scores, local latents and ArviZ's `log_likelihood`
    need rows, and such a model has none.

    The prior of a `local` latent counts N/B times in a minibatch: give it by `prior`, or inside
    `log_likelihood`. Equal models (equal latents, the same function objects) share one compilation.
    TypeError or ValueError for latents that are no supports, or of which two have the same dotted
    path, as `{"a": {"b": ...}, "a.b": ...}` have, and for other forms of a model.
    """

    latents: Any
    log_joint: Callable[..., Array] | None = None
    log_prior: Callable[..., Array] | None = None
    log_likelihood: Callable[..., Array] | None = None
    prior: Callable[[Any], Any] | None = None
    per_row: bool = True

    def __post_init__(self) -> None:
        trees.latents_of(self.latents)
        self._check_functions()
        self._check_rows()

    def _check_functions(self) -> None:
        functions = {
            name: getattr(self, name)
            for name in ("log_joint", "log_prior", "log_likelihood", "prior")
        }
        given = {name: function for name, function in functions.items() if function is not None}
        for name, function in given.items():
            if not callable(function):
                raise TypeError(
                    f"Model: `{name}` must be a function {name}(theta, ...); got {function!r}"
                )
        if set(given) not in (
            {"log_joint"},
            {"log_prior", "log_likelihood"},
            {"prior", "log_likelihood"},
        ):
            by_name = (
                ". Only `log_joint` goes by position: give `prior=..., log_likelihood=...` by name"
            )
            raise TypeError(
                "Model: expected either `log_joint`, or both `log_prior` and `log_likelihood`, or `prior` in place of "
                f"`log_prior`; got {list(given)}{by_name if 'log_joint' in given else ''}"
            )

    def _check_rows(self) -> None:
        if not isinstance(self.per_row, bool):
            raise TypeError(f"Model: `per_row` must be True or False; got {self.per_row!r}")
        if self.per_row:
            return
        if self.log_likelihood is None:
            raise TypeError(
                "Model: `per_row=False` is said of a `log_likelihood`; got a `log_joint`"
            )
        local = [name for name, support in named_leaves(self.latents).items() if support.local]
        if local:
            raise ValueError(
                f"latents {local} are local, one for each row, and `per_row=False` says there are no rows"
            )

    def log_density(self, u: Any, *data: Any, weight: Any = None) -> Array:
        """log p(T(u), D) + log|det J_T(u)|: a scalar in nats, the target density on unconstrained
        space.

        `weight` = N/B multiplies the likelihood of B of the N rows, which makes it unbiased (Hoffman
        et al. 2013, eq. 20); an array (B,) is each row's own factor. ValueError if it is given and
        the model is not factored.
        """
        if self.log_joint is None:
            log_prior, log_likelihood = self.log_terms(u, *data, weight=weight)
            return log_prior + log_likelihood
        if weight is not None:
            checks.factored(self)
        theta, log_det = trees.constrain(self.latents, u)
        return self.log_joint(theta, *fresh(data)) + log_det

    def joint(self, theta: Any, *data: Any) -> Array:
        """log p(theta, D), a scalar in nats, in either form of the model."""
        return sum((jnp.sum(term) for term in self.terms(theta, *data).values()), jnp.zeros(()))

    def terms(self, theta: Any, *data: Any) -> dict[str, Array]:
        """The log joint, or the log prior and the log likelihood, of each row unless there are
        none, by name.
        """
        if self.log_likelihood is None:
            assert self.log_joint is not None
            return {"log_joint": self.log_joint(theta, *fresh(data))}
        return {
            "log_prior": self.prior_term(theta),
            "log_likelihood": self._likelihood(theta, *data),
        }

    def rows(self, theta: Any, *data: Any) -> Array:
        """log p(D_i | theta), (N,), in nats; ValueError if the model has no term per row."""
        checks.factored(self, "the log likelihood of each row")
        return self._likelihood(theta, *data)

    def _likelihood(self, theta: Any, *data: Any) -> Array:
        """Of each row, or of all where the model has no rows."""
        assert self.log_likelihood is not None
        return self.log_likelihood(theta, *fresh(data))

    def log_terms(self, u: Any, *data: Any, weight: Any = None) -> tuple[Array, Array]:
        """The two terms of `log_density`: the prior's, with log|det J_T|, and the likelihood's.
        ValueError if the model is not factored.
        """
        if self.log_likelihood is None:
            raise ValueError(
                "expected a factored model: give `log_prior` and `log_likelihood`; got a `log_joint`"
            )
        if weight is not None:
            checks.factored(self)
        theta, log_det = trees.constrain(self.latents, u, weight)
        log_likelihood = trees.weighted_sum(self._likelihood(theta, *data), weight)
        return self.prior_term(theta, weight) + log_det, log_likelihood

    def prior_term(self, theta: Any, weight: Any = None) -> Array:
        """log p(theta) of a factored model, a scalar in nats; local latents' counts as the rows do."""
        if self.prior is None:
            assert self.log_prior is not None
            return self.log_prior(theta)
        priors = self.priors(theta)
        terms = [
            trees.weigh(support, priors[name].log_prob(value), weight)
            for (name, support), value in zip(
                named_leaves(self.latents).items(), jax.tree.leaves(theta)
            )
            if priors[name] is not None
        ]
        return jnp.asarray(sum(terms, 0.0))

    def priors(self, theta: Any) -> dict[str, Any]:
        """The prior of each latent by its dotted path, given the others; ValueError unless `prior`
        has all of them.
        """
        assert self.prior is not None
        prior, is_prior = self.prior(theta), lambda node: node is None or hasattr(node, "log_prob")
        try:
            tree = jax.tree.map(
                lambda p, part: jax.tree.map(lambda _: p, part),
                prior,
                self.latents,
                is_leaf=is_prior,
            )
        except ValueError:
            known, found = leaf_names(self.latents), leaf_names(prior, is_prior)
            raise ValueError(
                f"`prior`: expected a tree with leaves {known}; got leaves {found}"
            ) from None
        return named_leaves(tree, is_prior)

    def sample_prior(self, key: Array, num_samples: int, *data: Any) -> Any:
        """Draws of theta from `prior`, a tree like the latents, each leaf with a leading axis of
        `num_samples`.

        Each latent is drawn after those that its prior depends on. `data` are for local latents,
        and only say how many rows there are. The priors are Distrax, TFP or NumPyro distributions.
        ValueError for a model without `prior`, a latent whose prior is flat, local latents without
        data, and priors that depend on each other in a circle.
        """
        num_samples = checks.positive_integer("num_samples", num_samples)
        latents = trees.with_rows(self.latents, inputs.arrays(data))
        self._check_prior_is_proper(latents, data)
        return _sample_prior(
            self, _Latents(latents), jax.random.split(checks.prng_key(key), num_samples)
        )

    def _check_prior_is_proper(self, latents: Any, data: tuple[Any, ...]) -> None:
        if self.prior is None:
            raise ValueError(
                "sample_prior draws from distributions: expected a model with `prior`; got a log density"
            )
        local = [name for name, support in named_leaves(self.latents).items() if support.local]
        if local and not data:
            raise ValueError(
                f"latents {local} are local: expected data, whose rows say how many there are; got none"
            )
        flat: list[str] = []

        def look(theta: Any) -> None:
            flat.extend(name for name, prior in self.priors(theta).items() if prior is None)

        jax.eval_shape(look, trees.shapes_of(latents))
        if flat:
            raise ValueError(f"the priors of latents {flat} are flat, and have no draws")

    def constrain(self, u: Any) -> Any:
        """theta = T(u)."""
        return trees.constrain(self.latents, u)[0]

    def unconstrain(self, theta: Any) -> Any:
        """u = T^-1(theta); ValueError names the leaf that is misspelt, misshapen or outside its
        support.
        """
        return trees.unconstrain(self.latents, theta)

    def over(self, constrained: Any) -> "Model":
        """The same model with T the identity wherever `constrained`, a prefix tree of bools, is
        True.

        For guides with a part over theta itself: there log q is a density over theta, so no
        log-determinant is due.
        """
        if not any(jax.tree.leaves(constrained)):
            return self

        def identity(flag: bool, latents: Any) -> Any:
            return (
                jax.tree.map(lambda s: replace(s, bijector=real().bijector), latents)
                if flag
                else latents
            )

        return replace(self, latents=jax.tree.map(identity, constrained, self.latents))

    def check(self, *data: Any) -> None:
        """Raise on a mistake of a term (see `term_shapes.density_term`): by shapes alone, nothing is
        computed or compiled.

        A prior that is known to have mass outside of its latent's support gives a
        `PriorSupportWarning`, once a model. Only where data are known and hold numbers that are not
        finite are the terms computed, once, at T(0): ValueError names these numbers where a term is
        not finite because of them. Data on a mesh with explicit axes are refused (see
        `sharding.check_axes`).
        """
        data = inputs.arrays(data)
        check_axes(data)
        latents = trees.with_rows(self.latents, data)
        self._check_terms(latents, data)
        finite_data.finite_terms(lambda *data: self.terms(trees.at_zero(latents), *data), data)

    def _check_terms(self, latents: Any, data: tuple[Any, ...]) -> None:
        theta = trees.shapes_of(latents)
        if self.log_joint is not None:
            term_shapes.density_term("log_joint", self.log_joint, (), latents, theta, *data)
            return
        assert self.log_likelihood is not None
        term_shapes.density_term(
            "prior" if self.prior else "log_prior", self.prior_term, (), latents, theta
        )
        term_shapes.density_term(
            "log_likelihood",
            self.log_likelihood,
            self._likelihood_shape(data),
            latents,
            theta,
            *data,
        )
        for complaint in self._complaints(theta):
            _warn(self, complaint)

    def _complaints(self, theta: Any) -> list[str]:
        """What there is to say of the supports of the priors, which are made at shapes and not at
        numbers.
        """
        if self.prior is None:
            return []
        found: list[str | None] = []

        def look(theta: Any) -> None:
            priors, supports = self.priors(theta), named_leaves(self.latents)
            found.extend(
                prior_supports.complaint(name, supports[name], prior)
                for name, prior in priors.items()
            )

        jax.eval_shape(look, theta)
        return [complaint for complaint in found if complaint is not None]

    def _likelihood_shape(self, data: tuple[Any, ...]) -> tuple[int, ...] | None:
        """None where it is not known how many rows there are: the data are closed over."""
        if not self.per_row:
            return ()
        leaves = jax.tree.leaves(data)
        return jnp.shape(leaves[0])[:1] if leaves else None


_said: WeakKeyDictionary[Model, set[str]] = WeakKeyDictionary()


def _warn(model: Model, complaint: str) -> None:
    # Python's own filter would say it at every check: `catch_warnings` makes it forget what it has
    # said.
    said = _said.setdefault(model, set())
    if complaint not in said:
        said.add(complaint)
        warnings.warn(complaint, prior_supports.PriorSupportWarning, stacklevel=2)


@dataclass(frozen=True, eq=False)
class _Latents(Record):
    """A tree of supports, which may be a dict, as a static argument."""

    tree: Any


@partial(jax.jit, static_argnames=("model", "latents"))
def _sample_prior(model: Model, latents: Any, keys: Array) -> Any:
    groups = ancestral.levels(latents.tree, model.priors)
    return jax.vmap(lambda key: ancestral.sample(key, latents.tree, model.priors, groups))(keys)
