"""Flip bytes of a file with every kind of record in it, and see what each flip does to a reader.

What a flip does is read in a forked process with a limit of time, because a fresh interpreter for
each would take hours: every record through the store, then everything by verification. A process
reads on, flip after flip, until it dies or keeps something of the file open. The time of the last
change is put back, as it is when a disk rots.

Most bytes of a file are room. Over the whole file, neighbours are therefore flipped together. Where
that changes no answer none of them alone does, since a checksum would have to be met by chance (one
in 2**32), and where it changes the answers for some records alone, only those are asked for when
each is flipped by itself. Where it changes what concerns the file as a whole (whether it opens, its
catalogue), everything is read for each.

``python -m tests.byte_flips --help`` runs it; ``run`` is the same as a function.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import xarray as xr

import neurostore
from neurostore.errors import HDF5StorageError
from neurostore.schema import KINDS
from neurostore.session import close_all
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
#: Neighbours flipped together at first, and at most where nothing reads them.
BLOCK, MOST = 64, 256
#: What one process reads before another takes its place.
MOST_READ = 1000
#: Neighbours that one of several processes takes, and how often it tells how far it is.
STRETCH, TOLD = 1024, 1000
#: What of a file may not stay open when the next flip is read.
KEPT = h5py.h5f.OBJ_FILE | h5py.h5f.OBJ_DATASET | h5py.h5f.OBJ_GROUP | h5py.h5f.OBJ_ATTR
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


#: What is asked of a file: records by id, the file as a whole, and all that verification asks.
Questions = frozenset[str]
#: Whether the store opens, its ids and its table.
WHOLE = "the file as a whole"


class _Seen(Exception):
    """Verification has found something: how much more is not asked."""


class _Here:
    """What verification asks of its helper process, answered by this one.

    What is not in ``asked`` is answered as the sound file does; with ``hasty``, the first problem
    ends it.
    """

    def __init__(self, known: dict[str, str], asked: Questions | None, hasty: bool) -> None:
        self.known = known
        self.asked = asked
        self.hasty = hasty
        self.answers: dict[str, str] = {}

    def ask(self, operation: str, time_limit: float, **arguments: Any) -> Any:
        question = json.dumps([operation, arguments])
        if self.asked is not None and question in self.known and question not in self.asked:
            return json.loads(self.known[question])
        answer = OPERATIONS[operation](**arguments)
        self.answers[question] = json.dumps(answer)
        if self.hasty and (answer.get("error") or answer.get("problems")):
            raise _Seen
        return answer


@dataclass
class Sound:
    """A sound file: where, its records, what verification is told of it, and its last change."""

    path: Path
    wanted: dict[str, xr.Dataset]
    known: dict[str, str]
    again: int

    @classmethod
    def of(cls, path: Path) -> Sound:
        here = _Here({}, None, hasty=False)
        assert check(here, path, True, LIMIT, None).ok  # type: ignore[arg-type]  # _Here stands in for a helper process
        close_all()
        return cls(path, answers(path), here.answers, path.stat().st_mtime_ns)

    def read(self, asked: Questions | None, hasty: bool) -> tuple[int, Questions | None]:
        """Read everything, or what is asked; the number of the outcome, and what was not as before.

        None instead stands for the file as a whole.
        """
        state, seen = self._records(asked)
        close_all()
        here = _Here(self.known, asked, hasty)
        try:
            sound = check(here, self.path, True, LIMIT, None).ok  # type: ignore[arg-type]  # _Here stands in for a helper process
        except _Seen:
            sound = False
        except Exception:  # noqa: BLE001 (any is the outcome)
            return 6, None
        seen |= {each for each in here.answers if here.answers[each] != self.known.get(each)}
        whole = not seen.isdisjoint(("", WHOLE)) or any(
            each.startswith('["contents"') for each in seen
        )
        if state in ("harmless", "detected"):
            outcome = {"harmless": (1, 0), "detected": (2, 3)}[state][sound]
        else:
            outcome = 4 if state == "wrong" else 5
        return outcome, None if whole else frozenset(seen)

    def _records(self, asked: Questions | None) -> tuple[str, set[str]]:
        """The worst that is met, and what was not as before."""
        try:
            store = neurostore.open(self.path, "r")
        except HDF5StorageError:
            return "detected", {WHOLE}
        except Exception:  # noqa: BLE001 (any is the outcome)
            return "foreign", {WHOLE}
        questions = [*self.wanted, WHOLE]
        with store:
            met = {
                each: self._asked(store, each)
                for each in questions
                if asked is None or each in asked
            }
        seen = {each for each, state in met.items() if state != "harmless"}
        if met.get(WHOLE) == "wrong" and "detected" in met.values():
            met[WHOLE] = "detected"  # it lists what it can still find
        found = set(met.values())
        worst = next(
            (each for each in ("foreign", "wrong", "detected") if each in found), "harmless"
        )
        return worst, seen

    def _asked(self, store: neurostore.Store, question: str) -> str:
        try:
            if question == WHOLE:
                right = set(store.ids()) == self.wanted.keys() - {""}
            else:
                got = store.retrieve(question).load() if question else table(store)
                right = same(got, self.wanted[question])
        except HDF5StorageError:
            return "detected"
        except Exception:  # noqa: BLE001 (any is the outcome)
            return "foreign"
        return "harmless" if right else "wrong"


Flip = tuple[int, int]


class Reader:
    """A forked process that reads a file again and again, and another when that has died."""

    def __init__(self, sound: Sound) -> None:
        self._sound = sound
        self._pid = 0
        self._asked = 0

    def read(self, asked: Questions | None, hasty: bool) -> tuple[str, Questions | None]:
        """What `Sound.read` says in that process, or how it died."""
        if not self._pid:
            self._begin()
        try:
            self._pipe.send((asked, hasty))
            code, seen, clean = self._pipe.recv()
        except (EOFError, ConnectionError):
            return self._died(), None
        self._asked += 1
        if not clean or self._asked >= MOST_READ:
            self.end()
        return OUTCOMES[code], seen

    def _begin(self) -> None:
        self._pipe, theirs = Pipe()
        self._asked = 0
        self._pid = os.fork()
        if self._pid == 0:
            self._pipe.close()
            try:
                self._serve(theirs)
            finally:
                os._exit(1)
        theirs.close()

    def _serve(self, pipe: Connection) -> None:
        gc.freeze()
        kept = h5py.h5f.get_obj_count(types=KEPT)  # of patterns in memory
        while True:
            try:
                request = pipe.recv()
            except EOFError:
                os._exit(0)
            signal.setitimer(signal.ITIMER_REAL, LIMIT)  # nobody handles it: it kills
            code, seen = self._sound.read(*request)
            close_all()
            if h5py.h5f.get_obj_count(types=KEPT) != kept:
                gc.collect()  # an error may hold them by its traceback
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send((code, seen, h5py.h5f.get_obj_count(types=KEPT) == kept))

    def _died(self) -> str:
        self._pipe.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._pid = 0
        if code >= 0:
            raise AssertionError(f"the process that reads ended by itself with {code}")
        return "hanging" if -code == signal.SIGALRM else f"killed by {signal.Signals(-code).name}"

    def end(self) -> None:
        """Let the process go, if there is one."""
        if self._pid:
            self._pipe.close()
            os.waitpid(self._pid, 0)
            self._pid = 0


class Flipper:
    """Flips bits of a file and has it read; what may not happen is looked at by a new process."""

    def __init__(self, sound: Sound) -> None:
        self._sound = sound
        self._reader = Reader(sound)

    def look(
        self, flips: list[Flip], asked: Questions | None = None, hasty: bool = True
    ) -> tuple[str, Questions | None]:
        """Flip, read, and put the bytes back."""
        sound = self._sound
        fd = os.open(sound.path, os.O_RDWR)
        try:
            old = [os.pread(fd, 1, position) for position, _ in flips]
            for (position, mask), byte in zip(flips, old, strict=True):
                os.pwrite(fd, bytes([byte[0] ^ mask]), position)
            os.utime(fd, ns=(sound.again, sound.again))
            found = self._reader.read(asked, hasty)
            if found[0] not in ALLOWED and hasty:
                self._reader.end()
                again = self._reader.read(None, hasty)
                if again[0] != found[0]:
                    found = f"{found[0]}, and {again[0]} when read afresh", None
            for (position, _), byte in zip(flips, old, strict=True):
                os.pwrite(fd, byte, position)
            os.utime(fd, ns=(sound.again, sound.again))
        finally:
            os.close(fd)
        return found

    def each(self, flips: list[Flip]) -> Iterator[str]:
        """What each flip comes to; neighbours that change no answer are taken together."""
        done, size = 0, BLOCK
        while done < len(flips):
            group = flips[done : done + size]
            outcome, seen = self.look(group, hasty=False)
            if outcome == "harmless" and seen == frozenset():
                yield from [outcome] * len(group)
                size = min(2 * size, MOST)
            else:
                yield from each_alone(group, lambda some, seen=seen: self.look(some, seen)[0])
                size = BLOCK
            done += len(group)

    def end(self) -> None:
        """Let the process that reads go."""
        self._reader.end()


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


class Told(NamedTuple):
    """How often each outcome was seen, and every flip with one that is not allowed.

    These are a position, the flipped bits and the outcome. ``size`` is that of the file, ``alike``
    the number of bytes of which only some are flipped.
    """

    counts: dict[str, int]
    bad: list[tuple[int, int, str]]
    size: int
    alike: int


def run(
    folder: Path, *, sample: int | None = None, seed: int = 0, share: tuple[int, int] = (0, 1)
) -> Told:
    """Flip bytes of a new file in ``folder``, one at a time.

    Parameters
    ----------
    sample
        How many, at places drawn with ``seed``; None flips every byte, but for those that are all
        alike, of which it takes one in `STRIDE`.
    share
        Of all these, number ``share[0]`` of ``share[1]`` shares that take turns.
    """
    path = folder / f"flips-{share[0]}.h5"
    make(path)
    telling, spare = positions(path)
    dice = random.Random(seed)
    places = [*telling, *spare[::STRIDE]]
    if sample is not None:
        places = sorted(dice.sample(places, sample))
    flips = [(place, 1 << dice.randrange(8)) for place in places]
    turn = STRETCH if sample is None else 1
    flips = [each for at, each in enumerate(flips) if at // turn % share[1] == share[0]]
    sound = Sound.of(path)
    assert sound.read(None, hasty=False) == (0, frozenset())
    close_all()
    flipper = Flipper(sound)
    counts: Counter[str] = Counter()
    bad = []
    outcomes = (
        flipper.each(flips) if sample is None else (flipper.look([each])[0] for each in flips)
    )
    for (position, mask), outcome in zip(flips, outcomes, strict=True):
        counts[outcome] += 1
        if outcome not in ALLOWED:
            bad.append((position, mask, outcome))
            print("not allowed:", position, mask, outcome, file=sys.stderr, flush=True)
        if counts.total() % TOLD == 0:
            print(f"{counts.total()} of {len(flips)}", dict(counts), file=sys.stderr, flush=True)
    flipper.end()
    return Told(dict(counts), bad, path.stat().st_size, len(spare))


def main() -> None:
    """Run, in as many processes as asked for, and print counts and forbidden outcomes as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="how many flips; default: the whole file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = list(_shares(Path(folder), options))
    counts: Counter[str] = sum((Counter(each.counts) for each in results), Counter())
    bad = sorted(flip for each in results for flip in each.bad)
    told = {"flips": counts.total(), "counts": dict(counts), "bad": bad}
    print(json.dumps(told | {"size": results[0].size, "alike": results[0].alike}))
    sys.exit(bool(bad))


def _shares(folder: Path, options: argparse.Namespace) -> Iterator[Told]:
    """Run every share in a process of its own."""
    children = []
    for number in range(options.processes):
        child = os.fork()
        if child == 0:
            try:
                share = number, options.processes
                told = run(folder, sample=options.sample, seed=options.seed, share=share)
                (folder / f"{number}.json").write_text(json.dumps(told), encoding="utf-8")
                os._exit(0)
            except BaseException:  # noqa: BLE001 (the parent misses the answer)
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    for number, child in enumerate(children):
        os.waitpid(child, 0)
        yield Told(*json.loads((folder / f"{number}.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
