"""Small matrices have one thread of BLAS, where threadpoolctl is there to say so."""

import sys

import numpy as np
import pytest

import minisvi
from minisvi import Model, real
from minisvi.auto import cascade
from minisvi.tools.blas import threads_for

threadpoolctl = pytest.importorskip("threadpoolctl")


def num_threads():
    """Of each BLAS of this process."""
    return [
        library["num_threads"]
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    ]


@pytest.fixture
def two_threads():
    with threadpoolctl.threadpool_limits(limits=2, user_api="blas"):
        if set(num_threads()) != {2}:
            pytest.skip("there is no BLAS that can be told how many threads it has")
        yield


def test_small_matrices_have_one_thread_and_large_ones_all(two_threads):
    with threads_for(64):
        assert set(num_threads()) == {1}
    assert set(num_threads()) == {2}
    with threads_for(5000):
        assert set(num_threads()) == {2}


def test_without_threadpoolctl_all_stays_as_it_is(two_threads, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with threads_for(64):
        assert set(num_threads()) == {2}


def test_a_fit_has_one_thread_and_gives_them_back(two_threads, monkeypatch, key):
    seen = []
    gaussian = cascade._gaussian

    def looked_at(det):
        seen.extend(num_threads())
        return gaussian(det)

    monkeypatch.setattr(cascade, "_gaussian", looked_at)
    model = Model({"x": real(2)}, lambda theta: -np.float32(0.5) * (theta["x"] ** 2).sum())
    assert minisvi.fit(key, model, progress_bar=False).verdict.level == "good"
    assert set(seen) == {1}
    assert set(num_threads()) == {2}
