"""Errors as an interface: each says what to do, and derives from what a caller would expect."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import neurostore
from neurostore import errors

ROOT = Path(__file__).parents[1] / "neurostore"
#: What a message shows that knows more than that something failed.
SIGNS = ("expected", ";", "instead", "use ", "pass ", "pip install", "lists ")

#: Where the record is not known yet; who calls them adds it, and what to do.
DEEP = ("damage.py", "filters/", "reading.py")


def text_of(node: ast.AST) -> str:
    """The fixed parts of a message."""
    return "".join(
        leaf.value
        for leaf in ast.walk(node)
        if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
    )


def raised() -> Iterator[tuple[str, str]]:
    """Place and message of every error of ours whose message is written where it is raised."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            name = getattr(node.exc.func, "id", "")
            if name in errors.__all__ and node.exc.args:
                message = text_of(node.exc.args[0])
                if message:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {name}", message


def test_every_error_says_what_was_expected_or_what_to_do() -> None:
    found = dict(raised())
    assert len(found) > 50
    assert "session.py" in "".join(found)
    bare = [
        f"{where}({text!r})"
        for where, text in found.items()
        if not any(map(text.__contains__, SIGNS)) and not where.startswith(DEEP)
    ]
    assert not bare, "\n".join(bare)


def test_what_goes_well_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("INFO", "neurostore"), neurostore.open(tmp_path / "run.h5") as store:
        record_id = store.store(neurostore.spike_train([0.1], [1], timestamp=1.0))
        store.retrieve(record_id).load()
    assert (caplog.records, *capfd.readouterr()) == ([], "", "")


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_has_its_place_in_the_tree(name: str) -> None:
    kind = getattr(errors, name)
    if not issubclass(kind, errors.HDF5StorageError):
        assert issubclass(kind, Warning)
        return
    groups = {errors.HDF5StorageError, errors.RecordError, errors.StoreError}
    builtin = [base for base in kind.__mro__ if base.__module__ == "builtins"]
    assert kind in groups or builtin[0] not in (Exception, BaseException)
    assert name in (errors.__doc__ or "")
