"""The file rotated: it gets a name of its own, and an empty one takes its place."""

from __future__ import annotations

import os
from pathlib import Path

from neurostore import tree
from neurostore.osio import Durability, discard
from neurostore.session import Session

__all__ = ["rotate"]


def rotate(session: Session, durability: Durability) -> Path:
    """Give the file a name of its own and put an empty one in its place."""
    fresh = _beside(session.path, "rotate")
    rotated = _free_name(session.path, len(session.catalogue.older) + 1)
    session.release_reader()
    try:
        tree.build_next(session.path, fresh, rotated.name)
        # Two names for one file, then one of them for the new one: there is always a file.
        session.io.link(str(session.path), str(rotated))
        if durability == "power":  # or a power cut might keep the second step and lose the first
            session.io.sync_directory(str(rotated.parent))
        try:
            session.replace(fresh, durability)
        except BaseException:
            discard(rotated, session.io)
            raise
    finally:
        discard(fresh, session.io)
    return rotated


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name[:200]}-{os.getpid()}-{what}")


def _free_name(path: Path, number: int) -> Path:
    """Return a sortable name that nothing has: ``run.000001.h5``."""
    while True:
        candidate = path.with_name(f"{path.stem}.{number:06d}{path.suffix}")
        if not candidate.exists():
            return candidate
        number += 1
