"""The blocks of code in a page of Markdown, and what they print.

`python tests/blocks.py PAGE` runs the first, as CI does where nothing but the wheel is installed.
"""

import contextlib
import io
import re
import sys
from pathlib import Path

# A block of Python, and the block of text that may follow it: what it prints.
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n?```text\n(.*?)```)?", flags=re.DOTALL)


def blocks_of(page):
    """(code, what it prints or "") of each block."""
    return BLOCK.findall(page.read_text())


def run(code, printed, name, namespace):
    """Runs a block, which must print what is shown beneath it."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, name, "exec"), namespace)
    if printed:
        assert output.getvalue().rstrip() == printed.rstrip()


if __name__ == "__main__":
    page = Path(sys.argv[1])
    code, printed = blocks_of(page)[0]
    assert printed, "the first block is to show what it prints"
    run(code, printed, page.name, {"__name__": page.stem})
