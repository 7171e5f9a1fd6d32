"""Checkpoints: a fit in two parts ends bit for bit as one, damage and mistakes are found, and a
guide is kept.
"""

import logging
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from conftest import FLOAT
from flax import nnx
from jax.scipy.stats import norm
from problems import NUM_ROWS, adam, conjugate_data, conjugate_model
from tiers import standing_for

import minisvi
from minisvi import (
    ELBO,
    SVI,
    Convergence,
    Minibatches,
    Model,
    Patience,
    Stream,
    bnn,
    full_rank,
    mean_field,
    real,
)
from minisvi.running.checkpoint import KEEP, Checkpoints, remembered
from minisvi.running.identity import claim

PART, WHOLE = 730, 1000  # the first is no multiple of the rules' `every`
MODEL, X, ADAM = conjugate_model(), conjugate_data(), adam(0.05)
GUIDE = mean_field(MODEL.latents)
HALVED = SVI(
    MODEL, GUIDE, optax.inject_hyperparams(optax.adam)(0.1)
)  # the rate is part of the state
PLAIN = SVI(MODEL, GUIDE, ADAM, ELBO(2))
BATCHES = Minibatches(3, seed=1)
BATCHED = SVI(MODEL, GUIDE, ADAM, ELBO(2), BATCHES)
SIZES = Model(
    {"w": real(3), "none": real((2, 0))}, lambda w, x: jnp.sum(norm.logpdf(x, w["w"][None]))
)
NO_SIZE = SVI(SIZES, minisvi.delta(SIZES.latents), ADAM)
# Nothing counts as progress but the first score, so that it ends between the two calls' ends.
PATIENCE = Patience(patience=750, growth=0.0, tolerance=1e9, every=100, num_draws=8)
KEY = jax.random.key(20)


def run(svi, num_steps, *data, key=KEY, **options):
    return svi.run(key, num_steps, *data, progress_bar=False, **options)


def same(one, other):
    """Bit for bit, with NaN equal to itself: the trace and all the rest of a result."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(bits(a), bits(b))


def bits(leaf):
    is_key = jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def steps(directory):
    """Of the checkpoints in it that have a name of their own."""
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


@lru_cache
def rows():
    """The batches of 1,000 steps, of one row to three, with a NaN here and there."""
    rng, x = np.random.default_rng(0), np.asarray(X)
    batches = [
        x[rng.choice(NUM_ROWS, 3 if t == 0 else rng.integers(1, 4), replace=False)].copy()
        for t in range(WHOLE)
    ]
    for t in range(10, WHOLE, 10):
        batches[t] = np.concatenate([np.full_like(batches[t][:1], np.nan), batches[t][:2]])
    return batches


def generator(begin):
    yield from rows()[begin:]


SOURCES = {
    "a list": rows,
    "a function": lambda: generator,
    "an iterator made again": lambda: generator(0),
}
CASES = {
    "plain": (PLAIN, {}),
    "average": (PLAIN, {"average": True}),
    "patience": (PLAIN, {"stop": PATIENCE, "held_out": (X[:3],)}),
    "convergence": (HALVED, {"stop": Convergence(every=100, snapshots=40, mcse=0.5)}),
    "restarts": (PLAIN, {"num_restarts": 3}),
    "restarts, with a rule": (
        PLAIN,
        {"num_restarts": 2, "stop": PATIENCE, "held_out": (X[:3],), "average": True},
    ),
    "minibatches": (BATCHED, {}),
    "a latent of no size": (NO_SIZE, {}),
    "legacy key": (PLAIN, {"key": jax.random.PRNGKey(20)}),
    **{f"a stream: {name}": (PLAIN, {"source": source}) for name, source in SOURCES.items()},
    "a stream, restarts": (PLAIN, {"source": rows, "num_restarts": 3}),
}


@pytest.mark.parametrize(
    "case",
    standing_for(CASES, "patience", "minibatches", "a stream: a function"),
)
def test_a_fit_in_two_calls_ends_bit_for_bit_as_one(case, tmp_path, said):
    svi, options = CASES[case]
    source = options.get("source")
    options = {name: value for name, value in options.items() if name != "source"}

    def fit(num_steps, **more):
        data = X if source is None else Stream(source(), num_data=NUM_ROWS, nan="skip")
        return run(svi, num_steps, data, **options, **more)

    whole = fit(WHOLE)
    first = fit(PART, checkpoint_dir=tmp_path, checkpoint_every=1e-6)
    assert said(logging.WARNING) == ""  # all could be written, before a rule has looked too
    second = fit(WHOLE, checkpoint_dir=tmp_path)
    assert f"going on from step {len(first.elbo)}" in said()
    same(second, whole)
    same(fit(WHOLE, checkpoint_dir=tmp_path), whole)  # there is nothing left to do
    assert PART < len(whole.elbo) == steps(tmp_path)[-1] <= WHOLE


def test_a_fit_that_is_taken_up_from_a_state_has_its_own_checkpoints(tmp_path):
    state = run(PLAIN, 100, X).state
    whole = PLAIN.resume(state, WHOLE, X, progress_bar=False, average=True)
    for num_steps in (PART, WHOLE):
        again = PLAIN.resume(
            state, num_steps, X, progress_bar=False, average=True, checkpoint_dir=tmp_path
        )
    same(again, whole)
    assert steps(tmp_path) == [PART, WHOLE]


@pytest.mark.whole
def test_a_checkpoint_is_written_every_so_many_seconds_and_the_last_few_are_kept(tmp_path):
    run(PLAIN, WHOLE, X, checkpoint_dir=tmp_path / "late")
    assert steps(tmp_path / "late") == [WHOLE]
    run(PLAIN, 100 * WHOLE, X, checkpoint_dir=tmp_path / "soon", checkpoint_every=1e-6)
    assert len(steps(tmp_path / "soon")) == KEEP == 3
    assert steps(tmp_path / "soon")[-1] == 100 * WHOLE


def test_a_slow_disk_makes_no_shorter_blocks(tmp_path, monkeypatch):
    saves, save = [], Checkpoints.save

    def slowly(self, saved):
        saves.append(saved.done)
        time.sleep(0.5)
        save(self, saved)

    monkeypatch.setattr(Checkpoints, "save", slowly)
    run(PLAIN, WHOLE, X, checkpoint_dir=tmp_path, checkpoint_every=1e-6)
    assert len(saves) < 50


def test_nothing_is_written_without_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(PLAIN, PART, X, checkpoint_every=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_what_the_directory_has_beside_is_left_alone(tmp_path, said):
    # A folder that has a number for its name is no checkpoint, not where one is to be written
    # either.
    letters = [tmp_path / name / "letter.txt" for name in ("2024", str(PART))]
    for letter in letters:
        letter.parent.mkdir()
        letter.write_text("mine")
    run(PLAIN, 300, X, checkpoint_dir=tmp_path)
    run(PLAIN, PART, X, checkpoint_dir=tmp_path)
    assert f"no checkpoint could be written to {tmp_path}" in said(logging.WARNING)
    assert f"`{PART}` is there, and is no checkpoint: it is left alone" in said(logging.WARNING)
    same(run(PLAIN, WHOLE, X, checkpoint_dir=tmp_path), run(PLAIN, WHOLE, X))
    assert said().count("going on from step 300") == 2
    assert [letter.read_text() for letter in letters] == ["mine", "mine"]
    assert steps(tmp_path) == [300, PART, WHOLE, 2024]


def test_two_runs_may_begin_together(tmp_path, monkeypatch):
    both, replace = threading.Barrier(2, timeout=60), os.replace

    def together(*files):
        both.wait()  # each has written what it is of
        replace(*files)

    monkeypatch.setattr(os, "replace", together)
    with ThreadPoolExecutor(2) as threads:
        list(
            threads.map(lambda about: claim(tmp_path / "new", about), [{"run": "1"}, {"run": "1"}])
        )
    assert [(file.name, file.read_text()) for file in (tmp_path / "new").iterdir()] == [
        ("about.json", '{\n "run": "1"\n}')
    ]


# --- Damage. ---


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Checkpoints at three steps, and what the fit comes to."""
    directory = tmp_path_factory.mktemp("three")
    with jax.numpy_rank_promotion("raise"):
        for num_steps in (300, 500, PART):
            run(PLAIN, num_steps, X, average=True, checkpoint_dir=directory)
        return directory, run(PLAIN, WHOLE, X, average=True)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def zero_a_page(path):
    whole, half = path.read_bytes(), path.stat().st_size // 2
    path.write_bytes(whole[:half] + bytes(len(whole) - half))


def flip_a_bit(path):
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


DATA = ["lane/d", "trace/d", "trace/ocdbt.process_0/d"]
DAMAGE = {
    **{
        f"{how.__name__} in {part}": (part, how)
        for part in DATA
        for how in (halve, zero, zero_a_page, flip_a_bit)
    },
    **{f"{part} is gone": (part, shutil.rmtree) for part in ("lane/d", "trace", "lane")},
    **{
        f"{part}/_METADATA is gone": (f"{part}/_METADATA", lambda path: path.unlink())
        for part in ("lane", "trace")
    },
    "manifest is torn": ("lane/manifest.ocdbt", halve),
    "empty directory": (".", empty),
}


@pytest.mark.parametrize(
    "name",
    standing_for(
        DAMAGE,
        "halve in lane/d",
        "flip_a_bit in trace/d",
        "zero in trace/ocdbt.process_0/d",
        "lane is gone",
        "trace/_METADATA is gone",
        "empty directory",
    ),
)
def test_a_damaged_checkpoint_gives_way_to_the_last_whole_one_and_says_so(
    name, three, tmp_path, said
):
    part, damage = DAMAGE[name]
    kept, whole = three
    directory = shutil.copytree(kept, tmp_path / "copy")
    path = directory / str(PART) / part
    files = (
        path.glob("*")
        if damage in (halve, zero, zero_a_page, flip_a_bit) and path.is_dir()
        else [path]
    )
    # Of a directory's files the largest has the numbers; the others are what it was made from.
    damage(max(files, key=lambda file: file.stat().st_size))
    same(run(PLAIN, WHOLE, X, average=True, checkpoint_dir=directory), whole)
    assert f"{PART} is damaged" in said()
    assert "going on from step 500" in said()
    assert steps(directory) == [300, 500, WHOLE]
    same(run(PLAIN, WHOLE, X, average=True, checkpoint_dir=directory), whole)


def test_without_one_that_is_whole_the_fit_begins_anew(three, tmp_path, said):
    kept, whole = three
    directory = shutil.copytree(kept, tmp_path / "copy")
    for step in steps(directory):
        empty(directory / str(step))
    same(run(PLAIN, WHOLE, X, average=True, checkpoint_dir=directory), whole)
    assert said().count("is damaged") == 3


@pytest.mark.parametrize("damage", [halve, zero])
def test_a_torn_description_is_written_again_and_says_so(damage, three, tmp_path, said):
    kept, whole = three
    directory = shutil.copytree(kept, tmp_path / "copy")
    (about,) = directory.glob("*.json")
    damage(about)
    same(run(PLAIN, WHOLE, X, average=True, checkpoint_dir=directory), whole)
    assert "about.json is damaged" in said()
    with pytest.raises(ValueError, match=r"average"):
        run(PLAIN, WHOLE, X, checkpoint_dir=directory)


def test_damage_to_what_was_remembered_is_put_aside_and_computed_again(tmp_path, said):
    like, deadline = {"a": 0, "b": 0}, float("inf")
    compute = lambda: {"a": np.arange(3.0), "b": np.float32(2)}
    first = remembered(tmp_path / "fit", compute, like, deadline)
    same(remembered(tmp_path / "fit", pytest.fail, like, deadline), first)
    for file in (tmp_path / "fit" / "d").iterdir():
        halve(file)
    same(remembered(tmp_path / "fit", compute, like, deadline), first)
    assert "fit is damaged" in said()
    same(remembered(tmp_path / "fit", pytest.fail, like, deadline), first)


# --- Another run's. ---


def other_model(size):
    log_prior = lambda w: jnp.sum(norm.logpdf(w["w"]))
    return Model(
        {"w": real(size)},
        log_prior=log_prior,
        log_likelihood=lambda w, x: jnp.sum(x, axis=-1) * w["w"][0],
    )


MODEL_2, MODEL_3 = other_model(2), other_model(3)
OTHERS = {
    "guide": (SVI(MODEL, full_rank(MODEL.latents), ADAM, ELBO(2)), (X,), {}, r"svi\.guide"),
    "model": (SVI(MODEL_3, GUIDE, ADAM, ELBO(2)), (X,), {}, r"svi\.model\.log_prior"),
    "latents": (SVI(MODEL_2, mean_field(MODEL_2.latents), ADAM, ELBO(2)), (X,), {}, r"latents\.w"),
    "optimiser": (SVI(MODEL, GUIDE, optax.sgd(0.01), ELBO(2)), (X,), {}, r"opt"),
    "objective": (
        SVI(MODEL, GUIDE, ADAM, ELBO(3)),
        (X,),
        {},
        r"num_particles.* is 2 there, and 3 here",
    ),
    "batches": (BATCHED, (X,), {}, r"svi\.batches"),
    "rows": (
        PLAIN,
        (X[:4],),
        {},
        r"data\.0` is float\d+\[7, 3\], sum \w+ there, and float\d+\[4, 3\], sum \w+ here",
    ),
    "numbers": (
        PLAIN,
        (X.at[6, 2].add(1),),
        {},
        r"data\.0` is float\d+\[7, 3\], sum \w+ there, and float",
    ),
    "key": (PLAIN, (X,), {"key": jax.random.key(21)}, r"run\.key"),
    "average": (PLAIN, (X,), {"average": False}, r"plan\.average` is True there, and False here"),
    "rule": (PLAIN, (X,), {"stop": PATIENCE, "held_out": (X,)}, r"plan\.stop"),
    "restarts": (PLAIN, (X,), {"num_restarts": 2}, r"num_restarts` is 1 there, and 2 here"),
    "a stream": (PLAIN, (Stream([np.asarray(X)], NUM_ROWS),), {}, r"run\.svi\.batches|run\.data"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_runs_checkpoint_is_refused_with_the_leaf_that_differs(name, three):
    svi, data, options, leaf = OTHERS[name]
    directory, _ = three
    with pytest.raises(ValueError, match=leaf):
        run(svi, WHOLE, *data, **({"average": True} | options), checkpoint_dir=directory)
    assert steps(directory) == [300, 500, PART]


FITTED = GUIDE.init(KEY)
TWO = {
    "a prior's numbers": lambda scale: {"svi": prior_of(scale)},
    "held-out rows": lambda scale: {"stop": PATIENCE, "held_out": (scale * X[:3],)},
    "a stream's N": lambda scale: {
        "data": Stream([np.asarray(X)] * 20, np.int64(scale * NUM_ROWS))
    },
}


def prior_of(scale):
    params = jax.tree.map(lambda leaf: scale * leaf, FITTED)
    return SVI(minisvi.with_prior(MODEL, GUIDE, params), GUIDE, ADAM)


@pytest.mark.parametrize("name", TWO)
def test_numbers_that_differ_are_another_run(name, tmp_path):
    def fit(scale):
        options = {"svi": PLAIN, "data": X} | TWO[name](scale)
        return run(options.pop("svi"), 20, options.pop("data"), checkpoint_dir=tmp_path, **options)

    same(fit(1), fit(1))
    with pytest.raises(ValueError, match="another run"):
        fit(2)


def test_a_state_of_another_step_is_another_run(tmp_path):
    first = run(PLAIN, 20, X, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"run\.begin` is 0 there, and 20 here"):
        PLAIN.resume(first.state, 40, X, progress_bar=False, checkpoint_dir=tmp_path)


def test_a_directory_of_checkpoints_that_are_not_ours_is_left_alone(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.StandardSave({"a": np.ones(3)}))
    with pytest.raises(ValueError, match="not minisvi's"):
        run(PLAIN, 20, X, checkpoint_dir=tmp_path)
    assert steps(tmp_path) == [1]


def test_a_checkpoint_beyond_the_last_step_is_refused(three):
    directory, _ = three
    with pytest.raises(ValueError, match=rf"`num_steps` must be {PART} or more.*got 600"):
        run(PLAIN, 600, X, average=True, checkpoint_dir=directory)
    assert steps(directory) == [300, 500, PART]


@pytest.mark.parametrize("every", [0, -1.0, float("nan")])
def test_an_interval_that_is_none_is_refused(every, tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every"):
        run(PLAIN, 10, X, checkpoint_dir=tmp_path, checkpoint_every=every)


# --- A guide without its training. ---


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x)))[:, 0]


def network():
    return mean_field(bnn.from_nnx(Net(nnx.Rngs(3)), lambda path, shape: None).latents)


TREE = {"a": real(2), "b": {"c": minisvi.positive(), "d": minisvi.simplex(3)}}
GUIDES = {
    "mean_field": lambda: mean_field(TREE),
    "full_rank": lambda: full_rank(TREE),
    "flow": lambda: minisvi.inverse_autoregressive(full_rank(TREE), num_layers=1, hidden=4),
    "product": lambda: minisvi.product({"a": full_rank(TREE["a"]), "b": mean_field(TREE["b"])}),
    "delta": lambda: minisvi.delta(TREE),
    "a latent of no size": lambda: minisvi.delta(TREE | {"none": real((2, 0))}),
    "network": network,
}


@pytest.mark.parametrize("name", GUIDES)
def test_a_saved_guide_loads_bit_for_bit(name, key, tmp_path):
    guide = GUIDES[name]()
    params = guide.init(key)
    minisvi.save(tmp_path / "guide", params)
    assert not (
        tmp_path / "guide" / "_sharding"
    ).exists()  # it may be loaded where there are other devices
    loaded = minisvi.load(tmp_path / "guide", GUIDES[name]())
    same(loaded, params)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True):
        assert isinstance(new, jax.Array)
        assert new.dtype == old.dtype


def test_leaves_keep_their_places_whatever_the_order_of_their_names(tmp_path):
    # In which "10" comes before "2".
    params = [jnp.full(2, i, FLOAT) for i in range(11)]
    guide = minisvi.custom(lambda key: params, lambda params, *_: params)
    minisvi.save(tmp_path / "guide", params)
    same(minisvi.load(tmp_path / "guide", guide), params)


def test_a_tree_whose_leaves_share_a_name_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="names of their own"):
        minisvi.save(
            tmp_path / "guide", {"a.b": jnp.ones(2, FLOAT), "a": {"b": jnp.ones(2, FLOAT)}}
        )


def test_what_was_saved_is_not_written_over(key, tmp_path):
    minisvi.save(tmp_path / "guide", {"a": jnp.ones(2, FLOAT)})
    with pytest.raises(ValueError, match="exist"):
        minisvi.save(tmp_path / "guide", {"a": jnp.zeros(2, FLOAT)})


WRONG = {
    "another family": (lambda: full_rank(TREE), r"\['flat\.?.*|leaves"),
    "another size": (
        lambda: mean_field(TREE | {"a": real(3)}),
        r"`loc`: expected shape \(6,\); got \(5,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_guides_parameters_are_refused_with_the_leaf(name, key, tmp_path):
    guide, message = WRONG[name]
    minisvi.save(tmp_path / "guide", mean_field(TREE).init(key))
    with pytest.raises(ValueError, match=message):
        minisvi.load(tmp_path / "guide", guide())
