"""Programs that the host calls: compiled once, and forgotten where there are too many."""

from weakref import WeakValueDictionary

import jax
import numpy as np
import pytest
from conftest import RTOL

from minisvi.running import device
from minisvi.tools import programs
from minisvi.tools.programs import HostProgram


@pytest.fixture
def traced():
    """A function of a static power and an array as a program, and the powers of which it was
    traced.
    """
    seen = []

    def powered(power, x, factor):
        seen.append(power)
        return factor * x**power

    return HostProgram(powered, static_argnames="power"), seen


def test_a_program_is_compiled_once_for_each_static_argument_and_shape(traced):
    program, seen = traced
    x = np.arange(3.0)
    for factor in (2.0, -1.0):
        np.testing.assert_allclose(program(2, x, factor), factor * x**2)
    assert seen == [2]
    np.testing.assert_allclose(program(3, x, 2.0), 2 * x**3)
    np.testing.assert_allclose(program(2, x[1:], 2.0), 2 * x[1:] ** 2)
    assert seen == [2, 3, 2]


def test_too_many_programs_are_forgotten_all_at_once(traced, monkeypatch):
    monkeypatch.setattr(programs, "_MOST", 3)
    program, seen = traced
    x = np.arange(3.0)
    for power in (1, 2, 3, 1, 2, 3):
        np.testing.assert_allclose(program(power, x, 1.0), x**power)
    # At the fourth call there were three, so that the others are compiled again, too.
    assert seen == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(("num", "in_haste"), [(3, True), (programs.FEW_ROWS + 1, False)])
def test_of_few_rows_a_function_is_compiled_in_haste(num, in_haste):
    by_rows = programs.ByRows(lambda power, x: x**power, static_argnames="power")
    x = np.linspace(0.0, 2.0, num)
    program = by_rows.of((x, 1.0))
    np.testing.assert_allclose(program(2, x), x**2, rtol=RTOL)
    assert program.options == (programs.IN_HASTE if in_haste else programs.FEW_MODULES)


def test_options_that_the_compiler_does_not_know_are_left_out(monkeypatch):
    if jax.default_backend() == "cpu":
        assert programs.known(programs.IN_HASTE) == programs.IN_HASTE
    assert programs.known(programs.BY_DEFAULT) is None
    monkeypatch.setattr(programs, "IN_HASTE", {"xla_no_such_option": True})
    assert not programs._are_known.__wrapped__()


class Factor(float):
    """An engine whose block multiplies its lane."""

    compiler_options = programs.BY_DEFAULT


def test_of_too_many_blocks_the_least_recently_used_is_forgotten(monkeypatch):
    monkeypatch.setattr(device, "MAX_BLOCKS", 2)
    monkeypatch.setattr(device, "_programs", WeakValueDictionary())
    monkeypatch.setattr(device, "_block", lambda engine, plan, lane: engine * lane)
    two, five = device.program(Factor(2.0), "a plan"), device.program(Factor(5.0), "a plan")
    assert two.block(3.0) == 6
    assert device.program(Factor(5.0), "a plan") is five
    assert device.program(Factor(2.0), "a plan") is two
    assert five.block(3.0) == 15
    seven = device.program(Factor(7.0), "a plan")
    assert seven.block(3.0) == 21
    assert [each.num_compiled for each in (two, five, seven)] == [1, 0, 1]
    assert five.block(3.0) == 15  # compiled again


def test_a_block_of_too_many_shapes_is_forgotten_too(monkeypatch):
    monkeypatch.setattr(device, "MAX_BLOCKS", 2)
    monkeypatch.setattr(device, "_programs", WeakValueDictionary())
    monkeypatch.setattr(device, "_block", lambda engine, plan, lane: engine * lane)
    for size in range(1, 6):
        two = device.program(Factor(2.0), "a plan")
        np.testing.assert_array_equal(two.block(np.ones(size)), 2.0)
        assert two.num_compiled == 2 - size % 2
