"""The stand-in for CuPy cannot drift from the real one: every name in it, and every parameter.

CuPy's wheel can be imported without a driver. What is written in Python there has a signature;
what is compiled begins its docstring with one; where neither tells, the name alone is compared.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import minisrcnn.engine.backends as backends
from minisrcnn.engine.emulator import cupy_standin

cupy = pytest.importorskip("cupy", reason="CuPy's wheel is not installed: pip install cupy-cuda12x")

SOURCES = sorted(Path(backends.__path__[0]).glob("*cu*.py"))  # cupy.py, cupy_emulated.py, _cuda*.py
# Names of the stand-in's own implementation, imported at its top.
NOT_CUPY = {"annotations", "build", "forwarded", "np", "types", "Any",
            "CUDADriverError", "CUDARuntimeError", "CompileException", "Device", "Event", "Graph",
            "MemoryPointer", "Stream", "alloc_pinned_memory", "get_current_stream",
            "get_device_properties", "get_elapsed_time"}


def public(owner):
    """Names of a namespace, without private ones."""
    names = vars(owner) if inspect.isclass(owner) or hasattr(owner, "__dict__") else {}
    return sorted(n for n in names if not n.startswith("_"))


def parameters(thing):
    """Names of the parameters, as far as CuPy tells: from the signature, or from the docstring."""
    try:
        found = inspect.signature(thing).parameters
    except (TypeError, ValueError):
        first = (inspect.getdoc(thing) or "").split("\n\n")[0]
        match = re.match(r"[\w.]+\((.*)\)\s*(->.*)?$", first.replace("\n", " "), re.S)
        if not match or "*args" in match[1]:
            return None
        found = [re.split(r"[=:]", part.strip())[0].split()[-1]
                 for part in match[1].split(",") if part.strip(" *")]
    return [n for n in found if n not in ("self", "args", "kwargs")]


def pairs():
    """Every public thing of the stand-in, with the path to it."""
    for name in sorted(set(dir(cupy_standin)) - NOT_CUPY):
        if name.startswith(("_", "@")):  # @: what pytest adds
            continue
        yield name, getattr(cupy_standin, name)
    for path, owner in [
        ("ndarray", cupy_standin.ndarray), ("RawKernel", cupy_standin.RawKernel),
        ("RawModule", cupy_standin.RawModule), ("cuda", cupy_standin.cuda),
        *((f"cuda.{n}", getattr(cupy_standin.cuda, n)) for n in public(cupy_standin.cuda)),
    ]:
        for name in public(owner):
            yield f"{path}.{name}", getattr(owner, name)


THINGS = dict(pairs())
# Classes that the backend never calls: arrays come from empty() and the like, pointers from arrays.
NOT_CALLED = {"ndarray", "cuda.MemoryPointer", "cuda.Graph"}


def real(path):
    thing = cupy
    for name in path.split("."):
        thing = getattr(thing, name)
    return thing


def test_the_list_of_things_is_not_empty():
    assert len(THINGS) > 120
    assert {"empty", "ndarray.get", "cuda.Stream.begin_capture", "cuda.runtime.getDeviceCount",
            "RawKernel.max_dynamic_shared_size_bytes"} <= THINGS.keys()


@pytest.mark.parametrize("path", THINGS)
def test_cupy_has_it_with_these_parameters(path):
    theirs = real(path)  # AttributeError: not in CuPy
    ours = THINGS[path]
    if isinstance(ours, property) or not callable(ours):
        assert inspect.isdatadescriptor(theirs) or not callable(theirs)
        return
    if "stand-in" not in str(inspect.getmodule(ours)) and ours.__module__ == "numpy":
        return  # a dtype: the same object in both
    wanted = parameters(theirs)
    mine = [n for n in inspect.signature(ours).parameters if n not in ("self", "args", "kwargs")]
    if wanted is None or not mine or path in NOT_CALLED:
        return  # forwarded to NumPy as it is, or CuPy does not tell
    if path.endswith(("Error", "Exception")):
        assert mine == wanted[:len(mine)]
        return
    for name in mine:
        assert name in wanted, f"{path} has no parameter {name!r} in CuPy: {wanted}"
    positions = [wanted.index(n) for n in mine]
    assert positions == sorted(positions), f"{path}: order is {wanted} in CuPy"


def used_names():
    """Every ``xp.a.b`` and ``cupy.a.b`` in the backend's sources."""
    found = {}
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            names, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute) and inner.attr != "xp":
                names.insert(0, inner.attr)
                inner = inner.value
            base = inner.attr if isinstance(inner, ast.Attribute) else getattr(inner, "id", "")
            if base in ("xp", "cupy"):
                found.setdefault(".".join(names), f"{source.name}:{node.lineno}")
    return found


USED = used_names()


def test_the_backend_is_searched():
    assert {"RawModule", "empty", "cuda.Stream"} <= USED.keys()


# What only describes an installation of CuPy: the stand-in has no version, compiler or driver.
INSTALLATION = {"__version__", "cuda.nvrtc", "cuda.nvrtc.getVersion",
                "cuda.runtime.driverGetVersion"}


@pytest.mark.parametrize("path", sorted(INSTALLATION))
def test_what_describes_an_installation_is_in_cupy(path):
    real(path)


@pytest.mark.parametrize("path", sorted(USED.keys() - INSTALLATION))
def test_what_the_backend_uses_is_in_cupy_and_in_the_stand_in(path):
    real(path)
    thing = cupy_standin
    for name in path.split("."):
        thing = getattr(thing, name)


# What the backend calls on objects, and what CuPy must therefore have.
METHODS = {
    "ndarray": "get set fill reshape ravel data device dtype flags shape size strides",
    "cuda.Stream": "begin_capture end_capture synchronize __enter__ __exit__",
    "cuda.Graph": "launch upload",
    "cuda.Event": "record synchronize done",
    "RawKernel": "__call__ max_dynamic_shared_size_bytes",
}


@pytest.mark.parametrize("owner", METHODS)
def test_objects_have_the_methods(owner):
    for name in METHODS[owner].split():
        assert hasattr(real(owner), name)
        assert hasattr(THINGS[owner], name)


def test_arrays_do_not_mix_with_numpy():
    """As in CuPy, whose rules these are: an accident there would be a hidden copy."""
    import numpy as np

    a = cupy_standin.zeros(3, "float32")
    for wrong in (lambda: a + np.zeros(3), lambda: np.asarray(a), lambda: np.zeros(3) * a,
                  lambda: np.add(a, np.zeros(3)), lambda: cupy_standin.stack([np.zeros(3)])):
        with pytest.raises(TypeError):
            wrong()


def test_what_gathers_gradients_is_in_cupy():
    """Called by training/gather.py; read, for it can be imported only where an MPI is found."""
    folder = Path(cupy.__file__).parents[1] / "cupyx" / "distributed"
    found = {node.name: [a.arg for a in node.args.args + node.args.kwonlyargs]
             for file in ("_init.py", "_comm.py")
             for node in ast.walk(ast.parse((folder / file).read_text("utf-8")))
             if isinstance(node, ast.FunctionDef)}
    assert {"n_devices", "rank", "use_mpi"} <= set(found["init_process_group"])
    assert found["all_gather"] == ["self", "in_array", "out_array", "count", "stream"]
