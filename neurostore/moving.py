"""The records of a file moved into a new one past HDF5, and linked there.

First `move`, while nobody has the new file open: what it moves stands behind everything else.
Then HDF5 copies the rest; then `link` gives the groups of the tree their links.  A record that
`relocation` does not know is left to HDF5, and so is a whole group that is not as neurostore made
it.  Which records there are is told by the links alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import h5py
import numpy as np
from h5py import h5g, h5l, h5o, h5t

from neurostore.errors import DamagedError
from neurostore.linktable import Link, dense_links
from neurostore.objectheader import Form, read_form, sealed, sound
from neurostore.osio import OsIO, write_all
from neurostore.relocation import Relocation
from neurostore.writeout import WriteOut

__all__ = ["Moved", "Targets", "check", "link", "move", "targets"]

#: By the path of a group, where its records stand in the new file.
Moved: TypeAlias = dict[bytes, dict[bytes, Link]]

#: By the path of a group, where it stands itself, and the links that HDF5 made in it.
Targets: TypeAlias = dict[bytes, tuple[int, list[Link]]]

_SUPERBLOCK = 48
#: Up to as many links HDF5 keeps in the header of a group; a table would take more.
_FEW = 8


def move(
    old: h5py.File,
    path: Path,
    temporary: Path,
    parents: Iterable[str],
    step: Callable[[], object],
    few: int = _FEW,
    ahead: WriteOut | None = None,
) -> Moved:
    """Move the records that stand in ``parents``; say where they stand now.

    Parameters
    ----------
    old
        The file at ``path``, open for reading.
    temporary
        The new file, with its empty tree, open nowhere.
    step
        Called for every record that was moved.
    few
        Records of a group up to which they are left to HDF5.
    ahead
        Told of what is written to the new file.
    """
    if not hasattr(os, "preadv"):  # Windows
        return {}
    with path.open("rb", buffering=0) as source, temporary.open("r+b", buffering=0) as target:
        before = _superblock(source.fileno())
        new = _superblock(target.fileno())
        if before is None or new is None or _end(new) != os.fstat(target.fileno()).st_size:
            return {}
        links = {parent.encode(): _links(old, parent.encode()) for parent in parents}
        wanted = [
            (parent, link) for parent, found in links.items() if len(found) > few for link in found
        ]
        run = Relocation(source.fileno(), target.fileno(), _end(new), ahead)

        def count(done: int) -> None:
            for _ in range(done):
                step()

        addresses = np.array([address for _, (_, address, _) in wanted], np.int64)
        places = run.move(addresses, count)
        _set_end(target.fileno(), new, run.end)
    moved: Moved = {}
    for (parent, (name, _, unicode)), place in zip(wanted, places.tolist(), strict=True):
        if place:
            moved.setdefault(b"/" + parent, {})[name] = name, place, unicode
    return moved


def targets(new: h5py.File, moved: Moved) -> Targets:
    """Return where the groups are that get links, once HDF5 has made all of its own."""
    return {
        parent: (int(h5o.get_info(new.id, parent).addr), _links(new, parent)) for parent in moved
    }


def link(temporary: Path, moved: Moved, groups: Targets) -> None:
    """Add links to what was moved to those that HDF5 made, in a file that is open nowhere."""
    with temporary.open("r+b", buffering=0) as stream:
        fd = stream.fileno()
        superblock = _superblock(fd)
        assert superblock is not None
        end = _end(superblock)
        for parent, (address, made) in groups.items():
            links = sorted([*made, *moved[parent].values()])
            image, heap, tree = dense_links(links, end)
            write_all(OsIO(), fd, image, end)
            _adopt(fd, address, heap, tree)
            end += len(image)
        _set_end(fd, superblock, end)


def _links(h5file: h5py.File, path: bytes) -> list[Link]:
    """Return the hard links of a group; none if it is not there."""
    try:
        group = h5g.open(h5file.id, path)
    except KeyError:
        return []
    found: list[Link] = []

    def see(name: bytes, info: h5l.LinkInfo) -> None:
        if info.type == h5l.TYPE_HARD:
            found.append((name, int(info.u), info.cset == h5t.CSET_UTF8))

    group.links.iterate(see, info=True)
    return found


def _adopt(fd: int, address: int, heap: int, tree: int) -> None:
    """Let a group have its links in a table, and none in its header."""

    def read(where: int, length: int) -> bytes:
        return os.pread(fd, length, where)

    form = read_form(read, address)
    assert form.table is not None
    pieces = [bytearray(piece) for piece in form.pieces]
    places = _places(form, address)
    piece, offset = form.table
    pieces[piece][offset : offset + 16] = heap.to_bytes(8, "little") + tree.to_bytes(8, "little")
    for piece in {piece for (piece, _), _ in form.own_links}:
        pieces[piece] = _without_links(form, piece, pieces[piece])
    for where, data in zip(places, pieces, strict=True):
        write_all(OsIO(), fd, sealed(bytes(data[:-4])), where)


def _without_links(form: Form, piece: int, data: bytearray) -> bytearray:
    """Return a piece of a header with one empty message, at its end, in the place of its links.

    HDF5 takes no piece that has an empty message and a gap at its end: both become one.
    """
    length = len(data)
    del data[length - 4 - form.gaps[piece] :]
    for (within, offset), size in sorted(form.own_links, reverse=True):
        if within == piece:
            del data[offset - form.prefix : offset + size]
    free = length - 4 - len(data) - form.prefix
    data += b"\0" + free.to_bytes(2, "little") + bytes(form.prefix - 3 + free + 4)
    return data


def _places(form: Form, address: int) -> list[int]:
    found = [address]
    for piece, offset in form.continued:
        found.append(int.from_bytes(form.pieces[piece][offset : offset + 8], "little"))
    return found


def check(new: h5py.File, moved: Moved) -> None:
    """Let HDF5 find some of the links; raise unless they lead to where the records stand."""
    for parent, links in moved.items():
        group = h5g.open(new.id, parent)
        names = sorted(links)
        for name in {names[0], names[len(names) // 2], names[-1]}:
            found = h5o.get_info(group, name)
            if int(found.addr) != links[name][1]:
                raise DamagedError(
                    f"{new.filename}: {parent.decode()}/{name.decode()} was moved to "
                    f"{links[name][1]} and is found at {found.addr}; the file was left as it was"
                )


def _superblock(fd: int) -> bytes | None:
    """Return the superblock, if it is one of the kind that neurostore makes."""
    data = os.pread(fd, _SUPERBLOCK, 0)
    plain = data[:8] == b"\x89HDF\r\n\x1a\n" and data[8:11] in (b"\x02\x08\x08", b"\x03\x08\x08")
    return data if plain and not any(data[12:20]) and sound(data) else None


def _end(superblock: bytes) -> int:
    return int.from_bytes(superblock[28:36], "little")


def _set_end(fd: int, superblock: bytes, end: int) -> None:
    data = superblock[:28] + end.to_bytes(8, "little") + superblock[36:44]
    write_all(OsIO(), fd, sealed(data), 0)
