"""The house: CONTRIBUTING.md's map is the tree's own listing, and imports and includes run down it."""

import ast
import functools
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "snapkv_local"
# in the package, from a build
BUILT = {"lib", "licenses"}
BY_STEM = {".py", ".h", ".cpp", ".cu", ".cuh"}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / PACKAGE).rglob("*.py")
}


def read_map(top):
    """Of a table in CONTRIBUTING.md: each row's name, in order, and the files that it lists."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = text.split(f"| `{top}/` | files | |\n|---|---|---|\n")[1].split("\n\n")[0].splitlines()
    cells = [[re.findall(r"`([^`]+)`", cell) for cell in row.split("|")[1:3]] for row in rows]
    return {name: files for (name,), files in cells}


def content(folder):
    """What is in a folder, but for what builds and Python leave there."""
    left = {*BUILT, "__pycache__"}
    return [
        path
        for path in folder.iterdir()
        if path.name not in left
        and not path.name.startswith(".")
        and (path.is_file() or any(child.name not in left for child in path.iterdir()))
    ]


def listing(folder):
    """A folder's content as the map names it: folders with a slash, code without its suffix."""
    found = set()
    for path in content(folder):
        if path.is_dir():
            found.add(f"{path.name}/")
        else:
            found.add(path.stem if path.suffix in BY_STEM else path.name)
    return found - {"__init__"}


@pytest.mark.parametrize("top", ["csrc", PACKAGE])
def test_the_map_is_the_listing(top):
    rows = read_map(top)
    there = content(ROOT / top)
    folders = {f"{path.name}/" for path in there if path.is_dir()}
    files = {path.name.removesuffix(".py") for path in there if path.is_file()}
    assert set(rows) == folders | files
    for name in folders:
        assert set(rows[name]) == listing(ROOT / top / name), name


@functools.cache
def imports(module, with_types):
    """Modules of the package that one imports, within functions too.

    Args:
        with_types: those under TYPE_CHECKING as well.
    """
    found = set()

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom) and (child.module or "").startswith(PACKAGE):
                for alias in child.names:
                    name = f"{child.module}.{alias.name}"
                    found.add(name if name in MODULES else child.module)
            elif isinstance(child, ast.Import):
                found.update(a.name for a in child.names if a.name in MODULES)
            is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if with_types or not is_typing:
                visit(child)

    visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return found - {module}


@pytest.mark.parametrize("with_types", [False, True], ids=["when run", "with those for types"])
def test_imports_run_in_no_circle(with_types):
    graph = {module: imports(module, with_types) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        pytest.fail(" <- ".join(e.args[1]))


def room_of(module):
    """The map's row of a module."""
    parts = module.split(".")
    if len(parts) == 1:
        return "__init__"
    return f"{parts[1]}/" if (ROOT / PACKAGE / parts[1]).is_dir() else parts[1]


def test_imports_go_up_the_map():
    order = list(read_map(PACKAGE))
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports(module, with_types=True)
        if order.index(room_of(other)) > order.index(room_of(module))
    ]
    assert wrong == []


def test_includes_go_up_the_map():
    order = list(read_map("csrc"))
    wrong = []
    for path in (ROOT / "csrc").rglob("*"):
        row = path.relative_to(ROOT / "csrc").parts[0] + "/"
        if row not in order or path.suffix not in {".h", ".cpp", ".cu", ".cuh", ".metal"}:
            continue
        for name in re.findall(r'^\s*#\s*include "([^"]+)"', path.read_text(), re.M):
            other = name.split("/")[0] + "/" if "/" in name else name
            if other in order and order.index(other) > order.index(row):
                wrong.append(f"{path.relative_to(ROOT)} includes {name}")
    assert wrong == []


def test_policies_know_no_settings():
    for module in MODULES:
        if module.startswith(f"{PACKAGE}.policies"):
            assert f"{PACKAGE}.config" not in imports(module, with_types=True), module


def test_only_native_calls_the_library_by_ctypes():
    bound = {
        module
        for module, path in MODULES.items()
        if "ctypes_function_for_shared_library" in path.read_text(encoding="utf-8")
    }
    assert {room_of(module) for module in bound} == {"native/"}
