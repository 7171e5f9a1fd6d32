"""A fit that lasts: killed again and again it ends bit for bit where it would have, and what fails
beside it does not end it.
"""

import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from problems import NUM_ROWS
from test_checkpoint import PLAIN, X, run, same, steps
from tiers import standing_for

from minisvi import Stream
from minisvi.data import streams

HOST = np.asarray(X)


# --- Kills. ---

EVERY = 0.2  # seconds
NUM_KILLS = int(os.environ.get("NUM_KILLS", "4"))  # the short form; NUM_KILLS=20 for the whole
# All that a state may have: an optimiser's, minibatches, a tail average, a rule with its best so
# far.
CHILD = """
import logging, sys, time
import jax, jax.numpy as jnp, numpy as np, optax
from jax.scipy.stats import norm
import minisvi, minisvi.running.progress

num_steps, cache, out, directory = int(sys.argv[1]), *sys.argv[2:]
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
minisvi.running.progress._LOG_SECONDS = 0.0
logging.basicConfig(stream=sys.stdout, format="%(created)f %(message)s")
logging.getLogger("minisvi").setLevel(logging.INFO)

x = jax.random.normal(jax.random.key(0), (301, 10))
y = x @ jnp.arange(10.0) + jax.random.normal(jax.random.key(1), (301,))
model = minisvi.Model(
    {"w": minisvi.real(10)},
    log_prior=lambda w: jnp.sum(norm.logpdf(w["w"])),
    log_likelihood=lambda w, x, y: norm.logpdf(y, x @ w["w"]),
)
guide = minisvi.full_rank(model.latents)
svi = minisvi.SVI(model, guide, optax.adam(1e-3), minisvi.ELBO(4), minisvi.Minibatches(100))
rule = minisvi.Patience(patience=10**9, every=1000, num_draws=8)
options = {"checkpoint_dir": directory, "checkpoint_every": EVERY} if directory else {}
options |= {"average": True, "stop": rule, "held_out": (x[:50], y[:50]), "progress_bar": False}
result = svi.run(jax.random.key(2), num_steps, x, y, **options)
state = result.state._replace(key=jax.random.key_data(result.state.key))
leaves = jax.tree.leaves((result.params, state, result.elbo, result.checks))
np.savez(out, *map(np.asarray, leaves))
""".replace("EVERY", str(EVERY))


class Child:
    """A process that fits; `lines` are (when, what) of its log so far."""

    def __init__(self, tmp_path, name, num_steps, directory=""):
        self.out, self.log = tmp_path / f"{name}.npz", tmp_path / f"{name}.log"
        command = [
            sys.executable,
            "-u",
            "-c",
            CHILD,
            str(num_steps),
            tmp_path / "cache",
            self.out,
            directory,
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path
            )

    @property
    def lines(self):
        return [
            (float(when), what)
            for when, what in re.findall(r"^(\d+\.\d+) (.*)$", self.log.read_text(), re.M)
        ]

    def steps(self):
        """(when, step), of its progress."""
        found = [(when, re.match(r"step (\d+) of", what)) for when, what in self.lines]
        return [(when, int(match[1])) for when, match in found if match]

    def began(self):
        """The step it went on from."""
        found = [re.match(r"going on from step (\d+)", what) for _, what in self.lines]
        return next((int(match[1]) for match in found if match), 0)

    def wait(self):
        assert self.process.wait(600) == 0, self.log.read_text()
        return self

    def wait_until(self, condition):
        while not condition() and self.process.poll() is None:
            time.sleep(0.001)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL, "it was to be killed, and had ended"


def newest(directory):
    """The step of the last whole checkpoint, or 0."""
    return max(steps(directory), default=0)


def writing(directory):
    return (
        any("orbax-checkpoint-tmp" in path.name for path in directory.iterdir())
        if directory.exists()
        else False
    )


@pytest.mark.slow
def test_killed_again_and_again_it_ends_bit_for_bit_as_if_it_never_was(tmp_path):
    rng, directory = random.Random(1), tmp_path / "checkpoints"
    timed = Child(tmp_path, "timed", 20_000).wait().steps()
    rate = (timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])
    num_steps = int(NUM_KILLS * rate)  # more than will be done between kills
    during, last = 0, 0
    for i in range(NUM_KILLS):
        child = Child(tmp_path, f"child {i}", num_steps, str(directory))
        child.wait_until(lambda child=child: child.steps())
        assert child.began() == last  # the last whole one
        if i % 2:  # at a random time after the next whole one
            child.wait_until(lambda last=last: newest(directory) > last)
            time.sleep(rng.uniform(0.0, EVERY))
        else:  # at a random time of a write
            child.wait_until(lambda: writing(directory))
            time.sleep(rng.uniform(0.0, 0.03))
        child.kill()
        during += writing(directory)
        assert newest(directory) > last if i % 2 else newest(directory) >= last
        last = newest(directory)
    assert during >= NUM_KILLS // 4
    assert 0 < last < num_steps
    end = Child(tmp_path, "end", num_steps, str(directory)).wait()
    assert end.began() == last
    whole = Child(tmp_path, "whole", num_steps).wait()
    with np.load(end.out) as ended, np.load(whole.out) as expected:
        assert len(ended.files) == len(expected.files) > 5
        for name in expected.files:
            np.testing.assert_array_equal(ended[name], expected[name])


# --- Ended from outside. ---

MANY = 2_000_000


def taken_up(result, tmp_path):
    """What the run with these checkpoints comes to a little later, and what it would have without
    them.
    """
    num_steps = len(result.elbo) + 1000
    return run(PLAIN, num_steps, X, checkpoint_dir=tmp_path), run(PLAIN, num_steps, X)


def test_a_budget_ends_the_fit_and_it_goes_on_exactly(tmp_path):
    run(PLAIN, 1, X, checkpoint_dir=tmp_path)  # compiled, and Orbax imported
    begin = time.monotonic()
    result = run(PLAIN, MANY, X, seconds=0.5, checkpoint_dir=tmp_path)
    assert 0.5 <= time.monotonic() - begin < 10
    assert result.reason == "budget"
    assert 1 < len(result.elbo) < MANY
    assert steps(tmp_path)[-1] == len(result.elbo) == result.state.step
    same(*taken_up(result, tmp_path))


def test_no_time_at_all_is_no_step(tmp_path, said):
    result = run(PLAIN, 100, X, seconds=0.0, checkpoint_dir=tmp_path)
    assert (result.reason, len(result.elbo), result.num_skipped) == ("budget", 0, 0)
    assert steps(tmp_path) == [0]
    same(run(PLAIN, 100, X, checkpoint_dir=tmp_path), run(PLAIN, 100, X))
    assert said(logging.WARNING) == ""


def test_ctrl_c_leaves_a_checkpoint_and_it_goes_on_exactly(tmp_path, press_ctrl_c):
    run(PLAIN, 1, X, checkpoint_dir=tmp_path)  # compiled, and Orbax imported

    press_ctrl_c()
    result = run(PLAIN, MANY, X, checkpoint_dir=tmp_path)
    assert result.reason == "interrupted"
    assert 1 < steps(tmp_path)[-1] == len(result.elbo) < MANY
    same(*taken_up(result, tmp_path))


# --- A directory that fails. ---

STEPS, AT = 600, 300


def until(condition):
    """Waits: how long Orbax takes to write depends on the machine's load."""
    end = time.monotonic() + 50  # a stream's batch may take 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def short_blocks(monkeypatch):
    """So that a source is not far ahead of the steps."""
    monkeypatch.setattr(streams, "_CHUNK_SECONDS", 0.01)


def written(directory):
    return directory.exists() and steps(directory) != []


def slowly(at):
    """Batches that take a millisecond; before some of them something happens."""

    def source(begin):
        for t in range(begin, STEPS):
            at.get(t, lambda: None)()
            time.sleep(1e-3)
            yield HOST[t % 5 :][:3]

    return Stream(source, NUM_ROWS)


@pytest.mark.parametrize(
    "late",
    standing_for([False, True], True),
    ids=["", "and then the checkpoint that was being written appears"],
)
def test_a_directory_that_vanishes_is_made_again(late, tmp_path, short_blocks):
    directory, found = tmp_path / "checkpoints", []

    def vanish():
        until(lambda: written(directory))
        found.append(steps(directory))
        directory.rename(tmp_path / "away")
        if late:
            shutil.copytree(tmp_path / "away" / str(found[0][-1]), directory / str(found[0][-1]))

    def look():
        until(lambda: written(directory) and steps(directory)[-1] > found[0][-1])
        found.append(steps(directory))

    stream = slowly({AT: vanish, STEPS - 1: look})
    end = run(PLAIN, STEPS, stream, checkpoint_dir=directory, checkpoint_every=0.2)
    same(end, run(PLAIN, STEPS, slowly({})))
    assert late or min(found[1]) > max(found[0])
    assert steps(directory)[-1] == STEPS
    same(run(PLAIN, STEPS, slowly({}), checkpoint_dir=directory), end)


@pytest.fixture
def small_disk(tmp_path):
    """Two megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "none", path], capture_output=True, text=True
        )
    except FileNotFoundError as error:
        pytest.skip(f"cannot mount a small disk: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a small disk: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_costs_the_checkpoints_and_not_the_fit(small_disk, short_blocks, said):
    directory, filler, whole_ones = small_disk / "checkpoints", small_disk / "filler", []

    def fill():
        with filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1024))
            except OSError:
                whole_ones.extend(steps(directory))

    def fill_first():
        until(lambda: written(directory) and not writing(directory))
        fill()

    # Again and again, for an old checkpoint that is removed makes room for a new one.
    full = {AT: fill_first} | dict.fromkeys(range(AT + 1, STEPS), fill)
    end = run(PLAIN, STEPS, slowly(full), checkpoint_dir=directory, checkpoint_every=0.2)
    whole = run(PLAIN, STEPS, slowly({}))
    same(end, whole)
    assert f"no checkpoint could be written to {directory}" in said(logging.WARNING)
    assert steps(directory)[-1] < STEPS
    filler.unlink()
    same(run(PLAIN, STEPS, slowly({}), checkpoint_dir=directory), whole)
    assert re.search(rf"going on from step ({'|'.join(map(str, set(whole_ones)))})\b", said())
    assert steps(directory)[-1] == STEPS
