"""Which tests run when: by default, in CI alone (`whole`), or where a test may take minutes (`slow`).

A table of cases names those that stand for their kind: `pytest` runs these, and CI the whole table.
"""

import pytest

DEFAULT = "not slow and not whole"
WHOLE = pytest.mark.whole
SLOW = pytest.mark.slow


def standing_for(cases, *chosen):
    """The parameters of a table, by name or by what `pytest.param` makes of a name and its marks: all
    but the `chosen` run in CI alone.
    """
    params = [case if is_param(case) else pytest.param(case) for case in cases]
    names = {param.values[0] for param in params}
    assert names.issuperset(chosen), set(chosen) - names
    return [param if param.values[0] in chosen else in_ci(param) for param in params]


def in_ci(param):
    return pytest.param(*param.values, marks=[*param.marks, WHOLE], id=param.id)


def is_param(case):
    return isinstance(case, type(pytest.param()))
