"""q_phi(u): what a guide is, and what a distribution is that guides give.

A guide is a family of distributions over the latents: two pure functions in a frozen, hashable
record. Its parameters phi are a plain pytree outside it, so that the family with its gradient
stopped is `distribution(stop_gradient(params))`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient

from minisvi.tools.noise import is_normals
from minisvi.tools.types import Draw, Params


class Distribution:
    """q, one member of a family. Draws are trees like the model's latents; log densities are
    scalars in nats.

    A subclass owes `log_prob`, and one of `from_noise` and `sample_and_log_prob`. It overrides what
    else it knows better than the defaults here.
    """

    noise_dtype: Any = None  # of the normals that draws are made of; None for JAX's default

    @property
    def noise_size(self) -> int | None:
        """How many standard normals a draw is a function of; None if only a key can draw it."""
        return None

    @property
    def reparameterised(self) -> bool:
        """False if draws, or some parts of them, carry no gradient in the parameters."""
        return True

    @property
    def stratified(self) -> bool:
        """True if q is, or holds, a mixture, of which `strata` draws every component."""
        return False

    def log_prob(self, u: Draw, /) -> Array:
        """log q(u)."""
        raise NotImplementedError

    def from_noise(self, noise: Array) -> tuple[Draw, Array]:
        """u and log q(u), as a function of `noise`.

        It is `noise_size` independent standard normals. Where `noise_size` is None, or q is
        `stratified`, it may also be a PRNG key, which `sample_and_log_prob` then hands on as it is.
        """
        raise NotImplementedError

    def sample_and_log_prob(self, *, seed: Array) -> tuple[Draw, Array]:
        """A draw u and log q(u), in one pass, from a PRNG key."""
        if self.noise_size is None or self.stratified:
            return self.from_noise(seed)
        dtype = self.noise_dtype or jnp.result_type(float)
        return self.from_noise(jax.random.normal(seed, (self.noise_size,), dtype))

    def draw(self, noise: Array) -> tuple[Draw, Array]:
        """u and log q(u) from `noise`: a key, or `noise_size` standard normals."""
        if is_normals(noise):
            return self.from_noise(noise)
        return self.sample_and_log_prob(seed=noise)

    def strata(self, noise: Array) -> tuple[Draw, Array, Array]:
        """(u, log q(u), log weight) of C draws along a leading axis, where E_q[f] is the mean of
        sum_c weight_c f(u_c). There is one draw, C = 1, unless q has strata.
        """
        u, log_q = self.draw(noise)
        return jax.tree.map(lambda leaf: leaf[None], u), log_q[None], jnp.zeros(1, log_q.dtype)

    def at_draws(self, function: Callable[[Draw, Array], Any], noise: Array) -> tuple[Any, Array]:
        """function(u, log q(u)) at a draw, and the log of the draw's weight, which is zero.

        Where q has strata it is at a draw of each; both results then have a leading axis C.
        """
        if not self.stratified:
            return function(*self.draw(noise)), jnp.zeros(())
        u, log_q, log_weight = self.strata(noise)
        return jax.vmap(function)(u, log_q), log_weight

    def at_draws_on_path(
        self, function: Callable[[Draw, Array], Any], stopped: "Distribution", noise: Array
    ) -> tuple[Any, Array]:
        """`at_draws`, with a log q(u) whose gradient goes through u alone; `stopped` is q with no
        gradient in its parameters.
        """
        if self.stratified:
            return self.at_draws(lambda u, _: function(u, stopped.log_prob(u)), noise)
        u, log_q, score = self.draw_and_score(noise, stopped)
        return function(u, _with_gradient(log_q, score, u)), jnp.zeros(())

    def draw_and_score(self, noise: Array, stopped: "Distribution") -> tuple[Draw, Array, Draw]:
        """u, log q(u), and the score of `stopped`, which is the gradient of its log q at u: a tree
        like u. The last two carry no gradient.
        """
        u, _ = self.draw(noise)
        log_q, score = jax.value_and_grad(stopped.log_prob)(stop_gradient(u))
        return u, log_q, score

    def score_log_prob(self, u: Draw) -> Array:
        """log q(u) of the parts that are not reparameterised, whose gradient is the score; zero if
        there are none.
        """
        return jnp.zeros(()) if self.reparameterised else self.log_prob(u)

    def entropy(self) -> Array:
        """H[q] = -E_q[log q] in nats; ValueError if it has no closed form."""
        raise ValueError(
            f"{type(self).__name__} has no closed-form entropy: take gradient='reparameterised'"
        )

    def weighted(self, weight: Any, local: Any) -> "Distribution":
        """The same with the log densities of its local latents counted `weight` times.

        `weight` is one number, or one for each row (B,). `local` is a tree like the latents that q
        is over: the name of each local latent, and "" in the place of each other one.

        ValueError if q has local latents and does not override this: what it has of log q is a
        sum over the rows, which cannot be told from the terms of other latents.
        """
        del weight
        names = local_names(local)
        if names:
            raise ValueError(
                f"minibatches with local latents {names}: expected a `weighted(weight, local)` of "
                f"{type(self).__name__}, which counts each row's log density `weight` times; got "
                "none. Define it, or take `per_row` or `amortised`"
            )
        return self

    def parts_at(self, u: Draw) -> Any:
        """The tree of distributions that q is a product of, given the draw u where some depend on
        others; None if q is no product.
        """
        del u
        return None

    def affine(self) -> tuple[Array, Any] | None:
        """The (loc, factor) that takes draws to about the standard normal, factor^-1 (u - loc);
        None of a q that is not close to a Gaussian by construction.
        """
        return None


def _with_gradient(value: Array, gradient: Draw, u: Draw) -> Array:
    """The value as a function of u, with that gradient."""
    along = jax.tree.map(
        lambda slope, leaf: jnp.vdot(slope, leaf - stop_gradient(leaf)), gradient, u
    )
    return value + sum(jax.tree.leaves(along))


def local_names(local: Any) -> list[str]:
    """The names in the tree that `Distribution.weighted` is given."""
    return [name for name in jax.tree.leaves(local) if name]


class Guide(Protocol):
    """A family of distributions. `constrained` is a bool, or a prefix tree of bools over the
    latents: True where the draws are theta itself, inside the support, rather than u.
    """

    @property
    def constrained(self) -> Any: ...

    def init(self, key: Array, /) -> Params:
        """Initial parameters, a pytree of floats."""
        ...

    def distribution(self, params: Params, /, *data: Any) -> Any:
        """The member of the family at `params`; `data` serves amortised guides, and others ignore
        it. It is a `Distribution`, or one of another library.

        A guide with a tree `on`, of the parts of a product that it depends on, gets their draws
        before the data.
        """
        ...
