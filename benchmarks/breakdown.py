"""What each microsecond of one small store and of one small retrieve is for.

A stopwatch is laid around the functions of each step; the time of a step is its own, without that
of the steps inside it. It reaches into private parts of the package on purpose: this is the one
place that says where time goes, and a step that is renamed must be renamed here.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import h5py
import numpy as np
import xarray as xr

import neurostore
from benchmarks import store_one
from benchmarks.report import Line, Table, seconds
from neurostore import (
    arrays,
    builders,
    catalogue,
    catalogue_file,
    filters,
    locks,
    querying,
    reading,
    records,
    safefile,
    session,
    stencil,
    tree,
)
from neurostore.filters import reading as decoding
from neurostore.filters import writing as encoding

NAME = "breakdown"

Step = tuple[str, Sequence[tuple[Any, str]]]
_LOCKS = [
    (session, "attach"),
    (locks.FileLocks, "acquire_writer"),
    (locks.FileLocks, "release_writer"),
    (locks._Section, "__enter__"),
    (locks._Section, "__exit__"),
    (safefile.CrashSafeFile, "moved"),
    (session.Session, "_state"),
    (session.Session, "_distrust_if_touched"),
]
STORE: tuple[Step, ...] = (
    ("arrays and arguments to a draft of the record", [(builders, "draft")]),
    ("checking it: dtypes, names, structure, labels", [(records, "examine")]),
    ("finding the open file; locks; has anybody else written?", _LOCKS),
    ("which stencil, which filters", [(stencil.Stencils, "_stencil")]),
    ("id, content hash, numbers and scalars, in the stencil", [(stencil, "_prepare")]),
    ("HDF5: copying the stencil", [(h5py.h5o, "copy")]),
    ("HDF5: attaching the dimension scales", [(h5py.h5ds, "attach_scale")]),
    (
        "HDF5: opening what was copied, lengths, taking the chunks",
        [(stencil.Stencils, "stamp"), (stencil, "_fill"), (filters, "write")],
    ),
    ("shuffle, deflate, Fletcher-32", [(encoding, "_encoded")]),
    (
        "row of the catalogue",
        [
            (catalogue.Catalogue, "claim"),
            (catalogue.Catalogue, "add"),
            (catalogue_file.Writer, "write"),
        ],
    ),
    ("HDF5: flush", [(h5py.File, "flush")]),
    (
        "the file object below HDF5: appended bytes out, changed bytes kept",
        [(safefile.CrashSafeFile, name) for name in ("write", "put", "readinto", "seek")],
    ),
    ("journal: differences, checksum, written, applied", [(safefile.CrashSafeFile, "commit")]),
    ("noting the time of modification", [(os, "utime")]),
)
RETRIEVE: tuple[Step, ...] = (
    ("finding the open file; locks; has anybody else written?", _LOCKS),
    ("finding the id in the catalogue", [(catalogue.Catalogue, "find")]),
    ("may its structure be taken on trust?", [(session.Session, "is_untouched")]),
    ("reading the attributes of the group", [(tree, "own_attrs")]),
    (
        "variables from the structure",
        [(reading.Part, "of_another"), (session.Session, "_look")],
    ),
    ("Dataset, coordinates, event index", [(reading, "record")]),
    ("opening the record: the rest", [(querying, "retrieve")]),
    ("HDF5: opening a dataset", [(tree, "read_values")]),
    ("HDF5: type, filters, shape of it", [(decoding, "read"), (decoding, "_plan")]),
    ("HDF5: the stored bytes of a chunk", [(decoding, "_found")]),
    ("Fletcher-32, inflate, unshuffle", [(decoding, "_decoded")]),
    ("lazy arrays", [(arrays.StoredArray, "_get")]),
    ("xarray: load", [(xr.Dataset, "load")]),
)


def run(folder: Path, *, quick: bool) -> Table:
    """Take the medians over blocks of calls, of every step and of the whole."""
    rounds, calls = (2, 10) if quick else (20, 100)
    table = Table(
        "What each microsecond is for",
        "One spike train of about 1,000 spikes stored by the array face with durability `process`, "
        "and one retrieved and loaded, as above. A stopwatch around the functions of each step; "
        "its own time is the last line but one.",
        head=("step", "time", "share"),
    )
    path = folder / "breakdown.h5"
    with neurostore.HDF5Storage(path, durability="process") as storage:
        numbers = count()
        store = store_one.by_arrays(storage)
        table.rows += steps("store", STORE, lambda: store(next(numbers)), rounds, calls)
        stored = next(numbers)
        ids = [f"train_{float(k)!r}" for k in np.random.default_rng(2).integers(0, stored, 4096)]
        chosen = cycle(ids)
        face = storage.store
        table.rows += steps(
            "retrieve", RETRIEVE, lambda: face.retrieve(next(chosen)).load(), rounds, calls
        )
    return table


def steps(
    what: str, named: Sequence[Step], task: Callable[[], object], rounds: int, calls: int
) -> list[Line]:
    """Return one row a step, one for what lies between them, and one for the whole."""
    plain, watched = [], []
    spent: dict[str, list[float]] = defaultdict(list)
    block(task, calls)
    for _ in range(rounds):
        plain.append(block(task, calls))
        with stopwatch(named) as times:
            watched.append(block(task, calls))
        for label, _ in named:
            spent[label].append(times.get(label, 0.0) / calls)
    whole = median(plain)
    own = median(watched) - whole
    parts = [(label, median(spent[label])) for label, _ in named]
    between = median(watched) - sum(time for _, time in parts) - own
    rows = [*parts, ("between the steps", between), ("the stopwatch, left out of the whole", own)]
    shares = [(label, seconds(max(time, 0)), f"{time / whole:.0%}") for label, time in rows]
    return [Line((f"**{what}**", seconds(whole), "100%")), *map(Line, shares)]


def block(task: Callable[[], object], calls: int) -> float:
    """Seconds per call over one block of calls."""
    start = perf_counter()
    for _ in range(calls):
        task()
    return (perf_counter() - start) / calls


@contextmanager
def stopwatch(named: Sequence[Step]) -> Iterator[dict[str, float]]:
    """Lay a stopwatch around functions; give the seconds of each step, its own alone."""
    times: dict[str, float] = defaultdict(float)
    inner = [0.0]

    def watched(function: Callable[..., Any], label: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent = perf_counter() - start
                times[label] += spent - inner.pop()
                inner[-1] += spent

        return call

    replaced = []
    for label, functions in named:
        for owner, name in functions:
            if not hasattr(owner, name):
                continue  # it has another name now: its time counts for the step around it
            for holder in holders(owner, name):
                function = getattr(holder, name)
                replaced.append((holder, name, function))
                setattr(holder, name, watched(function, label))
    try:
        yield times
    finally:
        for holder, name, function in reversed(replaced):
            setattr(holder, name, function)


def holders(owner: Any, name: str) -> list[Any]:
    """Where a function is looked up: its owner, and the modules that imported it by name."""
    function = getattr(owner, name)
    modules = [
        module
        for key, module in neurostore_modules()
        if module is not owner and vars(module).get(name) is function
    ]
    return [owner, *modules]


def neurostore_modules() -> list[tuple[str, Any]]:
    """The modules of the package that are loaded."""
    return [(k, m) for k, m in list(sys.modules.items()) if k.startswith("neurostore")]
