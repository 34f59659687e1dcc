"""Records in an open file: put there, taken out, and found again from any process.

A `Session` is an open file that knows records; `attach` finds the one of a path.  A
`RecordSource` stands in a lazy array for the record whose values it reads, whatever was opened,
closed, compacted or rotated meanwhile.  Locks, handles and commits are `neurostore.openfile`'s.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from neurostore import emptyfile, foreign, osio, reading, salvage, schema, tree
from neurostore.arrays import Key, Place, Wanted
from neurostore.catalogue import Catalogue, Entry, Taken
from neurostore.damage import naming_damage
from neurostore.errors import (
    ClosedError,
    DamagedError,
    HDF5StorageError,
    MovedError,
    ReadOnlyError,
    RecordNotFoundError,
    StoreError,
    StoreExistsError,
    StoreNotFoundError,
)
from neurostore.openfile import OpenFile, drop_inherited
from neurostore.osio import IO
from neurostore.places import Url, place, spot
from neurostore.reading import Part
from neurostore.records import Record
from neurostore.registry import Key as FileKey
from neurostore.registry import Registry, key_of
from neurostore.stencil import Growth, Layout
from neurostore.tree import H5File

_log = logging.getLogger(__name__)

__all__ = [
    "RecordSource",
    "Session",
    "again",
    "attach",
    "close_all",
    "forget_idle",
    "open_paths",
    "pinned",
    "reading_from",
    "release",
]

Value = TypeVar("Value")


class Session(OpenFile):
    """An open file as the place of records.

    Get it from :func:`attach`; several stores may share it.
    """

    def __init__(
        self, path: Path, key: FileKey, registry: Registry[Any], io: IO | None = None
    ) -> None:
        super().__init__(path, key, registry, io)
        #: Catalogues of older files of the series, kept to tell which ids they gave.
        self.elsewhere: dict[str, Catalogue] = {}

    def put(
        self,
        record: Record,
        layout: Layout,
        taken: Taken,
        growth: Growth | None = None,
    ) -> str:
        """Write one record, inside :meth:`writing`; return its id.

        ``taken`` tells of ids that were given elsewhere in the series.  With ``growth``, what lies
        along the growing dimension is left to :meth:`grow`.
        """
        assert self._writer is not None
        assert self._stamper is not None
        held = self._catalogue_for(self._writer)
        self._count_puts()
        kind = record.kind
        record_id, leaf = held.claim(kind, record.name, record.timestamp, taken)
        stored = 0
        for piece in record.pieces:
            done = self._stamper.stamp(
                piece,
                record_id,
                layout,
                kind.elastic,
                held.state["dimensions"],
                growth,
            )
            held.take_numbers(done.dimensions)
            stored += done.bytes
        held.add(
            kind,
            timestamp=record.timestamp,
            name=record.name,
            leaf=leaf,
            # The structure names all sizes but that of the elastic dimension.
            structure=record.structure if growth is None or growth.dim == kind.elastic else "",
            labels=record.labels,
            length=record.length if growth is None or growth.dim != kind.elastic else 0,
            stored_bytes=stored,
        )
        return record_id

    def grow(self, entry: Entry, rows: Mapping[str, np.ndarray[Any, Any]]) -> int:
        """Add rows to a record, inside :meth:`writing`; return how many it has then.

        ``rows`` are the values of every variable that grows, as they go to disk.
        """
        assert self._stamper is not None
        entry = self._renewed(self.catalogue, entry)
        length = stored = 0
        for part in entry.kind.parts:
            rows_there, bytes_there = self._stamper.grow(f"{part.path}/{entry.id}", rows)
            length, stored = max(length, rows_there), stored + bytes_there
        self.catalogue.amend(
            entry,
            length=length if entry.kind.elastic in (None, entry.kind.grows) else None,
            stored_bytes=stored,
        )
        return length

    def mark(self, entry: Entry, recording: bool) -> None:
        """Note in a record whether somebody is still adding to it, inside :meth:`writing`."""
        assert self._stamper is not None
        for address in self._addresses(self._renewed(self.catalogue, entry)):
            self._stamper.mark(address, recording)

    def grows(self, entry: Entry) -> bool:
        """Tell whether rows can be added to a record."""
        with self.reading() as h5file:
            return any(tree.grows(h5file, address) for address in self._addresses(entry))

    def is_whole(self, entry: Entry) -> bool:
        """Tell whether a record is there, and no rows can be added to it."""
        return self.catalogue.renew(entry) is not None and not self.grows(entry)

    def is_recording(self, entry: Entry) -> bool:
        """Tell whether a record is being added to: marked so, in a file that is not sealed."""
        with self.reading() as h5file:
            seal = self._catalogue_for(h5file).ledger.seal
            if seal is not None and seal.head != self.path.name:  # the rotation is finished
                return False
            return any(tree.is_recording(h5file, address) for address in self._addresses(entry))

    def _addresses(self, entry: Entry) -> list[str]:
        """Return where the parts of a record are, as far as it has them."""
        with self.reading() as h5file:
            places = [f"{part.path}/{entry.id}" for part in entry.kind.parts]
            return [address for address in places if tree.has(h5file, address)]

    def remove(self, entries: Iterable[Entry]) -> None:
        """Take records out of the tree, inside :meth:`writing`."""
        assert self._writer is not None
        held = self._catalogue_for(self._writer)
        assert self._stamper is not None
        leaving: dict[str, list[tuple[str, str]]] = {}
        for entry in entries:
            number = held.remove(entry)
            for position, part in enumerate(entry.kind.parts):
                self._stamper.forget(f"{part.path}/{entry.id}")
                leaving.setdefault(part.path, []).append((entry.id, f"{number}_{position}"))
        tree.set_aside(self._writer, leaving)

    def open_record(self, entry: Entry) -> tuple[xr.Dataset, dict[str, Place]]:
        """Return one record, lazily, and where the values of its variables are."""
        with self.reading() as h5file:
            held = self._catalogue_for(h5file)
            entry = self._renewed(held, entry)
            row = held.tables[entry.kind.name].row(entry.row)
            found = self._look(h5file, entry)
            ds = reading.record(
                list(found.values()),
                entry.kind,
                float(row["timestamp"]),
                held.text(int(row["name"])),
            )
        ds.encoding.update(source=str(self.path), id=entry.id, groups=list(found))
        places: dict[str, Place] = {}
        for part in found.values():
            places = part.places | places
        return ds, places

    def open_parts(self, entry: Entry) -> dict[str, xr.Dataset]:
        """Return the parts of one record by their address, lazily."""
        with self.reading() as h5file:
            held = self._catalogue_for(h5file)
            entry = self._renewed(held, entry)
            row = held.tables[entry.kind.name].row(entry.row)
            name = held.text(int(row["name"]))
            return {
                address: reading.record([part], entry.kind, float(row["timestamp"]), name)
                for address, part in self._look(h5file, entry).items()
            }

    def _renewed(self, held: Catalogue, entry: Entry) -> Entry:
        """Return the entry as the catalogue has it now: compaction moves rows."""
        found = held.renew(entry)
        if found is None:
            raise RecordNotFoundError(
                f"{self.path}: the record {entry.id!r} was removed meanwhile; "
                "ids() lists those there are (neurostore ls FILE)"
            )
        return found

    def _look(self, h5file: H5File, entry: Entry) -> dict[str, Part]:
        """Return the parts of a record; those of a known structure without opening a variable."""
        held = self._catalogue_for(h5file)
        tree.point_at(h5file, held, entry)
        row = held.tables[entry.kind.name].row(entry.row)
        source = self._source(held, entry)
        trusted = self.is_untouched() and entry.serial >= held.state["trusted_from"]
        code = int(row["structure"]) if trusted else 0
        known = self._templates.get(code) if code else None
        with naming_damage(f"{self.path}: the record {entry.id!r} is damaged"):
            if known is not None:
                elastic, length = entry.kind.elastic, int(row["length"])
                addresses = [f"{path}/{entry.id}" for path in known]
                return {
                    address: part.of_another(
                        address, tree.own_attrs(h5file, address), source, elastic, length
                    )
                    for address, part in zip(addresses, known.values(), strict=True)
                }
            found = {
                part.path: tree.look(h5file, f"{part.path}/{entry.id}", source, entry.kind)
                for part in entry.kind.parts
                if tree.has(h5file, f"{part.path}/{entry.id}")
            }
            if not found:
                raise DamagedError(
                    f"{self.path}: the record {entry.id!r} is in the catalogue and not in the "
                    "tree; somebody else removed or renamed its groups"
                )
            if code:
                self._templates[code] = found
            return {f"{path}/{entry.id}": part for path, part in found.items()}

    def _source(self, held: Catalogue, entry: Entry | None) -> RecordSource:
        """Return where the values of a record, or of what is none, are read from."""
        # Of a batch that may come to nothing: looked up whenever it is read.
        settled = entry is None or held.is_written(entry)
        return RecordSource(
            spot(self.path),
            held.file_id,
            entry.id if entry is not None else "",
            entry.serial if entry is not None else -1,
            held.state["epoch"] if settled else -1,
            self.max_variable_bytes,
        )

    def open_group(self, address: str, decoding: Mapping[str, Any] | None = None) -> xr.Dataset:
        """Return what stands at one address of the tree, lazily; of others without indexes.

        With ``decoding``, a part of a record is decoded by xarray like what others wrote.
        """
        plain = address.strip("/")
        kind = _kind_at(plain)
        with self.reading() as h5file, naming_damage(f"{self.path}: /{plain}"):
            if not tree.has(h5file, plain):
                raise RecordNotFoundError(
                    f"{self.path}: nothing stands at /{plain}; tree() lists the addresses"
                )
            held = self.catalogue
            entry = held.find(plain) if kind is not None else None
            if (decoding or kind is None) and foreign.applies(h5file.id, plain, bool(decoding)):
                source, where = self._source(held, entry), str(self.path)
                ds = foreign.opened(h5file.id, plain, source, where, decoding or {})
            elif entry is not None:
                ds = self.open_parts(entry)[plain]
            else:
                part = tree.look(h5file, plain, self._source(held, None), kind)
                ds = reading.dataset(part.variables, part.coordinates, part.attrs, kind)
        ds.encoding.update(source=str(self.path), group=f"/{plain}")
        return ds

    def has_group(self, address: str) -> bool:
        """Tell whether something stands at one address of the tree."""
        with self.reading() as h5file:
            return tree.has(h5file, address)

    def created_at(self) -> float:
        """Return when the file was made, in seconds since 1970."""
        with self.reading() as h5file, naming_damage(f"{self.path}: its root group"):
            return tree.created_at(h5file, self.path)

    def top_groups(self) -> list[str]:
        """Return the names of the groups at the top of the tree, the catalogue left out."""
        with self.reading() as h5file, naming_damage(f"{self.path}: its root group"):
            return tree.top_groups(h5file)

    def other_groups(self) -> list[str]:
        """Return what stands at the top of the tree and is not neurostore's."""
        with self.reading() as h5file, naming_damage(f"{self.path}: its root group"):
            return salvage.other_groups(h5file)


def _kind_at(address: str) -> schema.Kind | None:
    parent = address.rpartition("/")[0]
    fitting = (k for k in schema.KINDS.values() if any(p.path == parent for p in k.parts))
    return next(fitting, None)


@lru_cache(maxsize=64)
def _path(spot: str | Url) -> Path:
    return place(spot)


@dataclass(frozen=True)
class RecordSource:
    """Where the values of one record are read from, whichever process asks."""

    path: str | Url
    file_id: tuple[int, int]
    record_id: str
    serial: int
    epoch: int
    #: Bytes that reading one variable may take; None: what is sensible for what is stored.
    limit: int | None = None

    @property
    def version(self) -> tuple[int, ...]:
        """When others wrote the file, and its size, where nothing else tells it from a new one."""
        if any(self.file_id):
            return ()
        with suppress(OSError):
            found = os.stat(self.path)
            return found.st_mtime_ns, found.st_size
        return ()

    def read(self, address: str, selection: Key | None) -> np.ndarray[Any, Any]:
        """Return values of one dataset of the record as they are on disk."""

        def read(h5file: H5File, where: str, held: Catalogue) -> np.ndarray[Any, Any]:
            self.check(held)
            return tree.read_values(h5file, where, address, selection, self.limit)

        return again(lambda: self._with_file(read))

    def chunks(self, address: str) -> tuple[int, ...] | None:
        """Return the shape of the chunks of one dataset of the record; None where it has none."""

        def look(h5file: H5File, where: str, held: Catalogue) -> tuple[int, ...] | None:
            self.check(held)
            return tree.chunks(h5file, where, address)

        return again(lambda: self._with_file(look))

    def _with_file(self, use: Callable[[H5File, str, Catalogue], Value]) -> Value:
        """Use the file of the record, which may have been rotated since, and its catalogue."""
        with reading_from(_path(self.path)) as (session, h5file):
            held = session._catalogue_for(h5file)
            if held.file_id == self.file_id:
                return use(h5file, str(session.path), held)
            older = held.ledger.after_rotation(self.file_id)
        for name in older:
            rotated = _path(self.path).with_name(name)
            try:
                with reading_from(rotated) as (session, h5file):
                    held = session._catalogue_for(h5file)
                    if held.file_id == self.file_id:
                        return use(h5file, str(session.path), held)
            except StoreNotFoundError:
                raise StoreNotFoundError(
                    f"{rotated}: is not there; {self.path} was rotated to it after "
                    f"{self.record_id!r} was opened; put it back to read the record"
                ) from None
        raise RecordNotFoundError(
            f"{self.path}: the file was replaced since {self.record_id!r} was opened; retrieve it "
            "anew"
        )

    @property
    def file(self) -> tuple[str, tuple[int, int]]:
        """The file, by name and identity."""
        return str(self.path), self.file_id

    def fill(self, wanted: Sequence[Wanted]) -> None:
        """Fill arrays with values of records of this file, whose chunks are decoded together."""

        def fill(h5file: H5File, where: str, held: Catalogue) -> None:
            for source in {id(entry[0]): entry[0] for entry in wanted}.values():
                source.check(held)
            limits = [entry[0].limit for entry in wanted if entry[0].limit is not None]
            limit = min(limits) if limits else None
            tree.fill_values(h5file, where, [entry[1:] for entry in wanted], limit)

        again(lambda: self._with_file(fill))

    def check(self, held: Catalogue) -> None:
        """Raise unless the record is still there, and still the one that was opened."""
        if held.file_id != self.file_id:
            raise RecordNotFoundError(
                f"{self.path}: the file was replaced since {self.record_id!r} was opened; "
                "retrieve it anew"
            )
        if held.state["epoch"] == self.epoch or self.serial < 0:
            return
        if not held.holds(self.record_id, self.serial):
            raise RecordNotFoundError(
                f"{self.path}: the record {self.record_id!r} was removed after it was opened; "
                "ids() lists those there are (neurostore ls FILE)"
            )


# -- the sessions of this process --------------------------------------------------------------

_open: Registry[Session] = Registry()


def attach(path: Path, mode: str, user: object = None, *, io: IO | None = None) -> Session:
    """Return the session of the file at ``path``, which is absolute.

    Parameters
    ----------
    mode
        ``"r"``: it must exist; ``"a"``: it is created where it does not; ``"x"``: it must not.

    user
        Who holds it: a session with users is not closed.

    io
        The operations of the operating system, if the file is not open yet.

    Raises
    ------
    StoreNotFoundError, StoreExistsError, NotAStoreError, ReadOnlyError
    """
    made = None
    with _open.guard:
        key = key_of(path)
        if key is None:
            if mode == "r":
                raise StoreNotFoundError(
                    f"{path}: there is no such file; expected one to read; "
                    "neurostore.open(path) makes one"
                )
            try:
                made = create(path, io)
            except StoreExistsError:  # somebody else was faster
                if mode == "x":
                    raise
            key = key_of(path)
            assert key is not None
        elif mode == "x":
            raise StoreExistsError(f"{path}: exists already; open it with mode 'a' or 'r'")
        session, leaving = _open.get(key), []
        if session is None or session.path != path:
            if not isinstance(path, Url):
                tree.check_signature(path)
            session = Session(path, key, _open, io)
            if made is not None:
                session.know(*made)
            leaving = _open.add(session)
        if user is not None:
            session.users.add(user)
    # Closing waits for whoever reads there, who may be waiting for the guard.
    for other in leaving:
        other.close()
    return session


#: How often a question is asked anew because the file was rotated or compacted meanwhile.
_ATTEMPTS = 20


def again(ask: Callable[[], Value]) -> Value:
    """Ask anew, of the file that is there now, while files take each other's place."""
    for _ in range(_ATTEMPTS):
        with suppress(MovedError):
            return ask()
    return ask()


class _Pin:
    """Somebody who reads from a session for a moment."""


@contextmanager
def pinned(path: Path, io: IO | None = None, *, close: bool = False) -> Iterator[Session]:
    """Give the session of an existing file for a moment in which nobody closes it.

    With ``close`` it is closed afterwards, unless somebody else holds it.
    """
    pin = _Pin()
    session = attach(path, "r", pin, io=io)
    try:
        yield session.beside_batch()
    finally:
        release(session, pin, close)


@contextmanager
def reading_from(path: Path) -> Iterator[tuple[Session, H5File]]:
    """Give the session of an existing file, and the file, for a moment in which nothing changes.

    Whoever reads is not closed meanwhile, and makes sure that the file is still at its path: one
    that is open is found by its path, and asked once for what `pinned` would ask for twice.
    """
    known = _open.at(path)
    if known is not None:
        with ExitStack() as stack:
            known = known.beside_batch()
            h5file = None
            with suppress(MovedError, ClosedError):
                h5file = stack.enter_context(known.reading())
            if h5file is not None:
                yield known, h5file
                return
    with pinned(path) as session, session.reading() as h5file:
        yield session, h5file


def release(session: Session, user: object, close: bool = False) -> None:
    """Give a session up; with ``close``, the last user closes it."""
    with _open.guard:
        session.users.discard(user)
    session.let_go(user)
    with _open.guard:
        closing = not session.users and (close or not _open.has(session))
        if closing:
            _open.forget(session)
    if closing:
        session.close()


def forget_idle(path: Path) -> None:
    """Have a file that nobody holds opened anew."""
    with _open.guard:
        key = key_of(path)
        session = None if key is None else _open.get(key)
        if session is None or session.users:
            return
        _open.forget(session)
    session.close()


def create(path: Path, io: IO | None = None) -> tuple[Catalogue, int]:
    """Make an empty store at ``path``, whole or not at all; return what `emptyfile.build` does."""
    try:
        return osio.create(path, emptyfile.build, io=io)
    except PermissionError as error:
        raise ReadOnlyError(
            f"{path}: cannot be made ({error.strerror}); expected a folder with write permission"
        ) from error
    except (OSError, RuntimeError) as error:  # HDF5 raises either
        if isinstance(error, StoreError):
            raise
        raise osio.refused(str(path), "making the file", error, "nothing was made") from error


def open_paths() -> list[Path]:
    """Return the files that this process has open."""
    return [session.path for session in _open.all()]


def close_all() -> None:
    """Close every file that this process has open; called at exit."""
    for session in _open.all():
        try:
            session.close_at_exit()
        except (OSError, RuntimeError, HDF5StorageError) as error:
            _log.warning("%s: not closed in order; it is whole: %s", session.path, error)
    drop_inherited()


def _after_fork() -> None:
    """Leave a child none of its parent's files: it opens its own, and writes through no other."""
    for session in _open.reset():
        session.disown()


atexit.register(close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
