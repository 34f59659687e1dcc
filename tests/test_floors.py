"""The floors of the package: imports go down only, and siblings do not know each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "neurostore"

# A fraction is a step inside a floor: it may use what stands lower on that floor.
FLOORS = {
    "_version": 0,
    "errors": 0,
    "names": 0,
    "times": 0,
    "types": 0,
    "deferred": 0.5,
    "optional": 0.5,
    "damage": 0.5,
    "osio": 0.5,
    "places": 0.5,
    "progress": 0.5,
    "wording": 0.5,
    "workers": 0.5,
    "journal": 1,
    "lockfile": 1,
    "remote": 1,
    "locks": 1.25,
    "overlay": 1.25,
    "page": 1,
    "schema": 1,
    "guard": 1,
    "h5attrs": 1,
    "gathered": 1.25,
    "records": 1.5,
    "safefile": 1.5,
    "writeout": 1,
    "content": 2.25,
    "filters": 2,
    "rawcopy": 2.25,
    "objectheader": 2,
    "chunkindex": 2.25,
    "headers": 2.25,
    "globalheap": 2.1,
    "linktable": 2.25,
    "relocation": 2.5,
    "moving": 2.75,
    "scales": 2.2,
    "template": 2.5,
    "stencil": 2.75,
    "ledger": 2.4,
    "aligning": 3,
    "arrays": 3,
    "catalogue": 2.5,
    "catalogue_file": 3,
    "tablerows": 2.75,
    "tails": 3.25,
    "chunking": 3.25,
    "index": 3,
    "patterns": 3.1,
    "matrices": 3.25,
    "jaxio": 3,
    "likeness": 3,
    "growing": 3,
    "builders": 3.5,
    "blocks": 3.75,
    "emptyfile": 3.5,
    "reading": 3.5,
    "rebuilding": 3.5,
    "shortcuts": 3.5,
    "soundness": 3.75,
    "chunkmap": 3.75,
    "tree": 3.75,
    "combining": 3.75,
    "foreign": 3.75,
    "copying": 3.9,
    "salvage": 3.9,
    "registry": 3.75,
    "making": 3.9,
    "handles": 4,
    "openfile": 4.1,
    "session": 4.25,
    "series": 5,
    "rotation": 5,
    "views": 5.1,
    "querying": 5.25,
    "summary": 5.25,
    "glance": 5.5,
    "plot": 5.5,
    "verify": 5.5,
    "accounting": 5,
    "retention": 5.5,
    "compaction": 5.5,
    "recording": 5.5,
    "following": 5.5,
    "comparing": 5,
    "maintenance": 5.75,
    "migration": 5.5,
    "repacking": 5.75,
    "publishing": 5.5,
    "asking": 5.9,
    "keeping": 5.9,
    "jax": 6,
    "store": 6,
    "accessor": 7,
    "demo": 7,
    "engine": 7,
    "hdf5_storage": 7,
    "interop": 7,
    "export": 7.25,
    "cli": 7.5,
    "_public": 7.75,
    "__init__": 8,
    "__main__": 8,
}
HDF5_FLOORS = range(1, 4)
# Heavy, or not installed everywhere: imported by the function that needs them.
LAZY = {"fsspec", "jax", "matplotlib", "dask", "distributed", "netCDF4", "cf_xarray"}
LAZY |= {"brian2", "neo", "nir", "pynapple", "pynwb", "scipy", "sparse", "zarr"}

MODULES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def unit_of(module: str) -> str:
    """The name that the table knows a file by: its own, or that of its subpackage."""
    return module.removesuffix(".py").split("/")[0]


def imports(module: str) -> list[tuple[int, str]]:
    """Line and absolute name of every import, those in functions and TYPE_CHECKING too."""
    package = ["neurostore", *module.split("/")[:-1]]
    found = []
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *filter(None, [node.module])])
            found += [(node.lineno, f"{start}.{alias.name}") for alias in node.names]
    return found


def module_level_imports(module: str) -> set[str]:
    """Top packages that are imported as soon as the module is."""
    pending: list[ast.AST] = [ast.parse((ROOT / module).read_text(encoding="utf-8"))]
    found = set()
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += [child for child in ast.iter_child_nodes(node) if not type_checking(child)]
    return found


def type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_floor(module: str) -> None:
    assert unit_of(module) in FLOORS, f"give {unit_of(module)} a floor in FLOORS"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    here = unit_of(module)
    wrong = []
    for line, name in imports(module):
        top, _, rest = name.partition(".")
        there = rest.split(".")[0] if rest.split(".")[0] in FLOORS else "__init__"
        if top != "neurostore" or there == here:
            continue
        if FLOORS[there] >= FLOORS[here]:
            wrong.append(f"{module}:{line}: {here} (F{FLOORS[here]}) -> {there} (F{FLOORS[there]})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "module", [m for m in MODULES if int(FLOORS.get(unit_of(m), 0)) not in HDF5_FLOORS]
)
def test_hdf5_stays_on_its_floors(module: str) -> None:
    wrong = [
        f"{module}:{line}: {name}"
        for line, name in imports(module)
        if name.split(".")[0] in {"h5py", "h5netcdf"}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", [m for m in MODULES if FLOORS.get(unit_of(m), 0) < 7])
def test_nothing_below_the_faces_uses_the_accessor(module: str) -> None:
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    lines = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "neuro"]
    assert not lines, f"{module}: .neuro on lines {lines}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_by_the_function_that_needs_them(module: str) -> None:
    assert not module_level_imports(module) & LAZY


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, neurostore; neurostore.open; "
    code += "print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=ROOT.parent,
    )
    assert not set(done.stdout.split()) & LAZY
