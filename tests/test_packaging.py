"""What users install: a wheel and an sdist that carry every file, and an import that is light."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

HEAVY = ("numba", "llvmlite", "scipy", "cupy", "skimage", "matplotlib", "imageio", "PIL", "torch")


def source_files() -> set[str]:
    """Give every file of the package, as ``minisrcnn/...``, that the repository tracks."""
    listed = subprocess.run(["git", "ls-files", "minisrcnn", "kernels"], cwd=ROOT,
                            capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: nothing to compare the archives with")
    return {name if name.startswith("minisrcnn/") else f"minisrcnn/{name}"
            for name in listed.stdout.split() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    pytest.importorskip("build", reason="the 'build' package makes the archives")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)],
        capture_output=True, text=True,
    )
    if "No matching distribution found for setuptools" in done.stdout + done.stderr:
        pytest.skip("the build backend cannot be had here (no package index)")
    assert done.returncode == 0, done.stderr + done.stdout
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.mark.slow
def test_wheel_and_sdist_carry_every_file(archives):
    wheel, sdist = archives
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
    assert source_files() <= packed
    assert not {name for name in packed if name.startswith(("kernels/", "tests/", "benchmarks/"))}
    with tarfile.open(sdist) as file:
        names = {name.split("/", 1)[-1] for name in file.getnames()}
    assert {name.replace("minisrcnn/kernels/", "kernels/") for name in source_files()} <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "tests/conftest.py"} <= names


@pytest.mark.slow
def test_the_wheel_works_outside_the_checkout(archives, tmp_path):
    """A fresh environment that sees this one's libraries but not this checkout."""
    wheel, _ = archives
    venv.create(tmp_path / "venv", with_pip=False)
    bin_dir = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = bin_dir / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--disable-pip-version-check", "--target", where, str(wheel)], check=True)
    # Only after the installation: the editable copy of this environment must not be seen.
    libraries = Path(where) / "libraries.pth"
    libraries.write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    code = (
        "import minisrcnn, minisrcnn.kernels.cuda, numpy as np, importlib.resources as r\n"
        f"assert minisrcnn.__file__.startswith({str(tmp_path)!r}), minisrcnn.__file__\n"
        "assert any(f.name.endswith('.cu') for f in r.files(minisrcnn.kernels.cuda).iterdir())\n"
        "net = minisrcnn.SRCNN('3-1-3', (2, 2), backend='numpy')\n"
        "print(net.predict(np.zeros((5, 6))).shape)\n"
    )
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(5, 6)"


@pytest.mark.parametrize("code", [
    "import minisrcnn",
    "import minisrcnn; minisrcnn.SRCNN('3-1-3', (2, 2), backend='numpy')",
    "import sys; sys.argv = ['minisrcnn', '--help']\n"
    "from minisrcnn.cli import main\n"
    "try:\n    main()\nexcept SystemExit:\n    pass",
])
def test_imports_stay_light(code):
    probe = f"import sys\n{code}\nprint('LOADED', *[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_public_names_exist():
    import minisrcnn

    for name in minisrcnn.__all__:
        assert getattr(minisrcnn, name) is not None
    assert set(minisrcnn.__all__) <= set(dir(minisrcnn))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        minisrcnn.nonsense  # noqa: B018


# Python without what an editable installation adds: it finds what is on sys.path, and no more.
NOT_INSTALLED = (
    "import sys\n"
    "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    f"sys.path.insert(0, {str(ROOT)!r})\n"
)


def test_a_clone_finds_its_kernels_without_an_installation(tmp_path):
    """After ``pip install .``, or nothing at all, Python in a clone imports the clone."""
    code = NOT_INSTALLED + (
        "import minisrcnn, minisrcnn.kernels.cuda as cuda\n"
        "from minisrcnn.engine.backends import unavailable_reason\n"
        "print(minisrcnn.__file__, cuda.__file__, unavailable_reason('numba'), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(ROOT / "minisrcnn" / "__init__.py"), str(ROOT / "kernels" / "cuda" / "__init__.py"),
        "None"]


def test_a_copy_without_kernels_says_so_and_auto_names_the_reason(tmp_path):
    code = ("import sys\nsys.modules['minisrcnn.kernels'] = None\n"
            "from minisrcnn.engine.backends import announce_backend, choose_backend\n"
            "backend = choose_backend('auto')\n"
            "announce_backend(backend, 'auto', print)\n"
            "print(backend.NAME)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=False, cwd=tmp_path)
    line, name = done.stdout.splitlines()
    assert name == "numpy"
    assert line.startswith("Backend: numpy; not cupy: ")
    assert line.endswith("; not numba: this copy of minisrcnn has no kernels: "
                         "install it again, or use a whole clone")
