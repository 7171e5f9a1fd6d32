"""The arrows of the design: imports run in the order of the mathematics, and light stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minisvi

ROOT = Path(minisvi.__file__).parent
# A module may import those of the rows above it, and those of its own package's `base`.
LAYERS = [
    [
        "record",
        "tracing",
        "checks",
        "progress",
        "bijectors",
        "diagnostics",
        "products",
        "averaging",
        "result",
        "batching",
    ],
    ["permutation", "sharding", "newton", "inputs"],
    ["summary"],
    ["supports", "batches", "draws", "loop", "claims", "packing", "noise"],
    ["trees", "streams", "checkpoint", "moments"],
    ["drive", "ancestral", "prior_supports"],
    ["curvature"],
    ["model", "guides"],
    ["kl", "sums", "failure", "online", "centred"],
    ["elbo"],
    ["bounds", "scores"],
    ["stopping", "run"],
    ["convergence", "svi"],
    ["posterior", "export", "plots", "bnn"],
    ["deterministic", "defensive", "stochastic"],
    ["verdict", "response"],
    ["cascade"],
    ["fit"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "minisvi":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minisvi."):
            yield node.module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_runs_upward(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    upward = [name for name in imported(path) if name != own and RANK[name] >= RANK[own]]
    assert upward == []


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
