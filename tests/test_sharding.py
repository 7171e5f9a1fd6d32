"""Many devices and several processes, which the tests start and end: they run `eight_devices` and
`one_process`.
"""

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax
import numpy as np
import one_process
import pytest
from conftest import RTOL
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiers import DEFAULT

import minisvi

HERE = Path(__file__).parent
# Processes in which a warning is an error read no cache that others write.
SHARED_CACHE = {"JAX_COMPILATION_CACHE_DIR"}
X = np.asarray(one_process.conjugate_data(one_process.NUM_ROWS))


def environment(num_devices):
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in SHARED_CACHE}
    return inherited | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


# --- One process with eight devices. ---


@pytest.mark.x64
@pytest.mark.parametrize(
    "which",
    [
        DEFAULT,
        pytest.param("whole and not slow", marks=pytest.mark.whole),
        pytest.param("slow", marks=pytest.mark.slow),
    ],
)
def test_on_eight_devices(which):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-m",
        which,
        "eight_devices.py",
    ]
    done = subprocess.run(
        command, cwd=HERE, env=environment(8), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-10_000:]


# --- A mesh with axes of another kind. ---

ENGINE, KEY = one_process.svi_of(), jax.random.key(0)
EXPLICIT = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Explicit,))
PLACED = jax.device_put(X, NamedSharding(EXPLICIT, PartitionSpec("rows")))


def in_use(function, *args):
    with jax.set_mesh(EXPLICIT):
        return function(*args, X)


CALLS = {
    "run": lambda: ENGINE.run(KEY, 2, PLACED),
    "run, in use": lambda: in_use(ENGINE.run, KEY, 2),
    "resume": lambda: ENGINE.resume(ENGINE.init(KEY, X), 2, PLACED),
    "init": lambda: ENGINE.init(KEY, PLACED),
    "init, in use": lambda: in_use(ENGINE.init, KEY),
    "params": lambda: ENGINE.init(
        KEY,
        X,
        params=jax.device_put(ENGINE.guide.init(KEY), NamedSharding(EXPLICIT, PartitionSpec())),
    ),
    "shard_rows": lambda: minisvi.shard_rows(EXPLICIT, X),
    "fit": lambda: minisvi.fit(KEY, ENGINE.model, PLACED),
    "deterministic": lambda: minisvi.deterministic(KEY, ENGINE.model, PLACED),
    "laplace": lambda: minisvi.laplace(KEY, ENGINE.model, PLACED),
}


@pytest.mark.parametrize("name", CALLS)
def test_explicit_axes_are_refused(name):
    with pytest.raises(
        ValueError, match=r"expected a mesh of Auto axes; got Explicit axes \('rows',\)"
    ):
        CALLS[name]()


# --- Several processes, which talk over loopback. ---


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@contextmanager
def processes(directory, *commands, num_devices=1):
    """Python at work on each of the commands, the output in `log0`, ...; killed at the end if they
    have not ended.
    """
    directory.mkdir(exist_ok=True)
    with ExitStack() as stack:
        children = []
        for i, command in enumerate(commands):
            log = stack.enter_context((directory / f"log{i}").open("w"))
            options = {
                "cwd": HERE,
                "env": environment(num_devices),
                "stdout": log,
                "stderr": subprocess.STDOUT,
            }
            child = subprocess.Popen([sys.executable, "-W", "error", *map(str, command)], **options)
            children.append(stack.enter_context(child))
            stack.callback(child.kill)
        yield children


def ended(child, log, seconds=300):
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still there after {seconds} s: {log.read_text()[-5000:]}")


def outputs(directory, *commands, **options):
    with processes(directory, *commands, **options) as children:
        logs = [directory / f"log{i}" for i in range(len(commands))]
        for child, log in zip(children, logs):
            assert ended(child, log) == 0, log.read_text()[-5000:]
    return [log.read_text() for log in logs]


def two(directory, *fits):
    """The commands of two processes, at work on `fits`: names and numbers of steps."""
    port = free_port()
    return [("one_process.py", port, 2, i, directory, *fits) for i in range(2)]


def fitted(directory, *fits, **options):
    """What the two processes come to, by name."""
    outputs(directory, *two(directory, *fits), **options)
    return {name: dict(np.load(directory / f"{name}.npz")) for name in fits[::2]}


def assert_the_fits_of_one_process(found):
    for name, numbers in found.items():
        for i, expected in one_process.numbers(one_process.fit_of(name, 500, X)).items():
            np.testing.assert_allclose(numbers[i], expected, rtol=RTOL, err_msg=name)


@pytest.mark.whole
def test_two_processes_with_half_of_the_rows_each_make_the_same_fit(tmp_path):
    assert_the_fits_of_one_process(fitted(tmp_path, "minibatches", 500))


@pytest.mark.slow
def test_two_processes_with_two_devices_each_make_the_same_fits(tmp_path):
    names = ["full batch", "minibatches", "stream", "short stream", "restarts", "checkpoints"]
    fits = [word for name in names for word in (name, 500)]
    assert_the_fits_of_one_process(fitted(tmp_path, *fits, num_devices=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unequal rows", "unequal stream"])
def test_processes_with_unequal_numbers_of_rows_are_told(name, tmp_path):
    with processes(tmp_path, *two(tmp_path, name, 1)) as children:
        for i, child in enumerate(children):
            log = tmp_path / f"log{i}"
            assert ended(child, log, seconds=60) != 0
            assert f"got [{400 - i}] from this one, and [399] from another" in log.read_text()


def steps_on_disk(directory):
    return sorted(int(path.name) for path in directory.glob("checkpoints/*") if path.name.isdigit())


def kill(victim, directory, fit, last):
    """One of two processes is killed once there is another checkpoint; then the other ends, too."""
    with processes(directory, *two(directory, *fit)) as children:
        # Once there are two the first of them is whole.
        while sum(step > last for step in steps_on_disk(directory)) < 2:
            assert [child.poll() for child in children] == [None, None]
            time.sleep(0.05)
        children[victim].kill()
        begin = time.monotonic()
        log = directory / f"log{1 - victim}"
        assert ended(children[1 - victim], log, seconds=60) != 0
        print(f"ended after {time.monotonic() - begin:.1f} s")


@pytest.mark.slow
def test_one_of_two_is_killed_then_the_other_ends_and_both_go_on(tmp_path):
    fit, killed = ("checkpoints", 2000), tmp_path / "killed"
    last = 0
    for victim in (0, 1):
        kill(victim, killed, fit, last)
        assert ("going on from step" in (killed / "log0").read_text()) == (last > 0)
        assert last < steps_on_disk(killed)[-1] < fit[1]
        last = steps_on_disk(killed)[-1]
    resumed, whole = fitted(killed, *fit), fitted(tmp_path / "whole", *fit)
    assert "going on from step" in (killed / "log0").read_text()
    for i, expected in whole["checkpoints"].items():
        np.testing.assert_array_equal(resumed["checkpoints"][i], expected)


@pytest.mark.slow
def test_the_example_prints_the_same_on_any_devices(tmp_path):
    example = HERE.parent / "examples/many_devices.py", "--quick"
    several = ("--coordinator", f"localhost:{free_port()}", "--num-processes", 2, "--process-id")
    alone = outputs(tmp_path / "alone", example, num_devices=8)[0]
    first, second = outputs(
        tmp_path / "two", (*example, *several, 0), (*example, *several, 1), num_devices=2
    )
    assert "processes: 1, devices: 8, rows on each: 15,000" in alone
    assert "processes: 2, devices: 4, rows on each: 30,000" in first
    expected, found = (
        re.findall(r"-?\d+\.\d+", log.partition("rows on each")[2]) for log in (alone, first)
    )
    assert len(expected) == 4 * 3 + 1
    np.testing.assert_allclose(
        np.array(found, float), np.array(expected, float), atol=2e-4, rtol=RTOL
    )
    assert "posterior" not in second  # one prints
