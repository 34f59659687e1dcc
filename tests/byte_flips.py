"""Flip bytes of a small file with everything in it, and see what each flip does to a reader.

Every flip is read in a process of its own, forked because a fresh interpreter for each would take
hours, with a limit of time: every record through the store, then everything by verification.  The
time of the last change is put back, as it is when a disk rots.

Most bytes of a file are room.  Over the whole file, neighbours are therefore flipped together as
long as that changes nothing that is read: then none of them alone does, since a checksum would have
to be met by chance (one in 2**32).  Where something is seen, each is flipped alone.

``python -m tests.byte_flips --help`` runs it; ``run`` is the same as a function.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

import neurostore
from neurostore.errors import HDF5StorageError
from neurostore.schema import KINDS
from neurostore.verify.checking import check
from neurostore.verify.worker import OPERATIONS
from tests.samples import record

#: What a flip can come to, by the exit status of the process that read it; the first three are
#: what may happen.
OUTCOMES = (
    "harmless",
    "harmless, seen by verification",
    "detected",
    "detected, not seen by verification",
    "wrong in silence",
    "not an error of neurostore",
    "verification failed",
)
ALLOWED = OUTCOMES[:3]
#: Seconds for reading a file of a few hundred KB.
LIMIT = 60.0
#: Of bytes that are all alike (rows of no record yet, a very long text), one in so many is flipped.
STRIDE = 61
#: Neighbours flipped together where nothing reads them.
MOST = 256
#: So long that HDF5 stores it outside the object header, where it keeps no checksum.
TEXT = "".join(chr(33 + n % 90) for n in range(70_000)).replace('"', "'").replace("\\", "/")


def make(path: Path) -> None:
    """Every kind small (in object headers) and large (in chunks), every filter, long texts."""
    rng = np.random.default_rng(0)
    with neurostore.open(path, durability="process", chunk_size=8) as store, store.batch():
        for kind in KINDS.values():
            store.store(record(kind))
        store.store(neurostore.plasticity_trace(rng.random((24, 40)), "stdp", timestamp=1.0))
        times = np.arange(300) / 7
        for start in (2.0, 3.0):
            ids = rng.integers(0, 2**60, 300)
            store.store(neurostore.spike_train(times, ids, timestamp=start))
        long = neurostore.homeostatic_trace(np.zeros(3), "m", timestamp=4.0, metadata={"": TEXT})
        store.store(long)
        labels = {"neuron": [f"cell {n}" for n in range(200)]}
        values = rng.integers(0, 9, 200)
        store.store(neurostore.homeostatic_trace(values, "n", timestamp=5.0, coords=labels))
    with (
        neurostore.open(path, durability="process") as store,
        store.record("reservoir_states", timestamp=7.0, reservoir_id="grows") as recorder,
    ):
        for step in range(5):
            recorder.append(rng.random(40), coords={"time": step})
    for compression in ("lzf", "szip", None):
        with neurostore.open(path, durability="process", compression=compression) as store:
            states = np.arange(400).reshape(4, 100)
            name = str(compression)
            store.store(neurostore.reservoir_states(states, reservoir_id=name, timestamp=6.0))
    with neurostore.open(path, durability="process") as store:
        store.store(neurostore.spike_train([1.0], [1], timestamp=-1.0))
        store.cleanup(0, kind="spike_train", now=0.0, model_time=True)


def positions(path: Path) -> tuple[list[int], list[int]]:
    """Bytes of the file that each say something, and those that are all alike."""
    start = path.read_bytes().index(TEXT.encode())
    spare = set(range(start, start + len(TEXT)))
    with h5py.File(path) as h5file:
        for kind in KINDS:
            rows = h5file[f"catalogue/{kind}/rows"]
            used = int((rows["version"] != 0).sum())
            info = rows.id.get_chunk_info(0)
            start = info.byte_offset
            spare |= set(range(start + used * rows.dtype.itemsize, start + info.size))
    return [at for at in range(path.stat().st_size) if at not in spare], sorted(spare)


def answers(path: Path) -> dict[str, xr.Dataset]:
    """Everything that the file holds."""
    with neurostore.open(path, "r") as store:
        found = {record_id: store.retrieve(record_id).load() for record_id in store.ids()}
        return found | {"": table(store)}


def table(store: neurostore.Store) -> xr.Dataset:
    """The catalogue, without what one that is made anew from the groups cannot know."""
    found = store.catalogue().load().drop_vars("stored_bytes")
    return found.isel(record=np.argsort(found["record"].values))


def same(got: xr.Dataset, wanted: xr.Dataset) -> bool:
    """Equal to the bit, names and attributes included."""
    return got.identical(wanted) and all(
        got[name].dtype == wanted[name].dtype
        and (
            got[name].dtype.kind == "O"
            or got[name].values.tobytes() == wanted[name].values.tobytes()
        )
        for name in wanted.variables
    )


class _Here:
    """What verification asks of its helper process, answered by this one."""

    def ask(self, operation: str, time_limit: float, **arguments: Any) -> Any:
        return OPERATIONS[operation](**arguments)


def read(path: Path, wanted: dict[str, xr.Dataset]) -> int:
    """Read everything; return the number of the outcome."""
    state = _read_records(path, wanted)
    try:
        sound = check(_Here(), path, True, LIMIT, None).ok  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 (any is the outcome)
        return 6
    if state == "harmless":
        return 0 if sound else 1
    if state == "detected":
        return 3 if sound else 2
    return 4 if state == "wrong" else 5


def _read_records(path: Path, wanted: dict[str, xr.Dataset]) -> str:
    state = "harmless"
    try:
        store = neurostore.open(path, "r")
    except HDF5StorageError:
        return "detected"
    except Exception:  # noqa: BLE001 (any is the outcome)
        return "foreign"
    with store:
        for record_id, expected in wanted.items():
            try:
                got = store.retrieve(record_id).load() if record_id else table(store)
                if not same(got, expected):
                    return "wrong"
            except HDF5StorageError:
                state = "detected"
            except Exception:  # noqa: BLE001 (any is the outcome)
                return "foreign"
        try:
            if set(store.ids()) != wanted.keys() - {""}:
                return "wrong" if state == "harmless" else state
        except HDF5StorageError:
            state = "detected"
    return state


Flip = tuple[int, int]


def flip(path: Path, flips: list[Flip], wanted: dict[str, xr.Dataset], again: int) -> str:
    """Flip bits of bytes, read in a forked process, and put the bytes back."""
    fd = os.open(path, os.O_RDWR)
    try:
        old = [os.pread(fd, 1, position) for position, _ in flips]
        for (position, mask), byte in zip(flips, old, strict=True):
            os.pwrite(fd, bytes([byte[0] ^ mask]), position)
        os.utime(fd, ns=(again, again))
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_REAL, LIMIT)  # nobody handles it: it kills
            os._exit(read(path, wanted))
        _, status = os.waitpid(child, 0)
        for (position, _), byte in zip(flips, old, strict=True):
            os.pwrite(fd, byte, position)
        os.utime(fd, ns=(again, again))
    finally:
        os.close(fd)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return OUTCOMES[code]
    return "hanging" if -code == signal.SIGALRM else f"killed by {signal.Signals(-code).name}"


def each_alone(
    flips: list[Flip], judge: Callable[[list[Flip]], str], most: int = MOST
) -> Iterator[str]:
    """What each flip comes to, those that are harmless together taken together."""
    done, size = 0, 1
    while done < len(flips):
        group = flips[done : done + size]
        outcome = judge(group)
        if outcome != "harmless" and len(group) > 1:
            size = len(group) // 4 or 1
            continue
        yield from [outcome] * len(group)
        done += len(group)
        size = min(2 * size, most) if outcome == "harmless" else 1


def run(
    folder: Path, *, sample: int | None = None, seed: int = 0, share: tuple[int, int] = (0, 1)
) -> tuple[Counter[str], list[tuple[int, int, str]]]:
    """Flip bytes of a new file in ``folder``, one at a time.

    Parameters
    ----------
    sample
        How many, at places drawn with ``seed``; None flips every byte, but for those that are all
        alike, of which it takes one in `STRIDE`.
    share
        Of all these, number ``share[0]`` of ``share[1]`` equal shares.

    Returns
    -------
    tuple
        How often each outcome was seen, and every flip whose outcome is not allowed: position,
        flipped bits, outcome.
    """
    path = folder / f"flips-{share[0]}.h5"
    make(path)
    telling, spare = positions(path)
    dice = random.Random(seed)
    places = [*telling, *spare[::STRIDE]]
    if sample is not None:
        places = sorted(dice.sample(places, sample))
    flips = [(place, 1 << dice.randrange(8)) for place in places]
    flips = flips[len(flips) * share[0] // share[1] : len(flips) * (share[0] + 1) // share[1]]
    wanted, again = answers(path), path.stat().st_mtime_ns
    assert read(path, wanted) == 0
    counts: Counter[str] = Counter()
    bad = []
    outcomes = each_alone(
        flips, lambda group: flip(path, group, wanted, again), 1 if sample is not None else MOST
    )
    for (position, mask), outcome in zip(flips, outcomes, strict=True):
        counts[outcome] += 1
        if outcome not in ALLOWED:
            bad.append((position, mask, outcome))
    return counts, bad


def main() -> None:
    """Run, in as many processes as asked for, and print counts and forbidden outcomes as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="how many flips; default: the whole file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = list(_shares(Path(folder), options))
    counts: Counter[str] = sum((Counter(each[0]) for each in results), Counter())
    bad = [flip for each in results for flip in each[1]]
    print(json.dumps({"flips": counts.total(), "counts": dict(counts), "bad": sorted(bad)}))
    sys.exit(bool(bad))


def _shares(folder: Path, options: argparse.Namespace) -> Iterator[list[Any]]:
    """Run every share in a process of its own."""
    children = []
    for number in range(options.processes):
        child = os.fork()
        if child == 0:
            share = number, options.processes
            counts, bad = run(folder, sample=options.sample, seed=options.seed, share=share)
            (folder / f"{number}.json").write_text(json.dumps([counts, bad]), encoding="utf-8")
            os._exit(0)
        children.append(child)
    for number, child in enumerate(children):
        os.waitpid(child, 0)
        yield json.loads((folder / f"{number}.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
