"""What a store looks at: one history, or those of many files side by side.

It turns paths and patterns into histories, gives each a label, and keeps ids apart where two
histories have the same one.  It answers no question about records.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurostore import names
from neurostore.catalogue import Catalogue
from neurostore.errors import (
    AmbiguousRecordError,
    RecordNotFoundError,
    StoreNotFoundError,
    ValidationError,
)
from neurostore.ledger import rotated_number
from neurostore.places import is_url
from neurostore.registry import key_of
from neurostore.schema import KINDS
from neurostore.series import Found, find
from neurostore.session import Session, pinned

__all__ = ["Origin", "View", "clashing", "expand", "histories", "labels", "shown"]

#: Between the label of a history and the id of a record in it.
MARK = "::"


@dataclass(frozen=True)
class Origin:
    """One history of a view: its newest file, and the label that its ids get where they clash."""

    session: Session
    label: str


@dataclass(frozen=True)
class View:
    """The histories that questions are asked of.

    `source` is what opens them again.
    """

    origins: tuple[Origin, ...]
    source: str | list[str]

    @classmethod
    def of(cls, session: Session) -> View:
        """Return the view of one history."""
        return cls((Origin(session, ""),), str(session.path))

    @property
    def is_joint(self) -> bool:
        """Whether it is of several histories."""
        return len(self.origins) > 1

    def __str__(self) -> str:
        return self.source if isinstance(self.source, str) else ", ".join(self.source)

    def locate(self, record_id: str) -> tuple[Origin, Found] | None:
        """Return the record with an id, or address, that may name its history.

        Raises
        ------
        AmbiguousRecordError
            Several histories have it.
        RecordNotFoundError
            A file that may have it is not there.
        """
        parent, line, leaf = record_id.rpartition("/")
        label, mark, rest = leaf.partition(MARK)
        hits: list[tuple[Origin, Found]] = []
        gone: list[RecordNotFoundError] = []
        for origin in self.origins:
            wanted = [record_id]
            if mark and self.is_joint and label == origin.label:
                wanted.append(f"{parent}{line}{rest}")
            for one in wanted:
                try:
                    found = find(origin.session, one)
                except RecordNotFoundError as error:
                    gone.append(error)
                else:
                    hits += [(origin, found)] if found is not None else []
        if len(hits) > 1:
            choices = ", ".join(repr(shown(o.label, f.entry.id)) for o, f in hits)
            raise AmbiguousRecordError(
                f"{self}: several files have a record {record_id!r}; use one of {choices}"
            )
        if not hits and gone:
            raise gone[0]
        return hits[0] if hits else None


def shown(label: str, record_id: str) -> str:
    """Return an id that names its history.

    >>> shown("run2", "train_1.0")
    'run2::train_1.0'
    """
    return f"{label}{MARK}{record_id}"


def clashing(held: Sequence[tuple[int, Catalogue]], low: float, high: float) -> frozenset[str]:
    """Return the ids between two moments that several histories have.

    Equal ids are of the same moment, so that only records of shared moments are compared.

    Parameters
    ----------
    held
        Catalogues, each with the number of its history.
    """
    moments: dict[int, list[np.ndarray[Any, Any]]] = {}
    for origin, one in held:
        for kind in KINDS.values():
            found = one.tables[kind.name].moments_of(one.select(kind, low, high))
            moments.setdefault(origin, []).append(found)
    each = [np.unique(np.concatenate(parts)) for parts in moments.values()]
    if len(each) < 2:
        return frozenset()
    values, counts = np.unique(np.concatenate(each), return_counts=True)
    shared = values[counts > 1]
    first: dict[str, int] = {}
    several = set()
    for origin, one in held if len(shared) else ():
        for kind in KINDS.values():
            rows = one.select(kind, low, high)
            rows = rows[np.isin(one.tables[kind.name].moments_of(rows), shared)]
            several |= {i for i in one.ids(kind, rows) if first.setdefault(i, origin) != origin}
    return frozenset(several)


# -- paths -------------------------------------------------------------------------------------


def expand(path: object) -> list[Path] | None:
    """Return the files that a pattern or a list stands for, or None for the path of one file.

    ``*`` and ``?`` make a pattern, and so does ``[`` where it finds something; the name of a file
    that exists is never one.

    Raises
    ------
    StoreNotFoundError
        Nothing fits.
    """
    if isinstance(path, bytes) or not isinstance(path, str | os.PathLike | Iterable):
        raise ValidationError(
            f"the path is {path!r}; expected a str or a pathlib.Path, or a list of them"
        )
    if is_url(path):
        return None
    if isinstance(path, str | os.PathLike):
        text = os.fspath(path)
        if not isinstance(text, str) or not glob.has_magic(text) or os.path.lexists(text):
            return None
        found = sorted(glob.glob(text, recursive=True))
        if not found and not {"*", "?"} & set(text):
            return None
        if not found:
            raise StoreNotFoundError(f"{text}: no file fits this pattern, expected at least one")
        return [Path(os.path.realpath(one)) for one in found]
    if isinstance(path, Iterable):
        several: list[Path] = []
        for one in path:
            if is_url(one):
                raise ValidationError(
                    f"{one}: one of several; expected a list of local files; open a URL by itself"
                )
            several += expand(one) or [Path(os.path.realpath(one))]
        if not several:
            raise StoreNotFoundError("an empty list of files; expected at least one")
        return several
    return None


def histories(paths: Iterable[Path]) -> list[Path]:
    """Return the newest file of each history among ``paths``: what one was rotated to is in it."""
    files: dict[tuple[int, int], Path] = {}
    for path in sorted(paths, key=lambda path: (rotated_number(path.name) is not None, path)):
        key = key_of(path)
        if key is None:
            raise StoreNotFoundError(f"{path}: there is no such file; expected one to read")
        files.setdefault(key, path)  # one file may have several names
    kept: list[Path] = []
    inside: set[Path] = set()
    series: set[tuple[Path, str]] = set()
    for path in files.values():
        if path in inside:
            continue
        with pinned(path) as session:
            ledger = session.catalogue.ledger
        if ledger.seal is None or ledger.seal.head == path.name:
            inside |= {path.with_name(older.name) for older in ledger.older}
            series.add((path.parent, ledger.series))
        elif (path.parent, ledger.series) in series:
            continue  # its series has let go of it, and a crash kept it from being removed
        kept.append(path)
    return sorted(path for path in kept if path not in inside)


def labels(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each file: its own, with folders where that is not enough.

    >>> labels([Path("/a/run.h5"), Path("/b/run.h5")])
    ['a.run', 'b.run']
    >>> labels([Path("/a/one.h5"), Path("/b/two.h5")])
    ['one', 'two']
    """
    base = os.path.commonpath([path.parent for path in paths])
    inside = [path.relative_to(base) for path in paths]
    for found in (
        [path.stem for path in paths],
        [".".join(path.with_suffix("").parts) for path in inside],
        [".".join(path.parts) for path in inside],
    ):
        if len(set(found)) == len(found):
            return found
    return [f"{path.stem}{names.SUFFIX}{number}" for number, path in enumerate(paths, 1)]
