"""gradcheck-np: the same file as a distribution of its own, installed beside NumPy alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "minisrcnn" / "_gradcheck_np"

CHECK = """
import numpy as np
import gradcheck_np
from gradcheck_np import GradientCheckError, check_gradients

def back(dy, x, w):
    return dy @ w.T, x.T @ dy / 2

try:
    check_gradients(np.matmul, back, {"x": (4, 3), "w": (3, 5)})
except GradientCheckError as error:
    print(error.report.mistake)
import sys
print(gradcheck_np.__version__, "minisrcnn" in sys.modules)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build", reason="the 'build' package makes the wheel")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(PROJECT)],
                          capture_output=True, text=True, check=False)
    if "No matching distribution found for setuptools" in done.stdout + done.stderr:
        pytest.skip("the build backend cannot be had here (no package index)")
    assert done.returncode == 0, done.stderr + done.stdout
    return next(out.glob("*.whl"))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.slow
def test_the_wheel_carries_the_same_files_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as file:
        for name in ("gradcheck.py", "gradcheck_pytest.py"):
            assert digest(file.read(f"gradcheck_np/{name}")) == digest(
                (ROOT / "minisrcnn" / name).read_bytes())
        names = file.namelist()
        metadata = file.read(next(n for n in names if n.endswith("METADATA"))).decode()
        licence = next(n for n in names if n.endswith("licenses/LICENSE"))
        assert file.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert "Requires-Dist: numpy>=1.26" in metadata
    assert metadata.count("Requires-Dist") == 1


@pytest.mark.slow
def test_it_works_in_an_environment_that_has_numpy_alone(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"

    def pip(*packages):
        done = subprocess.run([python, "-m", "pip", "install", "-q", *packages],
                              capture_output=True, text=True, check=False)
        if "No matching distribution" in done.stderr or "Could not find" in done.stderr:
            pytest.skip("NumPy cannot be had here (no package index)")
        assert done.returncode == 0, done.stderr

    pip(str(wheel))
    listed = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], check=True,
                            capture_output=True, text=True).stdout
    assert {line.split("==")[0] for line in listed.split()} <= {
        "gradcheck-np", "gradcheck_np", "numpy", "pip", "setuptools"}
    done = subprocess.run([python, "-c", CHECK], capture_output=True, text=True, cwd=tmp_path,
                          check=True)
    mistake, version = done.stdout.splitlines()
    assert mistake.startswith("a factor 2")
    assert version.endswith(" False")
    pip("pytest")
    (tmp_path / "test_it.py").write_text(
        "import numpy as np\n"
        "def test_it(gradcheck):\n"
        "    gradcheck(np.sin, lambda dy, x: dy * np.cos(x), {'x': (3,)})\n")
    done = subprocess.run([python, "-m", "pytest", "-q", "--gradcheck-np-seed=3"], cwd=tmp_path,
                          capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
