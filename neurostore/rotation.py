"""Rotation: the file gets a name of its own, and an empty one goes on in its place.

In this order, under the writer lock, so that a reader finds the whole history at every moment and
a crash loses none of it:

1. the next file is built beside, knowing what the older ones hold;
2. one commit seals the file: whoever finds a sealed file at the path of the newest knows that a
   rotation was begun, and the next writer ends it;
3. the file gets its second name, and the directory is synced;
4. the next file takes the first name.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from neurostore import osio, tree
from neurostore.catalogue import Catalogue
from neurostore.errors import HDF5StorageError
from neurostore.ledger import Ledger, Seal, rotated_name
from neurostore.osio import Durability
from neurostore.session import Session, pinned

__all__ = ["is_unfinished", "rotate"]

_log = logging.getLogger(__name__)


def rotate(
    session: Session,
    *,
    timeout: float,
    durability: Durability,
    when: Callable[[int, int], bool] = lambda size, rows: True,
) -> Path | None:
    """Rotate a file, or end a rotation of it that a crash interrupted.

    Parameters
    ----------
    session
        The newest file of a series, not inside a batch.
    when
        Told the file's bytes and the rows of its catalogue once nobody else can write; where it
        answers False nothing is done.

    Returns
    -------
    Path of what was the newest file, or None if nothing was done.

    Raises
    ------
    SealedError
        The file is one that a series was rotated to.
    """
    with session.exclusive(timeout=timeout, durability=durability):
        held = session.catalogue
        seal = held.ledger.seal
        if seal is not None and not is_unfinished(session):
            raise session.sealed(held.ledger)
        size = session.path.stat().st_size
        if seal is None and not when(size, held.state["rows"]):
            return None
        plan = _plan(session, held)
        return _carry_out(session, plan, held, size, durability)


def is_unfinished(session: Session) -> bool:
    """Tell whether a rotation of this file was begun and a crash interrupted it."""
    seal = session.catalogue.ledger.seal
    return seal is not None and seal.head == session.path.name


def _plan(session: Session, held: Catalogue) -> Ledger:
    """Return the ledger that the file is sealed with: its own name is in it."""
    found, head = held.ledger, session.path
    if found.seal is not None and _is_free_or_ours(
        head.with_name(found.seal.name), held, session.io
    ):
        return found
    number = found.number
    while os.path.lexists(head.with_name(rotated_name(head.name, number))):
        number += 1
    series = found.series or f"{held.file_id[0]:016x}{held.file_id[1]:016x}"
    seal = Seal(rotated_name(head.name, number), head.name)
    return replace(found, series=series, number=number + 1, seal=seal)


def _is_free_or_ours(rotated: Path, held: Catalogue, io: osio.IO) -> bool:
    """Tell whether an interrupted rotation can still have the name that it noted."""
    if not os.path.lexists(rotated):
        return True
    try:
        with pinned(rotated, io) as other:
            return other.catalogue.file_id == held.file_id
    except (HDF5StorageError, OSError):
        return False


def _carry_out(
    session: Session, plan: Ledger, held: Catalogue, size: int, durability: Durability
) -> Path:
    assert plan.seal is not None
    rotated = session.path.with_name(plan.seal.name)
    older = (*held.ledger.older, held.as_older(rotated.name, size))
    following = replace(plan, position=plan.position + 1, seal=None).following(older)
    fresh = tree.beside(session.path, "rotate")
    before, named = held.ledger, False
    try:
        tree.build_next(fresh, following, held.state["serial"])
        if before != plan:
            with session.writing(timeout=0, durability=durability, sealed=True):
                session.write_ledger(plan)
        session.settle()
        try:
            if os.path.lexists(rotated):
                what = f"naming {session.path}"
                osio.sync_names(rotated, what, durability=durability, io=session.io)
            else:
                osio.give_name(session.path, rotated, durability=durability, io=session.io)
                named = True
            session.replace(fresh, durability)
        except BaseException:
            if named or before != plan:  # of what an interrupted one did, nothing is taken back
                _take_back(session, before, rotated if named else None, durability)
            raise
    finally:
        osio.discard(fresh, session.io)
    return rotated


def _take_back(
    session: Session, before: Ledger, rotated: Path | None, durability: Durability
) -> None:
    """Make the file the one that goes on again; where that fails too, the next writer rotates."""
    with contextlib.suppress(HDF5StorageError, OSError):
        if not is_unfinished(session):  # the next file goes on already: this one is the rotated
            return
        if rotated is not None:
            osio.discard(rotated, session.io)
        with session.writing(timeout=0, durability=durability, sealed=True):
            session.write_ledger(replace(before, seal=None))
        session.settle()
