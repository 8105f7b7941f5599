"""Build ``docs/learn/gradients.html``: one file, from the sources in this folder.

    pip install -e '.[browser]' && python docs/learn/page/build.py

``conv.c`` is compiled to WebAssembly by the ``ziglang`` wheel; the code shown is cut out of the
``reference`` backend; the model is the one that ships for 9-1-5 x3. The same sources and the same
version of ziglang give the same bytes, which ``tests/test_page.py`` checks.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from minisrcnn.checkpoint import load_model
from minisrcnn.models import find_model

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PAGE = HERE.parent / "gradients.html"
REFERENCE = ROOT / "minisrcnn/engine/backends/reference.py"

#: The model that part 3 restores pictures with.
MODEL = "9-1-5-x3"

#: The version of the wheel that compiled what is committed; another one may give other bytes.
ZIGLANG = "0.17.1"

#: What is shown of the reference backend, and where the sum of each function stands.
SHOWN = {
    "conv2d_forward": r"y\[.*=",
    "conv2d_backward_input": r"dx\[.*\+=",
    "conv2d_backward_weight": r"dw\[.*\+=",
    "conv2d_backward_bias": r"db\[.*\+=",
    "mse": r"dy\[k\] =",
    "relu_backward": r"dx\[k\] =",
}


def compile_wasm(source: Path) -> bytes:
    """Compile C to WebAssembly; what has no libc needs no imports."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "conv.wasm"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "ziglang",
                "cc",
                "-target",
                "wasm32-freestanding",
                "-msimd128",
                "-O3",
                "-nostdlib",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-Wl,--no-entry",
                "-Wl,--export=__heap_base",
                "-Wl,--strip-all",
                "-o",
                str(out),
                source.name,
            ],
            check=True,
            cwd=source.parent,
        )
        return out.read_bytes()


def code_lines(source: str, name: str, sum_pattern: str) -> list[dict[str, object]]:
    """Return the body of a function without docstring and checks, the lines of its sum marked."""
    function = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    first = next(node for node in function.body[1:] if not isinstance(node, ast.Expr))
    assert function.end_lineno is not None
    text = textwrap.dedent("\n".join(source.splitlines()[first.lineno - 1 : function.end_lineno]))
    lines, open_brackets, hot = [], 0, False
    for line in text.splitlines():
        if not open_brackets:
            hot = re.search(sum_pattern, line) is not None
        open_brackets += len(re.findall(r"[(\[]", line)) - len(re.findall(r"[)\]]", line))
        lines.append({"text": line + "\n", "hot": hot})
    if not any(line["hot"] for line in lines):
        raise SystemExit(f"{name} in {REFERENCE.name} has no line that matches {sum_pattern!r}")
    return lines


def model_block(name: str) -> dict[str, object]:
    """Return a shipped model as the page takes it: names, shapes, and float32 in base64."""
    shipped = find_model(name)
    if shipped is None:
        raise SystemExit(f"minisrcnn ships no model {name!r}")
    parameters = load_model(shipped.path).parameters
    weights = b"".join(value.astype("<f4").tobytes() for value in parameters.values())
    return {
        "name": name,
        "parameters": [[key, list(value.shape)] for key, value in parameters.items()],
        "weights": base64.b64encode(weights).decode(),
    }


def build() -> str:
    """Return the text of the page."""
    reference = REFERENCE.read_text("utf-8")
    values = {
        "wasm": base64.b64encode(compile_wasm(HERE / "conv.c")).decode(),
        "wgsl": json.dumps((HERE / "conv.wgsl").read_text("utf-8")),
        "code": json.dumps(
            {name: code_lines(reference, name, pattern) for name, pattern in SHOWN.items()}
        ),
        "model": json.dumps(model_block(MODEL)),
    }
    page = (HERE / "index.html").read_text("utf-8")
    page = re.sub(r"/\*\{(\S+)\}\*/", lambda m: (HERE / m[1]).read_text("utf-8").rstrip(), page)
    return re.sub(r"\{(wasm|wgsl|code|model)\}", lambda m: values[m[1]], page)


if __name__ == "__main__":
    text = build()
    PAGE.write_text(text, "utf-8", newline="\n")
    print(f"{PAGE.name}: {len(text.encode()) / 1000:.0f} kB")
