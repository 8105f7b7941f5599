"""Compiled code on disk: kept, found again, and never taken from where others can write."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from minisrcnn.kernels.cpu import jit
from minisrcnn.kernels.cpu.production import pointwise

from minisrcnn.engine.backends import announce_backend
from minisrcnn.engine.backends import numba as numba_backend


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of this test's own."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    jit.cache_folder.cache_clear()
    yield tmp_path / f"cpu-kernels-{os.geteuid()}"
    jit.cache_folder.cache_clear()


def fresh():
    """The ReLU's kernel as a new process has it: nothing compiled or loaded yet."""
    return jit.kernel(lambda t: (jit.const(t, 1), t[::1]))(pointwise.relu.py_func)


def run(kernel):
    y = np.empty(2, np.float32)
    kernel.compile("float32")(np.array([-1, 2], np.float32), y)
    return y.tolist()


def was_loaded(kernel):
    """Whether the code came from disk."""
    return sum(kernel.compile("float32").stats.cache_hits.values()) == 1


def test_compiled_code_is_kept_on_disk(folder):
    first, second = fresh(), fresh()
    assert not first.is_ready("float32")
    assert run(first) == [0, 2] and not was_loaded(first)
    assert first.is_ready("float32") and second.is_ready("float32")
    assert not second.is_ready("float64")
    assert run(second) == [0, 2] and was_loaded(second)
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.999, "short", "empty", "pickle"])
def test_damaged_file_is_compiled_anew(folder, place):
    run(fresh())
    (path,) = folder.iterdir()
    good = path.read_bytes()
    if place == "short":
        path.write_bytes(good[:100])
    elif place == "empty":
        path.write_bytes(b"")
    elif place == "pickle":  # what Numba's own cache would run
        path.write_bytes(b"cos\n_exit\n(I3\ntR.")
    else:
        bad = bytearray(good)
        bad[int(place * len(bad))] ^= 4
        path.write_bytes(bad)
    kernel = fresh()
    assert run(kernel) == [0, 2] and not was_loaded(kernel)
    again = fresh()
    assert run(again) == [0, 2] and was_loaded(again), "the damaged file was not replaced"


def test_code_on_a_disk_that_cannot_be_written_is_loaded(folder, monkeypatch):
    run(fresh())

    def refuse(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("utime", "replace"):
        monkeypatch.setattr(os, name, refuse)
    kernel = fresh()
    assert run(kernel) == [0, 2] and was_loaded(kernel)


@pytest.mark.skipif(os.name == "nt", reason="folders have no modes here")
def test_folder_that_others_can_write_to_is_refused(folder):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=r"will not load .* mode 777\); chmod 700"):
        assert run(fresh()) == [0, 2]
    assert list(folder.iterdir()) == [] and not fresh().is_ready("float32")


@pytest.mark.skipif(os.name == "nt", reason="files have no modes here")
def test_file_that_others_can_write_to_is_not_loaded(folder):
    run(fresh())
    (path,) = folder.iterdir()
    path.chmod(0o666)
    kernel = fresh()
    assert run(kernel) == [0, 2] and not was_loaded(kernel)


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can give it away")
def test_folder_of_somebody_else_is_refused(folder):
    folder.mkdir(mode=0o700)
    os.chown(folder, 54321, 54321)
    with pytest.warns(RuntimeWarning, match=r"owner 54321, mode 700\); set MINISRCNN_CACHE"):
        assert jit.cache_folder()[0] is None


def test_link_in_the_place_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(RuntimeWarning, match=r"will not load .*\); set MINISRCNN_CACHE"):
        assert jit.cache_folder()[0] is None


@pytest.fixture(params=[
    {"NUMBA_CACHE_DIR": os.devnull}, {"HOME": os.devnull, "XDG_CACHE_HOME": os.devnull}])
def nowhere(request, monkeypatch):
    """The usual folder cannot be made."""
    for name in ("NUMBA_CACHE_DIR", "MINISRCNN_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    jit.cache_folder.cache_clear()
    yield
    jit.cache_folder.cache_clear()


def test_kept_among_the_temporary_files_where_the_usual_folder_cannot_be(
        nowhere, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder, problem = jit.cache_folder()
    assert folder == tmp_path / f"minisrcnn-{os.geteuid()}" / f"cpu-kernels-{os.geteuid()}"
    assert "), but for a while in" in problem and "\n" not in problem
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    said = []
    monkeypatch.setattr(numba_backend, "needs_compiling", lambda job: True)
    announce_backend(numba_backend, "numba", said.append)
    assert said[1] == f"Compiling the kernels of the numba backend: seconds; {problem}."


def test_folder_among_the_temporary_files_that_somebody_else_made(nowhere, tmp_path, monkeypatch):
    """There, anybody can make a folder of this name before us, and change what is in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / f"minisrcnn-{os.geteuid()}"
    other.mkdir()
    other.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="will not load"):
        assert jit.cache_folder()[0] is None
    assert list(other.iterdir()) == []


def test_works_where_no_folder_can_be_made(nowhere, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", os.devnull)
    with pytest.warns(RuntimeWarning, match="each process compiles them anew"):
        assert jit.cache_folder()[0] is None
    assert run(fresh()) == [0, 2] and not fresh().is_ready("float32")


@pytest.mark.parametrize("free, said", [(5 * 10**6, "(5 MB are free, want 32)"), (10**9, "")])
def test_a_disk_with_no_room_for_it_is_said(folder, monkeypatch, free, said):
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 * free, free, free))
    found, problem = jit.cache_folder()
    assert found == folder
    assert problem.endswith(said) and bool(problem) == bool(said)


def test_what_nobody_uses_is_removed(folder):
    run(fresh())
    (path,) = folder.iterdir()
    old, used = folder / "old.nbc", folder / "used.nbc"
    for each in (old, used):
        each.write_bytes(b"")
    os.utime(old, (0, 0))
    path.unlink()
    run(fresh())
    assert set(folder.iterdir()) == {path, used}
    os.utime(path, (0, 0))
    run(fresh())  # loading counts as use
    assert path.stat().st_mtime > time.time() - 3600


PROGRAM = """
import sys
import numpy as np
from minisrcnn.engine.backends import numba as backend
print("ready" if backend.pointwise.relu.is_ready("float32") else "compiled")
print(backend.relu_forward(np.array([-1, 2], np.float32)))
print("scipy.linalg" in sys.modules)  # which takes a quarter of a second to import
"""


def start(code, **env):
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **env},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_share_it_and_vector_units_do_not(tmp_path):
    both = [start(PROGRAM, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]  # at once
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0 and "[0. 2.]" in out, err
    out, err = start(PROGRAM, NUMBA_CACHE_DIR=str(tmp_path)).communicate()
    assert out.split() == ["ready", "[0.", "2.]", "False"], err
    out, err = start(PROGRAM, NUMBA_CACHE_DIR=str(tmp_path), MINISRCNN_SIMD="plain").communicate()
    assert out.startswith("compiled"), "code for another vector unit was taken"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_child_forked_while_a_thread_compiles_can_compile(tmp_path):
    """A thread holds the compiler's lock, or LLVM's; in the child nobody would give it back."""
    process = start("""
import os, signal, threading
import llvmlite.binding
import numpy as np
from minisrcnn.kernels.cpu import jit
from minisrcnn.kernels.cpu.production import pointwise

compiling, forked = threading.Event(), threading.Event()

def types(t):
    compiling.set()  # the lock is held here
    forked.wait(1)   # until the fork, if that does not wait for the lock
    return jit.const(t, 1), t[::1]

thread = threading.Thread(
    target=lambda: jit.kernel(types)(pointwise.relu.py_func).compile("float32"))
thread.start()
compiling.wait()
pid = os.fork()
forked.set()
if pid == 0:
    signal.alarm(300)
    pointwise.sgd.compile("float32")(np.ones(2, np.float32), np.ones(2, np.float32), 0.5)
    os._exit(0)
thread.join()
print("child:", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

function = "define void @f{i}() {{ ret void }}"
many = chr(10).join(function.format(i=i) for i in range(1000))
done = threading.Event()

def parse():
    while not done.is_set():
        llvmlite.binding.parse_assembly(many)  # holds LLVM's lock nearly all the time

thread = threading.Thread(target=parse)
thread.start()
codes = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        llvmlite.binding.parse_assembly("")
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    if codes[-1]:
        break
done.set()
thread.join()
print("children:", set(codes))
""", NUMBA_CACHE_DIR=str(tmp_path))
    out, err = process.communicate()
    assert out.splitlines() == ["child: 0", "children: {0}"], err
