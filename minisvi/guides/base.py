"""q_phi(u): the contract of a guide, and what an objective may ask of the distributions that guides
give.

A guide is a family of distributions over the latents: two pure functions in a frozen, hashable
record. Its parameters phi are a plain pytree outside it, so the family with its gradient stopped is
`distribution(stop_gradient(params))`.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array


class Distribution(Protocol):
    """q, one member of a family. Draws are trees like the model's latents; log densities are
    scalars in nats.

    Two methods are owed. The rest is asked for by the functions below, and each may be left out:

    - `entropy()`: H[q] = -E_q[log q], where it is known;
    - `noise_size` and `from_noise(noise)`: the draw as a function of that many independent standard
      normals, or of a key; what antithetic and quasi-random draws need;
    - `strata(noise)`: draws of every component of a mixture, with their log weights;
    - `reparameterised`: False if draws carry no gradient, and `score_log_prob(u)` if only some
      parts of them do;
    - `weighted(weight)`: the same with the log densities of local latents counted as their rows are;
    - `parts`: a tree of independent distributions, for closed-form KLs;
    - `affine()`: the (loc, factor) that takes the draws to about the standard normal, for flows.
    """

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Any, Array]:
        """A draw u and log q(u), in one pass; reparameterised, unless the distribution says
        otherwise.
        """
        ...

    def log_prob(self, u: Any, /) -> Array:
        """log q(u)."""
        ...


class Guide(Protocol):
    """A family of distributions. `constrained` is a bool, or a prefix tree of bools over the
    latents: True where the draws are theta itself, inside the support, rather than u.
    """

    @property
    def constrained(self) -> Any: ...

    def init(self, key: Array, /) -> Any:
        """Initial parameters, a pytree of floats."""
        ...

    def distribution(self, params: Any, /, *data: Any) -> Any:
        """The member of the family at `params`; `data` serves amortised guides, and others ignore
        it.

        A guide with a tree `on`, of the parts of a product that it depends on, gets their draws
        before the data.
        """
        ...


class FromNoise:
    """Base of distributions whose draw is `from_noise` of `noise_size` independent standard
    normals.
    """

    noise_dtype: Any = None

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Any, Array]:
        n = None if is_stratified(self) else noise_size(self)
        dtype = self.noise_dtype or jnp.result_type(float)
        return self.from_noise(seed if n is None else jax.random.normal(seed, (n,), dtype))  # type: ignore[attr-defined]


def is_distribution(node: Any) -> bool:
    """True for a Distrax, TFP or minisvi distribution (TFP has no `sample_and_log_prob` of this
    name).
    """
    return hasattr(node, "sample_and_log_prob") or hasattr(node, "experimental_sample_and_log_prob")


def draw(q: Any, noise: Array) -> tuple[Any, Array]:
    """u and log q(u) from `noise`: a key, or `noise_size(q)` standard normals."""
    if jnp.issubdtype(noise.dtype, jnp.floating):
        return q.from_noise(noise)
    if hasattr(q, "sample_and_log_prob"):
        return q.sample_and_log_prob(seed=noise)
    return q.experimental_sample_and_log_prob(seed=noise)


def noise_size(q: Any) -> int | None:
    """How many standard normals a draw is a function of; None if q can only draw from a key."""
    return getattr(q, "noise_size", None)


def strata(q: Any, noise: Array) -> tuple[Any, Array, Array]:
    """(u, log q(u), log weight) of C draws along a leading axis, E_q[f] being that of sum_c
    weight_c f(u_c). C = 1 unless q is, or holds, a mixture.
    """
    if hasattr(q, "strata"):
        return q.strata(noise)
    u, log_q = draw(q, noise)
    return jax.tree.map(lambda leaf: leaf[None], u), log_q[None], jnp.zeros(1, log_q.dtype)


def is_stratified(q: Any) -> bool:
    """True if q has several strata."""
    return getattr(q, "stratified", hasattr(q, "strata"))


def is_reparameterised(q: Any) -> bool:
    """False if draws of q, or of a part of it, carry no gradient: integers, and what says so."""
    if hasattr(q, "reparameterised"):
        return q.reparameterised
    if hasattr(q, "reparameterization_type"):  # TFP's word for it
        return "NOT" not in repr(q.reparameterization_type)
    return jnp.issubdtype(getattr(q, "dtype", jnp.float32), jnp.floating)


def score_log_prob(q: Any, u: Any) -> Array:
    """log q(u) of the parts that are not reparameterised, whose gradient is the score; 0 if there
    are none.
    """
    if hasattr(q, "score_log_prob"):
        return q.score_log_prob(u)
    return jnp.zeros(()) if is_reparameterised(q) else jnp.sum(q.log_prob(u))


def entropy(q: Any) -> Array:
    """H[q] in nats; ValueError if it has no closed form."""
    try:
        return jnp.sum(q.entropy())
    except (AttributeError, NotImplementedError):
        name = type(q).__name__
        raise ValueError(
            f"{name} has no closed-form entropy: take gradient='reparameterised'"
        ) from None


def weighted(q: Any, weight: Any) -> Any:
    """q with the log densities of its local latents counted `weight` times, or each row its own."""
    return q if weight is None or not hasattr(q, "weighted") else q.weighted(weight)
