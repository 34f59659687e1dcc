"""The array face: arrays in, arrays and dataclasses out, for those who know it from before.

Every method is made from a row of the table of kinds: it builds the labelled Dataset and calls
the store.  No storage logic is here.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from neurostore import builders, matrices
from neurostore.errors import HDF5StorageError, RecordNotFoundError
from neurostore.osio import Durability
from neurostore.records import ORIGINAL_NAME
from neurostore.schema import GATHERED, KINDS, Kind
from neurostore.store import Store

__all__ = [
    "HDF5_AVAILABLE",
    "HDF5Storage",
    "HDF5StorageError",
    "NetworkSnapshot",
    "SpikeTrainData",
]

#: Whether h5py can be imported; it is a dependency, so it can.
HDF5_AVAILABLE: bool = importlib.util.find_spec("h5py") is not None

Array = np.ndarray[Any, Any]


@dataclass
class NetworkSnapshot:
    """A network at one moment.

    `adjacency_matrix` and `weight_matrix` have shape (pre, post), `neuron_states` (neuron,) or
    (neuron, state); `timestamp` is in seconds.

    Examples
    --------
    >>> NetworkSnapshot(1.0, np.eye(2), np.eye(2) / 2, np.zeros(2)).metadata
    {}
    """

    timestamp: float
    adjacency_matrix: Array
    weight_matrix: Array
    neuron_states: Array
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class SpikeTrainData:
    """Spikes as columns of shape (spike,); times are relative to `timestamp`, both in seconds.

    Examples
    --------
    >>> SpikeTrainData(1.0, np.array([0.1, 0.3]), np.array([1, 3])).neuron_ids
    array([1, 3])
    """

    timestamp: float
    spike_times: Array
    neuron_ids: Array
    spike_amplitudes: Array | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


_RESULTS: dict[str, type[Any]] = {
    "NetworkSnapshot": NetworkSnapshot,
    "SpikeTrainData": SpikeTrainData,
}


def _storing(kind: Kind) -> Callable[..., str]:
    parameters = [inspect.Parameter("timestamp", _EITHER, annotation="float")]
    every = not any(rule.required for rule in kind.variables)
    needs_details = kind.result is None and kind.details != "metadata"
    parameters += [
        inspect.Parameter(rule.argument, _EITHER, annotation="ArrayLike")
        for rule in kind.variables
        if rule.required or every
    ]
    if kind.label is not None:
        parameters.append(inspect.Parameter(kind.label, _EITHER, annotation="str"))
    if needs_details:
        parameters.append(inspect.Parameter(kind.details, _EITHER, annotation="dict"))
    parameters += [
        inspect.Parameter(rule.argument, _EITHER, default=None, annotation="ArrayLike | None")
        for rule in kind.variables
        if not (rule.required or every)
    ]
    if not needs_details:
        parameters.append(
            inspect.Parameter(kind.details, _EITHER, default=None, annotation="dict | None")
        )
    names = ["self", *(parameter.name for parameter in parameters)]
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.Signature([own, *parameters], return_annotation="str")

    def method(*args: Any, **kwargs: Any) -> str:
        given = dict(zip(names, args, strict=False)) | kwargs
        taken = defaults | given
        if len(taken) != len(names) or len(given) != len(args) + len(kwargs):
            signature.bind(*args, **kwargs)  # says what is missing or too much
        made = builders.draft(
            kind.name,
            {rule.name: taken[rule.argument] for rule in kind.variables},
            timestamp=taken["timestamp"],
            name=taken.get(kind.label) if kind.label is not None else None,
            details=taken[kind.details],
        )
        storage: HDF5Storage = taken["self"]
        return storage.store.store(made)

    summary = f"Store {_spoken(kind)}, as :func:`neurostore.{kind.name}` has it; return its id."
    return _named(method, f"store_{kind.name}", signature, summary)


def _retrieving(kind: Kind) -> Callable[..., Any]:
    parameters = [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
        inspect.Parameter("record_id", _EITHER, annotation="str"),
    ]
    may_be_sparse = any(dims in GATHERED.values() for rule in kind.variables for dims in rule.dims)
    if may_be_sparse:
        parameters.append(inspect.Parameter("dense", _KEYWORD, default=False, annotation="bool"))
    signature = inspect.Signature(parameters)

    def method(self: HDF5Storage, record_id: str, **options: bool) -> Any:
        if options:
            signature.bind(self, record_id, **options)  # says what is too much
        try:
            ds = self.store.retrieve(record_id, load=kind.name)
        except RecordNotFoundError:
            return None
        if ds.attrs["kind"] != kind.name:
            return None
        if options.get("dense"):
            ds = matrices.to_dense(ds)
        return _as_arrays(kind, ds)

    summary = f"Return {_spoken(kind)} as {_returned(kind)}, or None if no record has the id."
    if may_be_sparse:
        summary += "  A matrix that was stored sparse is a scipy.sparse.csr_array, if not `dense`."
    return _named(method, f"retrieve_{kind.name}", signature, summary)


def _listing(kind: Kind) -> Callable[..., list[str]]:
    parameters = [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
        inspect.Parameter("start_time", _EITHER, annotation="float"),
        inspect.Parameter("end_time", _EITHER, annotation="float"),
    ]
    signature = inspect.Signature(parameters, return_annotation="list[str]")

    def method(self: HDF5Storage, start_time: float, end_time: float) -> list[str]:
        return self.store.ids(kind.name, start_time, end_time)

    summary = f"Return the ids of {kind.plural} between two times, both included, in time order."
    return _named(method, f"get_{kind.plural}_in_range", signature, summary)


_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def _named(
    method: Callable[..., Any], name: str, signature: inspect.Signature, summary: str
) -> Callable[..., Any]:
    method.__name__ = name
    method.__doc__ = summary
    method.__signature__ = signature  # type: ignore[attr-defined]
    return method


def _spoken(kind: Kind) -> str:
    return f"one record of kind {kind.name} ({kind.summary.rstrip('.').lower()})"


def _returned(kind: Kind) -> str:
    if kind.result is not None:
        return kind.result
    names = [rule.argument for rule in kind.variables] + ["timestamp"]
    names += [kind.label] if kind.label is not None else []
    names += [kind.details] if kind.details != "metadata" else []
    return f"({', '.join(names)})"


def _as_arrays(kind: Kind, ds: xr.Dataset) -> Any:
    """Return what the array face gives back for a record: a dataclass or a tuple."""
    timestamp = float(ds["timestamp"])
    values = [_VALUES[kind.mapping](rule.name, rule.dims, ds) for rule in kind.variables]
    details = ds.neuro.metadata
    if kind.result is not None:
        named = dict(zip((rule.argument for rule in kind.variables), values, strict=True))
        return _RESULTS[kind.result](timestamp=timestamp, **named, metadata=details)
    result = [*values, timestamp]
    result += [ds.attrs[kind.label]] if kind.label is not None else []
    result += [details] if kind.details != "metadata" else []
    return tuple(result)


def _array(name: str, dims: tuple[tuple[str, ...], ...], ds: xr.Dataset) -> Any:
    if name not in ds.variables:
        return None
    if matrices.is_gathered(ds, name):
        return matrices.to_scipy(ds, name)
    variable = ds.variables[name]
    rule = next((rule for rule in dims if set(rule) == set(variable.dims)), variable.dims)
    return np.asarray(variable.transpose(*rule).values)


def _by_layer(_: str, __: Any, ds: xr.Dataset) -> dict[str, Array]:
    arrays = {
        str(ds[name].attrs.get(ORIGINAL_NAME, name)): np.asarray(ds[name].values)
        for name in ds.data_vars
    }
    order = [str(name) for name in ds["layer"].values] if "layer" in ds else list(arrays)
    return {name: arrays[name] for name in order}


def _by_label(
    name: str, dims: tuple[tuple[str, ...], ...], ds: xr.Dataset
) -> dict[str, float | Array]:
    """Return the values by label: numbers, or arrays of a record that has several steps."""
    dim = dims[0][0]
    count = ds.sizes.get(dim, 0)
    labels = ds[dim].values if dim in ds.coords else [f"{dim}_{n}" for n in range(count)]
    values = ds[name].transpose(dim, ...).values
    return {
        str(k): np.asarray(v) if values.ndim > 1 else float(v)
        for k, v in zip(labels, values, strict=True)
    }


_VALUES: dict[str | None, Callable[..., Any]] = {
    None: _array,
    "variables": _by_layer,
    "labels": _by_label,
}


class _ByKind:
    """Gives every subclass ``store_``, ``retrieve_`` and ``get_..._in_range`` for every kind."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for kind in KINDS.values():
            for method in (_storing(kind), _retrieving(kind), _listing(kind)):
                if method.__name__ not in cls.__dict__:
                    method.__qualname__ = f"{cls.__name__}.{method.__name__}"
                    setattr(cls, method.__name__, method)


#: What `get_file_info` tells of a series as `Store.info` does.
_OF_SERIES = (
    "records",
    "spans",
    "files",
    "per_file",
    "stored_bytes",
    "logical_bytes",
    "compression_ratio",
    "dead_bytes",
    "schema_versions",
    "library_versions",
)


class HDF5Storage(_ByKind):
    """Arrays in one HDF5 file, by the methods of the earlier storage class.

    Parameters
    ----------
    file_path
        The file; it is made if it is not there, with its folder.
    compression
        ``"gzip"``, ``"zstd"`` (with the extra ``zstd``), ``"lzf"``, ``"szip"`` or None.
    compression_opts
        Level of gzip, 0 to 9, or of zstd, 1 to 22; the others have none and ignore it.
    chunk_size
        A chunk of a variable holds at most ``64 * chunk_size`` values.
    max_file_size
        Bytes beyond which a commit rotates the file.
    enable_swmr
        True: one process at a time writes, and any number read meanwhile.  False: exclusive use,
        no other process can open the file until this storage is closed.
    durability
        ``"power"``: what was stored survives a power cut; ``"process"``: the end of the process.
    max_records
        Records with which a commit rotates the file; None: any number.

    Examples
    --------
    >>> storage = HDF5Storage(tmp / "run.h5")
    >>> train_id = storage.store_spike_train(12.5, [0.1, 0.3], [1, 3])
    >>> storage.retrieve_spike_train(train_id).neuron_ids
    array([1, 3])
    """

    def __init__(
        self,
        file_path: str | os.PathLike[str] = "godly_ai_data.h5",
        compression: str | None = "gzip",
        compression_opts: int | None = 6,
        chunk_size: int = 1024,
        max_file_size: int = 10 * 1024**3,
        enable_swmr: bool = True,
        *,
        durability: Durability = "power",
        max_records: int | None = None,
    ) -> None:
        self.file_path = Path(file_path)
        self.file_path.parent.mkdir(parents=True, exist_ok=True)
        self.enable_swmr = enable_swmr
        self._store = Store(
            file_path,
            compression=compression,
            compression_opts=compression_opts,
            chunk_size=chunk_size,
            max_file_size=max_file_size,
            max_records=max_records,
            durability=durability,
            exclusive=not enable_swmr,
        )

    if TYPE_CHECKING:  # the methods made from the table of kinds

        def __getattr__(self, name: str) -> Callable[..., Any]: ...

    def __repr__(self) -> str:
        return f"HDF5Storage({str(self.file_path)!r})"

    @property
    def store(self) -> Store:
        """The store behind this face."""
        return self._store

    def get_file_info(self) -> dict[str, Any]:
        """Return path and size of the file; counts, times and bytes over its whole series.

        >>> storage = HDF5Storage(tmp / "run.h5")
        >>> _ = storage.store_spike_train(12.5, [0.1, 0.3], [1, 3])
        >>> storage.get_file_info()["records"]["spike_train"]
        1
        """
        info = self._store.info()
        return {
            "file_path": str(self.file_path),
            "file_size_mb": os.stat(self._store.path).st_size / 1024**2,
            "compression": self._store.compression,
            "total_datasets": info["variables"],
            "groups": info["groups"],
            "created_at": info["created_at"],
        } | {name: info[name] for name in _OF_SERIES}

    def compact_file(self) -> bool:
        """Write the file anew without removed records; return True.

        >>> storage = HDF5Storage(tmp / "run.h5")
        >>> _ = storage.store_spike_train(12.5, [0.1, 0.3], [1, 3])
        >>> storage.compact_file()
        True
        """
        self._store.compact()
        return True

    def rotate_file(self) -> Path:
        """Close the file off under a new name and go on in an empty one; return the new name.

        >>> storage = HDF5Storage(tmp / "run.h5")
        >>> _ = storage.store_spike_train(12.5, [0.1, 0.3], [1, 3])
        >>> storage.rotate_file().exists()
        True
        """
        return self._store.rotate()

    def check_file_size(self) -> bool:
        """Return whether the file was rotated for its size: now, or since the last call.

        >>> storage = HDF5Storage(tmp / "run.h5")
        >>> _ = storage.store_spike_train(12.5, [0.1, 0.3], [1, 3])
        >>> storage.check_file_size()
        False
        """
        return self._store.check_size()

    def cleanup_old_data(self, retention_days: float) -> int:
        """Remove records older than ``retention_days`` days; return how many went.

        >>> storage = HDF5Storage(tmp / "run.h5")
        >>> storage.store_spike_train(1_000_000_000.0, [0.1], [1])
        'train_1000000000.0'
        >>> storage.cleanup_old_data(30)
        1
        """
        return len(self._store.cleanup(retention_days))

    @contextmanager
    def _file_context(self, mode: str = "a") -> Iterator[Any]:
        """Give the open HDF5 file; with mode ``"a"``, what is stored inside is one commit."""
        if mode == "r":
            with self._store.h5file() as h5file:
                yield h5file
            return
        with self._store.batch(), self._store.h5file() as h5file:
            yield h5file

    def close(self) -> None:
        """Let the file go; closing twice is fine."""
        self._store.close()

    def __enter__(self) -> HDF5Storage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
