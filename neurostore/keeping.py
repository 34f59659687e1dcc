"""The life of a file as methods of a store: cleanup, compaction, maintenance, verification.

Every method checks and delegates; `neurostore.store.Store` inherits them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from neurostore import (
    accounting,
    compaction,
    comparing,
    filters,
    maintenance,
    publishing,
    retention,
)
from neurostore import verify as checkup
from neurostore.maintenance import Maintained, Policy
from neurostore.osio import Durability
from neurostore.progress import Progress
from neurostore.repacking import PAGE_SIZE, repack
from neurostore.retention import Keep
from neurostore.session import Session, again
from neurostore.stencil import Layout
from neurostore.times import TimeLike

__all__ = ["Kept"]

AsIs = Literal["as it is"]


class Kept:
    """What a store can do to its file as it ages."""

    path: Path
    _layout: Layout
    _timeout: float
    _durability: Durability

    def _session(self) -> Session:
        raise NotImplementedError

    def _writable(self) -> Session:
        raise NotImplementedError

    def _here(self) -> Path:
        raise NotImplementedError

    def cleanup(
        self,
        retention_days: float | None = None,
        *,
        keep: Keep | Iterable[Keep | Mapping[str, Any]] | None = None,
        kind: str | None = None,
        name: str | None = None,
        now: TimeLike | None = None,
        model_time: bool = False,
        dry_run: bool = False,
    ) -> list[str]:
        """Remove records, older than a number of days or by rules; return their ids in time order.

        All that a file loses, it loses in one commit.  The space is won back by :meth:`compact`; a
        rotated file that loses all it has is dropped at once.

        Parameters
        ----------
        retention_days
            Records with a timestamp before ``now`` less this many days go.
        keep
            Instead of days, one rule or several: a record goes if a rule speaks of it and none
            keeps it.
        kind, name
            With ``retention_days``: only these.
        now
            The moment to count days back from; the clock's if it is None.
        model_time
            Timestamps before 1980 are taken for model seconds, which have no age in days: they are
            kept; True gives them one.
        dry_run
            Remove nothing, only return what would be.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> for day in range(4):
        ...     ds = neurostore.spike_train([0.1], [1], timestamp=1.7e9 + day * 86_400)
        ...     _ = store.store(ds)
        >>> store.cleanup(2, now=1.7e9 + 3.5 * 86_400, dry_run=True)
        ['train_1700000000.0', 'train_1700086400.0']
        >>> store.cleanup(keep=neurostore.Keep(latest=1))
        ['train_1700000000.0', 'train_1700086400.0', 'train_1700172800.0']
        """
        rules = retention.rules_of(retention_days, keep, kind, name)
        if dry_run:
            return again(lambda: retention.select(self._session(), rules, now, model_time).ids)
        with self._writing() as session:
            doomed = retention.select(session, rules, now, model_time)
            retention.clean(session, doomed, self._timeout, self._durability)
        if again(lambda: self._session().catalogue.ledger.leaving):
            with self._writing() as session:
                if session.is_outermost:
                    retention.drop(session)
        return doomed.ids

    def compact(self, *, progress: Progress = None) -> int:
        """Write the file anew without what was removed; return the bytes that were won.

        The same for every file it was rotated to that has lost records since.  Chunks are moved,
        not encoded again.  Readers go on undisturbed, writers wait.

        Parameters
        ----------
        progress
            True shows a bar on a terminal; a function is called with the number of groups that
            were moved and of all groups.

        Raises
        ------
        NoSpaceError
            The new file would not fit beside the old one.

        Examples
        --------
        >>> import neurostore
        >>> import numpy as np
        >>> store = neurostore.open(tmp / "run.h5")
        >>> for t in (0.0, 1.0):
        ...     _ = store.store(neurostore.network_snapshot(np.eye(9), np.eye(9), timestamp=t))
        >>> store.cleanup(keep=neurostore.Keep(latest=1))
        ['snapshot_0.0']
        >>> store.compact() > 0
        True
        """
        return again(
            lambda: compaction.compact_series(
                self._writable(),
                timeout=self._timeout,
                durability=self._durability,
                progress=progress,
            )
        )

    def retrieve(self, record_id: str) -> xr.Dataset:
        """Return a record; `neurostore.store` says how."""
        raise NotImplementedError

    def rotate(self) -> Path:
        """Close the file off under a new name; `neurostore.store` says how."""
        raise NotImplementedError

    def _writing(self) -> AbstractContextManager[Session]:
        raise NotImplementedError

    def repack(
        self,
        *,
        compression: str | AsIs | None = "as it is",
        compression_opts: int | None = None,
        chunk_size: int | None = None,
        paged: bool = False,
        page_size: int = PAGE_SIZE,
        progress: Progress = None,
    ) -> int:
        """Write the file anew in another form; return the bytes that were won, maybe below 0.

        Without ``compression`` and ``chunk_size`` stored chunks are moved as they are.

        Parameters
        ----------
        compression, compression_opts, chunk_size
            As for :func:`neurostore.open`: every value is encoded anew, for an archive say.  What
            is left out is that of this store.
        paged
            Lay the file out in pages of ``page_size`` bytes, as readers of object stores like it.
            For files that are finished: what is appended later is in pages, too.
        progress
            True shows a bar on a terminal; a function is called with the number of things done
            and of all.

        Examples
        --------
        >>> import neurostore, numpy as np
        >>> store = neurostore.open(tmp / "run.h5")
        >>> store.store(neurostore.reservoir_states(np.zeros((300, 300)), "a", timestamp=1.0))
        'a_1.0'
        >>> _ = store.repack(compression="gzip", compression_opts=9, paged=True)
        >>> float(store.retrieve("a_1.0")["states"].sum())
        0.0
        """
        layout = None
        if compression != "as it is" or chunk_size is not None:
            held = self._layout
            codec, level = held.compression, held.level
            if compression != "as it is":
                codec, level = filters.check_options(compression, compression_opts)
            layout = Layout(codec, level, chunk_size or held.chunk_size)
        return again(
            lambda: repack(
                self._writable(),
                layout,
                page_size if paged else 0,
                timeout=self._timeout,
                durability=self._durability,
                progress=progress,
            )
        )

    def publish(
        self,
        target: str | os.PathLike[str],
        *,
        base: str | None = None,
        unsealed: bool = False,
        force: bool = False,
    ) -> int:
        """Show zarr readers the records of sealed files where they are; return their number.

        One JSON file, in kerchunk's form, says which bytes of which file are which chunk; every
        part of a record is a group at its address.  No values are copied.  What changes a file
        afterwards (:meth:`cleanup` with :meth:`compact`, :meth:`repack`) outdates the references.

        Parameters
        ----------
        target
            The JSON file to make.
        base
            URL of the folder where readers find the files, such as ``"s3://bucket/runs"``; None:
            where they are now.
        unsealed
            Take along the file that is not sealed by :meth:`rotate`: one that is finished.
        force
            Replace what stands at `target`.

        Raises
        ------
        ValidationError
            No file is sealed, or a variable is stored in a way that zarr cannot say.
        StoreNotFoundError
            A file of the series is not there.
        StoreExistsError
            Something stands at `target`.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> _ = store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5))
        >>> _ = store.rotate()
        >>> store.publish(tmp / "run.json", base="s3://bucket/runs")
        1
        """
        return again(
            lambda: publishing.publish(
                self._session(), target, base=base, unsealed=unsealed, force=force
            )
        )

    def diff(self, id_a: str, id_b: str) -> xr.Dataset:
        """Return what changed from one record to another, as a labelled Dataset.

        It has the variables that changed, each the second minus the first where those are numbers,
        and True where they differ otherwise; labels are matched.  Of spike trains it has the
        spikes that only one of them has, ``change`` being -1 for lost and 1 for new ones.  Its
        attributes name what did not change, labels and variables that only one of them has, and
        attributes that differ.

        Parameters
        ----------
        id_a, id_b
            Ids, or addresses, of two records.

        Raises
        ------
        MisalignedRecordsError
            They differ in size along a dimension without labels.

        Examples
        --------
        >>> import neurostore, numpy as np
        >>> store = neurostore.open(tmp / "run.h5")
        >>> for step in range(2):
        ...     ds = neurostore.network_snapshot(
        ...         adjacency=np.eye(2), weights=np.eye(2) * (1 + step), timestamp=float(step)
        ...     )
        ...     _ = store.store(ds)
        >>> found = store.diff("snapshot_0.0", "snapshot_1.0")
        >>> list(found.data_vars), found.attrs["unchanged"]
        (['weights'], ['adjacency'])
        """
        old, new = self.retrieve(id_a), self.retrieve(id_b)
        return comparing.difference(old, new, (id_a, id_b))

    def dead_share(self) -> float:
        """Return the share of the file that :meth:`compact` would win, about: 0 to 1."""
        return accounting.usage(self._session()).dead_share

    def is_empty(self) -> bool:
        """Tell whether nothing was stored in the file yet; of a series, in the newest."""
        return self._session().catalogue.state["rows"] == 0

    def maintain(
        self,
        policy: Policy | Mapping[str, Any] | str | os.PathLike[str],
        *,
        now: TimeLike | None = None,
        dry_run: bool = False,
        progress: Progress = None,
    ) -> Maintained:
        """Clean up, compact if it pays, rotate if it is time, as a policy says.

        Every step is whole or not at all; it may run from cron beside a running simulation.

        Parameters
        ----------
        policy
            A :class:`neurostore.Policy`, what one takes as a mapping, or the path of a TOML file.
        now
            The moment to count days back from; the clock's if it is None.
        dry_run
            Do nothing, only say which records would go.

        Raises
        ------
        LockTimeoutError
            Another process wrote all the time; the steps before stand.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> store.maintain({"keep": [{"latest": 10}], "rotate_above": 9 * 1000**3})
        Maintained(removed=[], compacted=None, rotated=None)
        """
        if isinstance(policy, Mapping):
            policy = Policy.of(policy)
        elif not isinstance(policy, Policy):
            policy = Policy.from_toml(Path(policy).read_text(encoding="utf-8"))
        return maintenance.maintain(
            self,
            policy,
            now=now,
            dry_run=dry_run,
            progress=progress,
        )

    def verify(
        self,
        *,
        series: bool = True,
        time_limit: float = checkup.TIME_LIMIT,
        memory_limit: int = checkup.MEMORY_LIMIT,
        progress: checkup.Progress | None = None,
    ) -> checkup.Report:
        """Check every record, in another process, because a damaged file can crash or hang HDF5.

        Parameters
        ----------
        series
            Whether the rotated files are read, too.
        time_limit
            Seconds that reading one record may take; large ones get more.
        memory_limit
            Bytes of memory that reading may take, on Linux.
        progress
            Called with the number of records done and the number of all.

        Examples
        --------
        >>> import neurostore
        >>> with neurostore.open(tmp / "run.h5") as store:
        ...     store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5))
        ...     print(store.verify())
        'train_12.5'
        1 record in 1 file: all sound
        """
        return checkup.verify(
            self._here(),
            series_too=series,
            time_limit=time_limit,
            memory_limit=memory_limit,
            progress=progress,
        )

    def repair(
        self,
        target: str | os.PathLike[str],
        *,
        series: bool = True,
        changed: bool = False,
        time_limit: float = checkup.TIME_LIMIT,
        memory_limit: int = checkup.MEMORY_LIMIT,
        progress: checkup.Progress | None = None,
    ) -> checkup.Repair:
        """Copy every intact record into a new file; the store stays as it is.

        Where the file is too damaged to be opened, call ``neurostore.verify.repair`` with its path.

        Parameters
        ----------
        target
            The new file; nothing stands there yet.
        series
            Whether the records of rotated files are copied, too.
        changed
            Copy also records that another program edited, and give them a new content hash.
        time_limit, memory_limit, progress
            As for :meth:`verify`.

        Raises
        ------
        StoreExistsError
            Something stands at ``target``.

        Examples
        --------
        >>> import neurostore
        >>> with neurostore.open(tmp / "run.h5") as store:
        ...     store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5))
        ...     print(store.repair(tmp / "sound.h5"))
        'train_12.5'
        1 record copied, 0 lost
        """
        return checkup.repair(
            self._here(),
            target,
            series_too=series,
            changed=changed,
            time_limit=time_limit,
            memory_limit=memory_limit,
            progress=progress,
        )
