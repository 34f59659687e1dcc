"""The live records of a file in a new one, as they are: for compaction, and for pages.

Records go over as bytes where `neurostore.moving` can take them, else through HDF5. The old file
is only read, and the new one is nobody's yet.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from h5py import h5g

from neurostore import catalogue_file, emptyfile, ledger, moving, schema, shortcuts, tree
from neurostore.catalogue import Catalogue
from neurostore.catalogue_file import GROUP
from neurostore.errors import DamagedError
from neurostore.ledger import Ledger
from neurostore.moving import Moved
from neurostore.osio import IO, Durability, OsIO, refused
from neurostore.progress import Report
from neurostore.rawcopy import Entangled, copy_groups
from neurostore.rebuilding import merge, rebuild
from neurostore.tree import H5File
from neurostore.writeout import WriteOut

__all__ = ["copy_live", "written_out"]

#: Bytes after which it pays to sync the copy while more of it is being written.
_AHEAD = 8 * 1024**2


def copy_live(
    path: Path,
    temporary: Path,
    report: Report,
    page_size: int = 0,
    check: Callable[[Catalogue], object] = lambda held: None,
    durability: Durability = "process",
) -> Catalogue:
    """Make at ``temporary`` a copy of the file without what was removed; return its catalogue.

    Parameters
    ----------
    report
        Called with the number of groups that were copied and of all groups of records.
    page_size
        Bytes of a page, where the file is to be laid out in pages.
    check
        Called with the catalogue of the file before anything is written; may raise.
    durability
        ``"power"`` begins to sync the copy while it is written; the sync that counts is not here.
    """
    with tree.open_native(path) as old, _naming_damage(path):
        held = _catalogue_of(old, path)
        check(held)
        emptyfile.lay(temporary, page_size)
        try:
            with written_out(temporary, durability) as ahead:
                moves = partial(moving.move, ahead=ahead) if not page_size else None
                return _copy_live(old, path, temporary, report, page_size, held, moves)
        except Entangled:
            emptyfile.lay(temporary, page_size)
            return _copy_live(old, path, temporary, report, page_size, held, None)


@contextmanager
def written_out(
    path: Path, durability: Durability, io: IO | None = None
) -> Iterator[WriteOut | None]:
    """Let a file be synced while it is written, past whoever counts on a sync.

    Raises
    ------
    WriteError
        The system could not; it says so once, and the sync that counts would not notice.
    """
    if durability != "power":
        yield None
        return
    with path.open("r+b", buffering=0) as stream:
        ahead = WriteOut(io or OsIO(), stream.fileno(), _AHEAD)
        try:
            yield ahead
        finally:
            try:
                ahead.wait()
            except OSError as error:
                raise refused(
                    os.fspath(path), "syncing a new file", error, "nothing changed"
                ) from error


def _catalogue_of(old: H5File, path: Path) -> Catalogue:
    """Return the catalogue of a file, with what others put into its tree."""
    held = catalogue_file.read(old)
    if held is None:
        held = rebuild(old)
        held.settle(catalogue_file.blank())
    elif not _is_untouched(path, held):
        merge(held, old)
        held.state["trusted_from"] = held.state["serial"]  # the new file will look untouched
    return held


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Say what to do; what the system says of writing the new file passes."""
    try:
        yield
    except KeyError as error:  # h5py's word for an object that cannot be opened
        raise DamagedError(
            f"{path}: a record cannot be copied ({error}); expected all of them to be sound; "
            "verify() says which are not, repair() saves the others"
        ) from error


def _copy_live(
    old: H5File,
    path: Path,
    temporary: Path,
    report: Report,
    page_size: int,
    held: Catalogue,
    moves: Callable[..., Moved] | None,
) -> Catalogue:
    parents = {part.path: _count(old, part.path) for part in _all_parts()}
    total, done = sum(parents.values()), itertools.count(1)

    def step() -> None:
        report(next(done), total)

    moved = moves(old, path, temporary, parents, step) if moves is not None else {}
    left = total - sum(map(len, moved.values()))
    with tree.open_new(temporary) as new:
        fresh = catalogue_file.blank()
        first = held.state["dimensions"] if moved else fresh.state["dimensions"]
        fresh.take_over(held)
        if page_size:  # first, so that it lies in one piece
            tree.write_catalogue(fresh, new)
            shortcuts.reserve(new, fresh)
        fresh.state["dimensions"] = copy_groups(
            old,
            new,
            GROUP,
            first,
            step,
            alike=_structures(held) if left else {},
            moved=moved,
        )
        tree.keep_creation_time(old, new)
        if fresh.ledger != Ledger():
            ledger.write(new, fresh.ledger)
        fresh.state["modified"] = time.time_ns()
        tree.write_catalogue(fresh, new)
        if page_size:
            shortcuts.fill(new, fresh)
        targets = moving.targets(new, moved)
    if moved:
        moving.link(temporary, moved, targets)
    _check(path, temporary, parents, moved)
    os.utime(temporary, ns=(fresh.state["modified"],) * 2)
    return fresh


def _check(path: Path, temporary: Path, parents: Mapping[str, int], moved: Moved) -> None:
    """Let HDF5 read the copy; raise unless it finds there what is to be there."""
    with tree.open_native(temporary) as new:
        moving.check(new, moved)
        for parent, count in parents.items():
            if _count(new, parent) != count:
                raise DamagedError(
                    f"{path}: /{parent} has {count} records, expected as many in the copy, which "
                    f"has {_count(new, parent)}; the file was left as it was"
                )


def _is_untouched(path: Path, held: Catalogue) -> bool:
    """Tell whether only neurostore has written to the file since its last commit."""
    return path.stat().st_mtime_ns == held.state["modified"]


def _structures(held: Catalogue) -> dict[bytes, tuple[str, int]]:
    """Return what the groups of a file are alike in, by path: part and code of the structure."""
    found = {}
    for entry in held.entries():
        row = held.tables[entry.kind.name].rows[entry.row]
        if row["structure"] and entry.serial >= held.state["trusted_from"]:
            for part in entry.kind.parts:
                found[f"/{part.path}/{entry.id}".encode()] = part.path, int(row["structure"])
    return found


def _all_parts() -> list[schema.Part]:
    return [part for kind in schema.KINDS.values() for part in kind.parts]


def _count(h5file: H5File, path: str) -> int:
    return len(h5g.open(h5file.id, path.encode())) if tree.has(h5file, path) else 0
