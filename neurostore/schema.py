"""The table of record kinds: one row per kind, and the few functions that read a row.

Builders, validation, addresses, default dimensions, CF attributes, catalogue columns and the
array face are all derived from these rows; adding a kind is adding a row.  This module does not
build Datasets and does not touch files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from neurostore import names
from neurostore.errors import ValidationError

__all__ = ["KINDS", "SCHEMA_VERSION", "Kind", "Part", "Variable", "infer", "kind_of"]

#: Version of the layout that is stamped on every part; 2 brought the content hash.
SCHEMA_VERSION = 2

#: Scalar coordinate of every record: float seconds.
TIMESTAMP = "timestamp"
#: The same moment as ``datetime64``, where no dimension has that name; never stored.
TIME = "time"

#: Attributes of ``timestamp``; it is the T axis unless the record has a ``time`` coordinate.
TIMESTAMP_ATTRS = {
    "long_name": "time of the record, seconds since 1970-01-01 UTC or of model time",
    "units": "s",
    "axis": "T",
}

#: Attributes of the scalar ``time``; neither axis nor standard name, which would make it a
#: second T axis.
TIME_ATTRS = {"long_name": "timestamp as a date"}

#: Dimensions of the values of sparse matrices, and the dimensions that each stands for: the first
#: that is free is taken, matrices of one pattern share it.
GATHERED = {"synapse": ("pre", "post"), "connection": ("pre", "post")}

NUMBERS = "biufcV"  # V: bfloat16 and its kin
ANYTHING = NUMBERS + "USMm"


@dataclass(frozen=True)
class Variable:
    """One variable of a kind.

    Parameters
    ----------
    name
        Its name in the Dataset and in the file.
    dims
        The dimensions allowed, one tuple per rank; the first is the rule.
    argument
        Its name on the array face.
    any_rank
        Name of the dimension(s) where every rank is allowed; `dims` is then empty.
    kinds
        NumPy dtype kinds that it may hold.
    finite
        Whether NaN and infinite values are refused: an event without a time is none.
    """

    name: str
    dims: tuple[tuple[str, ...], ...]
    argument: str
    attrs: Mapping[str, str] = field(default_factory=dict)
    coordinate: bool = False
    required: bool = True
    any_rank: str | None = None
    kinds: str = NUMBERS
    finite: bool = False

    def dims_for(self, rank: int) -> tuple[str, ...] | None:
        """Return the dimensions of an array of ``rank``, or None where it may not have it."""
        if self.any_rank is not None:
            several = tuple(f"{self.any_rank}_{axis}" for axis in range(rank))
            return (self.any_rank,) if rank == 1 else several
        return next((dims for dims in self.dims if len(dims) == rank), None)

    def allows(self, dims: tuple[Hashable, ...], grows: str | None = None) -> bool:
        """Tell whether a labelled variable may have ``dims``, in any order.

        ``grows`` is a dimension that it may have besides: steps of one recording.
        """
        if self.any_rank is not None:
            return True
        wanted = [set(dims), set(dims) - {grows}]
        return len(set(dims)) == len(dims) and any(set(rule) in wanted for rule in self.dims)


@dataclass(frozen=True)
class Part:
    """A group of the tree that holds some of a record's variables."""

    path: str
    variables: tuple[Variable, ...]


@dataclass(frozen=True)
class Kind:
    """One kind of record.

    Parameters
    ----------
    name
        Name of the kind, of its builder, and in ``store_<name>`` of the array face.
    parts
        Where its variables stand in the tree.
    stem
        First half of the id, ``<stem>_<timestamp>``; None: the user-given name is.
    label
        Attribute with the user-given name (reservoir, type, mechanism, ...), if it has one.
    elastic
        Dimension whose length differs from record to record.
    grows
        Dimension along which a record may be written bit by bit; its variables may have it
        besides those of their rows. None: records of the kind are written whole.
    combine
        What a range makes of many records: stacked along ``record``, concatenated along
        `elastic` as a ragged array, or aligned to the union of the labels of `elastic`.
    mapping
        How a dict of arrays becomes variables: ``"variables"`` one each, ``"labels"`` one value
        each of a single variable.
    details
        Attribute that keeps the record's JSON.
    result
        Class of ``neurostore.hdf5_storage`` that the array face returns; None: a tuple.
    check
        Function of the sizes that returns problems which the dimensions alone do not show.
    same
        Dimensions that often go over the same things; the builder labels them all by `labels`.
    example
        Python arguments for the builder's doctest, after ``neurostore.<name>(``.
    """

    name: str
    summary: str
    parts: tuple[Part, ...]
    example: str
    stem: str | None = None
    label: str | None = None
    elastic: str | None = None
    grows: str | None = None
    combine: Literal["stack", "ragged", "union"] = "stack"
    mapping: Literal["variables", "labels"] | None = None
    details: str = "metadata"
    plural: str = ""
    unit_of: str | None = None
    result: str | None = None
    check: Callable[[Mapping[Hashable, int]], list[str]] | None = None
    same: tuple[str, ...] = ()

    @cached_property
    def variables(self) -> tuple[Variable, ...]:
        """All variables, part by part."""
        return tuple(variable for part in self.parts for variable in part.variables)

    def variable(self, name: Hashable) -> Variable | None:
        """Return the row of the variable called ``name``, or None."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[Hashable, Variable]:
        return {row.name: row for row in self.variables}

    def leaf(self, name: str, timestamp: float) -> str:
        """Return the id of a record of this kind, if nothing else has it."""
        return names.leaf(name if self.stem is None else self.stem, timestamp)


def _square(sizes: Mapping[Hashable, int]) -> list[str]:
    """States belong to the neurons of the matrices: those before, after, or both."""
    pre, post, neuron = (sizes.get(dim) for dim in ("pre", "post", "neuron"))
    if pre is None or post is None or neuron is None:
        return []
    fitting = {pre} if pre == post else {pre, post, pre + post}
    if neuron in fitting:
        return []
    wanted = " or ".join(str(size) for size in sorted(fitting))
    return [f"states: {neuron} neurons, expected {wanted} (the matrices are {pre} x {post})"]


_SNAPSHOT = Kind(
    name="network_snapshot",
    plural="network_snapshots",
    summary="Topology, weights and neuron states of a network at one moment.",
    stem="snapshot",
    same=("pre", "post", "neuron"),
    parts=(
        Part(
            "network_states/topology",
            (
                Variable(
                    "adjacency",
                    (("pre", "post"),),
                    "adjacency_matrix",
                    {"long_name": "connections from pre-synaptic to post-synaptic neuron"},
                    required=False,
                ),
            ),
        ),
        Part(
            "network_states/weights",
            (
                Variable(
                    "weights",
                    (("pre", "post"),),
                    "weight_matrix",
                    {"long_name": "synaptic weights"},
                    required=False,
                ),
            ),
        ),
        Part(
            "network_states/neuron_states",
            (
                Variable(
                    "states",
                    (("neuron", "state"), ("neuron",)),
                    "neuron_states",
                    {"long_name": "states of the neurons"},
                    required=False,
                ),
            ),
        ),
    ),
    check=_square,
    result="NetworkSnapshot",
    example="adjacency=np.eye(3, dtype=int), weights=np.ones((3, 3)), "
    "states=np.zeros((3, 2)), timestamp=12.5",
)

_SPIKES = Kind(
    name="spike_train",
    plural="spike_trains",
    summary="Spikes as two labelled columns, the times and the neurons, in any order.",
    stem="train",
    elastic="spike",
    grows="spike",
    combine="ragged",
    unit_of="spike_times",
    parts=(
        Part(
            "spike_trains/raw_data",
            (
                Variable(
                    "spike_times",
                    (("spike",),),
                    "spike_times",
                    {"long_name": "spike times relative to the timestamp", "units": "s"},
                    coordinate=True,
                    kinds="iuf",
                    finite=True,
                ),
                Variable(
                    "neuron_ids",
                    (("spike",),),
                    "neuron_ids",
                    {"long_name": "neuron that fired", "cf_role": "timeseries_id"},
                    coordinate=True,
                    kinds="iuUS",
                ),
                Variable(
                    "spike_amplitudes",
                    (("spike",),),
                    "spike_amplitudes",
                    {"long_name": "spike amplitudes"},
                    required=False,
                ),
            ),
        ),
    ),
    result="SpikeTrainData",
    example="spike_times=[0.1, 0.3], neuron_ids=[1, 3], timestamp=12.5",
)

_COMPRESSED = Kind(
    name="compressed_spike_train",
    plural="compressed_spike_trains",
    summary="Spikes that were compressed by other means, kept byte for byte.",
    stem="compressed",
    details="compression_params",
    grows="value",
    parts=(
        Part(
            "spike_trains/compressed",
            (
                Variable(
                    "data",
                    (),
                    "spike_data",
                    {"long_name": "compressed spike data"},
                    any_rank="value",
                    kinds=ANYTHING,
                ),
            ),
        ),
    ),
    example="data=np.arange(6), compression_params={'algorithm': 'rle'}, timestamp=12.5",
)

_RESERVOIR = Kind(
    name="reservoir_states",
    plural="reservoir_states",
    summary="States of the neurons of one reservoir over time.",
    label="reservoir_id",
    grows="time",
    parts=(
        Part(
            "activations/reservoir_states",
            (
                Variable(
                    "states",
                    (("neuron", "time"), ("neuron",)),
                    "reservoir_states",
                    {"long_name": "states of the reservoir neurons"},
                ),
            ),
        ),
    ),
    example="states=np.zeros((3, 4)), reservoir_id='main', timestamp=12.5",
)

_LAYERS = Kind(
    name="layer_outputs",
    plural="layer_outputs",
    summary="Outputs of the layers of a network, one variable per layer.",
    stem="outputs",
    grows="sample",
    mapping="variables",
    parts=(
        Part(
            "activations/layer_outputs",
            (
                Variable(
                    "layers",
                    (),
                    "layer_outputs",
                    {"long_name": "outputs of a layer"},
                    any_rank="unit",
                    required=False,
                ),
            ),
        ),
    ),
    example="layers={'hidden': np.zeros((2, 3)), 'output': np.ones((2, 1))}, timestamp=12.5",
)

_ATTENTION = Kind(
    name="attention_maps",
    plural="attention_maps",
    summary="Attention of queries to keys, for one or many heads.",
    label="name",
    grows="time",
    parts=(
        Part(
            "activations/attention_maps",
            (
                Variable(
                    "maps",
                    (("head", "query", "key"), ("query", "key"), ("key",)),
                    "attention_maps",
                    {"long_name": "attention of a query to a key"},
                ),
            ),
        ),
    ),
    example="maps=np.full((1, 2, 2), 0.5), name='encoder', timestamp=12.5",
)

_PLASTICITY = Kind(
    name="plasticity_trace",
    plural="plasticity_traces",
    summary="Changes of synaptic weights by one plasticity rule.",
    label="plasticity_type",
    grows="time",
    parts=(
        Part(
            "learning_traces/plasticity",
            (
                Variable(
                    "changes",
                    (("pre", "post"), ("synapse",)),
                    "synapse_changes",
                    {"long_name": "changes of the synaptic weights"},
                ),
            ),
        ),
    ),
    example="changes=np.zeros((3, 3)), plasticity_type='stdp', timestamp=12.5",
)

_HOMEOSTATIC = Kind(
    name="homeostatic_trace",
    plural="homeostatic_traces",
    summary="Changes of the neurons by one homeostatic mechanism.",
    label="mechanism",
    grows="time",
    parts=(
        Part(
            "learning_traces/homeostatic",
            (
                Variable(
                    "changes",
                    (("neuron",),),
                    "homeostatic_changes",
                    {"long_name": "changes by the homeostatic mechanism"},
                ),
            ),
        ),
    ),
    example="changes=np.zeros(3), mechanism='intrinsic_plasticity', timestamp=12.5",
)

_METRICS = Kind(
    name="performance_metrics",
    plural="performance_metrics",
    summary="Named numbers that say how well a task is done.",
    label="task_type",
    elastic="metric",
    grows="time",
    combine="union",
    mapping="labels",
    parts=(
        Part(
            "learning_traces/performance",
            (
                Variable(
                    "values",
                    (("metric",),),
                    "metrics",
                    {"long_name": "values of the metrics"},
                    kinds="biuf",
                ),
            ),
        ),
    ),
    example="values={'accuracy': 0.85}, task_type='classification', timestamp=12.5",
)

#: The table.  Its order is the order in which things are listed.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _SNAPSHOT,
        _SPIKES,
        _COMPRESSED,
        _RESERVOIR,
        _LAYERS,
        _ATTENTION,
        _PLASTICITY,
        _HOMEOSTATIC,
        _METRICS,
    )
}

#: Groups of the tree that exist in every file and hold no records.
EMPTY_GROUPS = ("spike_trains/metadata",)


def kind_of(name: object) -> Kind:
    """Return the row of the kind called ``name``; ``ValueError`` lists the kinds there are.

    >>> kind_of("spike_train").elastic
    'spike'
    """
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValidationError(f"{name!r} is no record kind; expected one of {', '.join(KINDS)}")
    return kind


#: Names that a layer cannot have in the file, since the record needs them itself.
RESERVED_LAYERS = frozenset({"layer", "sample", TIMESTAMP, TIME, "record", "unit"})


def layer_names(originals: Iterable[str]) -> dict[str, str]:
    """Return the variable name of every layer: its own, escaped where something else has it.

    >>> layer_names(["hidden/1", "layer", "a", "a_unit"])
    {'hidden/1': 'hidden%2F1', 'layer': '%6Cayer', 'a': 'a', 'a_unit': '%61_unit'}
    """
    plain = {name: names.escape(name, reserved=RESERVED_LAYERS) for name in originals}
    prefixes = {f"{base}_unit" for base in plain.values()} | {f"{b}_sample" for b in plain.values()}
    taken = RESERVED_LAYERS | {
        name for name in plain if any(name.startswith(prefix) for prefix in prefixes)
    }
    return {name: names.escape(name, reserved=taken) for name in plain}


def layer_dims(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the dimensions of layers: ``sample`` where all agree on the first size.

    >>> layer_dims({"a": (2, 3), "b": (2, 4, 5)})
    {'a': ('sample', 'a_unit'), 'b': ('sample', 'b_unit', 'b_unit_1')}
    """
    firsts = {shape[0] for shape in shapes.values() if shape}
    return {
        name: tuple(_layer_dim(name, axis, len(firsts) <= 1) for axis in range(len(shape)))
        for name, shape in shapes.items()
    }


def _layer_dim(name: str, axis: int, shared: bool) -> str:
    if axis == 0:
        return "sample" if shared else f"{name}_sample"
    return f"{name}_unit" if axis == 1 else f"{name}_unit_{axis - 1}"


def infer(
    variables: Mapping[Hashable, tuple[Hashable, ...]], attrs: Mapping[Any, Any]
) -> Kind | None:
    """Return the kind of a Dataset from its stamp, or else from its variables and dimensions.

    ``variables`` maps the name of every variable, coordinates included, to its dimensions.

    >>> infer({"weights": ("pre", "post")}, {}).name
    'network_snapshot'
    """
    stamped = KINDS.get(str(attrs.get("kind")))
    if stamped is not None:
        return stamped
    fits = {kind.name: _fit(kind, variables, attrs) for kind in KINDS.values()}
    best = max(fits, key=lambda name: fits[name])
    return KINDS[best] if fits[best] > 0 else None


def _fit(
    kind: Kind, variables: Mapping[Hashable, tuple[Hashable, ...]], attrs: Mapping[Any, Any]
) -> float:
    if kind.mapping == "variables":
        return 0.5 if "layer" in variables else 0.0
    present = [row for row in kind.variables if row.name in variables]
    if not present or any(row.required and row.name not in variables for row in kind.variables):
        return 0.0
    if not all(row.allows(variables[row.name], kind.grows) for row in present):
        return 0.0
    strength = len(present) - (0.5 if any(row.any_rank for row in present) else 0.0)
    return strength + (0.25 if kind.label is not None and kind.label in attrs else 0.0)
