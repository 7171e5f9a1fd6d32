"""Which cases of a table run by default: those that stand for their kind. CI runs the whole
table.
"""

import pytest

DEFAULT = "not slow and not whole"
WHOLE = pytest.mark.whole


def standing_for(cases, *chosen):
    """The parameters of a table, given by name or by `pytest.param`; all but the `chosen` names run
    in CI alone.
    """
    params = [case if is_param(case) else pytest.param(case) for case in cases]
    names = {param.values[0] for param in params}
    assert names.issuperset(chosen), set(chosen) - names
    return [param if param.values[0] in chosen else in_ci(param) for param in params]


def in_ci(param):
    return pytest.param(*param.values, marks=[*param.marks, WHOLE], id=param.id)


def is_param(case):
    return isinstance(case, type(pytest.param()))
