"""A version is the same wherever it is written, and in the tag of its commit."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import minisvi

ROOT = Path(__file__).parents[1]


def first_match(pattern, name):
    found = re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)
    assert found is not None, f"{name} has no {pattern}"
    return found.group(1)


def test_the_citation_and_the_changelog_are_of_this_version():
    assert first_match(r"^version: (\S+)$", "CITATION.cff") == minisvi.__version__
    assert first_match(r"^## ([^\s,]+)", "CHANGELOG.md") == minisvi.__version__


def test_the_changelog_and_the_citation_have_one_date():
    date = first_match(r"^date-released: (\S+)$", "CITATION.cff")
    assert first_match(r"^## \S+, (\S+)$", "CHANGELOG.md") == date


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no git")
def test_a_tag_of_this_commit_is_this_version():
    command = ["git", "tag", "--points-at", "HEAD", "--list", "v*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {f"v{minisvi.__version__}"}
