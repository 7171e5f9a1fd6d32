"""Which part of a log density is not finite: what an error says of it."""

import jax

from minisvi.model import trees
from minisvi.model.model import Model
from minisvi.tools.types import Data, Draw


def parts(model: Model, u: Draw, data: Data) -> list[str]:
    """The terms of the log density that are not finite at u, by name: "`log_likelihood`"; of a
    prior of distributions "the prior of `tau`", for each latent of which it is so.
    """
    theta, _ = trees.constrain(model.latents, u)
    terms = model.terms(theta, *data)
    found = []
    for name, term in terms.items():
        if trees.all_finite(term):
            continue
        if name == "log_prior" and model.prior is not None:
            found += _priors(model, theta)
        else:
            found.append(f"`{name}`")
    return found


def _priors(model: Model, theta: Draw) -> list[str]:
    values = zip(model.priors(theta).items(), jax.tree.leaves(theta))
    found = []
    for (name, prior), value in values:
        if prior is not None and not trees.all_finite(prior.log_prob(value)):
            found.append(f"the prior of `{name}`")
    return found
