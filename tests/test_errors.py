"""Errors as an interface: each says what to do, and derives from what a caller would expect."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import neurostore
from neurostore import errors
from neurostore.verify import verify
from neurostore.workers import own_file

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


NOT_QUITE: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "a number for a path": (errors.ValidationError, "path is 5", lambda: neurostore.open(5)),
    "bytes for a path": (errors.ValidationError, "b'run.h5'", lambda: neurostore.open(b"run.h5")),
    "a number among paths": (errors.ValidationError, "path is 5", lambda: neurostore.open([5])),
    "an empty file": (errors.NotAStoreError, "is empty", lambda: neurostore.open("empty.h5")),
    "nothing there": (
        errors.StoreNotFoundError,
        "expected one to read",
        lambda: neurostore.open("none.h5", mode="r"),
    ),
    "an array for a record": (
        errors.ValidationError,
        "a ndarray is no record",
        lambda: neurostore.open("run.h5").store(np.zeros(3)),
    ),
    "no such kind": (
        errors.ValidationError,
        "expected one of",
        lambda: neurostore.build("wat", {}, timestamp=1.0),
    ),
    "no time": (
        TypeError,
        r"spike_train: .*'timestamp'; expected \(spike_times",
        lambda: neurostore.spike_train([0.1], [1]),
    ),
    "no name": (
        errors.ValidationError,
        "reservoir_id is missing",
        lambda: neurostore.open("run.h5").record("reservoir_states", timestamp=1.0),
    ),
    "a structure": (
        errors.ValidationError,
        "each field",
        lambda: neurostore.reservoir_states(np.zeros((2, 2), [("a", "f4")]), "r", timestamp=1.0),
    ),
    "a date in JSON": (
        errors.ValidationError,
        r"astype\(str\)",
        lambda: neurostore.spike_train([], [], timestamp=1, metadata=np.datetime64("2026", "D")),
    ),
    "a file for a folder": (
        errors.StoreExistsError,
        "expected a folder",
        lambda: own_file("empty.h5"),
    ),
}


@pytest.mark.parametrize("what", NOT_QUITE)
def test_what_is_nearly_right_is_told_what_is(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.h5").touch()
    error, said, attempt = NOT_QUITE[what]
    with pytest.raises(error, match=said):
        attempt()


@pytest.mark.parametrize(
    "value", [np.datetime64("2026", "D"), np.timedelta64(1, "s"), np.bytes_("a")]
)
def test_the_remedy_for_a_value_in_json_works(value: np.generic) -> None:
    assert isinstance(value.astype(str).tolist(), str)


def test_nothing_is_called_sound_of_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    path.write_text("no HDF5")
    report = verify(path)
    assert not report.ok
    assert report.summary() == (
        "0 records in 1 file: none could be checked, 1 finding about the files"
    )


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
