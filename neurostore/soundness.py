"""Whether a record in an open file is what was stored: every check, one record at a time.

Checks do not stop each other, and what one of them raises is its finding.  Nothing is repaired or
written here, and nothing protects the process from HDF5 itself, which a damaged file can crash or
hang: `neurostore.verify` runs this elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import h5py
import xarray as xr
from h5py import h5d, h5ds, h5g, h5o

from neurostore import (
    catalogue_file,
    content,
    filters,
    guard,
    h5attrs,
    reading,
    records,
    scales,
    schema,
)
from neurostore.arrays import Key
from neurostore.catalogue import Catalogue
from neurostore.rebuilding import FOREIGN, add_kind
from neurostore.schema import Kind

__all__ = [
    "Checked",
    "Problem",
    "Row",
    "check_catalogue",
    "check_record",
    "rows_in_tree",
    "rows_of",
]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    check
        ``"structure"`` (it cannot be opened), ``"values"`` (a checksum), ``"references"`` (between
        variables and their dimensions), ``"content hash"``, ``"schema"``, ``"catalogue"``,
        ``"numbers"`` (of netCDF dimensions), ``"process"`` (reading it killed or hung HDF5) or
        ``"file"``.
    address
        Group that it is about; empty for the file as a whole.
    variable
        Name of the variable in that group, or empty.
    message
        What was expected and what was there.
    """

    check: str
    address: str
    variable: str
    message: str

    def __str__(self) -> str:
        place = "/".join(filter(None, (self.address, self.variable)))
        return (
            f"{self.check}: {place}: {self.message}" if place else f"{self.check}: {self.message}"
        )


@dataclass(frozen=True)
class Row:
    """What the catalogue says of one record; `structure` is empty where it does not know."""

    kind: str
    id: str
    timestamp: float
    name: str
    length: int
    version: int
    stored_bytes: int
    structure: str
    labels: int


@dataclass
class Checked:
    """What was found out about one record.

    `hashed` tells whether every part carries a content hash; `numbers` are the netCDF dimension
    numbers that its parts use.
    """

    problems: list[Problem] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    hashed: bool = True

    def add(self, check: str, address: str, variable: str, message: object) -> None:
        """Note a problem."""
        self.problems.append(Problem(check, address, variable, str(message)))

    @contextmanager
    def noting(self, check: str, address: str, variable: str = "") -> Iterator[None]:
        """Take whatever is raised for a problem: reading damaged bytes can raise anything."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (see above)
            self.add(check, address, variable, str(error) or type(error).__name__)


def check_catalogue(h5file: h5py.File) -> tuple[Catalogue | None, Checked]:
    """Return the catalogue, if it is sound, what is wrong, and the numbers that it uses itself."""
    found = Checked()
    held = None
    with found.noting("catalogue", "catalogue"):
        if guard.exists(h5file.id, catalogue_file.GROUP):
            held = catalogue_file.read(h5file)
            if held is None:
                found.add("catalogue", "catalogue", "", "damaged; the next writer makes it anew")
            _numbers_below(h5g.open(h5file.id, catalogue_file.GROUP), found)
    return held, found


def rows_of(held: Catalogue) -> list[Row]:
    """Return what a catalogue says of every record."""
    found = []
    for entry in held.entries():
        row = held.tables[entry.kind.name].rows[entry.row]
        found.append(
            Row(
                kind=entry.kind.name,
                id=entry.id,
                timestamp=float(row["timestamp"]),
                name=held.text(int(row["name"])),
                length=int(row["length"]),
                version=int(row["version"]),
                stored_bytes=int(row["stored_bytes"]),
                structure=held.text(int(row["structure"])),
                labels=int(row["labels"]),
            )
        )
    return found


def rows_in_tree(h5file: h5py.File, kind: Kind) -> list[Row]:
    """Return what the groups themselves say of every record of one kind."""
    held = Catalogue()
    add_kind(held, h5file, kind)
    return rows_of(held)


def _numbers_below(group: h5g.GroupID, found: Checked) -> None:
    for link in group:
        item = h5o.open(group, link)
        if isinstance(item, h5g.GroupID):
            if link != b"removed":
                _numbers_below(item, found)
        else:
            _note_number(item, found)


def _note_number(item: Any, found: Checked) -> None:
    number = h5attrs.read_one(item, b"_Netcdf4Dimid")
    if number is not None:
        found.numbers.append(int(number))


class _Nowhere:
    """Source of arrays whose values nobody is to read: chunks are checked one by one instead."""

    def read(self, address: str, selection: Key | None) -> Any:
        raise NotImplementedError(address)  # pragma: no cover - nothing reads

    def chunks(self, address: str) -> tuple[int, ...] | None:
        raise NotImplementedError(address)  # pragma: no cover - nothing reads


def check_record(h5file: h5py.File, row: Row) -> Checked:
    """Check everything about one record."""
    kind = schema.kind_of(row.kind)
    found = Checked()
    parts: dict[str, reading.Part] = {}
    for part in kind.parts:
        address = f"{part.path}/{row.id}"
        with found.noting("structure", address):
            if guard.exists(h5file.id, address.encode()):
                parts[address] = reading.look(h5file.id, address, _Nowhere(), kind)
                _check_part(h5file, address, row, found)
    if not parts and not found.problems:
        found.add("catalogue", "", "", "in the catalogue and not in the tree")
    if parts:
        _check_whole(parts, kind, row, found)
    return found


def _check_part(h5file: h5py.File, address: str, row: Row, found: Checked) -> None:
    item = h5o.open(h5file.id, address.encode())
    if isinstance(item, h5d.DatasetID):
        found.hashed = False
        _check_values(item, address, "", found)
        return
    stamps = dict(h5attrs.read_all(item))
    opened = [(link, h5o.open(item, link)) for link in item]
    datasets = {link: each for link, each in opened if isinstance(each, h5d.DatasetID)}
    checksums = {}
    for link, dataset in datasets.items():
        with found.noting("values", address, link.decode()):
            checksums[link] = _check_values(dataset, address, link.decode(), found)
        _note_number(dataset, found)
    with found.noting("references", address):
        own = [(link.decode(), d) for link, d in datasets.items() if not h5ds.is_scale(d)]
        bases = [dataset for dataset in datasets.values() if h5ds.is_scale(dataset)]
        for name, message in scales.unlike(own, bases) if bases else ():
            found.add("references", address, name, message)
    with found.noting("content hash", address):
        _check_hash(item, address, checksums, found)
    if "kind" in stamps:
        _check_stamps(item, stamps, address, row, found)


def _check_stamps(
    group: h5g.GroupID, stamps: dict[str, Any], address: str, row: Row, found: Checked
) -> None:
    """Check that a part says of itself what its place and the catalogue say."""
    said: dict[str, tuple[object, object]] = {
        "kind": (stamps["kind"], row.kind),
        "id": (stamps.get("id"), row.id),
    }
    label = schema.kind_of(row.kind).label
    if label is not None and label in stamps:
        said[label] = stamps[label], row.name
    with found.noting("structure", address, schema.TIMESTAMP):
        moment = filters.read(h5d.open(group, schema.TIMESTAMP.encode()))
        said[schema.TIMESTAMP] = float(moment), row.timestamp
    for name, (own, expected) in said.items():
        if own != expected:
            found.add("catalogue", address, "", f"{name}: {own!r}, expected {expected!r}")


def _check_values(
    dataset: h5d.DatasetID, address: str, name: str, found: Checked
) -> list[filters.Checksum]:
    checksums = []
    for checksum, problem in filters.check(dataset):
        checksums.append(checksum)
        if problem:
            found.add("values", address, name, problem)
    return checksums


def _check_hash(
    group: h5g.GroupID,
    address: str,
    checksums: dict[bytes, list[filters.Checksum]],
    found: Checked,
) -> None:
    kept = content.read(group)
    if kept is None:
        found.hashed = False
        return
    made = content.of_group(group, checksums)
    if made != kept:
        found.add(
            "content hash",
            address,
            "",
            f"{made:032x}, expected {kept:032x}: it is damaged, or another program changed it",
        )


def _check_whole(parts: dict[str, reading.Part], kind: Kind, row: Row, found: Checked) -> None:
    """Check the record that the parts are together, against the table of kinds and its row."""
    first = next(iter(parts))
    variables: dict[Hashable, xr.Variable] = {}
    for part in parts.values():
        variables.update(part.variables)
    with found.noting("schema", first):
        for problem in records.misfits(variables, kind):
            found.add("schema", first, "", problem)
    with found.noting("catalogue", first):
        for problem in _unlike_row(parts, variables, kind, row):
            found.add("catalogue", first, "", problem)


def _unlike_row(
    parts: dict[str, reading.Part],
    variables: dict[Hashable, xr.Variable],
    kind: Kind,
    row: Row,
) -> Iterator[str]:
    """Yield where the catalogue says something else than the parts do."""
    sizes = {
        str(dim): size
        for variable in variables.values()
        for dim, size in zip(variable.dims, variable.shape, strict=True)
    }
    if row.version != FOREIGN and kind.elastic and sizes.get(kind.elastic, 0) != row.length:
        yield f"{kind.elastic}: {sizes.get(kind.elastic, 0)} long, in the catalogue {row.length}"
    if not row.structure:
        return
    told = json.loads(row.structure)
    for name, (logical, dims, *_) in told["variables"].items():
        variable = variables.get(name)
        place = next((p.places[name] for p in parts.values() if name in p.places), None)
        if variable is None or place is None:
            yield f"{name}: not there, in the catalogue it is"
        elif place.logical != logical or list(variable.dims) != dims[: variable.ndim]:
            yield (
                f"{name}: {place.logical} {variable.dims}, in the catalogue {logical} {tuple(dims)}"
            )
    for dim, size in told["sizes"].items():
        if sizes.get(dim, size) != size:
            yield f"{dim}: {sizes[dim]} long, in the catalogue {size}"
