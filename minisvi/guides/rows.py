"""Local latents: one member of a family for each row of the batch, with parameters stored by row or from an encoder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi import checks
from minisvi.guides import base
from minisvi.record import Record


@dataclass(frozen=True)
class Rows(base.FromNoise):
    """q(u) = prod_n q_n(u_n) over the B rows of a batch, its log density counted `scale` = N/B times.

    `make(params_n)` is the distribution of a row; leaves of `params` and of u have the leading axis B.
    """

    make: Callable[[Any], Any]
    params: Any
    scale: Any = 1.0

    @property
    def _num(self) -> int:
        return jax.tree.leaves(self.params)[0].shape[0]

    @property
    def row(self) -> Any:
        """The first row's distribution."""
        return self.make(jax.tree.map(lambda leaf: leaf[0], self.params))

    @property
    def noise_size(self) -> int | None:
        size = base.noise_size(self.row)
        return None if size is None else self._num * size

    @property
    def reparameterised(self) -> bool:
        return base.is_reparameterised(self.row)

    def from_noise(self, noise: Array) -> tuple[Any, Array]:
        normals = jnp.issubdtype(noise.dtype, jnp.floating)
        pieces = noise.reshape(self._num, -1) if normals else jax.random.split(noise, self._num)
        u, log_q = jax.vmap(lambda params, piece: base.draw(self.make(params), piece))(self.params, pieces)
        return u, self.scale * jnp.sum(log_q)

    def log_prob(self, u: Any, /) -> Array:
        return self.scale * jnp.sum(jax.vmap(lambda params, row: self.make(params).log_prob(row))(self.params, u))

    def entropy(self) -> Array:
        return self.scale * jnp.sum(jax.vmap(lambda params: base.entropy(self.make(params)))(self.params))

    def scaled(self, scale: Any) -> "Rows":
        return replace(self, scale=scale)

    @property
    def parts(self) -> Any:
        """The tree of distributions of all rows at once, where a row is a tree of them; None otherwise."""
        if getattr(self.row, "parts", None) is None:
            return None
        return jax.vmap(lambda params: self.make(params).parts)(self.params)


@dataclass(frozen=True, eq=False)
class _RowGuide(Record):
    guide: Any

    @property
    def on(self) -> Any:
        return getattr(self.guide, "on", None)

    @property
    def constrained(self) -> Any:
        return self.guide.constrained

    @property
    def latents(self) -> Any:
        return jax.tree.map(lambda s: replace(s, local=True), self.guide.latents)

    def _rows(self, params: Any, draws: tuple[Any, ...]) -> Rows:
        rows = Rows(lambda row: self.guide.distribution(row, *draws), params)
        if base.is_stratified(rows.row):
            raise ValueError("expected a family without strata: mixtures for each of B rows would have C^B of them")
        return rows

    def _split(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The draws of the parts that it depends on, and the data."""
        return (args[:1], args[1:]) if self.on else ((), args)


@dataclass(frozen=True, eq=False)
class PerRow(_RowGuide):
    """See `per_row`."""

    num_rows: int
    index: Callable[..., Array]

    def init(self, key: Array, /) -> Any:
        return jax.vmap(self.guide.init)(jax.random.split(key, self.num_rows))

    def distribution(self, params: Any, /, *args: Any) -> Rows:
        draws, data = self._split(args)
        rows = self.index(*data)
        return self._rows(jax.tree.map(lambda leaf: leaf[rows], params), draws)


@dataclass(frozen=True, eq=False)
class Amortised(_RowGuide):
    """See `amortised`."""

    init: Callable[[Array], Any]
    encode: Callable[..., Any]

    def distribution(self, params: Any, /, *args: Any) -> Rows:
        draws, data = self._split(args)
        return self._rows(self.encode(params, *data), draws)


def per_row(guide: Any, num_rows: int, index: Callable[..., Array]) -> PerRow:
    """Stored parameters for each of the N rows of the data; a batch picks its own.

    **Arguments**

    - `guide`: the family over the latents of one row, such as `mean_field(real(2))`; it may be `conditional` on
      globals, and then each row has its own dependence on them.
    - `num_rows`: N. Parameters are the guide's, with a leading axis N.
    - `index(*data)`: the indices (B,) in 0..N-1 of the batch's rows, which the data must hold.

    Latents are `local` ones of the model. In a minibatch log q counts N/B times, as the rows' likelihood does.
    """
    return PerRow(guide, checks.positive_integer("num_rows", num_rows), index)


def amortised(guide: Any, init: Callable[[Array], Any], encode: Callable[..., Any]) -> Amortised:
    """Parameters of each row from an encoder of the batch (Kingma & Welling 2014, section 2.3).

    **Arguments**

    - `guide`: the family over the latents of one row, as in `per_row`.
    - `init(key)`: the encoder's weights, the parameters of this guide.
    - `encode(weights, *data)`: the guide's parameters with a leading axis B, such as `{"loc": (B, D), "log_scale": (B,
      D)}` for a mean field; `bnn.pure` makes both from a Flax module.
    """
    return Amortised(guide, init, encode)
