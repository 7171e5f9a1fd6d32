"""The draws behind an estimate: independent, in antithetic pairs, or quasi-random.

Each draw has the guide's distribution, so that every estimate is unbiased whichever is taken. Only
how the draws depend on each other differs.

Noise is what one draw is made of: a PRNG key, or a vector of standard normals.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri

from minisvi.tools.sharding import along

Sampling = Literal["independent", "antithetic", "quasi"]
Particle = Callable[[Array], Any]
"""A function of one draw's noise."""


def check(sampling: str, num_particles: int) -> None:
    """ValueError unless `sampling` is known and the number of particles suits it."""
    known = get_args(Sampling)
    if sampling not in known:
        raise ValueError(f"`sampling` must be one of {known}; got {sampling!r}")
    if sampling == "antithetic" and num_particles % 2:
        raise ValueError(
            f"antithetic draws come in pairs: `num_particles` must be even; got {num_particles}"
        )
    if sampling == "quasi" and not _is_power_of_two(num_particles):
        raise ValueError(
            f"quasi-random draws: `num_particles` must be a power of two; got {num_particles}"
        )


def _is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0


def over_particles(
    particle: Particle, key: Array, num_particles: int, sampling: str, noise_size: int | None
) -> Any:
    """particle(noise_k) for k = 1..K, stacked along a leading axis.

    `noise_k` is a key where `sampling` is `"independent"`, and else `noise_size` standard normals:

    - `"antithetic"`: eps and -eps, for an even K;
    - `"quasi"`: a Sobol' net of K points, for a power of two, scrambled on the host and shifted at
      random in each call (Owen 1998; Buchholz, Wenzel & Mandt 2018).

    ValueError where these two are asked of a q that only draws from a key, with `noise_size` None.
    """
    if sampling == "independent":
        return _over_keys(particle, key, num_particles)
    if noise_size is None:
        raise ValueError(
            f"sampling={sampling!r}: expected a guide made of normals, with `from_noise`; this "
            "draws from keys"
        )
    if sampling == "antithetic":
        eps = antithetic(key, num_particles, noise_size)
    else:
        eps = quasi(key, num_particles, noise_size)
    return jax.vmap(particle)(eps)


def _over_keys(particle: Particle, key: Array, num_particles: int) -> Any:
    """particle(key_k), where a single particle takes the key as it is, as NumPyro does."""
    if num_particles == 1:
        return jax.tree.map(lambda leaf: leaf[None], particle(key))
    keys = independent(key, num_particles)
    return jax.vmap(particle)(keys)


def independent(key: Array, num_particles: int) -> Array:
    """K keys, spread over the devices of the mesh's axis `particles` where there is one."""
    keys = jax.random.split(key, num_particles)
    return along("particles", keys)


def antithetic(key: Array, num_particles: int, noise_size: int) -> Array:
    """K vectors of normals, (K, noise_size): the second half of them is minus the first half."""
    eps = normals(key, (num_particles // 2, noise_size))
    return jnp.concatenate([eps, -eps])


def quasi(key: Array, num_particles: int, noise_size: int) -> Array:
    """K vectors of normals, (K, noise_size), from a Sobol' net shifted at random.

    The net's points are integers of 32 bits. A digital shift, which flips the same bits of all of
    them, keeps it a net and makes each point uniform.
    """
    shift = jax.random.bits(key, (noise_size,), jnp.uint32)
    bits = jnp.asarray(_sobol(num_particles, noise_size)) ^ shift[None]
    # 23 bits and a half: float32 holds them exactly, and neither end is 0 or 1.
    uniform = ((bits >> 9).astype(float) + 0.5) * 2.0**-23
    return ndtri(uniform)


@lru_cache
def _sobol(num_points: int, size: int) -> np.ndarray:
    """A scrambled Sobol' net, (num_points, size), in units of 2^-32."""
    from scipy.stats import qmc  # type: ignore[import-untyped]  # slow to import

    if size == 0:  # SciPy has no net of no dimensions
        return np.zeros((num_points, 0), np.uint32)
    points = qmc.Sobol(size, scramble=True, rng=0).random(num_points)
    return (points * 2.0**32).astype(np.uint32)


def normals(key: Array, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """The numbers of `jax.random.normal`, drawn as a vector.

    On a CPU XLA unrolls the random bits of an array of few columns, which takes it a second.
    """
    size = math.prod(shape)
    return jax.random.normal(key, (size,), dtype).reshape(shape)


def is_normals(noise: Array) -> bool:
    """True for a vector of normals, False for a PRNG key, typed or legacy."""
    return jnp.issubdtype(noise.dtype, jnp.floating)


def split(noise: Array, num: int) -> Array:
    """The noise of each of `num` equal parts, along a leading axis: as many keys, or rows of the
    normals.
    """
    if is_normals(noise):
        return noise.reshape(num, -1)
    return jax.random.split(noise, num)


def pieces(noise: Array, sizes: Sequence[int | None]) -> list[Array]:
    """The noise of each of several parts, which take `sizes` normals: as many keys, or successive
    pieces of the normals.

    A part of size None draws from a key alone, and so do then all (see `over_particles`).
    """
    if not is_normals(noise):
        return list(jax.random.split(noise, len(sizes)))
    ends = itertools.accumulate(size or 0 for size in sizes)
    return jnp.split(noise, list(ends))[: len(sizes)]  # what comes after them is of size zero
