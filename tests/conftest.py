"""Shared settings: rank promotion is an error, tolerances are keyed by dtype, keys are fixed."""

import logging
import os
import platform
import signal
import threading
import time
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType

import jax
import jax.numpy as jnp
import pytest

TESTS = Path(__file__).parent
FLOAT = jnp.result_type(float)
RTOL = {jnp.dtype("float32"): 1e-5, jnp.dtype("float64"): 1e-10}[jnp.dtype(FLOAT)]
# What a tolerance that is keyed by dtype is made from.
TOLERANCES = {"RTOL", "EPS", "TOLERANCE", "MODE_ERROR", "finfo"}
# Most of a short test is compilation: LLVM's optimisation, and on x86 XLA's newer way to emit fused
# loops, are three quarters of that. The older way uses fused multiply-adds in some programs and not
# in others, unless the instruction set has none; then equal formulas have equal bits again. A flag
# that a jaxlib does not know ends the process, so these are for the one in constraints.txt alone.
COMPILE_FAST = ["--xla_backend_optimization_level=0"]
is_tested_version = version("jaxlib").startswith("0.10.")
if is_tested_version and platform.machine().lower() in ("x86_64", "amd64"):
    COMPILE_FAST += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_max_isa=AVX"]


def pytest_configure(config):
    """Slow tests alone run what users run: the others are compiled fast."""
    # A shell's job in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Workers read it as they start. Their threads would wait for each other at small matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if config.getoption("markexpr") != "slow":
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *COMPILE_FAST])


def pytest_collection_modifyitems(items):
    """Marks as `x64` the tests that float64 makes stricter: those with a tolerance by dtype."""
    for item in items:
        is_foreign = item.get_closest_marker("foreign") is not None
        if not is_foreign and ("rtol" in item.fixturenames or has_tolerance(item.function)):
            item.add_marker(pytest.mark.x64)


@cache
def has_tolerance(function):
    """Whether a function of the tests names a tolerance, or calls another one that does."""
    names = names_in(function.__code__)
    found = [function.__globals__.get(name) for name in names]
    helpers = [thing for thing in found if is_of_the_tests(thing) and thing is not function]
    return not names.isdisjoint(TOLERANCES) or any(map(has_tolerance, helpers))


def names_in(code):
    """The names that compiled code looks up, inside its inner functions too."""
    inner = [names_in(const) for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*inner)


def is_of_the_tests(thing):
    return isinstance(thing, FunctionType) and Path(thing.__code__.co_filename).parent == TESTS


@pytest.fixture(autouse=True)
def no_rank_promotion(request):
    """No array of ours meets one of another rank; a `foreign` library may do so."""
    foreign = request.node.get_closest_marker("foreign") is not None
    with jax.numpy_rank_promotion("allow" if foreign else "raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def no_more_programs_than_fit():
    """A compiled program holds some twenty memory maps, and Linux gives a process 65,530: past them
    LLVM fails.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(20)


@pytest.fixture
def rtol():
    """1e-5 in float32, 1e-10 in float64."""
    return RTOL


@pytest.fixture
def said(caplog):
    """What minisvi has logged from a level on; what other libraries warn of depends on the
    machine's load.
    """
    caplog.set_level(logging.INFO, "minisvi")
    mine = lambda record, level: record.name == "minisvi" and record.levelno >= level
    return lambda level=logging.INFO: "\n".join(
        r.getMessage() for r in caplog.records if mine(r, level)
    )


@pytest.fixture
def press_ctrl_c():
    """Starts a thread that does so half a second after the fit has begun to listen."""

    def interrupt():
        while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    yield thread.start
    thread.join()


@pytest.fixture
def programs():
    """Counts the programs that are compiled, whether or not a cache on the disk has them."""

    @contextmanager
    def counted():
        found = []

        def hear(event, duration, **about):
            if event.endswith("backend_compile_duration"):
                found.append(duration)

        jax.monitoring.register_event_duration_secs_listener(hear)
        try:
            yield found
        finally:
            jax.monitoring.unregister_event_duration_listener(hear)

    return counted
