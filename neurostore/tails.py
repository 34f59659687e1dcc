"""What a commit added to a catalogue, read where its tables end, without HDF5.

Tables grow by whole chunks, so most commits fill rows of a chunk that is there already, and those
are some bytes at a known place: to read them takes a tenth of opening the file anew.  Whatever
this cannot tell (a chunk more, a new text, a row that changed) it leaves to `catalogue_file`.  It
takes no lock and does not ask whether a commit is half-way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from neurostore import catalogue_file
from neurostore.catalogue import ROW, Catalogue, RowsRead

__all__ = ["Tails"]


class Tails:
    """Where the last chunks of the tables of one file are.

    Parameters
    ----------
    h5file
        The file as it was when `held` was read from it, or later.
    held
        Its catalogue; tables whose last chunk is full have no tail.
    """

    def __init__(self, h5file: h5py.File, held: Catalogue) -> None:
        #: For each table the number of its last chunk, and where that is.
        self._places: Mapping[str, tuple[int, int]] = {
            name: (table.size // catalogue_file.CHUNK, place)
            for name, table in held.tables.items()
            if table.size % catalogue_file.CHUNK
            and (place := catalogue_file.chunk_place(h5file, name, table.size - 1)) is not None
        }

    def follow(self, descriptor: int, state_at: int, held: Catalogue) -> bool:
        """Bring a catalogue up to date; False, and it is as it was, where HDF5 has to be asked.

        Parameters
        ----------
        descriptor
            The file, open for reading.
        state_at
            Where the state of the catalogue stands.
        """
        state = catalogue_file.state_at(descriptor, state_at)
        if state is None or held.is_ahead():
            return False
        if any(state[name] != held.state[name] for name in catalogue_file.SAME_TABLES):
            return False
        missing = state["rows"] - sum(table.size for table in held.tables.values())
        added = []
        for name in self._places if missing > 0 else ():
            found = self._added(descriptor, held, name, missing)
            if found is None:
                return False
            if len(found.rows):
                added.append((held.tables[name].kind, found))
                missing -= len(found.rows)
        if missing:
            return False
        for kind, found in added:
            held.adopt(kind, found)
        held.state = state
        return True

    def _added(self, descriptor: int, held: Catalogue, name: str, most: int) -> RowsRead | None:
        """Return the rows that follow in the last chunk; None where it is not the last any more.

        The row before them is read with them: if it is another one, so is the place.
        """
        table = held.tables[name]
        number, place = self._places[name]
        inside = table.size - number * catalogue_file.CHUNK
        if not 0 < inside < catalogue_file.CHUNK:
            return None
        count = min(most, catalogue_file.CHUNK - inside)
        data = os.pread(descriptor, (count + 1) * ROW.itemsize, place + (inside - 1) * ROW.itemsize)
        if len(data) != (count + 1) * ROW.itemsize:
            return None
        rows: np.ndarray[Any, Any] = np.frombuffer(bytearray(data), ROW)
        if rows[:1].tobytes() != table.row(table.size - 1).tobytes():
            return None
        return catalogue_file.sound_rows(rows[1:])
