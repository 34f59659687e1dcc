"""The examples of the package run in an empty folder, which they call ``tmp``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

#: Modules whose examples need a package that not everybody has.
collect_ignore = [
    f"neurostore/interop/{package}.py"
    for package in ("neo", "nir", "pynapple")
    if find_spec(package) is None
]


@pytest.fixture(autouse=True)
def empty_folder(request: pytest.FixtureRequest, doctest_namespace: dict[str, Any]) -> None:
    if isinstance(request.node, pytest.Function):
        return
    folder: Path = request.getfixturevalue("tmp_path")
    request.getfixturevalue("monkeypatch").chdir(folder)
    doctest_namespace["tmp"] = folder
