"""Which cases of a table run by default: those that stand for their kind. CI runs all of them."""

import pytest

DEFAULT = "not slow and not whole"


def standing_for(cases, *chosen):
    """The parameters of a table; all but the `chosen` cases run in CI alone.

    A case is a value, a tuple of the values of several arguments, or either with marks, by
    `pytest.param`.
    """
    params = [as_param(case) for case in cases]
    missing = [case for case in chosen if case not in [case_of(param) for param in params]]
    assert not missing, missing
    return [param if case_of(param) in chosen else in_ci(param) for param in params]


def as_param(case):
    if isinstance(case, type(pytest.param())):
        return case
    return pytest.param(*case) if isinstance(case, tuple) else pytest.param(case)


def case_of(param):
    return param.values[0] if len(param.values) == 1 else param.values


def in_ci(param):
    return pytest.param(*param.values, marks=[*param.marks, pytest.mark.whole], id=param.id)
