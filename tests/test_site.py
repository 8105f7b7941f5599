"""The links of the book, and (slow) the site: every cell run, nothing loaded from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted((ROOT / "docs/learn").glob("[0-9]*.md"))
# What a page loads by itself; a link that a reader may follow is no such thing.
LOADED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=[\"'](https?:)?//[^\"']*",
                    re.IGNORECASE)


def defined(file, name):
    """Whether a name is defined in a file of the repository."""
    text = (ROOT / file).read_text("utf-8")
    if file.endswith(".py"):
        return re.search(rf"^(def|class) {name}\b", text, re.MULTILINE) is not None
    return f" {name}(" in text


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_equation_names_its_lines_and_its_tests(chapter):
    links = re.findall(r"\{src\}`([^:`]+):([^`]+)`", chapter.read_text("utf-8"))
    assert [file for file, _ in links if not file.startswith("tests/")], "no code is named"
    assert [file for file, _ in links if file.startswith("tests/")], "no test is named"
    assert not [link for link in links if not defined(*link)]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_included_code_exists(chapter):
    text = chapter.read_text("utf-8")
    for file, options in re.findall(r"```\{literalinclude\} (\S+)\n((?::.*\n)*)", text):
        path = (chapter.parent / file).resolve()
        assert path.is_file()
        for kind, value in re.findall(r":(pyobject|start-at|end-before): (.*)", options):
            wanted = value.strip('"')
            source = path.read_text("utf-8")
            assert (f"def {wanted}(" if kind == "pyobject" else wanted) in source


def test_all_chapters_are_in_the_table_of_contents():
    index = (ROOT / "docs/learn/index.md").read_text("utf-8")
    assert len(CHAPTERS) == 10
    for chapter in CHAPTERS:
        assert index.count(chapter.stem) == 2  # the table, and the tree


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path):
    for module in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(module, reason="pip install -e '.[docs]' builds the site")
    built = subprocess.run([sys.executable, "-m", "sphinx", "-q", "docs", str(tmp_path)],
                           cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    # Cells and literal includes that fail are errors or warnings of their own files.
    assert not re.findall(r"docs/learn/.*(?:WARNING|ERROR).*", built.stderr)
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    assert not [(page.name, found[0]) for page in pages
                if (found := LOADED.search(page.read_text("utf-8")))]
    assert (tmp_path / "gradients.html").is_file()
    for chapter in CHAPTERS:
        page = (tmp_path / "learn" / f"{chapter.stem}.html").read_text("utf-8")
        for target in re.findall(r'href="\.\./(code/[^"#]+)#line-(\d+)"', page):
            linked = (tmp_path / target[0]).read_text("utf-8")
            assert f'name="line-{target[1]}"' in linked
