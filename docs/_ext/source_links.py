"""The role ``{src}`FILE:NAME```: a link to the lines of the repository where NAME is defined.

Each file that is linked to becomes a page with numbered lines. A file or name that does not exist
fails the build, so that a link cannot outlive what it points to.
"""

from __future__ import annotations

import ast
from pathlib import Path

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxRole

ROOT = Path(__file__).resolve().parents[2]


def line_of(file: str, name: str) -> int:
    """Return the line where a function or class is defined; of a kernel, in a ``.cu`` file."""
    path = ROOT / file
    if not path.is_file():
        raise ExtensionError(f"src: there is no file {file}")
    text = path.read_text("utf-8")
    if not name:
        return 1
    if path.suffix == ".py":
        body = ast.parse(text).body
        for part in name.split("."):
            found = [node for node in body if getattr(node, "name", None) == part]
            if not found:
                raise ExtensionError(f"src: {file} has no {name}")
            body = getattr(found[0], "body", [])
        return found[0].lineno
    for number, line in enumerate(text.splitlines(), 1):
        if f" {name}(" in line:
            return number
    raise ExtensionError(f"src: {file} has no {name}")


class SourceRole(SphinxRole):
    """``{src}`tests/test_backends.py:test_mse```."""

    def run(self):  # noqa: D102
        file, _, name = self.text.partition(":")
        line = line_of(file, name)
        self.env.metadata.setdefault("_sources", {})[file] = True
        depth = self.env.docname.count("/")
        node = nodes.reference("", "", internal=True,
                               refuri=f"{'../' * depth}code/{file}.html#line-{line}")
        node += nodes.literal(text=name or file)
        return [node], []


def write_sources(app: Sphinx, error: Exception | None) -> None:
    """Write a page for each file that is linked to."""
    if error is not None or app.builder.format != "html":
        return
    for file in app.env.metadata.get("_sources", {}):
        target = Path(app.outdir, "code", f"{file}.html")
        target.parent.mkdir(parents=True, exist_ok=True)
        formatter = HtmlFormatter(full=True, title=file, linenos="inline", lineanchors="line")
        target.write_text(highlight((ROOT / file).read_text("utf-8"),
                                    get_lexer_for_filename(file.replace(".cu", ".cpp")), formatter),
                          encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the role."""
    app.add_role("src", SourceRole())
    app.add_lexer("floors", TextLexer)  # the block that tests/test_architecture.py reads
    app.connect("build-finished", write_sources)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
