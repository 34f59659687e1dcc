"""The project's files agree with each other: packages, versions, commands, public names."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import neurostore
from neurostore import errors

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


def test_every_import_is_declared() -> None:
    declared = {name_of(r) for r in required("plot", "dask", "zstd", "interop", "zarr")}
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


def test_typed_marker_is_shipped() -> None:
    assert (Path(neurostore.__file__).parent / "py.typed").is_file()


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
