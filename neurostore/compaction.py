"""The space of removed records won back: the file is written anew without them.

Readers go on with the old file until the new one is finished and takes its place in one step;
writers wait.  A process that dies on the way leaves the old file and a temporary one, which the
next compaction writes over.  How groups are moved is `rawcopy`'s affair.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from neurostore import accounting, osio, series, tree
from neurostore.catalogue import Catalogue
from neurostore.copying import copy_live
from neurostore.errors import NoSpaceError
from neurostore.osio import Durability
from neurostore.progress import Progress, reporting
from neurostore.session import Session
from neurostore.wording import human_bytes

__all__ = ["check_space", "compact", "compact_series"]

_log = logging.getLogger(__name__)
#: Bytes left free beyond the new file: its journal, and what others write meanwhile.
_MARGIN = 1024**2


def compact(
    session: Session,
    *,
    timeout: float,
    durability: Durability,
    progress: Progress = None,
    free: Callable[[Path], int] | None = None,
) -> int:
    """Write the file anew without removed records; return the bytes that were won.

    Parameters
    ----------
    progress
        True shows a bar on a terminal; a function is called with the number of groups that were
        moved and of all groups.
    free
        Tells how many bytes are free in a folder; asks the system if it is None.

    Raises
    ------
    NoSpaceError
        The new file would not fit beside the old one; nothing was written.
    """
    return _compact(session, timeout, durability, progress, free)[0]


def _compact(
    session: Session,
    timeout: float,
    durability: Durability,
    progress: Progress,
    free: Callable[[Path], int] | None = None,
) -> tuple[int, Catalogue]:
    """Compact one file; return the bytes that were won and the catalogue of what is left."""
    with session.undisturbed(timeout=timeout, durability=durability, adopting=False):
        before = session.path.stat().st_size

        def check(held: Catalogue) -> None:
            needed = before - accounting.usage_of(held, before).dead_bytes
            check_space(session.path, needed, "compaction", free)

        temporary = tree.beside(session.path, "compact")
        with osio.temporary_file(session.path, temporary, "compaction", session.io):
            with reporting(progress, f"compacting {session.path.name}") as report:
                left = copy_live(
                    session.path, temporary, report, check=check, durability=durability
                )
            session.replace(temporary, durability)
        won = before - session.path.stat().st_size
    _log.info("%s: compacted, %s won back", session.path, human_bytes(max(0, won)))
    return won, left


def compact_series(
    session: Session, *, timeout: float, durability: Durability, progress: Progress = None
) -> int:
    """Compact a file, and those it was rotated to that have lost records; return what was won."""
    won, left = _compact(session, timeout, durability, progress)
    if not left.ledger.before(session.path.name):
        return won
    for member in series.members(session):
        if member.path != session.path and accounting.usage(member).dead_bytes:
            won += compact(member, timeout=timeout, durability=durability, progress=progress)
    return won


def check_space(
    path: Path, needed: int, what: str, free: Callable[[Path], int] | None = None
) -> None:
    """Raise unless ``needed`` bytes fit into the folder of ``path``."""
    room = (free or _free)(path.parent)
    if room < needed + _MARGIN:
        osio.wait_freed()
        room = (free or _free)(path.parent)
    if room < needed + _MARGIN:
        raise NoSpaceError(
            f"{path}: {what} needs {needed + _MARGIN:,} bytes beside the file and {room:,} are "
            f"free in {path.parent}; free some space or move the file to another disk"
        )


def _free(folder: Path) -> int:
    return shutil.disk_usage(os.fspath(folder)).free
