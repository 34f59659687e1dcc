"""``Store``: the public object.  It checks arguments and delegates; it holds settings, no data."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import Any, Literal, Self, TypeVar

import xarray as xr

from neurostore import (
    filters,
    glance,
    records,
    rotation,
    series,
    views,
)
from neurostore.asking import Answering
from neurostore.errors import (
    ClosedError,
    HDF5StorageError,
    MovedError,
    ReadOnlyError,
    SealedError,
    ValidationError,
)
from neurostore.following import Patience, new_records, parts
from neurostore.keeping import Kept
from neurostore.osio import IO, Durability
from neurostore.page import Page, Section
from neurostore.places import is_url, place
from neurostore.recording import CommitEvery, Recorder, Target, append, recorder
from neurostore.session import Session, again, attach, forget_idle, release
from neurostore.stencil import Layout
from neurostore.times import TimeLike
from neurostore.views import Origin, View

__all__ = ["Store", "open"]

Mode = Literal["r", "a", "x"]
PathLike = str | os.PathLike[str]
Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)


def open(  # noqa: A001 (neurostore.open, as gzip.open)
    path: PathLike | Sequence[PathLike],
    mode: Mode = "a",
    *,
    compression: str | None = "gzip",
    compression_opts: int | None = 6,
    chunk_size: int = 1024,
    max_file_size: int = 10 * 1024**3,
    max_records: int | None = None,
    durability: Durability = "power",
    lock_timeout: float = 60.0,
    exclusive: bool = False,
    max_variable_bytes: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Store:
    """Open the store at ``path``.

    Parameters
    ----------
    path
        The HDF5 file.  A pattern such as ``"runs/*.h5"``, or a list of files, gives one view of
        all of them, for reading: an id that several of them have is shown as ``file::id``.
        A URL (``s3://``, ``https://``, any that fsspec knows; extra ``remote``) is for reading.
    mode
        ``"a"`` reads and writes and makes the file if need be, ``"r"`` only reads, ``"x"`` makes
        a new file and fails where there is one.
    compression, compression_opts
        ``"gzip"`` with a level from 0 to 9, ``"zstd"`` with one from 1 to 22 (it needs the extra
        ``zstd``), ``"lzf"``, ``"szip"`` or None.
    chunk_size
        A chunk of a variable holds at most ``64 * chunk_size`` values.
    max_file_size
        Bytes beyond which a commit rotates the file: it gets a name with a number, and an empty
        file goes on in its place.  Its records stay part of the store.
    max_records
        Records, removed ones included, with which a commit rotates the file; None: any number.
        netCDF4-python needs seconds to open a file with thousands of groups.
    durability
        ``"power"``: a committed record survives a power cut.  ``"process"``: it survives the end
        of the process, and storing needs no sync of the disk.
    lock_timeout
        Seconds to wait for another process that is writing.
    exclusive
        Nobody else has the file while this store is open: other processes can neither read nor
        write it.  Without it, one at a time writes and any number read.
    max_variable_bytes
        Bytes that reading one variable may take, so that a small file of somebody else's cannot
        fill the memory.  None: 1 GiB, or 1,100 times what is stored of it if that is more.
    storage_options
        What fsspec needs for a URL: keys, an endpoint.

    Examples
    --------
    >>> import neurostore
    >>> with neurostore.open(tmp / "run.h5") as store:
    ...     spikes = neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5)
    ...     store.store(spikes)
    'train_12.5'
    """
    return Store(
        path,
        mode,
        compression=compression,
        compression_opts=compression_opts,
        chunk_size=chunk_size,
        max_file_size=max_file_size,
        max_records=max_records,
        durability=durability,
        lock_timeout=lock_timeout,
        exclusive=exclusive,
        max_variable_bytes=max_variable_bytes,
        storage_options=storage_options,
    )


class Store(Answering, Kept):
    """Records in one HDF5 file, and in the files it was rotated to.  Made by `neurostore.open`.

    Several stores, in one process or many, may have the same file open; one at a time writes.
    A store is a context manager, and closing it twice is fine.  ``io`` is the part of the operating
    system that files are written with; tests let it fail.

    Examples
    --------
    >>> import neurostore
    >>> with neurostore.open(tmp / "run.h5") as store, store.batch():
    ...     for moment in (1.0, 2.0):  # both in one commit
    ...         _ = store.store(neurostore.spike_train([0.1], [1], timestamp=moment))
    >>> neurostore.open(tmp / "run.h5", mode="r").ids()
    ['train_1.0', 'train_2.0']
    """

    def __init__(
        self,
        path: PathLike | Sequence[PathLike],
        mode: Mode = "a",
        *,
        compression: str | None = "gzip",
        compression_opts: int | None = 6,
        chunk_size: int = 1024,
        max_file_size: int = 10 * 1024**3,
        max_records: int | None = None,
        durability: Durability = "power",
        lock_timeout: float = 60.0,
        exclusive: bool = False,
        max_variable_bytes: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
        io: IO | None = None,
    ) -> None:
        if mode not in ("r", "a", "x"):
            raise ValidationError(f"mode is {mode!r}, expected 'r', 'a' or 'x'")
        if durability not in ("power", "process"):
            raise ValidationError(f"durability is {durability!r}, expected 'power' or 'process'")
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise ValidationError(f"chunk_size is {chunk_size!r}, expected a positive integer")
        if exclusive and mode == "r":
            raise ValidationError("exclusive use is for writing; expected mode 'a' or 'x' with it")
        codec, level = filters.check_options(compression, compression_opts)
        limits = {
            "max_file_size": max_file_size,
            "max_records": max_records,
            "max_variable_bytes": max_variable_bytes,
        }
        for option, value in limits.items():
            if value is not None and (isinstance(value, bool) or not value > 0):
                raise ValidationError(f"{option} is {value!r}, expected a positive number")
        self.max_file_size = max_file_size
        self.max_records = max_records
        self.max_variable_bytes = max_variable_bytes
        self._was_rotated = False
        self._view: View | None = None
        self._joint: tuple[Store, ...] = ()
        self._layout = Layout(codec, level, chunk_size)
        self._durability: Durability = durability
        self._timeout = lock_timeout
        self._exclusive_use = exclusive
        self._io = io
        self._closed = False
        self._attached: Session | None = None
        several = views.expand(path)
        self.mode: Mode = mode if several is None else "r"
        if several is None:
            assert isinstance(path, str | os.PathLike)
            self.path = place(path, storage_options)  # one file, one name
            if is_url(path):
                self.mode = mode = "r"
                forget_idle(self.path)  # nothing tells of a remote file whether it is the same
            again(self._session)
            if is_url(path):  # only now is the server asked for it
                again(lambda: self._session().catalogue)
        else:
            self._open_all(path, several, mode)
        if mode == "x":
            self.mode = "a"

    def _open_all(self, path: Any, several: list[Path], mode: Mode) -> None:
        """Make a view of many files: a store for each history, for reading."""
        if mode == "x":
            raise ValidationError(
                f"{path}: mode 'x' makes one new file, and this names several; pass one path"
            )
        is_pattern = isinstance(path, str | os.PathLike)
        self.path = Path(os.path.realpath(path)) if is_pattern else several[0].parent
        self._source = os.fspath(self.path) if is_pattern else [str(one) for one in several]
        newest = again(lambda: views.histories(several))
        self._labels = views.labels(newest)
        limit = self.max_variable_bytes
        self._joint = tuple(
            Store(one, "r", max_variable_bytes=limit, io=self._io) for one in newest
        )

    @property
    def compression(self) -> str | None:
        """Filter that new records are stored with."""
        return self._layout.compression

    def __repr__(self) -> str:
        return self._page(Page.text)

    def _repr_html_(self) -> str:
        return self._page(Page.html)

    def _page(self, show: Callable[[Page], str]) -> str:
        """Show what is in the file; a repr raises nothing."""
        if self._closed:
            return show(Page("neurostore.Store", "closed", [Section("File", str(self.path))]))
        try:
            return show(self._ask(glance.of_store, self.mode))
        except (HDF5StorageError, OSError) as error:
            about = [Section("File", str(self.path)), Section("Error", str(error))]
            return show(Page("neurostore.Store", "cannot be looked at", about))

    def _session(self) -> Session:
        """Return the session of the file that is at the path now, to read from."""
        return self._attach().beside_batch()

    def _attach(self) -> Session:
        if self._closed:
            raise ClosedError(f"{self.path}: the store is closed; open it again")
        if self._attached is not None and self._attached.in_batch:
            return self._attached
        session = attach(self.path, self.mode, self, io=self._io)
        if session is not self._attached:
            if self._attached is not None:
                release(self._attached, self)
            self._attached = session
        session.max_variable_bytes = self.max_variable_bytes
        if self._exclusive_use:
            session.hold_alone(self, timeout=self._timeout, durability=self._durability)
        return session

    def _seen(self) -> View:
        """Return the histories that a question is asked of."""
        if self._joint:
            if self._closed:
                raise ClosedError(f"{self.path}: the store is closed; open it again")
            sessions = [store._session() for store in self._joint]
            origins = map(Origin, sessions, self._labels)
            return View(tuple(origins), self._source)
        session = self._session()
        if self._view is None or self._view.origins[0].session is not session:
            self._view = View.of(session)
        return self._view

    def _ask(self, question: Callable[..., Answer], *args: Any) -> Answer:
        return again(lambda: question(self._seen(), *args))

    def _writable(self) -> Session:
        if self._joint:
            raise ReadOnlyError(
                f"{self.path}: a view of several files is for reading; open one of them to write"
            )
        self._check_local()
        session = self._attach()
        if self.mode == "r":
            raise ReadOnlyError(
                f"{self.path}: opened with mode 'r'; open it with mode 'a' to write"
            )
        return session

    def _check_local(self) -> None:
        if is_url(self.path):
            raise ReadOnlyError(
                f"{self.path}: a remote file is for reading; expected a local one for this; copy "
                "it here first"
            )

    def _here(self) -> Path:
        """Return the path of the file; ReadOnlyError where it is on a server."""
        self._check_local()
        return self._session().path

    def _writing(self) -> AbstractContextManager[Session]:
        if self._attached is not None and self._attached.in_batch:
            return self._writable().spoiling()
        return self._committing()

    @contextmanager
    def _committing(self) -> Iterator[Session]:
        with ExitStack() as stack:
            session = again(lambda: self._entered(stack))
            is_commit = session.is_outermost
            yield session
        if is_commit and self._is_full(session.size, session.rows):
            self._rotate_after_commit(session)

    def _entered(self, stack: ExitStack) -> Session:
        session = self._writable()
        try:
            stack.enter_context(session.writing(timeout=self._timeout, durability=self._durability))
        except SealedError:
            if not rotation.is_unfinished(session):
                raise
            self._rotate(session)
            raise MovedError(f"{self.path}: was rotated; open it again") from None
        return session

    @property
    def traffic(self) -> dict[str, int]:
        """Requests that were made for a remote file, and bytes that came; empty for a local one.

        Of a series it is the newest file.
        """
        return self._session().traffic

    def _is_full(self, size: int, rows: int) -> bool:
        full = self.max_records is not None and rows >= self.max_records
        return rows > 0 and (full or size > self.max_file_size)

    def _rotate_after_commit(self, session: Session) -> None:
        """Rotate; where that fails, what was stored is stored, and the next commit tries again."""
        try:
            rotated = self._rotate(session, self._is_full)
        except MovedError:  # somebody else did
            return
        except (HDF5StorageError, OSError) as error:
            _log.warning("%s: is past its size, and rotating it failed: %s", self.path, error)
        else:
            self._was_rotated = self._was_rotated or rotated is not None

    # -- storing -------------------------------------------------------------------------------

    def store(self, ds: xr.Dataset | records.Draft | records.Record) -> str:
        """Store one record and return its id; when this returns, it is committed.

        Parameters
        ----------
        ds
            A labelled record, as the builders make it.

        Raises
        ------
        ValidationError
            Names everything that keeps ``ds`` from being a record; the file is as it was.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5))
        'train_12.5'
        """
        record = ds if isinstance(ds, records.Record) else records.examine(ds)
        with self._writing() as session:
            return session.put(record, self._layout, series.given_elsewhere(session))

    def store_tree(self, tree: xr.DataTree | Mapping[str, records.Record]) -> dict[str, str]:
        """Store every record node of ``tree`` in one commit; return the ids by node path.

        Examples
        --------
        >>> import neurostore
        >>> import xarray as xr
        >>> nodes = {f"/{t}": neurostore.spike_train([0.1], [1], timestamp=t) for t in (1.0, 2.0)}
        >>> neurostore.open(tmp / "run.h5").store_tree(xr.DataTree.from_dict(nodes))
        {'/1.0': 'train_1.0', '/2.0': 'train_2.0'}
        """
        examined = records.examine_tree(tree) if isinstance(tree, xr.DataTree) else tree
        with self._writing() as session:
            taken = series.given_elsewhere(session)
            return {path: session.put(r, self._layout, taken) for path, r in examined.items()}

    @contextmanager
    def batch(self) -> Iterator[Self]:
        """Make what is stored inside one commit; an exception leaves nothing of it.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> with store.batch():
        ...     for step in range(3):
        ...         _ = store.store(neurostore.spike_train([0.1], [1], timestamp=step))
        >>> store.ids()
        ['train_0.0', 'train_1.0', 'train_2.0']
        """
        with self._writing():
            yield self

    # -- recording -----------------------------------------------------------------------------

    def record(
        self,
        kind: str | None = None,
        *,
        timestamp: TimeLike | None = None,
        coords: Mapping[Any, Any] | None = None,
        units: str | None = None,
        commit_every: CommitEvery = 1,
        chunk: int | None = None,
        id: str | None = None,  # noqa: A002 (what it is called everywhere)
        **options: Any,
    ) -> Recorder:
        """Begin a record that grows, or go on with one; append to what this returns.

        Other processes read what is committed while it is being written, and a recorder that is
        killed leaves every append that was committed: there is nothing to repair or to finish.
        Between appends others may write to the file.

        Parameters
        ----------
        kind
            One that grows: spikes, states or traces over time, layer outputs, metrics, ...
        timestamp
            Time of the record; times of spikes and steps are relative to it.
        coords
            Coordinates that do not grow, such as labels of the neurons.
        units
            Unit of the spike times; seconds if it is not given.
        commit_every
            An int: commit after so many appends. A float or a timedelta: at the first append
            after so many seconds. What waits is lost with the process, and committed by
            :meth:`Recorder.flush` and at the end.
        chunk
            Rows to a chunk; as many as the first append has, or what fills 16 KiB, if it is None.
        id
            Go on with this record, which was begun by :meth:`record`.
        **options
            The kind's name and details as for its builder: ``reservoir_id``, ``metadata``, ...

        Examples
        --------
        >>> import neurostore
        >>> with neurostore.open(tmp / "run.h5") as store:
        ...     with store.record("reservoir_states", timestamp=0.0, reservoir_id="main") as rec:
        ...         for step in range(3):
        ...             rec.append([0.1 * step, 0.2], coords={"time": step})
        ...     store.retrieve("main_0.0").states.dims
        ('neuron', 'time')
        """
        self._writable()
        return recorder(
            Target(self._writing, self._session, self._layout),
            kind,
            timestamp=timestamp,
            coords=coords,
            units=units,
            commit_every=commit_every,
            chunk=chunk,
            record_id=id,
            options=options,
        )

    def append(self, ds: xr.Dataset, id: str | None = None) -> str:  # noqa: A002
        """Add a block of rows to a record that grows, in one commit; return the record's id.

        Parameters
        ----------
        ds
            The rows, labelled; with `id` only what has the growing dimension is needed.
        id
            A record that was begun by this or by :meth:`record`; None begins one.

        Examples
        --------
        >>> import neurostore
        >>> with neurostore.open(tmp / "run.h5") as store:
        ...     block = neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5)
        ...     _ = store.append(block, id=store.append(block))
        ...     dict(store.retrieve("train_12.5").sizes)
        {'spike': 4}
        """
        self._writable()
        return append(Target(self._writing, self._session, self._layout), ds, id)

    def follow(
        self,
        record_id: str | EllipsisType | None = ...,
        *,
        kind: str | None = None,
        name: str | None = None,
        interval: float = 0.1,
        timeout: float | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Iterator[xr.Dataset]:
        """Yield what is recorded, by any process, as it is committed.

        With an id: what the record has already, then every part that is added, until its recorder
        is closed.  The record may still have to come.  Without: every record that is stored from
        now on, of one kind or name or of all.  Nothing is read but the number of the last commit
        until that changes, and values only when they are asked for.

        Parameters
        ----------
        record_id
            The record to follow; left out, every new one.
        kind, name
            What new records have to be.
        interval
            Seconds from one look to the next.
        timeout
            Seconds without news after which the iteration ends, as it has to where a recorder
            was killed; None waits for ever.
        stop
            Asked at every look; the iteration ends when it says True and nothing is new.

        Raises
        ------
        RecordNotFoundError
            Until the end there was no such record, or it was removed.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> with store.record("spike_train", timestamp=0.0) as rec:
        ...     rec.append([0.1, 0.2], [1, 1])
        >>> for part in store.follow(rec.id):
        ...     print(part.sizes["spike"])
        2
        """
        if self._joint:
            raise ValidationError(f"{self.path}: several files; follow one of them")
        patience = Patience(interval, timeout, stop or (lambda: False))
        if isinstance(record_id, EllipsisType):
            return new_records(self._session, self.retrieve, kind, name, patience)
        if not isinstance(record_id, str):
            raise ValidationError(
                f"follow: the id is {record_id!r}, expected a str; a recorder knows its record's "
                "from the first commit on; leave the id out to follow every new record"
            )
        if kind is not None or name is not None:
            raise ValidationError("follow: an id says it all; leave out kind and name")
        return parts(self._session, self.retrieve, record_id, patience)

    @contextmanager
    def h5file(self) -> Iterator[Any]:
        """Give the open ``h5py.File`` for reading; nothing of it may be kept for later.

        Of a series it is the newest file.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> _ = store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5))
        >>> with store.h5file() as h5file:
        ...     print(h5file["spike_trains/raw_data/train_12.5/neuron_ids"][:])
        [1 3]
        """
        if self._joint:
            raise ReadOnlyError(f"{self.path}: there are several files; open one of them")
        with ExitStack() as stack:
            yield again(lambda: stack.enter_context(self._session().reading()))

    # -- the file's life -----------------------------------------------------------------------

    def rotate(self) -> Path:
        """Close the file off under a new name, and go on in an empty one; return the new name.

        Its records stay part of the store: it is asked as before, and opened where a question
        concerns it.  Ids that were given in it are not given again.

        Examples
        --------
        >>> import neurostore
        >>> with neurostore.open(tmp / "run.h5") as store:
        ...     _ = store.store(neurostore.spike_train([0.1], [1], timestamp=1.0))
        ...     print(store.rotate().name)
        ...     store.ids()
        run.000001.h5
        ['train_1.0']
        """
        rotated = again(lambda: self._rotate(self._writable()))
        assert rotated is not None
        return rotated

    def _rotate(
        self, session: Session, when: Callable[[int, int], bool] | None = None
    ) -> Path | None:
        options: dict[str, Any] = {} if when is None else {"when": when}
        return rotation.rotate(
            session, timeout=self._timeout, durability=self._durability, **options
        )

    def check_size(self) -> bool:
        """Rotate the file if it is past its size; tell whether it was rotated for that.

        A commit does the same by itself.  True also says that one did since the last call.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5", max_records=1)
        >>> store.check_size()
        False
        >>> _ = store.store(neurostore.spike_train([0.1], [1], timestamp=12.5))
        >>> store.check_size()
        True
        """
        rotated = again(lambda: self._rotate(self._writable(), self._is_full)) is not None
        rotated, self._was_rotated = rotated or self._was_rotated, False
        return rotated

    @contextmanager
    def _exclusive(self) -> Iterator[Session]:
        with ExitStack() as stack:
            yield again(lambda: self._entered_alone(stack))

    def _entered_alone(self, stack: ExitStack) -> Session:
        session = self._writable()
        stack.enter_context(session.exclusive(timeout=self._timeout, durability=self._durability))
        return session

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Let the file go; the last store of a file in this process closes it."""
        if self._closed:
            return
        session = self._attached
        if session is not None:
            session.check_idle()
        self._closed, self._attached, self._view = True, None, None
        for store in self._joint:
            store.close()
        if session is not None:
            release(session, self, close=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
