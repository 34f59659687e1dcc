"""What is to be known of a view as a whole: counts, times, bytes, and what compaction would win.

The catalogues say almost all of it; a record that others wrote is opened to count its variables.
It changes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neurostore import schema, tree
from neurostore._version import __version__
from neurostore.accounting import Usage, usage
from neurostore.catalogue import Catalogue
from neurostore.errors import DamagedError
from neurostore.rebuilding import FOREIGN
from neurostore.schema import KINDS, Kind
from neurostore.series import members
from neurostore.session import Session
from neurostore.views import View

__all__ = ["info"]


@dataclass
class _Sum:
    """What has been counted so far."""

    records: Counter[str] = field(default_factory=Counter)
    spans: dict[str, tuple[float, float]] = field(default_factory=dict)
    variables: int = 0
    used: Usage = field(default_factory=Usage)
    files: list[dict[str, Any]] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)

    def add(self, member: Session) -> None:
        """Count one file."""
        held, used = member.catalogue, usage(member)
        before = self.records.total()
        for kind in KINDS.values():
            rows = held.select(kind)
            if len(rows):
                self._add_kind(member, held, kind, rows)
        self.used += used
        self.files.append(
            {
                "path": str(member.path),
                "file_size": used.file_bytes,
                "records": self.records.total() - before,
                "dead_bytes": used.dead_bytes,
                "is_sealed": held.ledger.seal is not None,
            }
        )

    def _add_kind(
        self, member: Session, held: Catalogue, kind: Kind, rows: np.ndarray[Any, Any]
    ) -> None:
        table = held.tables[kind.name].take(rows)
        self.records[kind.name] += len(rows)
        low, high = float(table["timestamp"][0]), float(table["timestamp"][-1])
        first, last = self.spans.get(kind.name, (low, high))
        self.spans[kind.name] = (min(first, low), max(last, high))
        self.versions.update(np.unique(table["version"]).tolist())
        self.variables += _variables(member, kind, rows)


def _variables(member: Session, kind: Kind, rows: np.ndarray[Any, Any]) -> int:
    """Count the user's variables: by structure where it is known, else by looking."""
    held = member.catalogue
    codes, repeats = np.unique(held.tables[kind.name].rows["structure"][rows], return_counts=True)
    total = 0
    for code, repeat in zip(codes, repeats, strict=True):
        text = held.text(int(code))
        if text:
            named = json.loads(text)["variables"].keys() - {schema.TIMESTAMP}
            total += int(repeat) * len(named)
    for row in rows[held.tables[kind.name].rows["structure"][rows] == 0]:
        with suppress(DamagedError):
            _, places = member.open_record(held.entry(kind, int(row)))
            total += len(places.keys() - {schema.TIMESTAMP})
    return total


def info(view: View) -> dict[str, Any]:
    """Return what is to be known of the files of a view."""
    total = _Sum()
    for origin in view.origins:
        first = len(total.files)
        for member in members(origin.session):
            total.add(member)
        total.files[first:] = reversed(total.files[first:])
    newest = view.origins[-1].session
    spans = total.spans.values()
    found: dict[str, Any] = {
        "path": view.source,
        "file_size": total.used.file_bytes,
        "files": [file["path"] for file in total.files],
        "per_file": total.files,
        "records": {name: total.records.get(name, 0) for name in KINDS},
        "spans": dict(total.spans),
        "variables": total.variables,
        "start": min((low for low, _ in spans), default=None),
        "end": max((high for _, high in spans), default=None),
        "stored_bytes": total.used.stored_bytes,
        "logical_bytes": total.used.logical_bytes,
        "compression_ratio": total.used.compression_ratio,
        "dead_bytes": total.used.dead_bytes,
        "schema_version": schema.SCHEMA_VERSION,
        "schema_versions": sorted(total.versions - {FOREIGN}),
        "library_versions": {"neurostore": __version__, **tree.versions()},
        "created_at": newest.created_at(),
        "groups": newest.top_groups(),
    }
    if view.is_joint:
        found["labels"] = {origin.label: str(origin.session.path) for origin in view.origins}
    return found
