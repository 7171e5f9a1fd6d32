"""Mistakes in a model that can be found before anything is computed."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import jax

from minisvi.model import prior_supports, term_shapes, trees
from minisvi.tools.names import named_leaves
from minisvi.tools.types import Data, Draw, Latents

if TYPE_CHECKING:  # the model itself imports this file
    from minisvi.model.model import Model

_FORMS = (
    {"log_joint"},
    {"log_prior", "log_likelihood"},
    {"prior", "log_likelihood"},
)


def functions(model: "Model") -> None:
    """TypeError unless a model's functions are functions, and make up one of its forms."""
    given = _given(model)
    for name, function in given.items():
        if not callable(function):
            raise TypeError(
                f"Model: `{name}` must be a function {name}(theta, ...); got {function!r}"
            )
    if set(given) in _FORMS:
        return
    remedy = ""
    if "log_joint" in given:
        remedy = ". Only `log_joint` goes by position: give `prior=..., log_likelihood=...` by name"
    raise TypeError(
        "Model: expected either `log_joint`, or both `log_prior` and `log_likelihood`, or `prior` "
        f"in place of `log_prior`; got {list(given)}{remedy}"
    )


def _given(model: "Model") -> dict[str, Callable[..., Any]]:
    """The functions of the model that were given, by name."""
    functions = {
        "log_joint": model.log_joint,
        "log_prior": model.log_prior,
        "log_likelihood": model.log_likelihood,
        "prior": model.prior,
    }
    return {name: function for name, function in functions.items() if function is not None}


def says_whether_per_row(model: "Model") -> None:
    """TypeError unless `per_row` is a bool that suits the model; ValueError for local latents of a
    model without rows.
    """
    if not isinstance(model.per_row, bool):
        raise TypeError(f"Model: `per_row` must be True or False; got {model.per_row!r}")
    if model.per_row:
        return
    if model.log_likelihood is None:
        raise TypeError("Model: `per_row=False` is said of a `log_likelihood`; got a `log_joint`")
    local = trees.local_names(model.latents)
    if local:
        raise ValueError(
            f"latents {local} are local, one for each row, and `per_row=False` says there are no "
            "rows"
        )


def terms(model: "Model", latents: Latents, data: Data) -> None:
    """Raise unless each term of the density has its shape, and reads within bounds (see
    `term_shapes.density_term`), and warn of priors with mass outside of their latents' supports.

    `latents` are those of a batch, where local ones have the data's rows.
    """
    theta = trees.shapes_of(latents)
    if model.log_joint is not None:
        term_shapes.density_term("log_joint", model.log_joint, (), latents, theta, *data)
        return
    assert model.log_likelihood is not None
    prior_name = "log_prior" if model.prior is None else "prior"
    term_shapes.density_term(prior_name, model.prior_term, (), latents, theta)
    shape = trees.row_shape(data) if model.per_row else ()
    term_shapes.density_term("log_likelihood", model.log_likelihood, shape, latents, theta, *data)
    for complaint in _complaints(model, theta):
        _warn_once(model, complaint)


def _complaints(model: "Model", theta: Draw) -> list[str]:
    """What is wrong with the supports of the priors. These are made at shapes, not at numbers."""
    if model.prior is None:
        return []
    supports = named_leaves(model.latents)
    found: list[str] = []

    def look(theta: Draw) -> None:
        for name, prior in model.priors(theta).items():
            complaint = prior_supports.complaint(name, supports[name], prior)
            if complaint is not None:
                found.append(complaint)

    jax.eval_shape(look, theta)
    return found


_said: WeakKeyDictionary["Model", set[str]] = WeakKeyDictionary()


def _warn_once(model: "Model", complaint: str) -> None:
    # Python's own filter would say it at every check: `catch_warnings` makes it forget what it has
    # said.
    said = _said.setdefault(model, set())
    if complaint not in said:
        said.add(complaint)
        warnings.warn(complaint, prior_supports.PriorSupportWarning, stacklevel=2)


def prior_can_be_drawn(model: "Model", latents: Latents, data: Data) -> None:
    """ValueError unless each latent has a prior that is a distribution, and local ones have rows.

    `latents` are those of a batch, where local ones have the data's rows.
    """
    if model.prior is None:
        raise ValueError(
            "sample_prior draws from distributions: expected a model with `prior`; got a log "
            "density"
        )
    local = trees.local_names(model.latents)
    if local and not data:
        raise ValueError(
            f"latents {local} are local: expected data, whose rows say how many there are; got none"
        )
    flat: list[str] = []

    def look(theta: Draw) -> None:
        for name, prior in model.priors(theta).items():
            if prior is None:
                flat.append(name)

    jax.eval_shape(look, trees.shapes_of(latents))
    if flat:
        raise ValueError(f"the priors of latents {flat} are flat, and have no draws")
