"""The public names of the package; `neurostore` itself imports this at the first use of one."""

from __future__ import annotations

from neurostore._version import __version__
from neurostore.builders import (  # type: ignore[attr-defined]  # made from the table of kinds
    attention_maps,
    build,
    compressed_spike_train,
    homeostatic_trace,
    layer_outputs,
    network_snapshot,
    performance_metrics,
    plasticity_trace,
    reservoir_states,
    spike_train,
)
from neurostore.errors import (
    AmbiguousRecordError,
    ClosedError,
    DamagedError,
    HDF5StorageError,
    LockTimeoutError,
    MisalignedRecordsError,
    MissingFileWarning,
    MissingPackageError,
    MovedError,
    NoSpaceError,
    NotAStoreError,
    ReadOnlyError,
    RecordError,
    RecordNotFoundError,
    RefusedError,
    SealedError,
    StoreError,
    StoreExistsError,
    StoreNotFoundError,
    ValidationError,
    WriteError,
)
from neurostore.hdf5_storage import (
    HDF5_AVAILABLE,
    HDF5Storage,
    NetworkSnapshot,
    SpikeTrainData,
)
from neurostore.index import EventIndex
from neurostore.maintenance import MaintenanceThread, Policy
from neurostore.migration import migrate
from neurostore.recording import Recorder
from neurostore.retention import Keep
from neurostore.schema import KINDS
from neurostore.store import Store, open  # noqa: A004 (neurostore.open, as gzip.open)

__all__ = [
    "HDF5_AVAILABLE",
    "KINDS",
    "AmbiguousRecordError",
    "ClosedError",
    "DamagedError",
    "EventIndex",
    "HDF5Storage",
    "HDF5StorageError",
    "Keep",
    "LockTimeoutError",
    "MaintenanceThread",
    "MisalignedRecordsError",
    "MissingFileWarning",
    "MissingPackageError",
    "MovedError",
    "NetworkSnapshot",
    "NoSpaceError",
    "NotAStoreError",
    "Policy",
    "ReadOnlyError",
    "RecordError",
    "RecordNotFoundError",
    "Recorder",
    "RefusedError",
    "SealedError",
    "SpikeTrainData",
    "Store",
    "StoreError",
    "StoreExistsError",
    "StoreNotFoundError",
    "ValidationError",
    "WriteError",
    "__version__",
    "attention_maps",
    "build",
    "compressed_spike_train",
    "homeostatic_trace",
    "layer_outputs",
    "migrate",
    "network_snapshot",
    "open",
    "performance_metrics",
    "plasticity_trace",
    "reservoir_states",
    "spike_train",
]
