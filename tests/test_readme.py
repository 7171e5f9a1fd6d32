"""The README's code runs as printed, and prints what the README says."""

import contextlib
import io
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

README = Path(__file__).parents[1] / "README.md"
# A block of Python, and the block of text that may follow it: what it prints.
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n\n?```text\n(.*?)```)?", README.read_text(), flags=re.DOTALL)


@pytest.mark.foreign
@pytest.mark.skipif(jnp.result_type(float) == jnp.float64, reason="printed in float32, whose draws are others")
def test_code_blocks_run_and_print_what_is_shown():
    namespace = {"__name__": "readme"}
    assert len(BLOCKS) >= 3
    for code, expected in BLOCKS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), namespace)
        if expected:
            assert printed.getvalue().rstrip() == expected.rstrip()


def test_the_two_commands_are_there():
    text = README.read_text()
    assert 'pip install -e ".[examples]" && python examples/gamma.py' in text
    assert 'pip install -e ".[test]" && pytest' in text
