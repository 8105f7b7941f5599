"""Every lesson against SciPy and PyTorch, and that each can be read alone."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import minisrcnn.kernels.cpu.lessons
import numpy as np
import oracles
import pytest
from minisrcnn.kernels.cpu.jit import Kernel
from minisrcnn.kernels.cpu.lessons import LESSONS

FOLDER = Path(minisrcnn.kernels.cpu.lessons.__file__).parent
TOLERANCE = {"float32": 2e-5, "float64": 1e-13}


def lesson(name):
    return importlib.import_module(f"minisrcnn.kernels.cpu.lessons.{name}")


@pytest.fixture(autouse=True)
def level(request, monkeypatch):
    """Compile loops for threads at LLVM's level 1: a third of the time, for the same results."""
    if request.node.get_closest_marker("slow"):
        return
    for name in ("v3_threads", "v4_channels_last"):
        for kernel in vars(lesson(name)).values():
            if isinstance(kernel, Kernel):
                monkeypatch.setattr(kernel, "_optimize", 1)


def assert_close(got, want, dtype):
    assert got.dtype == dtype and got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE[dtype] * np.abs(want).max()


SINGLE = [name for name in LESSONS if name != "v7_one_patch"]


def results(module, x, w, b, dy):
    return (module.conv2d_forward(x, w, b), module.conv2d_backward_input(dy, w),
            module.conv2d_backward_weight(x, dy))


@pytest.mark.parametrize(("name", "dtype"), [
    *((name, "float32") for name in SINGLE), ("v8_winograd_numpy", "float64"),
    pytest.param("v6_register_tile", "float64", marks=pytest.mark.slow),
    pytest.param("v9_winograd", "float64", marks=pytest.mark.slow)])
def test_lesson_agrees_with_scipy(name, dtype):
    for shape in oracles.SHAPES:
        arrays, wanted = oracles.drawn(shape, dtype)
        for got, want in zip(results(lesson(name), *arrays), wanted, strict=True):
            assert_close(got, want, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
def test_lesson_as_it_is_compiled_for_users_agrees_with_scipy(name):
    for kernel in vars(lesson(name)).values():
        if isinstance(kernel, Kernel):
            kernel._compiled.clear()
    test_lesson_agrees_with_scipy(name, "float32")


@pytest.mark.parametrize("name", SINGLE)
def test_lesson_agrees_with_pytorch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, w, b, dy = oracles.draw((3, 5, 14, 12, 18, 3, 3), "float32", seed=1)
    leaves = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, w, b)]
    y = torch.nn.functional.conv2d(*leaves)
    dx, dw, _ = torch.autograd.grad(y, leaves, torch.tensor(dy, dtype=torch.float64))
    for got, want in zip(results(lesson(name), x, w, b, dy), (y.detach(), dx, dw), strict=True):
        assert_close(got, want.numpy(), "float32")


@pytest.mark.parametrize("name", SINGLE)
def test_lesson_leaves_its_arguments_alone_and_takes_read_only_ones(name):
    arrays = oracles.draw((2, 3, 6, 7, 5, 3, 2), "float32")
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    results(lesson(name), *arrays)
    for a, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(a, old)


@pytest.mark.parametrize(("arch", "channels", "filters", "dtype"), [
    ("9-1-5", 1, (64, 32), "float32"),
    pytest.param("9-5-5", 1, (64, 32), "float64", marks=pytest.mark.slow),
    pytest.param("2-4-3", 1, (3, 70), "float64", marks=pytest.mark.slow),
    ("3-3-5", 3, (20, 7), "float32"), ("2-4-3", 1, (3, 70), "float32")])
def test_one_patch_agrees_with_pytorch_autograd(arch, channels, filters, dtype):
    rng = np.random.default_rng(0)
    widths, params = (channels, *filters, channels), {}
    for i, size in enumerate(map(int, arch.split("-"))):
        w = rng.standard_normal((widths[i + 1], widths[i], size, size)) / size
        params[f"conv{i + 1}.weight"] = (w / np.sqrt(widths[i])).astype(dtype)
        params[f"conv{i + 1}.bias"] = (0.1 * rng.standard_normal(widths[i + 1])).astype(dtype)
    lost = sum(int(k) - 1 for k in arch.split("-"))
    x = rng.random((19, channels, 4 + lost, 3 + lost)).astype(dtype)
    t = rng.random((19, channels, 4, 3)).astype(dtype)

    want_loss, want = oracles.torch_gradients(params, x, t)
    loss, grads = lesson("v7_one_patch").chain_loss_and_gradients(params, x, t)
    assert loss == pytest.approx(want_loss, rel=TOLERANCE[dtype])
    assert list(grads) == list(params)
    for key in params:
        assert_close(grads[key], want[key], dtype)


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_can_be_read_alone(name):
    text = (FOLDER / f"{name}.py").read_text()
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or "").split(".")[0])
    assert imported <= {"__future__", "collections", "typing", "numpy", "numba", "..jit", "..simd"}
    assert len(text.splitlines()) <= 170, "that is more than one idea"
    assert "\n# MEASURED" in text and "\n# What is slow" in text, "the foot is missing"


def test_all_lessons_are_listed_in_order():
    numbered = sorted(FOLDER.glob("v*.py"), key=lambda path: int(path.stem[1:].split("_")[0]))
    assert list(LESSONS) == [path.stem for path in numbered]
