"""The floors that docs/architecture.md draws, held by reading every import of the package."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "minisrcnn"
BUILT = ROOT / PACKAGE / "_gradcheck_np"  # a project of its own, with copies where it was built


def name_of(path):
    """Return the name under which a file is imported: kernels/ is minisrcnn.kernels."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == PACKAGE else (PACKAGE, *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for folder in (PACKAGE, "kernels")
         for path in sorted((ROOT / folder).rglob("*.py"))
         if BUILT not in path.parents and path.name != "setup.py"}


@functools.cache
def nodes(source):
    return list(ast.walk(ast.parse(source)))


def imports(name, source, is_package=False):
    """Yield (module, name or None) for every import but those for type checkers alone."""
    unseen = {node for block in nodes(source)
              if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
              for child in block.body for node in ast.walk(child)}
    package = name if is_package else name.rpartition(".")[0]
    for node in nodes(source):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1]
            module = ".".join([*above, *([node.module] if node.module else [])]
                              ) if node.level else node.module
            yield from ((module, alias.name) for alias in node.names)


def of_file(name):
    return list(imports(name, FILES[name].read_text("utf-8"),
                        FILES[name].name == "__init__.py"))


@functools.cache
def own_imports(name):
    """Return the modules of the package that a module imports, at the top or in a function."""
    full = {f"{module}.{what}" if f"{module}.{what}" in FILES else module
            for module, what in of_file(name)}
    return {module for module in full if module in FILES}


def read_floors(text):
    """Return the floor of each entry, 0 at the top; entries are the names before two spaces."""
    (block,) = re.findall(r"```floors\n(.*?)```", text, re.DOTALL)
    return {f"{PACKAGE}.{entry}": floor for floor, line in enumerate(block.splitlines())
            for entry in line.split("  ")[0].split()}


FLOORS = read_floors((ROOT / "docs/architecture.md").read_text("utf-8"))


def entry_of(module, floors=FLOORS):
    """Return the longest entry that a module belongs to."""
    while module and module not in floors:
        module = module.rpartition(".")[0]
    return module


def broken(name, module, floors=FLOORS):
    """Return what is wrong with one import, or None."""
    if module == PACKAGE:  # the version; importing it loads nothing
        return None
    upper, lower = entry_of(name, floors), entry_of(module, floors)
    if not upper or not lower:
        return f"{name if not upper else module} has no floor: place it in docs/architecture.md"
    if upper == lower or floors[upper] < floors[lower]:
        return None
    return f"{name} imports {module}, which is not on a lower floor"


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down(name):
    if name == PACKAGE:
        pytest.skip("the package itself imports its public names when they are used")
    problems = [broken(name, module) for module in own_imports(name)]
    assert entry_of(name), f"{name} has no floor: place it in docs/architecture.md"
    assert not [problem for problem in problems if problem]


def test_no_module_imports_itself_in_a_circle():
    graph = {name: own_imports(name) - {PACKAGE, name} for name in FILES}
    while True:  # take away whoever imports nothing that is left
        free = [name for name, needs in graph.items() if not needs & graph.keys()]
        if not free:
            break
        for name in free:
            del graph[name]
    assert not graph, f"in a circle, or importing one: {sorted(graph)}"


def private_uses(name, source, is_package=False):
    """Yield the private names of other modules that a module uses."""
    modules = {}
    for module, what in imports(name, source, is_package):
        if what and re.match(r"_(?!_)", what) and f"{module}.{what}" not in FILES:
            yield f"{module}.{what}"
        if what and f"{module}.{what}" in FILES:
            modules[what] = f"{module}.{what}"
    for node in nodes(source):
        if (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
                and node.value.id in modules and re.match(r"_(?!_)", node.attr)):
            yield f"{modules[node.value.id]}.{node.attr}"


@pytest.mark.parametrize("name", FILES)
def test_no_private_name_of_another_module(name):
    """A module with an underscore is private to its package, and may be imported within it."""
    source = FILES[name].read_text("utf-8")
    assert not list(private_uses(name, source, FILES[name].name == "__init__.py"))
    for module in own_imports(name):
        if module.rpartition(".")[2].startswith("_") and module != f"{PACKAGE}.__main__":
            assert name.rpartition(".")[0] == module.rpartition(".")[0], module


def test_the_check_sees_what_it_should():
    """Wrong programs, each refused: a test that cannot fail would hold no floor."""
    floors = {"minisrcnn.cli": 0, "minisrcnn.engine": 1, "minisrcnn.imaging": 1}
    assert "not on a lower floor" in broken("minisrcnn.engine.x", "minisrcnn.cli", floors)
    assert "not on a lower floor" in broken("minisrcnn.engine.x", "minisrcnn.imaging.y", floors)
    assert "has no floor" in broken("minisrcnn.cli", "minisrcnn.new", floors)
    assert broken("minisrcnn.cli", "minisrcnn.engine.x", floors) is None
    source = "def f():\n  from .errors import _hidden\n  from . import errors\n  errors._other"
    assert list(private_uses("minisrcnn.cli", source)) == [
        "minisrcnn.errors._hidden", "minisrcnn.errors._other"]
    source = "from ..a import b\nif TYPE_CHECKING:\n    import c\nimport d.e"
    assert list(imports("minisrcnn.x.y", source)) == [("minisrcnn.a", "b"), ("d.e", None)]


# --- what is imported is declared -----------------------------------------------------------------


def canonical(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def declared(*extras):
    lines = [*PROJECT["dependencies"],
             *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonical(re.split(r"[\[<>=!~; ]", line)[0]) for line in lines}


def third_party(paths):
    found = {}
    for path in paths:
        if path.name == "setup.py":  # of a distribution of its own
            continue
        source = path.read_text("utf-8")
        for module, _ in imports("minisrcnn.a.b.c.d", source):
            top = (module or "").split(".")[0]
            local = (ROOT / top).is_dir() or any(
                (folder / f"{top}.py").exists() for folder in (path.parent, ROOT / "tests"))
            if top and top not in sys.stdlib_module_names and not local:
                found.setdefault(top, path.relative_to(ROOT))
    return found


# Distributions by the names that are imported, for what may not be installed here.
KNOWN = {"cupy": "cupy-cuda12x", "torch": "torch", "_pytest": "pytest", "pytest": "pytest"}


EXTRAS = tuple(PROJECT["optional-dependencies"])
DEVELOPERS = ("bench", "docs", "browser", "test")
PLUGIN = {"pytest", "hypothesis"}  # what loads the plugin has the first; it looks for the second


@pytest.mark.parametrize(("folder", "extras", "others"), [
    ("minisrcnn", tuple(extra for extra in EXTRAS if extra not in DEVELOPERS), PLUGIN),
    ("kernels", (), set()),
    ("tests", EXTRAS, set()),
    ("benchmarks", EXTRAS, set()),
])
def test_every_import_is_declared(folder, extras, others):
    distributions = packages_distributions()
    allowed = declared(*extras) | others
    missing = {}
    for top, path in third_party(sorted((ROOT / folder).rglob("*.py"))).items():
        names = {canonical(name) for name in distributions.get(top, [KNOWN.get(top, top)])}
        if not names & allowed:
            missing[top] = f"{path} imports it, and pyproject.toml does not name {names}"
    assert not missing


# --- what is declared is what CI installs ---------------------------------------------------------


def version(text):
    """Return a version for comparison: 1.8 and 1.8.0 are the same one."""
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def bounds(extras):
    """Return the lower bound of each distribution that pyproject.toml names."""
    lines = [*PROJECT["dependencies"],
             *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found = {}
    for line in lines:
        name, bound = re.match(r"([\w.-]+)(?:\[\w+\])?[>=]=([\w.]+)", line).groups()
        assert found.setdefault(canonical(name), version(bound)) == version(bound), line
    return found


def pins(path):
    """Return the versions of each distribution in a lock file; one may differ by Python."""
    found = {}
    for line in (ROOT / path).read_text("utf-8").splitlines():
        if pin := re.match(r"([\w.-]+)==([\w.]+)", line):
            found.setdefault(canonical(pin[1]), set()).add(version(pin[2]))
    return found


def extras_of(script):
    """Return the extras that a script of CI installs or locks."""
    text = (ROOT / script).read_text("utf-8")
    listed = re.findall(r"\.\[([\w,]+)\]", text) + re.findall(r"--extra (\w+)", text)
    return tuple(extra for names in listed for extra in names.split(","))


def test_the_locked_versions_are_allowed_ones():
    """If this fails: .ci/lock writes both files anew."""
    locked = pins(".ci/constraints.txt")
    for name, bound in bounds(extras_of(".ci/run")).items():
        assert name in locked, f"{name} is not in .ci/constraints.txt"
        assert min(locked[name]) >= bound, f"{name}: pyproject.toml wants another than is locked"


def test_every_lower_bound_is_the_version_that_is_tested():
    lowest = pins(".ci/lowest.txt")
    for name, bound in bounds(extras_of(".ci/versions")).items():
        assert lowest.get(name) == {bound}, f"{name}: .ci/lowest.txt tests {lowest.get(name)}"
