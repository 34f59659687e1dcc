"""A record that is written while it happens: appends are gathered, committed, and never lost.

A `Recorder` belongs to one record.  It checks every append when it is made, keeps copies until
the next commit, and writes them in one step.  How a record grows in the file is `growing`'s
affair, what a block must be `blocks`'.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import xarray as xr

from neurostore import blocks, growing, names, records, schema, series, times, types
from neurostore.blocks import Mould
from neurostore.catalogue import Entry
from neurostore.errors import ClosedError, RecordNotFoundError, ValidationError
from neurostore.schema import Kind
from neurostore.session import Session
from neurostore.stencil import Growth, Layout

__all__ = ["CommitEvery", "Recorder", "Target", "append", "recorder"]

#: Appends (int) or seconds (float, timedelta) from one commit to the next.
CommitEvery = int | float | timedelta

#: Moulds of records that were appended to, so that the next append need not read the file.
_moulds: WeakKeyDictionary[Session, dict[int, Mould]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Target:
    """Where a recorder writes: how to get at the file, and how records are laid out there."""

    writing: Callable[[], AbstractContextManager[Session]]
    session: Callable[[], Session]
    layout: Layout


@dataclass
class _Head:
    """What a record is given before its first rows."""

    kind: Kind | None
    timestamp: float | None
    name: str | None
    details: Any
    coords: Mapping[Any, Any]
    units: str | None


class Recorder:
    """One record while it grows; made by :meth:`neurostore.Store.record`.

    A context manager: leaving it commits what was appended, also after an exception.  Several
    threads may append.  What is appended inside a batch goes with it if the batch fails;
    what was appended before is kept.

    Examples
    --------
    >>> import neurostore
    >>> with neurostore.open(tmp / "run.h5") as store:
    ...     with store.record("spike_train", timestamp=12.5) as rec:
    ...         rec.append([0.1, 0.3], [1, 3])
    ...         rec.append([0.4], [2])
    ...     store.retrieve(rec.id).sizes["spike"]
    3
    """

    def __init__(
        self,
        target: Target,
        head: _Head,
        *,
        record_id: str | None,
        commit_every: CommitEvery,
        chunk: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._target = target
        self._head = head
        self._entry: Entry | None = None
        self._mould: Mould | None = None
        self._file_id = (0, 0)
        self._epoch = -1
        self._pending: list[dict[str, np.ndarray[Any, Any]]] = []
        #: Which of them were appended inside a batch, and go with it if it fails.
        self._of_batch: list[dict[str, np.ndarray[Any, Any]]] = []
        self._count, self._seconds = _due(commit_every)
        self._chunk = _checked_chunk(chunk)
        self._clock = clock
        self._last = clock()
        self._marked = False
        self._closed = False
        self._guard = threading.RLock()
        #: Rows that are committed.
        self.length = 0
        #: Ids of the record, and of those that go on with it in the next files of a series.
        self.ids: list[str] = []
        self._session = target.session()
        if record_id is not None:
            self._resume(record_id)

    # -- what it is ------------------------------------------------------------------------

    @property
    def id(self) -> str | None:
        """Id of the record; None until its first rows are committed."""
        return self._entry.id if self._entry is not None else None

    @property
    def kind(self) -> Kind:
        """Row of the table of kinds."""
        if self._mould is not None:
            return self._mould.kind
        assert self._head.kind is not None
        return self._head.kind

    @property
    def pending(self) -> int:
        """Appends that are not committed yet."""
        return len(self._pending)

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<neurostore.Recorder {self.id!r}, {self.length} rows{state}>"

    def _resume(self, record_id: str) -> None:
        """Go on with a record that is in the file."""
        session = self._target.session()
        found = series.find(session, record_id)
        if found is None:
            raise RecordNotFoundError(
                f"{session.path}: no record {record_id!r} to go on with; "
                "ids() lists those there are (neurostore ls FILE)"
            )
        volume, entry = found
        if volume.file_id != session.catalogue.file_id:
            raise ValidationError(
                f"{session.path}: {record_id!r} is in {volume.path.name}, which was rotated; "
                "record a new one"
            )
        remembered = _moulds.setdefault(session, {})
        mould = remembered.get(entry.serial)
        if mould is None:
            if len(remembered) > 1000:
                remembered.clear()
            mould = remembered[entry.serial] = _mould_of(session, entry)
            if session.in_batch:  # undone, it leaves its serial to another record
                session.if_undone(remembered.clear)
        if session.in_batch and not session.catalogue.is_written(entry):
            session.if_undone(self._forget)
        self._check_head(mould, record_id)
        self._entry, self._mould, self._file_id = entry, mould, volume.file_id
        self.ids.append(entry.id)
        self._marked = session.is_recording(entry)
        self.length = int(session.open_record(entry)[0].sizes[str(mould.kind.grows)])

    def _forget(self) -> None:
        """Let go of a record that is no more: what is appended from here on begins another."""
        with self._guard:
            self._entry, self._file_id, self.ids = None, (0, 0), []
            self.length, self._marked = 0, False

    def _check_head(self, mould: Mould, record_id: str) -> None:
        head, odd = self._head, []
        if head.kind is not None and head.kind is not mould.kind:
            odd.append(f"it is a {mould.kind.name}, not a {head.kind.name}")
        if head.timestamp is not None and head.timestamp != mould.timestamp:
            odd.append(f"its timestamp is {mould.timestamp!r}, not {head.timestamp!r}")
        if head.name is not None and head.name != mould.name:
            odd.append(f"its {mould.kind.label} is {mould.name!r}, not {head.name!r}")
        if head.details is not None or head.coords or head.units is not None:
            odd.append("what stands beside its rows is there already; leave it out")
        if odd:
            raise ValidationError.of(f"{record_id}: cannot go on", odd)

    # -- appending -------------------------------------------------------------------------

    def append(self, *args: Any, coords: Mapping[Any, Any] | None = None, **values: Any) -> None:
        """Add rows; with ``commit_every=1`` they are committed when this returns.

        Parameters
        ----------
        *args, **values
            One labelled Dataset or DataArray, or arrays in the order, or by the names, that the
            kind's builder has.  Arrays have the growing dimension (many rows) or lack it (one);
            layers always have it, metrics are numbers or one-dimensional arrays.
        coords
            Coordinates along the growing dimension, such as ``{"time": 0.5}``.

        Raises
        ------
        ValidationError
            Names everything that does not fit the record; nothing of the append is kept.
        WriteError, LockTimeoutError
            It could not be committed. The rows are kept, and go with the next append or
            :meth:`flush`.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> with store.record("reservoir_states", timestamp=0.0, reservoir_id="main") as rec:
        ...     for step in range(3):
        ...         rec.append(states=[0.1, 0.2], coords={"time": 0.01 * step})
        >>> store.retrieve(rec.id).sizes["time"]
        3
        """
        with self._guard:
            self._check_open()
            record = records.examine(self._draft(args, values, coords or {}))
            mould = self._mould or Mould.of(record)
            rows = {
                name: np.array(array, order="C", copy=True)
                for name, array in mould.fit(record).items()
            }
            self._mould = mould
            self._pending.append(rows)
            if self._session.in_batch:
                self._of_batch.append(rows)
            if self._is_due():
                self._flush()

    def joined(self, appends: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """Return the arguments of several appends as those of one, or None."""
        known = self._mould.dims if self._mould is not None else {}
        plain = [{k: v for k, v in one.items() if k != "coords"} for one in appends]
        made = blocks.joined(self.kind, plain, known)
        coords = [one.get("coords") for one in appends]
        if made is None or all(one is None for one in coords):
            return made
        if any(one is None or one.keys() != (coords[0] or {}).keys() for one in coords):
            return None
        made["coords"] = {
            key: np.concatenate([np.atleast_1d(one[key]) for one in coords if one is not None])
            for key in coords[0] or {}
        }
        return made

    def _draft(
        self, args: tuple[Any, ...], values: Mapping[str, Any], coords: Mapping[Any, Any]
    ) -> xr.Dataset | records.Draft:
        if len(args) == 1 and isinstance(args[0], xr.Dataset):
            if values or coords:
                raise ValidationError("append: a Dataset goes alone; it holds its coordinates")
            return self._completed(args[0])
        kind = self.kind
        if len(args) > len(kind.variables):
            raise ValidationError(
                f"append: {len(args)} arrays, expected at most {len(kind.variables)} "
                f"for {kind.name}"
            )
        named = {row.name: value for row, value in zip(kind.variables, args, strict=False)}
        if twice := sorted(named.keys() & values.keys()):
            raise ValidationError(
                f"append: {', '.join(twice)} given twice, expected by place or by name"
            )
        made = blocks.draft(
            kind,
            {**named, **values},
            coords,
            timestamp=self._timestamp(),
            name=self._mould.name if self._mould is not None else self._head.name,
            known=self._mould.dims if self._mould is not None else {},
        )
        return self._with_head(made) if self._mould is None else self._with_units(made)

    def _timestamp(self) -> float:
        moment = self._mould.timestamp if self._mould is not None else self._head.timestamp
        assert moment is not None
        return moment

    def _completed(self, ds: xr.Dataset) -> xr.Dataset:
        """Give a Dataset the time and the name of the record where it has none."""
        if schema.TIMESTAMP not in ds.variables and (
            self._mould is not None or self._head.timestamp is not None
        ):
            ds = ds.assign_coords({schema.TIMESTAMP: self._timestamp()})
        if self._mould is None and self._head.coords:
            ds = ds.assign_coords(self._head.coords)
        return ds

    def _with_head(self, made: records.Draft) -> xr.Dataset | records.Draft:
        """Add what stands beside the rows, once."""
        head, kind = self._head, self.kind
        if head.details not in (None, {}):
            made.attrs[kind.details] = types.to_json(head.details, kind.details)
        made = self._with_units(made)
        if not head.coords:
            return made
        try:
            return made.to_dataset().assign_coords(head.coords)
        except (ValueError, TypeError) as error:
            raise ValidationError(
                f"{kind.name}: coords: expected what assign_coords takes: {error}"
            ) from error

    def _with_units(self, made: records.Draft) -> records.Draft:
        """Blocks of bare arrays are in the unit of the record."""
        key = self.kind.unit_of
        units = self._mould.grown[key].units if self._mould and key else self._head.units
        if key is not None and units is not None:
            plain = made.variables[key]
            plain.attrs = {**plain.attrs, "units": units}
        return made

    # -- committing ------------------------------------------------------------------------

    def _is_due(self) -> bool:
        if self._seconds is not None:
            return self._clock() - self._last >= self._seconds
        return len(self._pending) >= self._count

    def flush(self) -> None:
        """Commit what was appended.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> with store.record("spike_train", timestamp=0.0, commit_every=100) as rec:
        ...     rec.append([0.1, 0.2], [1, 1])
        ...     rec.flush()
        ...     print(rec.length, rec.pending)
        2 0
        """
        with self._guard:
            self._check_open()
            self._flush()

    def _flush(self, last: bool = False) -> None:
        self._last = self._clock()
        if not self._pending and not (last and self._marked):
            return
        assert self._mould is not None
        rows = _joined(self._pending, self._mould)
        with self._target.writing() as session:
            file_id = session.catalogue.file_id
            entry = self._entry if file_id == self._file_id else None
            epoch = session.catalogue.state["epoch"]
            if entry is not None and epoch != self._epoch and session.is_whole(entry):
                entry = None  # the file was encoded anew
            if entry is None and not rows:
                return  # rotated or encoded anew since its last rows: nothing goes on with it
            self._session = session
            if not session.is_outermost:
                session.if_undone(self._undo())
            is_new = entry is None
            if entry is None:
                entry = self._begin(session, rows)
            if rows:
                session.grow(entry, rows)
            if is_new or last or not self._marked:
                session.mark(entry, recording=not last)
            ids = [*self.ids, entry.id] if is_new else self.ids
            settle = self._settling(entry, file_id, epoch, ids, rows, marked=not last)
            if session.is_outermost:
                session.when_stored(settle)
            else:
                settle()

    def _settling(
        self,
        entry: Entry,
        file_id: tuple[int, int],
        epoch: int,
        ids: list[str],
        rows: Mapping[str, np.ndarray[Any, Any]],
        *,
        marked: bool,
    ) -> Callable[[], None]:
        """Return what notes that a flush is stored, once or twice."""
        assert self._mould is not None
        mould = self._mould
        count = max((_rows_of(array, name, mould) for name, array in rows.items()), default=0)
        length = self.length + count

        def settle() -> None:
            self._entry, self._file_id, self._epoch, self.ids = entry, file_id, epoch, ids
            self.length, self._marked = length, marked
            self._pending.clear()
            self._of_batch.clear()

        return settle

    def _undo(self) -> Callable[[], None]:
        """Return what undoes a flush, as its batch was: older rows are pending again."""
        entry, file_id, ids = self._entry, self._file_id, self.ids.copy()
        length, marked = self.length, self._marked
        own = {id(rows) for rows in self._of_batch}
        kept = [rows for rows in self._pending if id(rows) not in own]

        def undo() -> None:
            with self._guard:
                self._entry, self._file_id, self.ids = entry, file_id, ids
                self.length, self._marked = length, marked
                self._pending[:0] = kept

        return undo

    def _begin(self, session: Session, rows: Mapping[str, np.ndarray[Any, Any]]) -> Entry:
        """Make the record, without rows yet; another one where the first cannot go on."""
        assert self._mould is not None
        mould, record = self._mould, self._mould.record
        if self._entry is not None:
            record = mould.going_on_from(self._entry.id)
        count = max((_rows_of(array, name, mould) for name, array in rows.items()), default=0)
        chunk = self._chunk or growing.rows_per_chunk(count, mould.row_bytes)
        growth = Growth(str(mould.kind.grows), chunk)
        taken = series.given_elsewhere(session)
        record_id = session.put(record, self._target.layout, taken, growth)
        entry = session.catalogue.find(record_id)
        assert entry is not None
        return entry

    def append_once(self, ds: xr.Dataset) -> str:
        """Append and commit one block; more may come, from anywhere.  Return the record's id."""
        self._count = 2
        self._marked = self._entry is not None
        self.append(ds)
        self._flush()
        assert self._entry is not None
        return self._entry.id

    # -- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        """Commit what was appended and end the recording; closing twice is fine."""
        with self._guard:
            if not self._closed:
                self._flush(last=True)
                self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self!r}; append to it by store.record(id={self.id!r})")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _due(commit_every: CommitEvery) -> tuple[int, float | None]:
    """Return the appends, or the seconds, after which to commit."""
    if isinstance(commit_every, timedelta):
        commit_every = commit_every.total_seconds()
    number = isinstance(commit_every, int | float) and not isinstance(commit_every, bool)
    if not number or not commit_every > 0:
        raise ValidationError(
            f"commit_every is {commit_every!r}, expected appends (a positive int) or seconds "
            "(a positive float or timedelta)"
        )
    return (commit_every, None) if isinstance(commit_every, int) else (0, float(commit_every))


def _checked_chunk(chunk: int | None) -> int | None:
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValidationError(f"chunk is {chunk!r}, expected rows to a chunk, a positive int")
    return chunk


def _rows_of(array: np.ndarray[Any, Any], name: str, mould: Mould) -> int:
    return int(array.shape[mould.grown[name].dims.index(str(mould.kind.grows))])


def _joined(
    pending: list[dict[str, np.ndarray[Any, Any]]], mould: Mould
) -> dict[str, np.ndarray[Any, Any]]:
    if len(pending) < 2:
        return pending[0] if pending else {}
    return {
        name: np.concatenate(
            [rows[name] for rows in pending], axis=form.dims.index(str(mould.kind.grows))
        )
        for name, form in mould.grown.items()
    }


def _mould_of(session: Session, entry: Entry) -> Mould:
    """Return the mould of a record from what stands in the file, reading none of its rows."""
    ds, _ = session.open_record(entry)
    dim = entry.kind.grows
    if dim is None or not session.grows(entry):
        raise ValidationError(
            f"{session.path}: {entry.id!r} was stored whole; only what Store.record() or append() "
            "began can be gone on with"
        )
    widths = {
        str(name): variable.dtype.itemsize // (4 if variable.dtype.kind == "U" else 1)
        for name, variable in ds.variables.items()
        if dim in variable.dims and variable.dtype.kind in "US"
    }
    return Mould.of(records.examine(ds.isel({dim: slice(0)}).load()), widths)


def recorder(
    target: Target,
    kind: str | None,
    *,
    timestamp: times.TimeLike | None,
    coords: Mapping[Any, Any] | None,
    units: str | None,
    commit_every: CommitEvery,
    chunk: int | None,
    record_id: str | None,
    clock: Callable[[], float] = time.monotonic,
    options: Mapping[str, Any],
) -> Recorder:
    """Return a recorder for a new record, or with ``record_id`` for one that is there.

    Raises
    ------
    ValidationError
        Names everything that is wrong with the arguments.
    """
    head = _head(kind, timestamp, coords, units, options, record_id is not None)
    return Recorder(
        target,
        head,
        record_id=record_id,
        commit_every=commit_every,
        chunk=chunk,
        clock=clock,
    )


def _head(
    kind: str | None,
    timestamp: times.TimeLike | None,
    coords: Mapping[Any, Any] | None,
    units: str | None,
    options: Mapping[str, Any],
    resuming: bool,
) -> _Head:
    found: list[str] = []
    row = _checked(found, schema.kind_of, kind) if kind is not None or not resuming else None
    if row is not None and row.grows is None:
        found.append(f"{row.name} is written whole; kinds that grow are {blocks.GROWING}")
    moment = _checked(found, times.to_seconds, timestamp) if timestamp is not None else None
    if timestamp is None and not resuming:
        found.append("timestamp is missing")
    rows = [row] if row is not None else schema.KINDS.values()
    given = dict(options)
    name, details = given.pop("name", None), None
    for candidate in rows:
        if candidate.label is not None and candidate.label in given:
            name = given.pop(candidate.label)
        details = given.pop(candidate.details, details)
    found += [f"{key!r} is no argument for {kind or 'a record'}" for key in given]
    if row is not None and row.label is not None and not resuming:
        _checked(found, names.check_name, name, row.label)
    if units is not None and row is not None and row.unit_of is None:
        found.append(f"units: {row.name} has no variable whose unit could be chosen")
    if found:
        raise ValidationError.of("record", found)
    return _Head(row, moment, name, details, coords or {}, units)


def _checked(found: list[str], function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except (ValueError, TypeError) as error:
        found.append(str(error))
        return None


def append(target: Target, ds: xr.Dataset, record_id: str | None) -> str:
    """Add one block to a record, or begin one with it; return its id."""
    kind = records.infer_kind(ds) if record_id is None else None
    if record_id is None and kind is None:
        records.examine(ds)  # says what is wrong
    head = _Head(kind, None, None, None, {}, None)
    made = Recorder(
        target, head, record_id=record_id, commit_every=1, chunk=None, clock=time.monotonic
    )
    return made.append_once(ds)
