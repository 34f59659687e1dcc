"""A file written anew in another form: encoded for the archive, or laid out in pages.

Encoding anew costs what storing cost; pages alone cost what compaction costs.  Which records
there are, their ids and their values stay as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from neurostore import osio, records, tree
from neurostore.compaction import check_space
from neurostore.copying import copy_live
from neurostore.errors import ValidationError
from neurostore.making import Making
from neurostore.osio import Durability
from neurostore.progress import Progress, Report, reporting
from neurostore.schema import KINDS
from neurostore.session import Session
from neurostore.stencil import Layout

__all__ = ["PAGE_SIZE", "repack"]

#: Bytes of a page: one request to an object store takes about as long for a byte as for this many.
PAGE_SIZE = 64 * 1024
#: HDF5 takes pages from this size on, to the largest that its format can say.
_SMALLEST, _LARGEST = 512, 1024**3


def repack(
    session: Session,
    layout: Layout | None,
    page_size: int,
    *,
    timeout: float,
    durability: Durability,
    progress: Progress = None,
    free: Callable[[Path], int] | None = None,
) -> int:
    """Write the file anew; return the bytes that were won, which may be negative.

    Parameters
    ----------
    layout
        Filters and chunks for all values; None moves the stored chunks as they are.
    page_size
        Bytes of a page; 0 for a file without pages.
    progress, free
        As for :func:`neurostore.compaction.compact`.
    """
    check_page_size(page_size)
    with session.undisturbed(timeout=timeout, durability=durability):
        before = session.path.stat().st_size
        check_space(session.path, before, "repacking", free)
        temporary = tree.beside(session.path, "repack")
        with osio.temporary_file(session.path, temporary, "repacking", session.io):
            with reporting(progress, f"repacking {session.path.name}") as report:
                if layout is None:
                    copy_live(session.path, temporary, report, page_size)
                else:
                    _encode(session, temporary, layout, report)
                    if page_size:
                        _lay_out(temporary, page_size, report)
            session.replace(temporary, durability)
        return before - session.path.stat().st_size


def check_page_size(page_size: int) -> None:
    """Raise unless HDF5 takes pages of this size."""
    whole = isinstance(page_size, int) and not isinstance(page_size, bool)
    if not whole or (page_size and not _SMALLEST <= page_size <= _LARGEST):
        raise ValidationError(
            f"page_size is {page_size!r}, expected from {_SMALLEST} to {_LARGEST:,} bytes"
        )


def _lay_out(temporary: Path, page_size: int, report: Report) -> None:
    """Put a file into pages, its catalogue first."""
    paged = tree.beside(temporary, "pages")
    try:
        copy_live(temporary, paged, report, page_size)
        os.replace(paged, temporary)
    finally:
        paged.unlink(missing_ok=True)


def _encode(session: Session, temporary: Path, layout: Layout, report: Report) -> None:
    held = session.catalogue
    with Making(temporary, layout) as new:
        new.catalogue.take_over(held)
        total, done = sum(len(held.select(kind)) for kind in KINDS.values()), 0
        for kind in KINDS.values():
            table = new.catalogue.tables[kind.name]
            live = (table.rows["removed"] == 0).nonzero()[0].tolist()
            for row in live:
                entry = held.find(_address(new, kind.name, row))
                assert entry is not None
                ds, _ = session.open_record(entry)
                new.rewrite(kind, row, records.examine(ds))
                done += 1
                report(done, total)
        with session.reading() as old:
            new.copy_rest(old, held)


def _address(new: Making, kind: str, row: int) -> str:
    """Return an address for a row, which is unambiguous where ids are not."""
    table = new.catalogue.tables[kind]
    return f"{KINDS[kind].parts[0].path}/{new.catalogue.id_of(table, row)}"
