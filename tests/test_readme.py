"""The code of the README and of the docs runs as printed, and prints what they say."""

import contextlib
import io
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
# A block of Python, and the block of text that may follow it: what it prints.
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n?```text\n(.*?)```)?", flags=re.DOTALL)


@pytest.mark.foreign
@pytest.mark.skipif(
    jnp.finfo(jnp.result_type(float)).bits == 64,
    reason="printed in float32, whose draws are others",
)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run_and_print_what_is_shown(page):
    namespace = {"__name__": page.stem}
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), namespace)
        if expected:
            assert printed.getvalue().rstrip() == expected.rstrip()


def test_the_two_commands_are_there():
    text = README.read_text()
    assert 'pip install -e ".[examples]" && python examples/gamma.py' in text
    assert 'pip install -e ".[test]" && pytest' in text
