"""The draws behind an estimate: independent, in antithetic pairs, or quasi-random. All have the
guide's distribution one by one, so that every estimate is unbiased whichever is taken; only their
dependence on each other differs.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtri

from minisvi.tools.sharding import along

Sampling = Literal["independent", "antithetic", "quasi"]
MAX_QUASI = 21_201  # dimensions of SciPy's Sobol' nets


def check(sampling: str, num_particles: int) -> None:
    """ValueError unless `sampling` is known and the number of particles suits it."""
    if sampling not in get_args(Sampling):
        raise ValueError(f"`sampling` must be one of {get_args(Sampling)}; got {sampling!r}")
    if sampling == "antithetic" and num_particles % 2:
        raise ValueError(
            f"antithetic draws come in pairs: `num_particles` must be even; got {num_particles}"
        )
    if sampling == "quasi" and num_particles & (num_particles - 1):
        raise ValueError(
            f"quasi-random draws: `num_particles` must be a power of two; got {num_particles}"
        )


def normals(key: Array, shape: tuple[int, ...], dtype: Any = float) -> Array:
    """The numbers of `jax.random.normal`, drawn as a vector: on a CPU XLA unrolls the random bits
    of an array of few columns, which takes it a second.
    """
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def over_particles(
    particle: Callable[[Array], Any],
    key: Array,
    num_particles: int,
    sampling: str,
    noise_size: int | None,
) -> Any:
    """particle(noise_k) for k = 1..K, stacked. `noise_k` is a key, or `noise_size` standard
    normals.

    `"antithetic"`: eps and -eps (K even). `"quasi"`: a Sobol' net of K points, a power of two,
    scrambled on the host and shifted at random in each call (Owen 1998; Buchholz, Wenzel & Mandt
    2018). ValueError where q only draws from a key.
    """
    if sampling == "independent":
        if num_particles == 1:  # takes the key as it is, as NumPyro does
            return jax.tree.map(lambda leaf: leaf[None], particle(key))
        return jax.vmap(particle)(along("particles", jax.random.split(key, num_particles)))
    if noise_size is None:
        raise ValueError(
            f"sampling={sampling!r}: expected a guide made of normals, with `from_noise`; this draws from keys"
        )
    if sampling == "antithetic":
        eps = normals(key, (num_particles // 2, noise_size))
        return jax.vmap(particle)(jnp.concatenate([eps, -eps]))
    shift = jax.random.bits(key, (noise_size,), jnp.uint32)
    bits = (
        jnp.asarray(_sobol(num_particles, noise_size)) ^ shift[None]
    )  # a digital shift keeps the net
    # 23 bits and a half: float32 holds them exactly, and neither end is 0 or 1.
    uniform = ((bits >> 9).astype(float) + 0.5) * 2.0**-23
    return jax.vmap(particle)(ndtri(uniform))


@lru_cache
def _sobol(num_points: int, size: int) -> np.ndarray:
    from scipy.stats import qmc  # type: ignore[import-untyped]  # slow to import

    points = (
        qmc.Sobol(size, scramble=True, rng=0).random(num_points)
        if size
        else np.zeros((num_points, 0))
    )
    return (points * 2.0**32).astype(np.uint32)
