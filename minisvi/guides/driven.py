"""A guide for hierarchies: some latents drive the scales and the means of the others.

Where u_i ~ N(0, exp(h)^2) with unknown h, the posterior of (h, u) is a funnel, and no Gaussian is
near it. Here h comes first, and every other latent is Gaussian given h, as it is in the posterior
of a Gaussian hierarchy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import stop_gradient
from jax.typing import ArrayLike

from minisvi.guides.flow import check_about_standard
from minisvi.guides.foreign import member
from minisvi.guides.gaussian import log_cholesky
from minisvi.guides.location_scale import Triangular, pulled_back
from minisvi.guides.wrapped import Pushed, Wrapper
from minisvi.model import trees
from minisvi.tools.names import named_leaves
from minisvi.tools.types import Draw, Latents, Params

_ONSET = 20.0  # sds, at the start


class Frame(NamedTuple):
    """The coordinates (u - centre) / unit of the drivers and of the rest, which are fixed."""

    driver_centre: Array
    driver_unit: Array
    rest_centre: Array
    rest_unit: Array

    def log_det(self) -> Array:
        return jnp.sum(jnp.log(self.driver_unit)) + jnp.sum(jnp.log(self.rest_unit))


class Tails(NamedTuple):
    """The map of each driver that gives it a skew, and tails lighter or heavier than the normal's.

    First comes y = c sinh(3 asinh(z / c)) / 3 = z + 4 z^3 / (3 c^2), which only the tails feel:
    they fall more slowly than exponentials then, as the densities of log scales do on one side. On
    each side of zero c = exp(log_onset) is another number, (2, H). Then comes the sinh-arcsinh map
    (Jones & Pewsey 2009, eq. 2):

        w = (sinh(a) - sinh(skew)) / d,  a = d asinh(y) + skew,  d = exp(log_weight)

    Both take zero to zero. The second is the identity where its parameters are zero, and the first
    where c is infinite.
    """

    skew: Array
    log_weight: Array
    log_onset: Array

    def _onset(self, z: Array) -> Array:
        """c on the side of zero where z is, and y and w as well."""
        below, above = self.log_onset
        return jnp.exp(jnp.where(z < 0, below, above))

    def forward_and_log_det(self, z: Array) -> tuple[Array, Array]:
        """w, and the log slope of each coordinate."""
        square = (2 * z / self._onset(z)) ** 2
        y = z * (1 + square / 3)
        weight = jnp.exp(self.log_weight)
        a = weight * jnp.arcsinh(y) + self.skew
        w = (jnp.sinh(a) - jnp.sinh(self.skew)) / weight
        return w, jnp.log1p(square) + _log_slope(a, y)

    def inverse_and_log_det(self, w: Array) -> tuple[Array, Array]:
        onset = self._onset(w)
        weight = jnp.exp(self.log_weight)
        a = jnp.arcsinh(weight * w + jnp.sinh(self.skew))
        y = jnp.sinh((a - self.skew) / weight)
        thrice = jnp.arcsinh(3 * y / onset)
        z = onset * jnp.sinh(thrice / 3)
        return z, -jnp.log1p((2 * z / onset) ** 2) - _log_slope(a, y)


def _log_slope(a: Array, z: Array) -> Array:
    """The log of the slope of sinh(d asinh(z) + c) / d, where a is its argument: log cosh(a) -
    log(1 + z^2) / 2, without an overflow of cosh.
    """
    size = jnp.abs(a)
    log_cosh = size + jnp.log1p(jnp.exp(-2 * size)) - np.log(2.0)
    return log_cosh - 0.5 * jnp.log1p(z * z)


class Response(NamedTuple):
    """How the R others answer to the H drivers w: their mean and the log of their scale.

    With a gate g = sigmoid(a), a = gate w + gate_bias, of each of the others,

        mean(w) = linear w + g (pull + pull_slope w) + 2 bump sqrt(g (1 - g))
        log scale(w) = slope w - (softplus(a) - softplus(gate_bias)) / 2

    The product of a prior N(m, s^2) and a Gaussian likelihood with precision P, whose logs s and P
    are linear in w, is of this form, where m is linear: its precision is a sum of two exponentials,
    and its mean is their average.
    """

    linear: Array
    slope: Array
    gate: Array
    gate_bias: Array
    pull: Array
    pull_slope: Array
    bump: Array

    def __call__(self, w: Array) -> tuple[Array, Array]:
        a = self.gate @ w + self.gate_bias
        opening = jax.nn.softplus(a)
        gate = jax.nn.sigmoid(a)
        # sqrt(g (1 - g)), which itself has no gradient where a gate is shut or open.
        middle = jnp.exp(0.5 * a - opening)
        pulled = gate * (self.pull + self.pull_slope @ w)
        mean = self.linear @ w + pulled + 2 * self.bump * middle
        log_scale = self.slope @ w - 0.5 * (opening - jax.nn.softplus(self.gate_bias))
        return mean, log_scale


@dataclass(frozen=True)
class DriversFirst(Pushed):
    """q(u), where a draw x of the base, about standard, is pushed in two steps:

        w = tails(L_1 x_1),  v = mean(w) + exp(log scale(w)) L_2 x_2

    The drivers are h = centre + unit w, and the rest centre + unit v. `order` (D,) has the places
    of the drivers in u, and then those of the rest.
    """

    order: np.ndarray
    frame: Frame
    tails: Tails
    driver_factor: Triangular
    response: Response
    rest_factor: Triangular

    @property
    def noise_dtype(self) -> Any:
        return self.frame.driver_centre.dtype

    def _push(self, x: Draw, log_q: Array) -> tuple[Draw, Array]:
        w, v, log_slope, log_scale = self._forward(*self._split(x))
        drivers = self.frame.driver_centre + self.frame.driver_unit * w
        rest = self.frame.rest_centre + self.frame.rest_unit * v
        log_det = jnp.sum(log_slope) + jnp.sum(log_scale) + self._log_det()
        return self._join(drivers, rest), log_q - log_det

    def _forward(self, of_drivers: Array, of_rest: Array) -> tuple[Array, Array, Array, Array]:
        """w and v, and the logs of the slopes of the tails (H,) and of the scales (R,)."""
        w, log_slope = self.tails.forward_and_log_det(self.driver_factor.times(of_drivers))
        mean, log_scale = self.response(w)
        v = mean + jnp.exp(log_scale) * self.rest_factor.times(of_rest)
        return w, v, log_slope, log_scale

    def _push_score(self, x: Draw, score: Draw) -> Draw:
        """J is triangular, as the drivers' draws do not depend on the rest's. So the score of the
        rest is L_2^-T score_2 over their scale, and the drivers' is what is left of theirs less
        what the rest pulls back.
        """
        of_drivers, of_rest = self._split(x)
        driver_score, rest_score = self._split(score)

        def forward(of_drivers: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            _, v, log_slope, log_scale = self._forward(of_drivers, of_rest)
            return (v, jnp.sum(log_slope) + jnp.sum(log_scale)), (log_slope, log_scale)

        _, pull, (log_slope, log_scale) = jax.vjp(forward, of_drivers, has_aux=True)
        rest_score = pulled_back(self.rest_factor, rest_score) * jnp.exp(-log_scale)
        (pulled,) = pull((rest_score, jnp.ones((), rest_score.dtype)))
        driver_score = pulled_back(self.driver_factor, driver_score - pulled)
        driver_score = driver_score * jnp.exp(-log_slope)
        frame = self.frame
        return self._join(driver_score / frame.driver_unit, rest_score / frame.rest_unit)

    def log_prob(self, u: Draw, /) -> Array:
        drivers, rest = self._split(u)
        w = (drivers - self.frame.driver_centre) / self.frame.driver_unit
        v = (rest - self.frame.rest_centre) / self.frame.rest_unit
        z, log_slope = self.tails.inverse_and_log_det(w)
        mean, log_scale = self.response(w)
        of_drivers = self.driver_factor.solve(z)
        of_rest = self.rest_factor.solve((v - mean) * jnp.exp(-log_scale))
        log_det = jnp.sum(log_slope) - jnp.sum(log_scale) - self._log_det()
        return self.base.log_prob(self._join(of_drivers, of_rest)) + log_det

    def _log_det(self) -> Array:
        """The log-determinant of the factors and of the frame, which no draw changes."""
        of_factors = self.driver_factor.log_det() + self.rest_factor.log_det()
        return of_factors + self.frame.log_det()

    def _split(self, tree: Draw) -> tuple[Array, Array]:
        vector = trees.ravel(self.latents, tree)[self.order]
        num_drivers = self.frame.driver_centre.size
        return vector[:num_drivers], vector[num_drivers:]

    def _join(self, drivers: Array, rest: Array) -> Draw:
        in_order = jnp.concatenate([drivers, rest])
        return trees.unravel(self.latents, in_order[np.argsort(self.order)])


@dataclass(frozen=True, eq=False)
class Driven(Wrapper):
    """See `driven`. `places` are those of the drivers in the vector u."""

    guide: Any
    places: tuple[int, ...]

    @property
    def order(self) -> np.ndarray:
        """The places (D,) of the drivers in the vector u, and then those of the rest."""
        size = trees.spec(self.latents).shape[0]
        rest = np.setdiff1d(np.arange(size), self.places)
        return np.concatenate([np.asarray(self.places, int), rest])

    def init(
        self,
        key: Array,
        /,
        loc: Draw | None = None,
        cov: ArrayLike | None = None,
        gate: ArrayLike | None = None,
        gate_bias: ArrayLike | None = None,
    ) -> dict[str, Any]:
        spec = trees.spec(self.latents)
        origin = jnp.zeros(spec.shape, spec.dtype)
        vector = origin if loc is None else trees.start(self.latents, key, loc)
        cov = jnp.ones_like(origin) if cov is None else trees.covariance(cov, origin)
        x = self.guide.init(key, loc=trees.unravel(self.latents, origin))
        gate, gate_bias = jax.tree.map(jnp.asarray, (gate, gate_bias))
        return self.params_at(vector, cov, gate, gate_bias, x)

    def params_at(self, loc: Any, cov: Any, gate: Any, gate_bias: Any, x: Params) -> dict[str, Any]:
        """The parameters of the start `init` describes, where loc is a vector (D,), and `x` are
        those of the guide of x. They are NumPy's arrays where the arguments are.
        """
        xp = cov.__array_namespace__()
        matrix = xp.diag(cov) if cov.ndim == 1 else cov
        order = self.order
        num = len(self.places)
        split = _Split.of(matrix[order][:, order], num)
        frame = Frame(
            driver_centre=loc[order[:num]],
            driver_unit=split.driver_unit,
            rest_centre=loc[order[num:]],
            rest_unit=split.rest_unit,
        )
        zeros = xp.zeros(num, loc.dtype)
        return {
            "frame": frame,
            "tails": Tails(zeros, zeros, xp.full((2, num), np.log(_ONSET), loc.dtype)),
            "driver_factor": split.driver_factor,
            "response": _answer(split.linear, gate, gate_bias),
            "rest_factor": split.rest_factor,
            "x": x,
        }

    def distribution(self, params: Params, /, *data: Any) -> DriversFirst:
        return DriversFirst(
            latents=self.latents,
            base=member(self.guide, params["x"], *data),
            order=self.order,
            frame=stop_gradient(params["frame"]),
            tails=params["tails"],
            driver_factor=Triangular(params["driver_factor"]),
            response=params["response"],
            rest_factor=Triangular(params["rest_factor"]),
        )


class _Split(NamedTuple):
    """A Gaussian as its drivers, and the rest given them, both in units of their own sds.

    `linear` are the regression coefficients, (R, H). The factors are as `Triangular` has them.
    """

    driver_unit: Array
    driver_factor: Array
    linear: Array
    rest_unit: Array
    rest_factor: Array

    @classmethod
    def of(cls, cov: Array, num: int) -> "_Split":
        """Of the covariance (D, D), in which the `num` drivers come first."""
        xp = cov.__array_namespace__()
        of_drivers = cov[:num, :num]
        regression = xp.linalg.solve(of_drivers, cov[:num, num:]).T
        given_drivers = cov[num:, num:] - regression @ cov[:num, num:]
        driver_unit = xp.sqrt(xp.diagonal(of_drivers))
        rest_unit = xp.sqrt(xp.diagonal(given_drivers))
        return cls(
            driver_unit=driver_unit,
            driver_factor=log_cholesky(of_drivers / xp.outer(driver_unit, driver_unit)),
            linear=regression * xp.outer(1 / rest_unit, driver_unit),
            rest_unit=rest_unit,
            rest_factor=log_cholesky(given_drivers / xp.outer(rest_unit, rest_unit)),
        )


def _answer(linear: Any, gate: Any, gate_bias: Any) -> Response:
    """The response of a Gaussian, with these regression coefficients; or one with these gates."""
    xp = linear.__array_namespace__()
    num_rest, _ = linear.shape
    zeros = xp.zeros(num_rest, linear.dtype)
    return Response(
        linear=linear,
        slope=xp.zeros_like(linear),
        gate=xp.zeros_like(linear) if gate is None else gate.astype(linear.dtype),
        gate_bias=zeros if gate_bias is None else gate_bias.astype(linear.dtype),
        pull=zeros,
        pull_slope=xp.zeros_like(linear),
        bump=zeros,
    )


def driven(guide: Any, drivers: Sequence[str]) -> Driven:
    """The `drivers` first, and the other latents given them, with scales and means that the drivers
    decide on: for Gaussian hierarchies, centred or not, and for funnels.

        h = tails(loc + L_1 x_1),  r = mean(h) + exp(log scale(h)) L_2 x_2,  x ~ guide

    `Tails` and `Response` have the equations. Each of the other latents has its own gate, between a
    scale that is proportional to the drivers' exponentials and one that is not, as in a partially
    non-centred model (Gorinova, Moore & Hoffman 2020), which is what a prior and a likelihood make
    of it together. Neal's funnel is a member of the family, and so is any hierarchy of independent
    Gaussians given Gaussian drivers.

    **Arguments**

    - `guide`: the family of x, about standard: a Gaussian, such as `mean_field(latents, 1.0)`, or a
      flow over one.
    - `drivers`: the dotted paths of the latents that come first, such as the scales.

    `init(key, loc=u, cov=c)` starts at a Gaussian, of which c is the covariance (D, D) or the
    variances (D,). `gate` (R, H) and `gate_bias` (R,), if they are given, start the gates. The
    `frame`, location and units of that Gaussian, stays as it is.

    TypeError for a guide that is no Gaussian and no flow over one; ValueError for drivers that are
    no latents, or that are none or all of them.
    """
    check_about_standard("driven", "mean_field(latents, 1.0)", guide)
    return Driven(guide, _places(guide.latents, drivers))


def _places(latents: Latents, names: Sequence[str]) -> tuple[int, ...]:
    """Where the latents of these dotted paths are in the vector u."""
    supports = named_leaves(latents)
    unknown = sorted(set(names) - supports.keys())
    if unknown or isinstance(names, str):
        raise ValueError(f"`drivers`: expected some of {[*supports]}; got {names!r}")
    places: list[int] = []
    begin = 0
    for name, support in supports.items():
        end = begin + int(np.prod(support.unconstrained.shape))
        if name in names:
            places.extend(range(begin, end))
        begin = end
    if len(places) in (0, begin):
        raise ValueError(f"`drivers`: expected some of {[*supports]}, not none or all; got {names}")
    return tuple(places)
