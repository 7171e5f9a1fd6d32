"""A Flax module as a pytree of latents.

A Bayesian neural network is a log joint like any other:

    net = bnn.from_nnx(module, lambda path, shape: distrax.Normal(0.0, 1.0))
    log_likelihood = lambda w, x, y: ... net.apply(w, x) ...
    model = Model(net.latents, log_prior=net.log_prior, log_likelihood=log_likelihood)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from minisvi.model import ancestral, supports
from minisvi.tools import checks
from minisvi.tools.names import Path, path_name
from minisvi.tools.types import Draw, Latents, Params

Prior = Callable[[str, tuple[int, ...]], Any]
"""A function of a parameter array's dotted path and shape that returns its distribution."""


@dataclass(frozen=True)
class Network:
    """A network whose parameters are latents.

    **Attributes**

    - `initial`: the module's own parameter values, a nested dict. A guide can start there, by
      `guide.init(key, loc=initial)`.
    - `prior`: the distribution of each parameter array, in a tree like `initial`.
    - `apply(weights, *inputs)`: the module's output, a pure function.
    """

    initial: Draw
    prior: Any
    apply: Callable[..., Any]

    @property
    def latents(self) -> Latents:
        """One real support for each parameter array."""
        return jax.tree.map(lambda w: supports.real(w.shape, w.dtype), self.initial)

    def log_prior(self, weights: Draw) -> Array:
        """sum_i log p(w_i), a scalar in nats."""
        terms = jax.tree.map(lambda w, prior: jnp.sum(prior.log_prob(w)), weights, self.prior)
        return jnp.asarray(sum(jax.tree.leaves(terms)))

    def sample_prior(self, key: Array, num_samples: int) -> Draw:
        """Draws of the weights from their prior, each leaf with a leading axis of `num_samples`."""
        num_samples = checks.positive_integer("num_samples", num_samples)
        leaves, treedef = jax.tree.flatten(self.initial)
        keys = jax.random.split(checks.prng_key(key), len(leaves))

        def draw(weights: Array, prior: Any, key: Array) -> Array:
            return ancestral.draw(prior, key, (num_samples, *weights.shape))

        keys_of_leaves = jax.tree.unflatten(treedef, list(keys))
        return jax.tree.map(draw, self.initial, self.prior, keys_of_leaves)


def from_nnx(module: nnx.Module, prior: Prior) -> Network:
    """The `nnx.Param`s of a module as latents.

    All else in it, such as batch statistics, stays as it is. `prior(path, shape)` gives each
    parameter array its prior, by its dotted path, such as `hidden.kernel`, and its shape. A prior
    is any object with `log_prob(x)` and `sample(seed=, sample_shape=)`, of scalars or of the whole
    array.
    """
    initial, apply = pure(module)
    return _network(initial, prior, apply)


def pure(module: nnx.Module) -> tuple[Params, Callable[..., Any]]:
    """A module's `nnx.Param`s as a nested dict, and its output as a function `apply(weights,
    *inputs)`.

    This is for networks that are not latents: the encoder of an `amortised` guide, the conditioner
    of a flow, a decoder. Where guides take a function that makes weights, they also take the nested
    dict, and then start there.
    """
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(weights: Params, *inputs: Any, **options: Any) -> Any:
        copied = jax.tree.map(lambda x: x, params)  # for what follows writes into it
        state = nnx.State(copied)
        nnx.replace_by_pure_dict(state, weights)
        whole = nnx.merge(graph, state, rest)
        return whole(*inputs, **options)

    return nnx.to_pure_dict(params), apply


def from_linen(module: Any, variables: Mapping[str, Any], prior: Prior) -> Network:
    """The "params" of a Linen module as latents.

    `variables` are what `module.init(key, x)` returns, and `prior` is as in `from_nnx`.
    """
    rest = {name: collection for name, collection in variables.items() if name != "params"}

    def apply(weights: Draw, *inputs: Any, **options: Any) -> Any:
        return module.apply({"params": weights, **rest}, *inputs, **options)

    return _network(variables["params"], prior, apply)


def _network(initial: Draw, prior: Prior, apply: Callable[..., Any]) -> Network:
    def prior_of(path: Path, weights: Array) -> Any:
        return prior(path_name(path), weights.shape)

    priors = jax.tree_util.tree_map_with_path(prior_of, initial)
    return Network(initial, priors, apply)
