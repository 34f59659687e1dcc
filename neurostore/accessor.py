"""``.neuro`` on Dataset, DataArray and DataTree: one-line delegations that keep no state.

Importing the package registers them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import xarray as xr

from neurostore import glance, matrices, records, schema
from neurostore.chunking import Chunks
from neurostore.combining import Join
from neurostore.errors import ValidationError
from neurostore.store import Store
from neurostore.store import open as open_store
from neurostore.times import TimeLike

__all__ = ["DataArrayNeuro", "DataTreeNeuro", "DatasetNeuro"]

PathLike = str | os.PathLike[str]


class _Neuro:
    """What the accessors share: a store at a path, or at the one the data came from."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    def _dataset(self) -> xr.Dataset:
        return self._obj  # type: ignore[no-any-return]

    def _store(self, path: PathLike | None, mode: Any = "r", **settings: Any) -> Store:
        if path is None:
            path = self._obj.encoding.get("source")
        if path is None:
            raise ValidationError(
                "this object does not know which file it belongs to; pass path='run.h5'"
            )
        return open_store(path, mode, **settings)

    def _stored(self, path: PathLike | None, **settings: Any) -> Store:
        """Open a store for changing what is there: a mistyped path makes no file."""
        self._store(path)
        return self._store(path, "a", **settings)

    @property
    def kind(self) -> str | None:
        """Kind of record that this is, stamped or inferred; None if it is none.

        >>> import neurostore
        >>> neurostore.spike_train([0.1], [1], timestamp=0.0).neuro.kind
        'spike_train'
        """
        kind = records.infer_kind(self._dataset())
        return kind.name if kind is not None else None

    def validate(self) -> None:
        """Raise ValidationError with everything that keeps this from being stored.

        >>> import neurostore
        >>> neurostore.spike_train([0.1], [1], timestamp=0.0).neuro.validate()
        """
        records.examine(self._dataset())

    @property
    def metadata(self) -> Any:
        """The JSON that was kept with the record; ``{}`` where there is none.

        >>> import neurostore
        >>> ds = neurostore.spike_train([0.1], [1], timestamp=0.0, metadata={"subject": "a"})
        >>> ds.neuro.metadata
        {'subject': 'a'}
        """
        ds = self._dataset()
        row = schema.KINDS.get(str(ds.attrs.get("kind")))
        text = ds.attrs.get(row.details if row is not None else "metadata")
        return json.loads(text) if isinstance(text, str) else (text or {})

    def plot(
        self,
        ax: Any = None,
        *,
        figure: Any = None,
        figsize: tuple[float, float] | None = None,
        **style: Any,
    ) -> dict[str, Any]:
        """Draw the picture of this kind of record, or of a range; return the artists by panel.

        See :func:`neurostore.plot.record`.  It needs the extra ``plot``.

        >>> import neurostore
        >>> from matplotlib.figure import Figure
        >>> ds = neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=0.0)
        >>> list(ds.neuro.plot(figure=Figure()))
        ['raster', 'rates']
        """
        from neurostore.plot import record

        return record(self._dataset(), ax, figure=figure, figsize=figsize, **style)

    def retrieve(
        self, record_id: str, path: PathLike | None = None, *, chunks: Chunks = None
    ) -> xr.Dataset:
        """Return a record of the same file, lazily; see :meth:`neurostore.Store.retrieve`.

        >>> import neurostore
        >>> first, more = (neurostore.spike_train([0.1], [1], timestamp=t) for t in (1.0, 2.0))
        >>> _ = first.neuro.store(tmp / "run.h5"), more.neuro.store(tmp / "run.h5")
        >>> first.neuro.retrieve("train_2.0", tmp / "run.h5").sizes["spike"]
        1
        """
        return self._store(path).retrieve(record_id, chunks=chunks)

    def ids(
        self,
        kind: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        name: str | None = None,
        path: PathLike | None = None,
    ) -> list[str]:
        """Return ids in time order; see :meth:`neurostore.Store.ids`.

        >>> import neurostore
        >>> first, more = (neurostore.spike_train([0.1], [1], timestamp=t) for t in (1.0, 2.0))
        >>> _ = first.neuro.store(tmp / "run.h5"), more.neuro.store(tmp / "run.h5")
        >>> first.neuro.ids(path=tmp / "run.h5")
        ['train_1.0', 'train_2.0']
        """
        return self._store(path).ids(kind, start, end, name=name)

    def range(
        self,
        kind: str,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        name: str | None = None,
        join: Join = "exact",
        chunks: Chunks = None,
        path: PathLike | None = None,
    ) -> xr.Dataset:
        """Return many records as one Dataset; see :meth:`neurostore.Store.range`.

        >>> import neurostore
        >>> first, more = (neurostore.spike_train([0.1], [1], timestamp=t) for t in (1.0, 2.0))
        >>> _ = first.neuro.store(tmp / "run.h5"), more.neuro.store(tmp / "run.h5")
        >>> first.neuro.range("spike_train", 0, 5, path=tmp / "run.h5").sizes["spike"]
        2
        """
        return self._store(path).range(kind, start, end, name=name, join=join, chunks=chunks)

    def catalogue(
        self,
        kind: str | None = None,
        start: TimeLike | None = None,
        end: TimeLike | None = None,
        *,
        name: str | None = None,
        path: PathLike | None = None,
    ) -> xr.Dataset:
        """Return the table of records; see :meth:`neurostore.Store.catalogue`.

        >>> import neurostore
        >>> first, more = (neurostore.spike_train([0.1], [1], timestamp=t) for t in (1.0, 2.0))
        >>> _ = first.neuro.store(tmp / "run.h5"), more.neuro.store(tmp / "run.h5")
        >>> first.neuro.catalogue(path=tmp / "run.h5").sizes["record"]
        2
        """
        return self._store(path).catalogue(kind, start, end, name=name)

    def info(self, path: PathLike | None = None) -> dict[str, Any]:
        """Return what is to be known of the file; see :meth:`neurostore.Store.info`.

        >>> import neurostore
        >>> first, more = (neurostore.spike_train([0.1], [1], timestamp=t) for t in (1.0, 2.0))
        >>> _ = first.neuro.store(tmp / "run.h5"), more.neuro.store(tmp / "run.h5")
        >>> first.neuro.info(tmp / "run.h5")["records"]["spike_train"]
        2
        """
        return self._store(path).info()

    def cleanup(
        self,
        retention_days: float | None = None,
        *,
        path: PathLike | None = None,
        **options: Any,
    ) -> list[str]:
        """Remove old records; see :meth:`neurostore.Store.cleanup`.

        >>> import neurostore
        >>> first, more = (neurostore.spike_train([0.1], [1], timestamp=t) for t in (1.0, 2.0))
        >>> _ = first.neuro.store(tmp / "run.h5"), more.neuro.store(tmp / "run.h5")
        >>> first.neuro.cleanup(1, now=100_000, model_time=True, path=tmp / "run.h5")
        ['train_1.0', 'train_2.0']
        """
        return self._stored(path).cleanup(retention_days, **options)

    def diff(self, id_a: str, id_b: str, path: PathLike | None = None) -> xr.Dataset:
        """Return what changed between two records; see :meth:`neurostore.Store.diff`.

        >>> import neurostore
        >>> first, more = (neurostore.spike_train([0.1], [1], timestamp=t) for t in (1.0, 2.0))
        >>> _ = first.neuro.store(tmp / "run.h5"), more.neuro.store(tmp / "run.h5")
        >>> changed = first.neuro.diff("train_1.0", "train_2.0", tmp / "run.h5")
        >>> changed.sizes["spike"]
        0
        """
        return self._store(path).diff(id_a, id_b)

    def rotate(self, path: PathLike | None = None) -> Path:
        """Go on in a new file; see :meth:`neurostore.Store.rotate`.

        >>> import neurostore
        >>> first, more = (neurostore.spike_train([0.1], [1], timestamp=t) for t in (1.0, 2.0))
        >>> _ = first.neuro.store(tmp / "run.h5"), more.neuro.store(tmp / "run.h5")
        >>> first.neuro.rotate(tmp / "run.h5").exists()
        True
        """
        return self._stored(path).rotate()

    def compact(self, path: PathLike | None = None, **options: Any) -> int:
        """Win back the space of removed records; see :meth:`neurostore.Store.compact`.

        >>> import neurostore
        >>> first, more = (neurostore.spike_train([0.1], [1], timestamp=t) for t in (1.0, 2.0))
        >>> _ = first.neuro.store(tmp / "run.h5"), more.neuro.store(tmp / "run.h5")
        >>> first.neuro.compact(tmp / "run.h5") >= 0
        True
        """
        return self._stored(path).compact(**options)


class DatasetNeuro(_Neuro):
    """``ds.neuro``: store this record, or ask the file that it came from.

    By itself it shows what the Dataset is to neurostore: a record, a range of them, a catalogue.

    >>> import neurostore
    >>> print(neurostore.spike_train([0.1], [1], timestamp=12.5).neuro)
    <neurostore record> spike_train 32 B
    Time: 12.5 s
    Labels:
        spike_times  (spike: 1)  float64  spike times relative to the timestamp [s]
        neuron_ids   (spike: 1)  int64    neuron that fired
    """

    def __repr__(self) -> str:
        return glance.of_dataset(self._obj).text()

    def _repr_html_(self) -> str:
        return glance.of_dataset(self._obj).html()

    def store(self, path: PathLike | None = None, **settings: Any) -> str:
        """Store this record and return its id; it is committed when this returns.

        Parameters
        ----------
        path
            The file, made if need be; the one the data came from if it is None.
        **settings
            As for :func:`neurostore.open`: ``compression``, ``compression_opts``, ``chunk_size``,
            ``durability``, ``lock_timeout``.

        Examples
        --------
        >>> import neurostore
        >>> ds = neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5)
        >>> ds.neuro.store(tmp / "run.h5")
        'train_12.5'
        """
        record = records.examine(self._dataset())  # before a file is made for it
        return self._store(path, "a", **settings).store(record)

    def append(
        self, record_id: str | None = None, path: PathLike | None = None, **settings: Any
    ) -> str:
        """Add these rows to a record that grows, in one commit; return the record's id.

        Parameters
        ----------
        record_id
            The record; None begins a new one with these rows.
        path, **settings
            As for :meth:`store`.

        Examples
        --------
        >>> import neurostore
        >>> first = neurostore.spike_train([0.1], [1], timestamp=12.5)
        >>> train = first.neuro.append(path=tmp / "run.h5")
        >>> more = neurostore.spike_train([0.3, 0.4], [2, 2], timestamp=12.5)
        >>> more.neuro.append(train, tmp / "run.h5")
        'train_12.5'
        >>> neurostore.open(tmp / "run.h5").retrieve(train).sizes["spike"]
        3
        """
        ds = self._dataset()
        if record_id is not None:
            return self._stored(path, **settings).append(ds, record_id)
        records.examine(ds)  # before a file is made for it
        return self._store(path, "a", **settings).append(ds, record_id)

    def refresh(self) -> xr.Dataset:
        """Return the record that this came from as it is now; a record that grows is longer.

        Raises
        ------
        ValidationError
            This did not come from a store as one record.

        Examples
        --------
        >>> import neurostore
        >>> store = neurostore.open(tmp / "run.h5")
        >>> with store.record("spike_train", timestamp=0.0) as rec:
        ...     rec.append([0.1], [1])
        ...     ds = store.retrieve(rec.id)
        ...     rec.append([0.2, 0.3], [1, 2])
        >>> ds.sizes["spike"], ds.neuro.refresh().sizes["spike"]
        (1, 3)
        """
        record_id = self._obj.encoding.get("id")
        if record_id is None:
            raise ValidationError(
                "this does not know which record it is; retrieve(id) returns one that does"
            )
        return self._store(None).retrieve(record_id)

    def synapses(self, pre: Any = None, post: Any = None, *, name: str | None = None) -> xr.Dataset:
        """Return synapses by their neurons; see :func:`neurostore.matrices.synapses`.

        >>> import neurostore
        >>> import numpy as np
        >>> from scipy.sparse import csr_array
        >>> weights = csr_array(np.array([[0.0, 0.5], [0.0, 0.0]]))
        >>> ds = neurostore.network_snapshot(weights != 0, weights, timestamp=0.0)
        >>> ds.neuro.synapses(pre=0, name="weights").sizes["synapse"]
        1
        """
        return matrices.synapses(self._dataset(), pre, post, name)

    def to_scipy(self, name: str) -> Any:
        """Return a matrix as ``csr_array``; see :func:`neurostore.matrices.to_scipy`.

        >>> import neurostore
        >>> import numpy as np
        >>> weights = np.array([[0.0, 0.5], [0.0, 0.0]])
        >>> ds = neurostore.network_snapshot(weights > 0, weights, timestamp=0.0)
        >>> ds.neuro.to_scipy("weights").nnz
        1
        """
        return matrices.to_scipy(self._dataset(), name)

    def to_sparse(self, name: str) -> Any:
        """Return a matrix as ``sparse.COO``; see :func:`neurostore.matrices.to_pydata`."""
        return matrices.to_pydata(self._dataset(), name)

    def to_bcoo(self, name: str) -> Any:
        """Return a matrix as JAX's ``BCOO``; see :func:`neurostore.matrices.to_bcoo`.

        >>> import neurostore
        >>> import numpy as np
        >>> weights = np.array([[0.0, 0.5], [0.0, 0.0]])
        >>> ds = neurostore.network_snapshot(weights > 0, weights, timestamp=0.0)
        >>> ds.neuro.to_bcoo("adjacency").nse
        1
        """
        return matrices.to_bcoo(self._dataset(), name)

    def to_dense(self) -> xr.Dataset:
        """Return this with dense matrices; see :func:`neurostore.matrices.to_dense`.

        >>> import neurostore
        >>> import numpy as np
        >>> weights = np.array([[0.0, 0.5], [0.0, 0.0]])
        >>> ds = neurostore.network_snapshot(weights > 0, weights, timestamp=0.0)
        >>> ds.neuro.to_dense()["weights"].dims
        ('pre', 'post')
        """
        return matrices.to_dense(self._dataset())

    def to_jax(self) -> dict[str, Any]:
        """Return the numeric variables as JAX arrays by name: a pytree.

        Raises
        ------
        ValidationError
            JAX would narrow a dtype (64-bit values without ``jax_enable_x64``).

        Examples
        --------
        >>> import neurostore
        >>> import numpy as np
        >>> states = neurostore.reservoir_states(np.ones((1, 3), "f4"), "main", timestamp=0.0)
        >>> states[["states"]].drop_vars("timestamp").neuro.to_jax()["states"].shape
        (1, 3)
        """
        from neurostore.jaxio import to_jax

        return to_jax(self._dataset())


class DataArrayNeuro(_Neuro):
    """``da.neuro``: the same for one variable that is a record by itself."""

    def _dataset(self) -> xr.Dataset:
        name = self._obj.name
        if name is None:
            raise ValidationError("the DataArray has no name; da.rename('states') gives it one")
        ds: xr.Dataset = self._obj.to_dataset()
        ds.attrs = {k: v for k, v in self._obj.attrs.items() if k in _RECORD_ATTRS}
        for key in ds.attrs:
            ds[name].attrs.pop(key, None)
        return ds

    def store(self, path: PathLike | None = None, **settings: Any) -> str:
        """Store this variable as a record; see :meth:`DatasetNeuro.store`.

        >>> import neurostore
        >>> ds = neurostore.reservoir_states([[0.5, 0.1]], "main", timestamp=2.0)
        >>> states = ds["states"].assign_attrs(kind="reservoir_states", reservoir_id="main")
        >>> states.neuro.store(tmp / "run.h5")
        'main_2.0'
        """
        record = records.examine(self._dataset())  # before a file is made for it
        return self._store(path, "a", **settings).store(record)


_RECORD_ATTRS = frozenset(
    {"kind"}
    | {k.label for k in schema.KINDS.values() if k.label}
    | {k.details for k in schema.KINDS.values()}
)


class DataTreeNeuro(_Neuro):
    """``tree.neuro``: store every record of a tree in one commit."""

    def _dataset(self) -> xr.Dataset:
        ds: xr.Dataset = self._obj.to_dataset()
        return ds

    def store(self, path: PathLike | None = None, **settings: Any) -> dict[str, str]:
        """Store every node that is a record; return the ids by node path.

        >>> import neurostore
        >>> import xarray as xr
        >>> spikes = neurostore.spike_train([0.1], [1], timestamp=1.0)
        >>> xr.DataTree.from_dict({"/a": spikes}).neuro.store(tmp / "run.h5")
        {'/a': 'train_1.0'}
        """
        examined = records.examine_tree(self._obj)
        return self._store(path, "a", **settings).store_tree(examined)
