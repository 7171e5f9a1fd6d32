"""Programs that take longer to compile than to run, and how XLA is told to compile them."""

from collections.abc import Callable
from functools import cache, partial, update_wrapper
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CompilerOptions = dict[str, Any]
"""Options of XLA's compiler."""

BY_DEFAULT: CompilerOptions = {}
# By default XLA makes a module of LLVM's of every kernel. Each takes memory maps, of which Linux
# allows a process 65,530, and LLVM a while to set up. With few of them a program is compiled in two
# thirds of the time into a third of the maps. Derivatives run as fast; but functions of many rows
# do not, for their exp and log are not vectorised then, and take ten times as long.
FEW_MODULES: CompilerOptions = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 2,
}
# Compiled in 0.6 of the time; small loops take 1.1 to 1.4 times as long. At level 0 it is three
# times.
IN_HASTE: CompilerOptions = {**FEW_MODULES, "xla_backend_optimization_level": 1}
# With up to so many rows the loops and derivatives of a fit are compiled in haste. The loop of a
# logistic regression then takes 1.1 times as long with 1,000 rows and twice as long with 1e5, and
# so do the Hessians of a Poisson regression: from some 4,000 on that is more than is gained.
FEW_ROWS = 2500

_MOST = 128  # programs of one function


class HostProgram:
    """`jax.jit` for a function that the host calls a few times in a fit, with the `options` on
    CPUs.

    After 128 programs, for as many models and shapes, it forgets them all, so that there is no
    limit to the models that one process fits. It cannot be called inside of another trace, where
    JAX refuses options of the compiler.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        static_argnames: str | tuple[str, ...],
        options: CompilerOptions = FEW_MODULES,
    ) -> None:
        update_wrapper(self, fun)
        self._fun = fun
        self._static_argnames = static_argnames
        self.options = options
        self._num_programs = _MOST
        self._compiled: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        if self._num_programs >= _MOST:
            self._begin()
        return self._compiled(*args)

    def _begin(self) -> None:
        # Not when minisvi is imported: JAX may only then be told which machines there are.
        self._num_programs = 0
        # JAX frees programs with the function object that they were made of.
        self._compiled = jax.jit(
            update_wrapper(partial(self._counted), self._fun),
            static_argnames=self._static_argnames,
            compiler_options=known(self.options),
        )

    def _counted(self, *args: Any, **static: Any) -> Any:
        self._num_programs += 1  # once for each program, when it is traced
        return self._fun(*args, **static)


class ByRows:
    """A function as two `HostProgram`s; `of(data)` is the one for as many rows as these are."""

    def __init__(self, fun: Callable[..., Any], static_argnames: str | tuple[str, ...]) -> None:
        self._few = HostProgram(fun, static_argnames, IN_HASTE)
        self._many = HostProgram(fun, static_argnames)

    def of(self, data: Any) -> HostProgram:
        return self._few if num_rows(data) <= FEW_ROWS else self._many


def num_rows(data: Any) -> int:
    """The longest leading axis of the data."""
    return max((np.shape(leaf)[0] for leaf in jax.tree.leaves(data) if np.ndim(leaf)), default=0)


def known(options: CompilerOptions) -> CompilerOptions | None:
    """The options, or None unless this is a CPU whose compiler knows all that there are here."""
    return options if options and _are_known() else None


@cache
def _are_known() -> bool:
    if jax.default_backend() != "cpu":
        return False
    try:
        jax.jit(_nothing, compiler_options=IN_HASTE).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _nothing() -> jax.Array:
    return jnp.zeros(())
