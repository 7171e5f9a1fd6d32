"""The code of the README and of the docs runs as printed, and prints what they say."""

from pathlib import Path

import jax.numpy as jnp
import pytest
from blocks import blocks_of, run
from tiers import standing_for

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.foreign
@pytest.mark.skipif(
    jnp.finfo(jnp.result_type(float)).bits == 64,
    reason="printed in float32, whose draws are others",
)
@pytest.mark.parametrize("page", standing_for(PAGES, README), ids=lambda page: page.name)
def test_code_blocks_run_and_print_what_is_shown(page):
    namespace = {"__name__": page.stem}
    blocks = blocks_of(page)
    assert blocks
    for code, printed in blocks:
        run(code, printed, page.name, namespace)


def test_the_two_commands_are_there():
    text = README.read_text()
    assert 'pip install -e ".[examples]" && python examples/gamma.py' in text
    assert 'pip install -e ".[test]" && pytest' in text
