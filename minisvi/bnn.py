"""A Flax module as a pytree of latents: a Bayesian neural network is a log joint like any other.

net = bnn.from_nnx(module, lambda path, shape: distrax.Normal(0.0, 1.0)) model = Model(net.latents,
log_prior=net.log_prior, log_likelihood=lambda w, x, y: ... net.apply(w, x) ...)
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
from minisvi.tools.names import path_name

Prior = Callable[[str, tuple[int, ...]], Any]


@dataclass(frozen=True)
class Network:
    """A network whose parameters are latents.

    **Attributes**

    - `initial`: the module's own parameter values, a nested dict: a start for a guide,
      `guide.init(key, loc=initial)`.
    - `prior`: the same tree of distributions, one a parameter array.
    - `apply(weights, *inputs)`: the module's output, a pure function.
    """

    initial: Any
    prior: Any
    apply: Callable[..., Any]

    @property
    def latents(self) -> Any:
        """One real support for each parameter array."""
        return jax.tree.map(lambda w: supports.real(w.shape, w.dtype), self.initial)

    def log_prior(self, weights: Any) -> Array:
        """sum_i log p(w_i), a scalar in nats."""
        terms = jax.tree.map(lambda w, prior: jnp.sum(prior.log_prob(w)), weights, self.prior)
        return jnp.asarray(sum(jax.tree.leaves(terms)))

    def sample_prior(self, key: Array, num_samples: int) -> Any:
        """Draws of the weights from their prior, each leaf with a leading axis of `num_samples`."""
        n = checks.positive_integer("num_samples", num_samples)
        leaves, treedef = jax.tree.flatten(self.initial)
        keys = jax.tree.unflatten(
            treedef, list(jax.random.split(checks.prng_key(key), len(leaves)))
        )
        return jax.tree.map(
            lambda w, prior, k: ancestral.draw(prior, k, (n, *w.shape)),
            self.initial,
            self.prior,
            keys,
        )


def from_nnx(module: nnx.Module, prior: Prior) -> Network:
    """The `nnx.Param`s of a module as latents; all else in it (batch statistics, ...) stays as it
    is.

    `prior(path, shape)` gives each parameter array its prior, by its dotted path, such as
    `hidden.kernel`, and its shape: any object with `log_prob(x)` and `sample(seed=,
    sample_shape=)`, of scalars or of the whole array.
    """
    initial, apply = pure(module)
    return _network(initial, prior, apply)


def pure(module: nnx.Module) -> tuple[Any, Callable[..., Any]]:
    """`initial, apply`: a module's `nnx.Param`s as a nested dict, and its output as `apply(weights,
    *inputs)`.

    For networks that are not latents: the encoder of an `amortised` guide, the conditioner of a
    flow, a decoder. Guides take the tree `initial` where they take a function that makes weights,
    and then start there.
    """
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(weights: Any, *inputs: Any, **options: Any) -> Any:
        state = nnx.State(jax.tree.map(lambda x: x, params))
        nnx.replace_by_pure_dict(state, weights)
        return nnx.merge(graph, state, rest)(*inputs, **options)

    return nnx.to_pure_dict(params), apply


def from_linen(module: Any, variables: Mapping[str, Any], prior: Prior) -> Network:
    """The "params" of a Linen module as latents; `variables = module.init(key, x)`. `prior` as in
    `from_nnx`.
    """
    rest = {name: collection for name, collection in variables.items() if name != "params"}

    def apply(weights: Any, *inputs: Any, **options: Any) -> Any:
        return module.apply({"params": weights, **rest}, *inputs, **options)

    return _network(variables["params"], prior, apply)


def _network(initial: Any, prior: Prior, apply: Callable[..., Any]) -> Network:
    priors = jax.tree_util.tree_map_with_path(
        lambda path, w: prior(path_name(path), w.shape), initial
    )
    return Network(initial, priors, apply)
