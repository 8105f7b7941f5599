"""What README and docs show is what the code does: every snippet is run, or says why it is not.

A snippet is a fenced block marked ``python`` or ``bash``. One that cannot be run here has a comment
before it, ``<!-- not run: the reason -->``, and is skipped with that reason. Python that needs the
block before it has ``<!-- goes on -->``. A plain block that follows Python is what it prints.

Of shell commands, the cheap ones are run and the arguments of the others are read by the very
parser of the command; ``pip install`` is resolved by ``test_install.py``.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from minisrcnn.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
         *sorted((ROOT / "kernels").rglob("*.md"))]
CHEAP = {"minisrcnn info", "minisrcnn --version", "minisrcnn data list"}
TOOLS = {"git", "python", "pip", "pytest", "ruff", "mypy", "minisrcnn", "cd", ".", "uv", "cat",
         "sbatch"}


@dataclass
class Snippet:
    page: str
    line: int
    language: str
    code: str
    output: str | None
    marker: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def read(path):
    """Return the snippets of a page, in order."""
    text = path.read_text("utf-8")
    pattern = re.compile(
        r"(?:^ *<!-- (?P<marker>.*?) -->\n)?"
        r"^(?P<indent> *)```(?P<language>python|bash|sh)\n(?P<code>.*?)^ *```$"
        r"(?:\n\n```\n(?P<output>.*?)^```$)?", re.DOTALL | re.MULTILINE)
    page = str(path.relative_to(ROOT))
    return [Snippet(page, text.count("\n", 0, m.start("code")), m["language"],
                    re.sub(rf"^{m['indent']}", "", m["code"], flags=re.MULTILINE),
                    m["output"], m["marker"] or "") for m in pattern.finditer(text)]


SNIPPETS = [snippet for page in PAGES for snippet in read(page)]
PYTHON = [snippet for snippet in SNIPPETS if snippet.language == "python"]
SHELL = [snippet for snippet in SNIPPETS if snippet.language != "python"]


def program(snippet):
    """Return the code, after that of the blocks that it goes on from."""
    if snippet.marker != "goes on":
        return snippet.code
    before = [other for other in PYTHON
              if other.page == snippet.page and other.line < snippet.line]
    return program(before[-1]) + snippet.code


@pytest.mark.parametrize("snippet", PYTHON, ids=str)
def test_python_runs_and_prints_what_is_shown(snippet, tmp_path):
    if snippet.marker.startswith("not run: "):
        pytest.skip(snippet.marker)
    code = program(snippet)
    (tmp_path / "test_snippet.py").write_text(code, "utf-8")
    arguments = (["-m", "pytest", "-q", "-p", "no:cacheprovider", "test_snippet.py"]
                 if "def test_" in code else ["test_snippet.py"])
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True,
                          text=True)
    if done.returncode:  # an example that fails on purpose: its last words are shown
        assert snippet.output and "GradientCheckError" in snippet.output, done.stdout + done.stderr
        said = done.stderr[done.stderr.index("minisrcnn.gradcheck."):]
        assert without_rounding(said) == without_rounding(snippet.output)
    elif snippet.output is not None:
        assert without_rounding(done.stdout) == without_rounding(snippet.output)


def without_rounding(report):
    """Leave out the size of rounding errors, which differs from machine to machine."""
    return re.sub(r"\d\.\de-1\d", "tiny", report).strip()


def commands(text):
    """Yield the commands of a block: without comments and variables, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";&|")
        reader.whitespace_split = True
        words = []
        for word in [*reader, ";"]:
            if word not in (";", "&&", "|", "||"):
                if words or not re.fullmatch(r"[A-Z_]+=.*", word):
                    words.append(word)
            elif words:
                yield words
                words = []


def parse(arguments):
    """Have the command line read arguments as if to run them; raise what it would refuse."""
    command = typer.main.get_command(app)
    context = command.make_context("minisrcnn", list(arguments))
    while hasattr(command, "resolve_command"):  # a group: the next word is a command of it
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


def check(words, folder):
    """Check one command of a page."""
    if words[0] == "mpiexec":  # -n N
        words = words[3:]
    if words[:2] == ["python", "-m"] and len(words) > 2:
        if words[2] == "minisrcnn":
            words = words[2:]
        else:
            assert importlib.util.find_spec(words[2]), f"no module {words[2]}"
            return
    if words[0] == "minisrcnn":
        if " ".join(words) in CHEAP:
            subprocess.run([sys.executable, "-m", *words], cwd=folder, check=True)
        else:
            parse(words[1:])
    elif words[0] == "pytest":
        for word in words[1:]:
            assert not word.startswith("tests/") or (ROOT / word.split("::")[0]).exists(), word
    else:
        assert words[0] in TOOLS, f"{words[0]}: give the block a <!-- not run: reason -->"


@pytest.mark.parametrize("snippet", SHELL, ids=str)
def test_shell_commands_are_accepted(snippet, tmp_path):
    if snippet.marker.startswith("not run: "):
        pytest.skip(snippet.marker)
    for words in commands(snippet.code):
        check(words, tmp_path)


def test_the_checks_see_what_they_should(tmp_path):
    assert list(commands("A=1 minisrcnn train  # minutes\npip install . && x 'a b'")) == [
        ["minisrcnn", "train"], ["pip", "install", "."], ["x", "a b"]]
    check(shlex.split("minisrcnn train --recipe paper --epochs 3"), tmp_path)
    check(shlex.split("minisrcnn data fetch Set5"), tmp_path)
    for wrong in ("minisrcnn train --epoch 3", "minisrcnn trane", "minisrcnn upscale a --scale 99"):
        with pytest.raises(Exception, match=r"No such|not in the range|less than"):
            check(shlex.split(wrong), tmp_path)
    for wrong in ("frobnicate", "python -m minisrcn", "pytest tests/test_nothing.py"):
        with pytest.raises((AssertionError, ModuleNotFoundError)):
            check(shlex.split(wrong), tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_stands_in_a_block_that_is_not_read(page):
    blocks = re.findall(r"^ *```(.*)\n(.*?)^ *```$", page.read_text("utf-8"),
                        re.DOTALL | re.MULTILINE)
    for language, text in blocks:
        assert language or not re.match(rf" *({'|'.join(map(re.escape, TOOLS))}) ", text), text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(((?!http|#|mailto)[^)#\s]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
