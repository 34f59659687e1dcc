"""The project's files agree with each other: packages, versions, commands, public names."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import neurostore
from neurostore import accessor, errors

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Where conda-forge calls a package otherwise than PyPI does.
CONDA_NAMES = {"isal": "python-isal", "zlib-ng": "python-zlib-ng", "matplotlib": "matplotlib-base"}
ENVIRONMENT_EXTRAS = ("plot", "dask", "zstd", "test")


def normal(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", requirement).lower().replace(" ", "")


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return normal(match[0])


def required(*extras: str) -> list[str]:
    table = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *(r for extra in extras for r in table[extra])]
    return [r for r in wanted if name_of(r) != "neurostore"]


def test_environment_lists_what_the_project_requires() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    flat = [r for entry in listed for r in (entry["pip"] if isinstance(entry, dict) else [entry])]
    python = normal(f"python{PROJECT['project']['requires-python']}")
    conda = [
        requirement.replace(
            name_of(requirement), CONDA_NAMES.get(name_of(requirement), name_of(requirement)), 1
        )
        for requirement in map(normal, required(*ENVIRONMENT_EXTRAS))
    ]
    assert sorted(map(normal, flat)) == sorted([python, "pip", *conda])


def test_the_oldest_versions_are_those_that_the_project_allows() -> None:
    """``.ci/oldest.txt`` pins every lower bound, so that CI runs with them."""
    pins = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    wanted = [f"{name_of(r)}=={r.split('>=')[1]}" for r in required(*ENVIRONMENT_EXTRAS)]
    assert sorted(pin for pin in pins if not pin.startswith("#")) == sorted(wanted)


def test_every_import_is_declared() -> None:
    declared = {
        name_of(r) for r in required("plot", "dask", "zstd", "interop", "remote", "sparse", "zarr")
    }
    # pandas is xarray's; Brian2 is no extra while its newest release forbids NumPy 2.4.
    declared |= {"pandas", "brian2"}
    undeclared = set()
    for path in (ROOT / "neurostore").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            undeclared |= {normal(name.split(".")[0]) for name in names}
    undeclared -= {normal(name) for name in sys.stdlib_module_names}
    assert undeclared - {"neurostore"} <= declared


def test_installed_version_is_the_one_in_the_source() -> None:
    assert importlib.metadata.version("neurostore") == neurostore.__version__


def test_entry_points_load() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="neurostore")
    engines = importlib.metadata.entry_points(group="xarray.backends", name="neurostore")
    assert [callable(point.load()) for point in [*scripts, *engines]] == [True, True]


def test_importing_it_imports_little_and_registers_the_accessor() -> None:
    script = (
        "import sys, neurostore, xarray",
        "assert not {'h5py', 'jax', 'neurostore.store'} & sys.modules.keys()",
        "assert xarray.Dataset().neuro.kind is None",
        "assert neurostore.verify.repair and neurostore.open and 'open' in dir(neurostore)",
        "assert not hasattr(neurostore, 'nothing')",
    )
    subprocess.run([sys.executable, "-c", "\n".join(script)], check=True)


def test_public_names_are_sorted_and_exist() -> None:
    names = neurostore.__all__
    # The order that the linter keeps: CONSTANTS, Classes, functions.
    wanted = sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert list(names) == wanted
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(neurostore, name)] == []


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    named = {*re.findall(r"^   (\w+)$", page, flags=re.MULTILINE), *errors.__all__}
    assert set(neurostore.__all__) - {"__version__"} <= named


def test_every_public_name_has_an_example() -> None:
    things = {name: getattr(neurostore, name) for name in neurostore.__all__}
    assert [
        name
        for name, thing in things.items()
        if callable(thing) and name not in errors.__all__ and ">>>" not in (thing.__doc__ or "")
    ] == []


def test_every_method_of_the_faces_has_an_example() -> None:
    faces = (neurostore.Store, neurostore.HDF5Storage, neurostore.Recorder)
    faces += (accessor.DatasetNeuro, accessor.DataArrayNeuro, accessor.DataTreeNeuro)
    # To close has nothing to show, pydata/sparse is not everywhere, and those made for each kind
    # are in the examples of docs/array-face.md; the other four are what the package itself asks.
    without = {"close", "to_sparse", "append_once", "dead_share", "is_empty", "joined"}
    assert [
        f"{face.__name__}.{name}"
        for face in faces
        for name, thing in inspect.getmembers(face, inspect.isfunction)
        if not name.startswith(("_", "store_", "retrieve_", "get_")) or name == "get_file_info"
        if name not in without and ">>>" not in (thing.__doc__ or "")
    ] == []


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution of this tree."""
    folder = tmp_path_factory.mktemp("packages")
    build(ROOT, folder)
    return folder


def build(source: Path, folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder), *options]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)


def in_wheel(folder: Path) -> set[str]:
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_package_and_nothing_else(packages: Path) -> None:
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "neurostore").rglob("*.py")}
    about = {name for name in in_wheel(packages) if ".dist-info/" in name}
    assert in_wheel(packages) - about == sources | {"neurostore/py.typed"}
    assert {Path(name).name for name in about} == {
        "METADATA",
        "WHEEL",
        "RECORD",
        "entry_points.txt",
        "LICENSE",
    }


def test_the_source_distribution_makes_the_same_wheel(packages: Path, tmp_path: Path) -> None:
    (archive,) = packages.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    names = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    assert {".ci/run", "README.md", "LICENSE", "tests/test_packaging.py"} <= names
    odd = {n for n in names if "__pycache__" in n or "generated" in n or n.startswith("docs/_")}
    assert odd == set()
    assert {n for n in names if n.endswith((".h5", ".png"))} <= {
        p.relative_to(ROOT).as_posix() for p in (ROOT / "tests" / "files").iterdir()
    }
    build(unpacked, tmp_path / "again", "--target", "wheel")
    assert in_wheel(tmp_path / "again") == in_wheel(packages)


def test_the_wheel_works_where_it_is_unpacked(packages: Path, tmp_path: Path) -> None:
    (wheel,) = packages.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import sys; sys.path.insert(0, '.'); from neurostore.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == f"neurostore {neurostore.__version__}\n"


def test_classifiers_are_known() -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    assert set(PROJECT["project"]["classifiers"]) <= known


def test_the_two_commands_of_the_readme_are_the_ones_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python3 -m venv .*$", readme, flags=re.MULTILINE)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert len(commands) == 2
    assert [command for command in commands if command not in script] == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_are_kept_without_their_output(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]]
