"""The arrows of the design: imports run in the order of the mathematics, and light stays light."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

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


def test_importing_minisvi_loads_neither_flax_nor_tfp():
    code = "import sys, minisvi; print([m for m in ('distrax', 'flax', 'tensorflow_probability') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_documented():
    for name in minisvi.__all__:
        assert (getattr(minisvi, name).__doc__ or "").strip(), name
