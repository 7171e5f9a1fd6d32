"""Streams: the same fit as of data in memory, bit for bit, and what becomes of a source that
fails.
"""

import itertools
import threading
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT, RTOL
from jax.scipy.stats import norm
from problems import NUM_ROWS, adam, conjugate_data, conjugate_model
from test_checkpoint import same
from tiers import standing_for

from minisvi import ELBO, SVI, Minibatches, Model, Patience, Stream, StreamError, mean_field, real
from minisvi.data import streams
from minisvi.data.packing import Form, Packed
from minisvi.running import progress

MODEL, X = conjugate_model(), conjugate_data()
HOST = np.asarray(X)
ADAM, GUIDE = adam(0.05), mean_field(MODEL.latents)
SVI_ALL = SVI(MODEL, GUIDE, ADAM, ELBO(2))
KEY, STEPS = jax.random.key(20), 300


def run(data, num_steps=STEPS, svi=SVI_ALL, **options):
    return svi.run(KEY, num_steps, data, progress_bar=False, **options)


def batches_of(minibatches, num=STEPS, x=X):
    """Those that the source in memory makes: the rows that count, without the copy of one that
    fills up a batch.
    """
    made = jax.jit(jax.vmap(lambda step: minibatches(step, (x,))))(jnp.arange(num))
    (rows,), weights = jax.tree.map(np.asarray, made)
    there = np.broadcast_to(weights.reshape(num, -1) > 0, rows.shape[:2])
    return [batch[rows] for batch, rows in zip(rows, there, strict=True)]


def in_memory(size, **options):
    return run(X, svi=SVI(MODEL, GUIDE, ADAM, ELBO(2), Minibatches(size)), **options)


@pytest.fixture
def batches():
    return batches_of(Minibatches(3))


# --- The same fit as in memory. ---


def test_streamed_equals_in_memory_bit_for_bit(batches):
    assert {len(batch) for batch in batches} == {3, 2}
    same(run(Stream(batches, NUM_ROWS)), in_memory(3))


def test_a_rule_sees_what_it_sees_in_memory(batches):
    rule = {
        "stop": Patience(patience=100, growth=0.0, every=50, num_draws=8),
        "held_out": (X[:3],),
        "average": True,
    }
    same(run(Stream(batches, NUM_ROWS), **rule), in_memory(3, **rule))


@pytest.mark.slow
def test_restarts_see_the_same_stream():
    num, source = 1200, Minibatches(3)
    streamed = run(Stream(batches_of(source, num), NUM_ROWS), num, num_restarts=3)
    expected = run(X, num, replace(SVI_ALL, batches=source), num_restarts=3)
    same(streamed.restarts.params, expected.restarts.params)
    same(streamed.restarts.trace, expected.restarts.trace)
    # Of the batches of the last steps, as no rows are kept, and at params that still move.
    spread = 5 * np.hypot(streamed.restarts.elbo_se, expected.restarts.elbo_se)
    assert np.all(np.abs(streamed.restarts.elbo - expected.restarts.elbo) < spread)


@pytest.mark.parametrize(
    "limits",
    standing_for([{"_CHUNK_SECONDS": 0.0}, {"_CHUNK_BYTES": 1}], {"_CHUNK_BYTES": 1}),
)
def test_how_the_stream_is_cut_into_blocks_does_not_matter(limits, batches, monkeypatch):
    whole = run(Stream(batches, NUM_ROWS), 80)
    for name, value in limits.items():
        monkeypatch.setattr(streams, name, value)
    same(run(Stream(batches, NUM_ROWS), 80), whole)


def test_starts_are_compared_on_the_same_batches_however_they_were_cut(batches, monkeypatch):
    whole = run(Stream(batches, NUM_ROWS), num_restarts=3)
    monkeypatch.setattr(streams, "_CHUNK_SECONDS", 0.0)
    same(run(Stream(batches, NUM_ROWS), num_restarts=3), whole)


def test_half_and_half_equals_the_whole(batches):
    stream = Stream(lambda begin: iter(batches[begin:]), NUM_ROWS)
    half = run(stream, 130)
    rest = SVI_ALL.resume(half.state, STEPS - 130, stream, progress_bar=False)
    same(rest.state, run(stream).state)
    listed = SVI_ALL.resume(half.state, STEPS - 130, Stream(batches, NUM_ROWS), progress_bar=False)
    same(listed, rest)


def test_a_function_is_asked_for_the_first_batch_and_for_the_one_to_go_on_with(batches, tmp_path):
    begun = []

    def source(begin):
        begun.append(begin)
        return iter(batches[begin:])

    stream = Stream(source, NUM_ROWS)
    run(stream, 130, checkpoint_dir=tmp_path)
    assert begun == [0]
    run(stream, checkpoint_dir=tmp_path)
    assert begun == [0, 0, 130]


class Loader:
    """As PyTorch has it: iterable time after time, each batch a list of arrays."""

    def __init__(self, batches):
        self.batches, self.num_read = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.num_read += 1
            yield [batch]


def test_no_batch_is_read_that_no_step_will_see(batches):
    for num_steps in (1, 17, 100):
        loader = Loader(batches)
        run(Stream(loader, NUM_ROWS), num_steps)
        assert loader.num_read == num_steps


def test_a_loader_of_lists_and_64_bit_numbers(batches):
    wide = [batch.astype(np.float64) for batch in batches]
    same(run(Stream(Loader(wide), NUM_ROWS)), run(Stream(batches, NUM_ROWS)))


ROWS_Y = Model(
    {"w": real(3)},
    log_prior=lambda w: jnp.sum(norm.logpdf(w["w"])),
    log_likelihood=lambda w, rows, y: norm.logpdf(y, rows["x"] @ w["w"]),
)
SVI_Y = SVI(ROWS_Y, mean_field(ROWS_Y.latents), ADAM)


def test_batches_are_trees_as_the_likelihood_has_them():
    y = jnp.arange(7.0)
    pairs = [({"x": HOST}, np.asarray(y))] * 50
    streamed = SVI_Y.run(KEY, 50, Stream(pairs, NUM_ROWS), progress_bar=False)
    whole = SVI(ROWS_Y, SVI_Y.guide, ADAM, batches=Minibatches(7)).run(
        KEY, 50, {"x": X}, y, progress_bar=False
    )
    for a, b in zip(jax.tree.leaves(streamed.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=100 * RTOL)  # in other orders of the rows


def test_a_fit_is_as_fast_as_its_source_and_reads_ahead(batches):
    # While a block computes the next one is read: a source in a thread of its own.
    threads = set()

    def source(begin):
        for batch in batches[begin:]:
            threads.add(threading.current_thread())
            yield batch

    run(Stream(source, NUM_ROWS))
    assert threading.main_thread() not in threads


# --- NaN. ---


def with_nan(batches):
    """Row 0 of every fifth batch is NaN, the first one's too."""
    return [
        np.concatenate([np.full_like(b[:1], np.nan), b[:2]]) if t % 5 == 0 else b
        for t, b in enumerate(batches)
    ]


def test_rows_with_nan_are_skipped_counted_and_the_others_weigh_more(batches):
    clean = [batches[0]] + [b[:2] if t % 5 == 0 else b for t, b in enumerate(batches)][1:]
    dirty = [batches[0]] + with_nan(batches)[1:]
    skipped, expected = run(Stream(dirty, NUM_ROWS, nan="skip")), run(Stream(clean, NUM_ROWS))
    assert skipped.num_dropped == STEPS // 5 - 1
    assert expected.num_dropped == skipped.num_skipped == 0
    assert np.all(np.isfinite(skipped.elbo))
    for a, b in zip(jax.tree.leaves(skipped.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1000 * RTOL)  # the rows are added in another order


def test_a_row_with_a_nan_in_any_of_its_leaves_is_skipped():
    x, y = HOST[:3].copy(), HOST[:3, 0].copy()
    x[0, 1] = y[2] = np.nan
    packed = Packed.empty(Form.of((x, y)), first=0, size=1)
    assert packed.add((x, y), num_data=NUM_ROWS, skip_nan=True) == 2
    *leaves, weights = (array[0] for array in packed.arrays)
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    np.testing.assert_array_equal(weights, [0, NUM_ROWS, 0])


EARLY = {
    "stop": Patience(patience=10, growth=0.0, tolerance=1e9, every=10, num_draws=2),
    "held_out": (X[:3],),
}


def test_only_the_rows_of_steps_that_were_taken_count_as_dropped(batches):
    result = run(Stream(with_nan(batches), NUM_ROWS, nan="skip"), 12)
    assert result.num_dropped == 3
    ended = run(Stream(with_nan(batches), NUM_ROWS, nan="skip"), **EARLY)
    assert ended.reason == "patience"
    assert ended.num_dropped == -(-len(ended.elbo) // 5) < STEPS // 5


# --- Sources that fail: what happened is said, and what was fitted is kept. ---

BAD = 40  # the number of the batch that is


def replaced(batches, bad):
    return lambda: [*batches[:BAD], bad, *batches[BAD + 1 :]]


def raising(batches):
    def source(begin):
        yield from batches[begin:BAD]
        raise OSError("the disk is gone")

    return lambda: source


def hanging(batches):
    def source(begin):
        yield from batches[begin:BAD]
        time.sleep(60)

    return lambda: source


NAN = np.concatenate([np.full((1, 3), np.nan, FLOAT), HOST[:2]])
INT = np.ones((3, 3), int)
BRAIN = np.full((3, 3), np.nan, jnp.bfloat16)  # whose dtype is not NumPy's
FAULTS = {
    "raises": (raising, rf"batch {BAD}: the source raised OSError\('the disk is gone'\)"),
    "hangs": (hanging, rf"batch {BAD} did not come within 3 s"),
    "another shape": (
        lambda b: replaced(b, HOST[:3, :2]),
        rf"batch {BAD}: `0`: expected shape \(3, 3\); got \(3, 2\)",
    ),
    "another rank": (lambda b: replaced(b, HOST[0, 0]), rf"batch {BAD}: `0`: expected shape"),
    "another dtype": (
        lambda b: replaced(b, INT),
        rf"batch {BAD}: `0`: expected float\d+; got int64",
    ),
    "another tree": (
        lambda b: replaced(b, (HOST[:3], HOST[:3])),
        rf"batch {BAD}: expected a tree.*\['0', '1'\]",
    ),
    "NaN": (lambda b: replaced(b, NAN), rf"batch {BAD}: `0` has a NaN in 1 of 3 rows"),
    "no rows": (lambda b: replaced(b, HOST[:0]), rf"batch {BAD}: `0`: expected 1 to 3 rows.*got 0"),
    "too many rows": (
        lambda b: replaced(b, HOST[:4]),
        rf"batch {BAD}: `0`: expected 1 to 3 rows.*got 4",
    ),
    "none": (lambda b: replaced(b, None), rf"batch {BAD}: expected a tree"),
    "an empty tree": (lambda b: replaced(b, [None]), rf"batch {BAD}: expected a tree"),
}


def test_a_nan_is_seen_in_any_dtype():
    form = Form.of((BRAIN,))
    with pytest.raises(ValueError, match="has a NaN in 3 of 3 rows"):
        form.put((BRAIN,), [slot[0] for slot in form.empty(1)], skip_nan=False)


def test_a_source_that_cannot_be_opened_is_an_error_with_the_batch(batches):
    def closed(begin):
        if begin:
            raise OSError("no such file")
        return iter(batches)

    class Loader:
        def __iter__(self):
            raise OSError("no such file")

    with pytest.raises(StreamError, match=r"batch 0: the source raised OSError"):
        run(Stream(Loader(), NUM_ROWS))
    half = run(Stream(closed, NUM_ROWS), BAD)
    with pytest.raises(StreamError, match=rf"batch {BAD}: the source raised OSError") as caught:
        SVI_ALL.resume(half.state, 10, Stream(closed, NUM_ROWS), progress_bar=False)
    same(caught.value.result.state, half.state)


def test_a_budget_and_the_end_of_a_fit_do_not_wait_for_the_source(batches):
    release, asked = threading.Event(), []

    def source(begin):
        for number in itertools.count(begin):
            asked.append(number)
            if number >= BAD:
                release.wait(60)
            yield batches[number]

    begin = time.monotonic()
    result = run(Stream(source, NUM_ROWS), seconds=1.0)
    assert time.monotonic() - begin < 30
    assert result.reason == "budget"
    release.set()
    time.sleep(0.2)
    assert asked[-1] == BAD  # the one that was waited for is the last


def test_a_skipped_step_rules_no_start_out(batches):
    # Where the density is not a number if a row is above 1e6: one step sees such rows, in the last
    # half.
    fragile = replace(
        MODEL,
        log_likelihood=lambda w, x: (
            MODEL.log_likelihood(w, x) + jnp.where(x[:, 0] > 1e6, jnp.nan, 0)
        ),
    )
    spoiled = [*batches]
    spoiled[STEPS - 10] = np.full((3, 3), 1e7, FLOAT)
    restarts = run(Stream(spoiled, NUM_ROWS), svi=replace(SVI_ALL, model=fragile), num_restarts=2)
    assert restarts.num_skipped == 1
    assert np.all(np.isfinite(restarts.restarts.elbo))


@pytest.mark.parametrize(
    "name", standing_for(FAULTS, "raises", "another shape", "another tree", "NaN", "too many rows")
)
def test_a_source_that_fails_is_an_error_with_the_batch_and_the_fit_up_to_it(name, batches):
    make, message = FAULTS[name]
    stream = Stream(make(batches)(), NUM_ROWS, timeout=3 if name == "hangs" else 60)
    with pytest.raises(StreamError, match=message) as caught:
        run(stream)
    assert caught.value.result.reason == "stream"
    good = run(Stream(batches, NUM_ROWS), BAD)
    assert good.state.step == BAD
    same(caught.value.result._replace(reason=good.reason), good)


def test_a_source_that_fails_can_return_what_there_is(batches, tmp_path):
    stream = Stream(raising(batches)(), NUM_ROWS)
    kept = run(stream, on_failure="return", checkpoint_dir=tmp_path)
    assert kept.reason == "stream"
    # Once the source is well again the same call goes on.
    same(run(Stream(batches, NUM_ROWS), checkpoint_dir=tmp_path), run(Stream(batches, NUM_ROWS)))


def test_a_first_batch_that_is_none_is_an_error():
    for first, message in (
        (np.ones(()), "equally many rows"),
        (HOST[:0], "one at least"),
        ((HOST, HOST[:2]), "equally"),
        (np.array(["a", "b"]), "expected numbers; got <U1"),
    ):
        with pytest.raises(StreamError, match=rf"batch 0: .*{message}"):
            run(Stream([first], NUM_ROWS))
    with pytest.raises(StreamError, match="no batch 0"):
        run(Stream([], NUM_ROWS))


def test_a_batch_of_nothing_but_nan_is_an_error_even_where_rows_are_skipped(batches):
    stream = Stream(replaced(batches, np.full((2, 3), np.nan, FLOAT))(), NUM_ROWS, nan="skip")
    with pytest.raises(StreamError, match=rf"batch {BAD}: no row of 2 is without a NaN"):
        run(stream)


def test_a_first_batch_that_hangs_is_an_error():
    def source(begin):
        time.sleep(60)
        yield HOST

    begin = time.monotonic()
    with pytest.raises(StreamError, match="batch 0 did not come within 0"):
        run(Stream(source, NUM_ROWS, timeout=0.2))
    assert time.monotonic() - begin < 30


def test_a_stream_that_ends_early_ends_the_fit(batches):
    short = run(Stream(batches[:BAD], NUM_ROWS))
    assert short.reason == "exhausted"
    same(short._replace(reason="finished"), run(Stream(batches, NUM_ROWS), BAD))
    nothing = SVI_ALL.resume(short.state, 10, Stream(batches[:BAD], NUM_ROWS), progress_bar=False)
    assert (nothing.reason, len(nothing.elbo)) == ("exhausted", 0)
    several = run(Stream(batches[:BAD], NUM_ROWS), num_restarts=2)
    assert several.reason == "exhausted"
    same(several._replace(reason="finished"), run(Stream(batches, NUM_ROWS), BAD, num_restarts=2))


def test_an_iterator_cannot_begin_anew(batches):
    half = run(Stream(iter(batches), NUM_ROWS), BAD)
    same(half, run(Stream(batches, NUM_ROWS), BAD))
    with pytest.raises(
        ValueError, match=f"goes on at batch {BAD}, and an iterator cannot begin anew"
    ):
        SVI_ALL.resume(half.state, 10, Stream(iter(batches), NUM_ROWS), progress_bar=False)


def test_mistakes_are_refused_before_anything_is_read(batches):
    stream = Stream(itertools.repeat(HOST), NUM_ROWS)
    with pytest.raises(ValueError, match="in batches of its own"):
        run(stream, svi=SVI(MODEL, GUIDE, ADAM, ELBO(2), Minibatches(3)))
    with pytest.raises(ValueError, match="got 2 data"):
        SVI_ALL.run(KEY, 10, stream, X, progress_bar=False)
    for options, message in (
        ({"num_data": 0}, "num_data"),
        ({"nan": "keep"}, "nan"),
        ({"timeout": 0}, "timeout"),
    ):
        with pytest.raises(ValueError, match=message):
            Stream(batches, **({"num_data": NUM_ROWS} | options))


# --- What the log says. ---


def test_the_log_has_the_step_its_rate_the_elbo_and_the_time_left(batches, said, monkeypatch):
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    run(Stream(batches, NUM_ROWS))
    lines = said().splitlines()
    assert len(lines) > 1
    assert lines[-1].startswith(f"step {STEPS} of {STEPS}: ELBO -")
    assert all("steps/s" in line and line.endswith("s left") for line in lines)


@pytest.mark.whole
def test_a_fit_that_was_over_logs_no_rate(batches, said, monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    first = run(Stream(batches, NUM_ROWS), **EARLY, checkpoint_dir=tmp_path)
    same(run(Stream(batches, NUM_ROWS), **EARLY, checkpoint_dir=tmp_path), first)
    assert first.reason == "patience"
