"""The tree of groups in an open file: made, looked up, changed by moving links.

Everything that the session asks of HDF5 itself is here.  Locks, commits and the choice of the
handle are not.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import h5py
import numpy as np
from h5py import h5d, h5f, h5g, h5p

from neurostore import (
    catalogue_file,
    emptyfile,
    filters,
    growing,
    guard,
    h5attrs,
    ledger,
    names,
    reading,
    remote,
    safefile,
)
from neurostore.arrays import Key, Source
from neurostore.catalogue import Catalogue, Entry
from neurostore.catalogue_file import GROUP, RawFile
from neurostore.damage import naming_damage
from neurostore.errors import (
    DamagedError,
    LockTimeoutError,
    NotAStoreError,
    ReadOnlyError,
    RecordNotFoundError,
    StoreNotFoundError,
)
from neurostore.growing import Grower
from neurostore.journal import stated_end
from neurostore.ledger import Ledger
from neurostore.osio import OsIO
from neurostore.overlay import Overlay
from neurostore.rebuilding import rebuild
from neurostore.records import Piece
from neurostore.schema import Kind
from neurostore.shortcuts import Shortcuts
from neurostore.stencil import Growth, Layout, Stamped, Stencils
from neurostore.tablerows import UNCACHED

__all__ = [
    "H5File",
    "Raw",
    "Stamper",
    "adopt",
    "beside",
    "build_next",
    "check_signature",
    "chunks",
    "created_at",
    "cut_short",
    "fill_values",
    "grows",
    "has",
    "has_catalogue",
    "is_recording",
    "keep_creation_time",
    "look",
    "open_native",
    "open_new",
    "open_served",
    "own_attrs",
    "point_at",
    "read_values",
    "set_aside",
    "top_groups",
    "versions",
    "write_catalogue",
    "write_ledger",
]

H5File: TypeAlias = h5py.File

#: Records that are grown in turns without looking each up again.
_MOST_GROWERS = 64
#: Where removed records wait for compaction.
REMOVED = "catalogue/removed"
#: Removals up to which HDF5's small metadata cache does.
_FEW = 100
#: Bytes that HDF5 sets aside for metadata at a time in a file that is made at one go.
_META_BLOCK = 64 * 1024
#: What to do about damage; other records can be read as ever.
_REMEDY = "verify() lists all that is damaged"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def check_signature(path: Path) -> None:
    """Raise unless ``path`` is an HDF5 file that may be read."""
    if path.is_dir():
        raise NotAStoreError(f"{path}: is a directory, expected an HDF5 file")
    if path.exists() and not path.is_file():
        raise NotAStoreError(f"{path}: is a device or a pipe, expected an HDF5 file")
    try:
        with path.open("rb") as stream:
            head = stream.read(len(_SIGNATURE))
    except PermissionError as error:
        raise ReadOnlyError(
            f"{path}: may not be read ({error.strerror}); expected a file with read permission"
        ) from error
    if head != _SIGNATURE and not h5py.is_hdf5(path):
        said = f"begins with {head!r}" if head else "is empty; remove it to make a new one there"
        raise NotAStoreError(f"{path}: expected an HDF5 file; this one {said}")


def cut_short(path: Path) -> str:
    """Say how much of a file is there that is shorter than HDF5 left it; empty for any other."""
    there = stated = 0
    with suppress(OSError), path.open("rb", buffering=0) as stream:  # the caller says why
        there = os.fstat(stream.fileno()).st_size
        stated = stated_end(OsIO(), stream.fileno()) or 0
    return f"cut short: {there:,} of {stated:,} bytes are there" if there < stated else ""


def open_native(path: Path, *, cut: bool = False) -> H5File:
    """Open for reading with HDF5's own driver and its default locking.

    Where this process has the file open already, through h5py or by another thread, HDF5 would
    give that one again, with what it knew of the file then: it is opened through Python instead.
    With ``cut``, a file that was cut short is opened, too, with zeros for what is missing.
    """
    try:
        h5file = h5py.File(path, "r")
        if h5f.get_obj_count(h5file.id, h5f.OBJ_FILE) == 1:
            return h5file
        h5file.close()
        return safefile.open_h5(Overlay(path, finished=False), write=False)
    except FileNotFoundError:
        raise StoreNotFoundError(f"{path}: there is no such file; expected one to read") from None
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            raise LockTimeoutError(
                f"{path}: another program has the file open for writing, and keeps readers out by "
                "HDF5's own lock; expected none; close it there first"
            ) from error
        said = cut_short(path)
        if said and cut:
            return safefile.open_h5(Overlay(path, finished=False, whole=True), write=False)
        if said:
            raise DamagedError(
                f"{path}: {said}; copy it once more from where it came from, or save the records "
                "that can still be found with store.repair (neurostore repair FILE -o NEW)"
            ) from error
        raise NotAStoreError(
            f"{path}: expected an HDF5 file; HDF5 cannot open this one: {error}"
        ) from error


def open_served(file: remote.RemoteFile) -> H5File:
    """Open a remote file for reading."""
    try:
        return safefile.open_h5(file, write=False)
    except OSError as error:
        raise NotAStoreError(
            f"{file.url}: expected an HDF5 file; HDF5 cannot open this one: {error}"
        ) from error


def has(h5file: H5File, address: str) -> bool:
    """Tell whether something stands at ``address``."""
    start, path = _where(h5file, address)
    return path == "." or guard.exists(start, path.encode())


def has_catalogue(h5file: H5File) -> bool:
    """Tell whether the file has a time table."""
    return guard.exists(h5file.id, GROUP)


def point_at(h5file: H5File, held: Catalogue, entry: Entry) -> None:
    """Open the groups of a record of a remote file by reference, where there are any."""
    served = remote.of(h5file.id)
    if served is not None:
        _shortcuts.setdefault(served, Shortcuts()).point(h5file, held, entry)


#: Of remote files: groups that need not be looked up by name.
_shortcuts: WeakKeyDictionary[remote.RemoteFile, Shortcuts] = WeakKeyDictionary()


def _where(h5file: H5File, address: str) -> tuple[h5g.GroupID, str]:
    """Return from where, and by which path, an address is opened."""
    served = remote.of(h5file.id)
    held = _shortcuts.get(served) if served is not None else None
    return (h5file.id, address) if held is None else held.where(h5file.id, address)


def look(h5file: H5File, address: str, source: Source, kind: Kind | None) -> reading.Part:
    """Return what stands at ``address``."""
    start, path = _where(h5file, address)
    return reading.look(h5file.id, address, source, kind, start if path == "." else None)


def own_attrs(h5file: H5File, address: str) -> dict[str, Any]:
    """Return the attributes of a part that records of equal structure differ in."""
    return reading.own_attrs(*_where(h5file, address))


def grows(h5file: H5File, address: str) -> bool:
    """Tell whether the part at ``address`` was made to grow."""
    return growing.grows(h5g.open(h5file.id, address.encode()))


def is_recording(h5file: H5File, address: str) -> bool:
    """Tell whether the part at ``address`` is marked as being added to."""
    return growing.is_recording(h5g.open(h5file.id, address.encode()))


def created_at(h5file: H5File, path: Path) -> float:
    """Return when the file was made; for other people's files, when it was last changed."""
    found = h5attrs.read_one(h5file.id, b"created_at")
    return float(found) if found is not None else path.stat().st_mtime


def versions() -> dict[str, str]:
    """Return the versions of the HDF5 library and of what stands between it and us."""
    return {"hdf5": h5py.version.hdf5_version, "h5py": h5py.version.version}


def top_groups(h5file: H5File) -> list[str]:
    """Return the names of the groups at the top, the catalogue left out."""
    return [name for name in h5file if name != GROUP.decode()]


def adopt(path: Path, temporary: str) -> None:
    """Make at ``temporary`` a copy of the file with a sound catalogue, which it lacks.

    What can still be read of the old one stays: the file's identity, its counters, its series.
    """
    shutil.copyfile(path, temporary)
    with h5py.File(temporary, "r+", libver=("v110", "v110")) as h5file:
        found = rebuild(h5file)
        number = found.state["dimensions"]
        if h5file.id.links.exists(GROUP):
            del h5file[GROUP.decode()]
        catalogue_file.create(h5file, first_number=number)
        fresh = catalogue_file.read(h5file)
        assert fresh is not None
        found.settle(fresh)
        if found.ledger != Ledger():
            ledger.write(h5file, found.ledger)
        write_catalogue(found, h5file)


def write_catalogue(catalogue: Catalogue, h5file: H5File) -> None:
    """Write to a file that is open with HDF5's own driver, and let HDF5 place it first."""
    h5file.flush()
    with open(h5file.filename, "r+b", buffering=0) as stream:
        catalogue_file.Writer(h5file, Raw(stream)).write(catalogue)
    h5file.flush()


class Raw:
    """A file as bytes, for the catalogue."""

    def __init__(self, stream: io.FileIO) -> None:
        self._stream = stream

    def put(self, data: bytes, offset: int) -> None:
        """Write ``data`` at ``offset``."""
        os.pwrite(self._stream.fileno(), data, offset)


def beside(path: Path, what: str) -> Path:
    """Return where the file at ``path`` is made anew: one name, so that nothing is left for good.

    Whoever holds the writer lock may write over what stands there, but not over what a link that
    stands there leads to.
    """
    found = path.with_name(names.fitted(f".{path.name}", f"-{what}"))
    if found.is_symlink():
        found.unlink()
    return found


def open_new(temporary: Path) -> H5File:
    """Open a file that is being made; metadata in blocks, so that it is written in few pieces."""
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_meta_block_size(_META_BLOCK)
    return h5py.File(h5f.open(os.fsencode(temporary), h5f.ACC_RDWR, fapl=access))


def keep_creation_time(old: H5File, new: H5File) -> None:
    """Let a file that is made anew be as old as the one that it replaces, where that says so."""
    found = h5attrs.read_one(old.id, b"created_at")
    age = time.time() if found is None else found
    h5attrs.overwrite(new.id, b"created_at", np.array(age, np.float64))


def build_next(temporary: Path, following: Ledger, serial: int) -> None:
    """Make at ``temporary`` the empty file that goes on where another ends.

    Parameters
    ----------
    following
        Its place in the series.
    serial
        The number that its first record gets.
    """
    emptyfile.build(str(temporary))
    with h5py.File(temporary, "r+", libver=("v110", "v110")) as h5file:
        fresh = catalogue_file.read(h5file)
        assert fresh is not None
        fresh.state["serial"] = serial
        ledger.write(h5file, following)
        write_catalogue(fresh, h5file)


def write_ledger(h5file: H5File, found: Ledger) -> None:
    """Note in a file that is open for writing where it stands in its series."""
    ledger.write(h5file, found)


class Stamper:
    """Writes parts of records and their catalogue to their places in one file open for writing.

    Parents are opened once: looking one up costs as much as opening a dataset.

    Parameters
    ----------
    h5file
        The file.
    raw
        The same file as bytes.
    stencils
        Templates of the parts.
    state_at
        Where the counters of the catalogue stand, if that is known.
    """

    def __init__(
        self, h5file: H5File, raw: RawFile, stencils: Stencils, state_at: int | None = None
    ) -> None:
        self._h5file = h5file
        self._stencils = stencils
        self._raw = raw
        self._rows = catalogue_file.Writer(h5file, raw, state_at)
        self._growers: dict[str, Grower] = {}
        self._parents: dict[str, h5g.GroupID] = {}

    def stamp(
        self,
        piece: Piece,
        record_id: str,
        layout: Layout,
        elastic: str | None,
        first_number: int,
        growth: Growth | None = None,
    ) -> Stamped:
        """Write one part of a record to its place in the tree."""
        rest = {k: v for k, v in piece.attrs.items() if k not in ("kind", "schema_version")}
        return self._stencils.stamp(
            self._parent(piece.path),
            record_id.encode(),
            piece,
            rest,
            layout,
            elastic,
            first_number,
            growth,
        )

    def grow(self, address: str, blocks: Mapping[str, Any]) -> tuple[int, int]:
        """Add rows to one part of a record; return how many it has then, and its stored bytes.

        A part that the record does not have has none.
        """
        grower = self._growers.get(address)
        if grower is None:
            if not has(self._h5file, address):
                return 0, 0
            if len(self._growers) >= _MOST_GROWERS:  # each has its open chunks in memory
                del self._growers[next(iter(self._growers))]
            group = h5g.open(self._h5file.id, address.encode())
            grower = self._growers[address] = Grower(group, self._raw.put)
        grower.append(blocks)
        return grower.length, grower.stored_bytes

    def mark(self, address: str, recording: bool) -> None:
        """Note in a part whether somebody is still adding to it."""
        growing.mark(h5g.open(self._h5file.id, address.encode()), recording)

    def forget(self, address: str) -> None:
        """Let go of what is known of a part, which is about to be moved."""
        self._growers.pop(address, None)

    def write_catalogue(self, catalogue: Catalogue) -> None:
        """Write what was added to the catalogue, changed and counted."""
        self._rows.write(catalogue)

    def _parent(self, path: str) -> h5g.GroupID:
        parent = self._parents.get(path)
        if parent is None:
            parent = self._parents[path] = _group_at(self._h5file, path)
        return parent


def _group_at(h5file: H5File, path: str) -> h5g.GroupID:
    guard.check_path(h5file.id, path.encode())
    try:
        return h5g.open(h5file.id, path.encode())
    except (KeyError, ValueError):  # the group itself is missing, or one above it
        return h5g.create(h5file.id, path.encode(), lcpl=_with_parents())


def _with_parents() -> h5p.PropLCID:
    properties = h5p.create(h5p.LINK_CREATE)
    properties.set_create_intermediate_group(True)
    return properties


def set_aside(h5file: H5File, leaving: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Take groups out of the tree, and keep their objects in the file.

    HDF5 would give their place to the next record, and a reader that still has one open would
    read that one.  Compaction drops them.

    Parameters
    ----------
    leaving
        For each parent the names of the groups, each with its name among those that were removed.
    """
    count = sum(map(len, leaving.values()))
    if not count:
        return
    with _roomy(h5file) if count > _FEW else nullcontext():
        target = _group_at(h5file, REMOVED)
        for path, names in leaving.items():
            if not has(h5file, path):
                continue
            parent = h5g.open(h5file.id, path.encode())
            for leaf, name in names:
                if leaf.encode() in parent:
                    parent.links.move(leaf.encode(), target, name.encode())


@contextmanager
def _roomy(h5file: H5File) -> Iterator[None]:
    """Keep all metadata of large groups in memory for a while: a move touches four tables."""
    config = h5file.id.get_mdc_config()
    usual = config.max_size
    config.initial_size = config.min_size = config.max_size = 64 * 1024**2
    h5file.id.set_mdc_config(config)
    try:
        yield
    finally:
        config.initial_size = config.min_size = config.max_size = usual
        h5file.id.set_mdc_config(config)


def read_values(
    h5file: H5File, where: str, address: str, selection: Key | None, limit: int | None
) -> np.ndarray[Any, Any]:
    """Return values of one dataset as they are on disk; ``where`` names the file in errors."""
    dataset = _dataset(h5file, where, address)
    with naming_damage(f"{where}: {address}"):
        try:
            return filters.read(dataset, selection, limit)
        except DamagedError as error:  # it begins with the address
            raise DamagedError(f"{where}: {error}; {_REMEDY}") from error


def chunks(h5file: H5File, where: str, address: str) -> tuple[int, ...] | None:
    """Return the shape of the chunks of one dataset; None where it is stored in one piece."""
    held = _dataset(h5file, where, address).get_create_plist()
    return tuple(held.get_chunk()) if held.get_layout() == h5d.CHUNKED else None


def fill_values(
    h5file: H5File,
    where: str,
    wanted: Iterable[tuple[str, Key | None, np.ndarray[Any, Any]]],
    limit: int | None,
) -> None:
    """Fill arrays with values of many datasets, as they are on disk."""
    opened = ((_dataset(h5file, where, address), *rest) for address, *rest in wanted)
    with naming_damage(where):
        try:
            filters.read_many(opened, limit)
        except DamagedError as error:
            said = str(error).removeprefix(f"{where}: ")
            raise DamagedError(f"{where}: {said}; {_REMEDY}") from error


def _dataset(h5file: H5File, where: str, address: str) -> h5d.DatasetID:
    with naming_damage(f"{where}: {address}"):
        start, path = _where(h5file, address)
        link = path.encode()
        try:
            is_here = guard.is_hard(start, link)
        except RuntimeError:
            is_here = False
        if not is_here and not guard.exists(start, link):
            raise RecordNotFoundError(
                f"{where}: {address} is not there any more; it was removed after it was opened"
            )
        # Chunks are read past HDF5, or once: a cache of them would only have to be made.
        return h5d.open(start, link, UNCACHED)
