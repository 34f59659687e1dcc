"""Everything that a store can do, a step at a time, and what is in a store in short.

The tests of crashes, faults and kills run these steps; a new operation of the store is a new
line of `STEPS`. Nothing here knows what is injected or checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from samples import record

import neurostore
from neurostore.schema import KINDS
from neurostore.session import close_all
from neurostore.store import Store

#: Records older than this moment are cleaned away.
NOW = 1_700_000_000.0
DAY = 86_400.0
Content = dict[str, str]


class Boom(Exception):
    """What a user's code raises in the middle of a batch."""


@dataclass(frozen=True)
class Step:
    """One thing done to a store.

    Of a ``gradual`` one a crash may leave a part: no record that was not there before, and none
    missing that is there afterwards.
    """

    name: str
    do: Callable[[Store], Any]
    gradual: bool = False


def spikes(timestamp: float, count: int = 50) -> Any:
    return neurostore.spike_train(
        np.linspace(0, 1, count), np.arange(count), timestamp=timestamp, metadata={"n": count}
    )


def _one(kind: str, days: float) -> Step:
    ds = record(KINDS[kind], timestamp=NOW - days * DAY, metadata={"days": days})
    return Step(f"store {kind}", lambda store: store.store(ds))


def _batch(store: Store) -> None:
    with store.batch():
        for number in range(5):
            store.store(spikes(NOW - 30 * DAY + number))
        store.store(neurostore.reservoir_states(np.eye(40), "main", timestamp=NOW))


def _failing_batch(store: Store) -> None:
    with contextlib.suppress(Boom), store.batch():
        store.store(spikes(NOW, 2000))
        raise Boom


_GROWING = f"train_{NOW + 1.5}"


def _more() -> Any:
    return spikes(NOW + 1.5, 700)


STEPS: tuple[Step, ...] = (
    *(_one(kind, days) for days, kind in enumerate(KINDS, 1)),
    Step("batch", _batch),
    Step("batch that fails", _failing_batch),
    Step("a long train", lambda store: store.store(spikes(NOW - 2 * DAY, 20_000))),
    Step("cleanup", lambda store: store.cleanup(20, now=NOW), gradual=True),
    Step("compact", lambda store: store.compact()),
    Step("store after compaction", lambda store: store.store(spikes(NOW + 1))),
    Step("begin a record that grows", lambda store: store.append(spikes(NOW + 1.5, 700))),
    Step("append to its open chunk", lambda store: store.append(_more(), _GROWING)),
    Step("append beyond it", lambda store: store.append(_more(), _GROWING)),
    Step("rotate", lambda store: store.rotate()),
    Step("store after rotation", lambda store: store.store(spikes(NOW + 2))),
    Step("cleanup by kind", lambda store: store.cleanup(0, kind="spike_train", now=NOW + 3), True),
    _one("network_snapshot", -1),
    Step("rotate again", lambda store: store.rotate()),
    Step("store a tree", lambda store: store.store_tree(_tree())),
    Step("repack", lambda store: store.repack(compression="gzip", compression_opts=1)),
    Step("repack in pages", lambda store: store.repack(paged=True, page_size=4096)),
    Step("drop the oldest file", lambda store: store.cleanup(0, now=NOW + 4), gradual=True),
    Step("compact all files", lambda store: store.compact()),
    Step("store at last", lambda store: store.store(spikes(NOW + 9))),
)


def _tree() -> Any:
    import xarray as xr

    return xr.DataTree.from_dict({"/a": spikes(NOW + 5, 3), "/b": spikes(NOW + 6, 4)})


def content(store: Store) -> Content:
    """The records of a store by id, each as a digest of its values and attributes."""
    found = {}
    for record_id in store.ids():
        ds = store.retrieve(record_id).load()
        digest = blake2b(digest_size=16)
        for name in sorted(map(str, ds.variables)):
            variable = ds.variables[name]
            digest.update(repr((name, variable.dims, variable.dtype.str, variable.attrs)).encode())
            values = variable.values
            digest.update(values.tobytes() if values.dtype.kind != "O" else repr(values).encode())
        digest.update(repr(sorted(ds.attrs.items(), key=lambda item: str(item[0]))).encode())
        found[record_id] = digest.hexdigest()
    return found


def content_at(path: Path) -> Content:
    """As `content`, of the file at ``path`` in a store of its own; nothing stays open."""
    try:
        with neurostore.open(path, durability="process") as store:
            return content(store)
    finally:
        close_all()


def fits(found: Content, before: Content, after: Content, gradual: bool) -> bool:
    """Whether a crash in the step between two contents may leave this one."""
    if found in (before, after):
        return True
    return gradual and after.items() <= found.items() <= before.items()
