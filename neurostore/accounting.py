"""What the bytes of a file are for: values, their structure, and records that were removed.

Everything is told from the catalogue; no record is opened unless others wrote it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from neurostore import types
from neurostore.catalogue import Catalogue
from neurostore.schema import KINDS, Kind
from neurostore.session import Session

__all__ = ["Usage", "usage", "usage_of"]


@dataclass(frozen=True)
class Usage:
    """Bytes of one file, or of several added up.

    Parameters
    ----------
    file_bytes
        Size of the file.
    stored_bytes
        Values of the records there are, as stored.
    logical_bytes
        The same values in memory; records that others wrote count as stored.
    dead_bytes
        What compaction would win, about: values of removed records, and their share of the rest.
    """

    file_bytes: int = 0
    stored_bytes: int = 0
    logical_bytes: int = 0
    dead_bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.file_bytes + other.file_bytes,
            self.stored_bytes + other.stored_bytes,
            self.logical_bytes + other.logical_bytes,
            self.dead_bytes + other.dead_bytes,
        )

    @property
    def compression_ratio(self) -> float:
        """Logical bytes for one stored byte; 1.0 for a file without values."""
        return self.logical_bytes / self.stored_bytes if self.stored_bytes else 1.0

    @property
    def dead_share(self) -> float:
        """Share of the file that compaction would win, about."""
        return self.dead_bytes / self.file_bytes if self.file_bytes else 0.0


def usage(session: Session) -> Usage:
    """Return what the bytes of one file are for."""
    return usage_of(session.catalogue, session.file_size())


def usage_of(held: Catalogue, size: int) -> Usage:
    """Return what the ``size`` bytes of a file with this catalogue are for."""
    stored = logical = 0
    removed_bytes = removed = count = 0
    for kind in KINDS.values():
        table = held.tables.get(kind.name)
        if table is None or not table.size:
            continue
        rows = table.rows
        gone = rows["removed"] != 0
        count += len(rows)
        removed += int(gone.sum())
        removed_bytes += int(rows["stored_bytes"][gone].sum())
        stored += int(rows["stored_bytes"][~gone].sum())
        logical += _logical(held, kind, rows[~gone])
    structure = max(0, size - stored - removed_bytes)
    dead = removed_bytes + (structure * removed // count if count else 0)
    return Usage(size, stored, logical, min(dead, size))


def _logical(held: Catalogue, kind: Kind, rows: np.ndarray[Any, Any]) -> int:
    """Count the bytes of values in memory; where the structure is unknown, those stored."""
    total = 0
    for code in np.unique(rows["structure"]).tolist():
        mine = rows[rows["structure"] == code]
        if not code:
            total += int(mine["stored_bytes"].sum())
            continue
        fixed, per_length = _sizes(held.text(code), kind.elastic)
        total += fixed * len(mine) + per_length * int(mine["length"].sum())
    return total


@lru_cache(maxsize=1024)
def _sizes(structure: str, elastic: str | None) -> tuple[int, int]:
    """Bytes of one record: those of a fixed size, and those for every step of the elastic one."""
    found = json.loads(structure)
    fixed = per_length = 0
    for logical, dims, *_ in found["variables"].values():
        sizes = [found["sizes"].get(dim, 1) for dim in dims if dim != elastic]
        nbytes = types.value_bytes(logical, dims) * int(np.prod(sizes, dtype=np.int64))
        if elastic in dims:
            per_length += nbytes
        else:
            fixed += nbytes
    return fixed, per_length
