"""Every ``pip install`` of README and docs can be resolved: a dry run against the package index."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINES = sorted({line.strip() for page in PAGES for line in re.findall(
    r"pip install ((?:(?!&&|;|\)|`)[^\n#])+)", page.read_text("utf-8"))})

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("uv", path=str(Path(sys.executable).parent)) is None
                       and shutil.which("uv") is None, reason="uv is not installed"),
]


def resolve(*arguments):
    """Ask uv what it would install into an empty environment for this Python."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    requirements = [a for a in arguments if not a.startswith("-")]
    done = subprocess.run(
        [uv, "pip", "compile", "--quiet", "--no-header", "--python", sys.executable, "-"],
        input="\n".join(requirements), cwd=ROOT, capture_output=True, text=True)
    if re.search("error sending request|dns error|Failed to fetch", done.stderr):
        pytest.skip("no package index can be reached")
    return done


def arguments_of(line):
    return [word for word in shlex.split(line) if word not in ("-e", "--editable", "-q", "--quiet")]


@pytest.mark.parametrize("line", LINES)
def test_the_line_can_be_resolved(line):
    if "--index-url" in line or "<" in line:
        pytest.skip("another index, or a placeholder")
    done = resolve(*arguments_of(line))
    assert done.returncode == 0, done.stderr


def test_a_line_that_cannot_be_resolved_is_seen():
    done = resolve(".", "numpy<1.0")
    assert done.returncode != 0 and "No solution found" in done.stderr
