"""What a store is asked, as methods of it: ids, records, ranges, the catalogue, the tree.

Every method checks its arguments and delegates; `neurostore.store.Store` inherits them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import xarray as xr

from neurostore import foreign, querying, summary
from neurostore.chunking import Chunks, chunked
from neurostore.combining import JOINS, Join
from neurostore.errors import ValidationError
from neurostore.times import TimeLike

__all__ = ["Answering"]

Answer = TypeVar("Answer")


class Answering:
    """What can be asked of the records of a store; nothing here writes."""

    path: Path

    def _ask(self, question: Callable[..., Answer], *args: Any) -> Answer:
        raise NotImplementedError

    def retrieve(
        self, record_id: str, *, chunks: Chunks = None, load: bool | str = False
    ) -> xr.Dataset:
        """Return a record as a labelled Dataset whose values are read when they are asked for.

        Parameters
        ----------
        record_id
            The id, or the full address of one of its groups.
        chunks
            None: values are read when they are asked for. Else they are dask arrays: ``{}`` in
            whole stored chunks of about 8 MiB, ``"auto"`` of about dask's ``array.chunk-size``,
            or sizes by dimension. It needs the extra ``dask``.
        load
            Read all values now: faster than ``.load()``, which takes one variable after another.
            The name of a kind: only if the record is of it. Not together with `chunks`.

        Raises
        ------
        RecordNotFoundError
            No record has this id.
        AmbiguousRecordError
            Several records of a file that others wrote have it; an address decides.

        Examples
        --------
        >>> import neurostore
        >>> with neurostore.open(tmp / "run.h5") as store:
        ...     record_id = store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5))
        ...     store.retrieve(record_id)["neuron_ids"].values
        array([1, 3])
        """
        if load and chunks is not None:
            raise ValidationError(
                f"chunks={chunks!r} asks for values later, load={load!r} for values now; "
                "expected one of the two"
            )
        return chunked(self._ask(querying.retrieve, record_id, load), chunks)

    def ids(
        self,
        kind: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        name: str | None = None,
    ) -> list[str]:
        """Return the ids of records in time order.

        Parameters
        ----------
        kind
            One record kind; None means all.
        start, end
            Both included; None leaves a side open.
        name
            Only records of this reservoir, rule, mechanism, task or map.

        Examples
        --------
        >>> import neurostore
        >>> with neurostore.open(tmp / "run.h5") as store:
        ...     for moment in (1.0, 2.0, 3.0):
        ...         _ = store.store(neurostore.spike_train([0.1], [1], timestamp=moment))
        ...     store.ids("spike_train", start=2.0)
        ['train_2.0', 'train_3.0']
        """
        return self._ask(querying.ids, kind, start, end, name)

    def range(
        self,
        kind: str,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        name: str | None = None,
        join: Join = "exact",
        chunks: Chunks = None,
    ) -> xr.Dataset:
        """Return all records of one kind in a span of time as one labelled, lazy Dataset.

        Equal-shaped records are stacked along ``record``; spike trains are joined as a CF
        contiguous ragged array; metrics take the union of their labels, NaN where one is missing.
        To have fewer records of spikes, narrow ``start`` and ``end``: a selection along ``record``
        leaves every spike in place, and one of spikes leaves ``row_size`` as it was.

        Parameters
        ----------
        kind, start, end, name
            As for :meth:`ids`.
        join
            What to do where labels differ at equal shape: ``"exact"`` refuses, ``"override"``
            takes the first record's, ``"inner"`` and ``"outer"`` align (and read) the values.
        chunks
            As for :meth:`retrieve`; many small records are one dask chunk.

        Raises
        ------
        MisalignedRecordsError
            Names the first record that does not fit, and how to select.

        Examples
        --------
        >>> import neurostore
        >>> with neurostore.open(tmp / "run.h5") as store:
        ...     for moment in (1.0, 2.0):
        ...         _ = store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=moment))
        ...     store.range("spike_train").sel(neuron_ids=3)["spike_times"].values
        array([0.3, 0.3])
        """
        if join not in JOINS:
            raise ValidationError(f"join is {join!r}, expected one of {', '.join(JOINS)}")
        return chunked(self._ask(querying.range_, kind, start, end, name, join), chunks)

    def catalogue(
        self,
        kind: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        name: str | None = None,
    ) -> xr.Dataset:
        """Return the table of records: one row each along ``record``, in time order.

        Parameters
        ----------
        kind, start, end, name
            As for :meth:`ids`.

        Examples
        --------
        >>> import neurostore
        >>> with neurostore.open(tmp / "run.h5") as store:
        ...     _ = store.store(neurostore.spike_train([0.1], [1], timestamp=12.5))
        ...     dict(store.catalogue().sizes)
        {'record': 1}
        """
        return self._ask(querying.catalogue, kind, start, end, name)

    def tree(
        self,
        kind: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        name: str | None = None,
    ) -> dict[str, xr.Dataset]:
        """Return the parts of records by address, as ``xarray.DataTree.from_dict`` takes them.

        Parameters
        ----------
        kind, start, end, name
            As for :meth:`ids`.

        Examples
        --------
        >>> import neurostore
        >>> with neurostore.open(tmp / "run.h5") as store:
        ...     _ = store.store(neurostore.spike_train([0.1], [1], timestamp=12.5))
        ...     list(store.tree())
        ['spike_trains/raw_data/train_12.5']
        """
        return self._ask(querying.groups, kind, start, end, name)

    def open_group(self, address: str, *, set_indexes: bool = True, **decoding: Any) -> xr.Dataset:
        """Return what stands at one address of the tree; of others by xarray's rules.

        Parameters
        ----------
        address
            Of a part of a record, or of a group that another tool wrote.
        set_indexes
            Whether what others wrote gets indexes, for which its coordinates are read.
        **decoding
            ``mask_and_scale``, ``decode_times`` and the other decoding options of
            `xarray.open_dataset`.  With any of them, a part of a record is decoded by xarray's
            rules as well, as ``engine="h5netcdf"`` would.  A bare dataset is read as it is.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> _ = store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5))
        >>> store.open_group("spike_trains/raw_data/train_12.5").sizes["spike"]
        2
        """
        foreign.check_options(decoding)
        ds = self._ask(querying.open_group, address, decoding)
        return foreign.indexed(ds) if set_indexes else ds

    def info(self) -> dict[str, Any]:
        """Return what is to be known of the store: counts, times, bytes, versions.

        Over all files of a series, and of a view: ``records`` and ``spans`` by kind, ``start`` and
        ``end``, ``file_size``, ``stored_bytes`` and ``logical_bytes`` (of the values, on disk and
        in memory), ``compression_ratio``, ``dead_bytes`` (about what compaction would win),
        ``files`` and ``per_file``, ``versions`` and ``schema_versions``.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> _ = store.store(neurostore.spike_train([0.1], [1], timestamp=12.5))
        >>> store.info()["records"]["spike_train"]
        1
        """
        return self._ask(summary.info)

    def plot(
        self,
        kind: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        name: str | None = None,
        figure: Any = None,
        figsize: tuple[float, float] | None = None,
    ) -> dict[str, Any]:
        """Draw the run on one page; return the artists by panel.

        See :func:`neurostore.plot.overview`.  It needs the extra ``plot``.

        Examples
        --------
        >>> import neurostore
        >>> from matplotlib.figure import Figure
        >>> store = neurostore.open(tmp / "run.h5")
        >>> _ = store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5))
        >>> "spike_train" in store.plot(figure=Figure())
        True
        """
        from neurostore.plot import overview

        return overview(self, kind, start, end, name=name, figure=figure, figsize=figsize)
