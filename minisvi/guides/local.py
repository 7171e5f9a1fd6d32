"""Local latents: one member of a family for each row of the batch, with parameters stored by row or
from an encoder.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides import base
from minisvi.guides.products import parts_of
from minisvi.guides.weights import Init, initialiser
from minisvi.guides.wrapped import split
from minisvi.model import trees
from minisvi.tools import checks
from minisvi.tools.record import Record
from minisvi.tools.tracing import fresh


@dataclass(frozen=True)
class Rows(base.FromNoise):
    """q(u) = prod_n q_n(u_n) over the B rows of a batch, row n counted `weight` times, or `weight[n]`
    times.

    `make(params_n)` is the distribution of a row; leaves of `params` and of u have the leading axis
    B.
    """

    make: Callable[[Any], Any]
    params: Any
    weight: Any = None

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
        pieces = split(noise, self._num)
        u, log_q = jax.vmap(lambda params, piece: base.draw(self.make(params), piece))(
            self.params, pieces
        )
        return u, trees.weighted_sum(log_q, self.weight)

    def _sum(self, term: Callable[..., Array], *rows: Any) -> Array:
        terms = jax.vmap(lambda params, *row: term(self.make(params), *row))(self.params, *rows)
        return trees.weighted_sum(terms, self.weight)

    def log_prob(self, u: Any, /) -> Array:
        return self._sum(lambda q, row: q.log_prob(row), u)

    def score_log_prob(self, u: Any) -> Array:
        return self._sum(base.score_log_prob, u)

    def entropy(self) -> Array:
        return self._sum(base.entropy)

    def weighted(self, weight: Any) -> "Rows":
        return replace(self, weight=weight)

    @property
    def parts(self) -> Any:
        """The tree of distributions of all rows at once, where a row is a tree of them; None
        otherwise.
        """
        if getattr(self.row, "parts", None) is None:
            return None
        return jax.vmap(lambda params: self.make(params).parts)(self.params)


@dataclass(frozen=True, eq=False)
class _RowGuide(Record):
    guide: Any

    @property
    def constrained(self) -> Any:
        return self.guide.constrained

    @property
    def latents(self) -> Any:
        return jax.tree.map(lambda s: replace(s, local=True), self.guide.latents)

    def _rows(self, make: Callable[[Any], Any], params: Any) -> Rows:
        rows = Rows(make, params)
        if base.is_stratified(rows.row):
            raise ValueError(
                "expected a family without strata: mixtures for each of B rows would have C^B of them"
            )
        return rows


def _num_rows(data: tuple[Any, ...]) -> int:
    leaves = jax.tree.leaves(data)
    if not leaves or not jnp.shape(leaves[0]):
        raise ValueError(
            "a guide of local latents: expected data, whose leading axis is the rows; got none"
        )
    return jnp.shape(leaves[0])[0]


@dataclass(frozen=True, eq=False)
class PerRow(_RowGuide):
    """See `per_row`."""

    num_rows: int
    index: Callable[..., Array]

    @property
    def on(self) -> Any:
        return getattr(self.guide, "on", None)

    def init(self, key: Array, /) -> Any:
        return jax.vmap(self.guide.init)(jax.random.split(key, self.num_rows))

    def distribution(self, params: Any, /, *args: Any) -> Rows:
        draws, data = (args[0], args[1:]) if self.on else ({}, args)
        params = self._of(params, data)
        if not self.on:
            return self._rows(self.guide.distribution, params)
        # A row depends on the globals, and on the other local latents of the same row.
        own = {
            name: draws[name]
            for name, s in self.on.items()
            if any(leaf.local for leaf in jax.tree.leaves(s))
        }
        return self._rows(
            lambda row: self.guide.distribution(row[0], {**draws, **row[1]}), (params, own)
        )

    def _of(self, params: Any, data: tuple[Any, ...]) -> Any:
        num, rows = _num_rows(data), jnp.asarray(self.index(*fresh(data)))
        if rows.shape != (num,) or not jnp.issubdtype(rows.dtype, jnp.integer):
            raise ValueError(
                f"per_row: `index` must return each row's place in 0..{self.num_rows - 1}: expected int[{num}]; got "
                f"{rows.dtype}{list(rows.shape)}"
            )
        # A place out of range gives NaN, which stops the fit, and not the last row's parameters.
        return jax.tree.map(lambda leaf: leaf.at[rows].get(mode="fill", fill_value=jnp.nan), params)


@dataclass(frozen=True, eq=False)
class Amortised(_RowGuide):
    """See `amortised`."""

    init: Init
    encode: Callable[..., Any]
    on: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if getattr(self.guide, "on", None):
            raise ValueError(
                "amortised: expected `on` of its own, for the encoder; got a conditional guide"
            )

    def distribution(self, params: Any, /, *args: Any) -> Rows:
        rows, num = self.encode(params, *fresh(args)), _num_rows(args[1:] if self.on else args)
        one = jax.eval_shape(lambda: self.guide.init(jax.random.key(0)))
        expected = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((num, *leaf.shape), leaf.dtype), one
        )
        checks.same_tree("amortised: `encode` gave", expected, rows)
        return self._rows(self.guide.distribution, rows)


def per_row(guide: Any, num_rows: int, index: Callable[..., Array]) -> PerRow:
    """Stored parameters for each of the N rows of the data; a batch picks its own.

    **Arguments**

    - `guide`: the family over the latents of one row, such as `mean_field(real(2))`; it may be
      `conditional` on globals, or on other local latents of the row, and then each row has its own
      dependence on them.
    - `num_rows`: N. Parameters are the guide's, with a leading axis N.
    - `index(*data)`: the integers (B,) in 0..N-1 that say which rows the batch holds, from an array
      of the data.

    Latents are `local` ones of the model. In a minibatch log q counts N/B times, as the rows'
    likelihood does. ValueError for another index, a mixture, or no data.
    """
    return PerRow(guide, checks.positive_integer("num_rows", num_rows), index)


def amortised(
    guide: Any, init: Init | Any, encode: Callable[..., Any], on: dict[str, Any] | None = None
) -> Amortised:
    """Parameters of each row from an encoder of the batch (Kingma & Welling 2014, section 2.3).

    **Arguments**

    - `guide`: the family over the latents of one row, as in `per_row`, but not `conditional`.
    - `init`: a function `init(key)` that returns the encoder's weights, the parameters of this
      guide; or a tree of arrays to start with, such as the first of the two things that `bnn.pure`
      makes of a Flax module.
    - `encode(weights, *data)`: the guide's parameters with a leading axis B, such as `{"loc": (B,
      D), "log_scale": (B, D)}` for a mean field. It calls the second of these.
    - `on`: latents of other parts of a product, as in `conditional`; `encode(weights, draws,
      *data)` then gets their draws too, a dict.

    TypeError for another `init`; ValueError for parameters of another tree or shape, a mixture, or
    no data.
    """
    parts = None if on is None else parts_of("amortised", on)
    return Amortised(guide, initialiser("amortised: `init`", init), encode, parts)
