"""Local latents: one member of a family for each row of the batch, with parameters stored by row or
from an encoder.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from minisvi.guides.base import Distribution
from minisvi.guides.conditional import parts_of
from minisvi.guides.foreign import adapted
from minisvi.guides.weights import Init, initialiser
from minisvi.model import trees
from minisvi.tools import checks
from minisvi.tools.noise import split
from minisvi.tools.record import Record
from minisvi.tools.tracing import fresh
from minisvi.tools.types import Data, Draw, Latents, Params


@dataclass(frozen=True)
class Rows(Distribution):
    """The distribution of the local latents of the B rows of a batch:

        log q(u) = sum_n weight_n log q_n(u_n)

    `make(params_n)` is the distribution of row n. Leaves of `params` and of u have the leading axis
    B. `weight` is one number for all rows, one for each, or None for one.
    """

    make: Callable[[Params], Any]
    params: Params
    weight: Any = None

    def _row(self, params: Params) -> Distribution:
        return adapted(self.make(params))

    @property
    def first(self) -> Distribution:
        """The first row's distribution."""
        return self._row(jax.tree.map(lambda leaf: leaf[0], self.params))

    @property
    def _num_rows(self) -> int:
        return jax.tree.leaves(self.params)[0].shape[0]

    @property
    def noise_size(self) -> int | None:
        size = self.first.noise_size
        return None if size is None else self._num_rows * size

    @property
    def reparameterised(self) -> bool:
        return self.first.reparameterised

    def from_noise(self, noise: Array) -> tuple[Draw, Array]:
        def draw(params: Params, piece: Array) -> tuple[Draw, Array]:
            return self._row(params).draw(piece)

        pieces = split(noise, self._num_rows)
        u, log_q = jax.vmap(draw)(self.params, pieces)
        return u, trees.weighted_sum(log_q, self.weight)

    def log_prob(self, u: Draw, /) -> Array:
        terms = jax.vmap(lambda params, row: self._row(params).log_prob(row))(self.params, u)
        return trees.weighted_sum(terms, self.weight)

    def score_log_prob(self, u: Draw) -> Array:
        terms = jax.vmap(lambda params, row: self._row(params).score_log_prob(row))(self.params, u)
        return trees.weighted_sum(terms, self.weight)

    def entropy(self) -> Array:
        terms = jax.vmap(lambda params: self._row(params).entropy())(self.params)
        return trees.weighted_sum(terms, self.weight)

    def weighted(self, weight: Any, local: Any) -> "Rows":
        del local  # all of its latents are
        return replace(self, weight=weight)

    def parts_at(self, u: Draw) -> Any:
        """Each part is the distribution of all rows at once."""
        return jax.vmap(lambda params, row: self._row(params).parts_at(row))(self.params, u)


class _RowGuide(Record):
    """What guides of local latents share; each has a `guide`, the family of a row."""

    guide: Any

    @property
    def constrained(self) -> Any:
        return self.guide.constrained

    @property
    def latents(self) -> Latents:
        return jax.tree.map(lambda support: replace(support, local=True), self.guide.latents)


def _rows(make: Callable[[Params], Any], params: Params) -> Rows:
    rows = Rows(make, params)
    if rows.first.stratified:
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

    guide: Any
    num_rows: int
    index: Callable[..., Array]

    @property
    def on(self) -> Any:
        return getattr(self.guide, "on", None)

    def init(self, key: Array, /) -> Params:
        return jax.vmap(self.guide.init)(jax.random.split(key, self.num_rows))

    def distribution(self, params: Params, /, *args: Any) -> Rows:
        if not self.on:
            return _rows(self.guide.distribution, self._of_batch(params, args))
        draws, *data = args
        own = {name: draws[name] for name, latents in self.on.items() if _is_local(latents)}

        def make(row: tuple[Params, Draw]) -> Any:
            # A row depends on the globals, and on the other local latents of the same row.
            row_params, row_draws = row
            return self.guide.distribution(row_params, draws | row_draws)

        return _rows(make, (self._of_batch(params, tuple(data)), own))

    def _of_batch(self, params: Params, data: Data) -> Params:
        """The parameters of the rows that the batch holds."""
        num_rows = _num_rows(data)
        index = jnp.asarray(self.index(*fresh(data)))
        if index.shape != (num_rows,) or not jnp.issubdtype(index.dtype, jnp.integer):
            raise ValueError(
                f"per_row: `index` must return each row's place in 0..{self.num_rows - 1}: "
                f"expected int[{num_rows}]; got {index.dtype}{list(index.shape)}"
            )

        def pick(leaf: Array) -> Array:
            # A place out of range gives NaN, which stops the fit, and not the last row's numbers.
            return leaf.at[index].get(mode="fill", fill_value=jnp.nan)

        return jax.tree.map(pick, params)


def _is_local(latents: Latents) -> bool:
    return any(support.local for support in jax.tree.leaves(latents))


@dataclass(frozen=True, eq=False)
class Amortised(_RowGuide):
    """See `amortised`."""

    guide: Any
    init: Init
    encode: Callable[..., Params]
    on: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.guide, "on", None):
            raise ValueError(
                "amortised: expected `on` of its own, for the encoder; got a conditional guide"
            )

    def distribution(self, params: Params, /, *args: Any) -> Rows:
        rows = self.encode(params, *fresh(args))
        data = args[1:] if self.on else args
        self._check(rows, _num_rows(data))
        return _rows(self.guide.distribution, rows)

    def _check(self, rows: Params, num_rows: int) -> None:
        def of_all_rows(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((num_rows, *leaf.shape), leaf.dtype)

        one = jax.eval_shape(lambda: self.guide.init(jax.random.key(0)))
        expected = jax.tree.map(of_all_rows, one)
        checks.same_tree("amortised: `encode` gave", expected, rows)


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
