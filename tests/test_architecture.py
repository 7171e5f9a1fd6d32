"""The arrows of the design: imports run in the order of the mathematics, light stays light, and
code stays plain.
"""

import ast
import importlib
import inspect
import io
import pkgutil
import subprocess
import sys
import tokenize
from bisect import bisect_left
from pathlib import Path

import numpy as np
import pytest

import minisvi

ROOT = Path(minisvi.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
# What a room may import, besides itself: arrows run in the order of the mathematics.
ROOMS = {
    "tools": set(),
    "model": {"tools"},
    "data": {"tools"},
    "guides": {"tools", "model"},
    "objectives": {"tools", "model", "guides"},
    "posterior": {"tools", "model", "guides"},
    "second_order": {"tools", "model", "guides", "posterior"},
    "stopping": {"tools", "model", "guides", "objectives", "posterior"},
    "running": {"tools", "model", "data", "objectives"},
    "svi": {"tools", "model", "data", "guides", "objectives", "running"},
    "bnn": {"tools", "model"},
    "auto": {
        "tools",
        "model",
        "data",
        "guides",
        "objectives",
        "posterior",
        "second_order",
        "running",
        "svi",
    },
}


# How plain code is. A simple statement is an assignment, a return or an expression, and its tokens
# are names, operators, numbers and strings. Of a function the lines of its body count, without the
# docstring.
STATEMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.Expr)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
TOKENS = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "minisvi":
            yield from (alias.name for alias in node.names)
        elif (
            isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minisvi.")
        ):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert set(imported(path)) - {own} <= ROOMS[own]


@pytest.mark.parametrize("path", ROOT.glob("*/__init__.py"), ids=lambda path: path.parent.name)
def test_a_room_exports_no_function(path):
    room = importlib.import_module(f"minisvi.{path.parent.name}")
    assert room.__doc__
    assert not [name for name, thing in vars(room).items() if inspect.isfunction(thing)]


def test_no_public_name_is_a_module():
    modules = {module.name for module in pkgutil.iter_modules(minisvi.__path__)}
    assert not modules & set(minisvi.__all__)
    assert not [name for name in minisvi.__all__ if inspect.ismodule(getattr(minisvi, name))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400


def everywhere(count):
    """(number, place) of all files, the largest first."""
    found = [pair for path in ROOT.rglob("*.py") for pair in count(path)]
    return sorted(found, reverse=True)


def is_docstring(node):
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def tokens(text):
    """Where each token that counts begins: (line, column)."""
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token.start for token in found if token.type in TOKENS]


def statements(path):
    """(number of tokens, where) of each simple statement."""
    text = path.read_text()
    starts = tokens(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, STATEMENTS) and not is_docstring(node):
            first = bisect_left(starts, (node.lineno, node.col_offset))
            last = bisect_left(starts, (node.end_lineno, node.end_col_offset))
            yield last - first, f"{path.relative_to(ROOT)}:{node.lineno}"


def functions(path):
    """(number of lines, where) of each function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, FUNCTIONS):
            body = node.body[1:] if is_docstring(node.body[0]) else node.body
            num_lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            yield num_lines, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_simple_statements_are_simple():
    found = everywhere(statements)
    numbers = [number for number, _ in found]
    assert np.median(numbers) <= 11, found[:20]
    assert np.quantile(numbers, 0.9, method="higher") <= 25, found[:20]


def test_functions_are_short():
    found = everywhere(functions)
    numbers = [number for number, _ in found]
    assert np.median(numbers) <= 6, found[:20]
    assert max(numbers) <= 45, found[:20]


def test_importing_minisvi_loads_no_library_but_jax():
    heavy = ("distrax", "flax", "optax", "scipy.stats", "tensorflow_probability")
    code = f"import sys, minisvi; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_documented():
    for name in minisvi.__all__:
        assert (getattr(minisvi, name).__doc__ or "").strip(), name
