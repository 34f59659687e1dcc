"""The process that reads: takes requests from its standard input, one line of JSON each.

It keeps the file open between requests and holds nothing that would be missed if it were killed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neurostore import salvage, schema, soundness, tree
from neurostore.session import Session, attach

__all__ = ["main"]


def main(memory_limit: int) -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    _limit_memory(memory_limit)
    _say(answers, "ready")
    for line in sys.stdin:
        operation, arguments = json.loads(line)
        _say(answers, OPERATIONS[operation](**arguments))
    answers.close()


def _say(answers: Any, answer: Any) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _limit_memory(extra: int) -> None:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):  # not Linux: then only time is limited
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + extra
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _opened(path: str) -> Session:
    """Return the session of a file, of which the end may be missing."""
    session = attach(Path(path), "r")
    session.reads_cut = True
    return session


def _contents(path: str) -> dict[str, Any]:
    """Return what the catalogue says; an error where the file cannot be opened at all."""
    try:
        with _opened(path).reading() as h5file:
            held, found = soundness.check_catalogue(h5file)
            known = None if held is None else [asdict(row) for row in soundness.rows_of(held)]
            older = [] if held is None else [o.name for o in held.ledger.before(Path(path).name)]
            others = salvage.other_groups(h5file)
            if said := tree.cut_short(Path(path)):
                found.add("file", "", "", said)
            return {"rows": known, "older": older, "others": others, **_found(found)}
    except Exception as error:  # noqa: BLE001 (whatever it is, it is about the file)
        return {"error": str(error) or type(error).__name__}


def _in_tree(path: str, kind: str) -> dict[str, Any]:
    """Return what the groups of one kind say."""
    try:
        with _opened(path).reading() as h5file:
            rows = soundness.rows_in_tree(h5file, schema.kind_of(kind))
            return {"rows": [asdict(row) for row in rows]}
    except Exception as error:  # noqa: BLE001 (whatever it is, it is about these groups)
        return {"error": str(error) or type(error).__name__}


def _record(path: str, row: dict[str, Any]) -> dict[str, Any]:
    found = soundness.Checked()
    with found.noting("structure", ""), _opened(path).reading() as h5file:
        found = soundness.check_record(h5file, soundness.Row(**row))
    return _found(found)


def _found(found: soundness.Checked) -> dict[str, Any]:
    return {
        "problems": [asdict(problem) for problem in found.problems],
        "numbers": found.numbers,
        "hashed": found.hashed,
    }


def _begin(target: str) -> None:
    salvage.begin(target)


def _copy(
    path: str, target: str, rows: list[dict[str, Any]], first_number: int, rehash: bool
) -> int:
    told = [soundness.Row(**row) for row in rows]
    with _opened(path).reading() as h5file:
        return salvage.copy(h5file, target, told, first_number, rehash)


def _finish(
    target: str, rows: list[dict[str, Any]], doubted: list[tuple[str, str]], number: int
) -> None:
    told = [soundness.Row(**row) for row in rows]
    salvage.finish(target, told, {(kind, record_id) for kind, record_id in doubted}, number)


def _forget(path: str) -> None:
    """Close a file: it gets another name, or its records another content."""
    attach(Path(path), "r").close()


OPERATIONS: dict[str, Callable[..., Any]] = {
    "contents": _contents,
    "in_tree": _in_tree,
    "record": _record,
    "begin": _begin,
    "copy": _copy,
    "finish": _finish,
    "forget": _forget,
}
