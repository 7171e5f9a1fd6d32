"""Programs that the host calls a few times in a fit, so that they take longer to compile than to
run.
"""

from collections.abc import Callable
from functools import cache, partial, update_wrapper
from typing import Any

import jax
import jax.numpy as jnp

_MOST = 128  # programs of one function
# By default XLA makes a module of LLVM's of every kernel. Each takes memory maps, of which Linux
# allows a process 65,530, and LLVM a while to set up.
_FEW_MODULES = {
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 2,
}


class HostProgram:
    """`jax.jit` for a function that the host calls.

    With `few_modules` it is compiled in two thirds of the time, on CPUs, into a third of the memory
    maps. Derivatives run as fast as by default; but functions of many rows do not, for their exp
    and log are not vectorised then, and take ten times as long.

    After 128 programs, for as many models and shapes, it forgets them all, so that there is no
    limit to the models that one process fits. It cannot be called inside of another trace, where
    JAX refuses options of the compiler.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        static_argnames: str | tuple[str, ...],
        few_modules: bool = True,
    ) -> None:
        update_wrapper(self, fun)
        self._fun = fun
        self._static_argnames = static_argnames
        self._few_modules = few_modules
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
            compiler_options=_options() if self._few_modules else None,
        )

    def _counted(self, *args: Any, **static: Any) -> Any:
        self._num_programs += 1  # once for each program, when it is traced
        return self._fun(*args, **static)


@cache
def _options() -> dict[str, Any]:
    """The options, or none where the compiler does not know them."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(_nothing, compiler_options=_FEW_MODULES).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return _FEW_MODULES


def _nothing() -> jax.Array:
    return jnp.zeros(())
