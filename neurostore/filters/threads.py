"""Work on many chunks at once: by the caller and a pool for the process, a bounded number ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

#: Less than this is not worth a thread.
THREADED_BYTES = 256 * 1024
_IN_FLIGHT_BYTES = 64 * 1024 * 1024

_pool: tuple[int, ThreadPoolExecutor] | None = None


def cores() -> int:
    """Count the processors that this process may use: batch systems lend fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads() -> ThreadPoolExecutor:
    """Get the pool of this process; a forked child has none of its parent's threads."""
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        _pool = os.getpid(), ThreadPoolExecutor(max(1, cores() - 1), "neurostore-chunks")
    return _pool[1]


def each(
    function: Callable[..., T], items: Iterable[tuple[Any, ...]], nbytes: int, chunk_bytes: int
) -> Iterator[T]:
    """Yield ``function(*item)`` in order; by threads, some chunks ahead, if it is much work.

    The caller does its share instead of waiting: with more threads than processors, each would
    wait for its turn at a processor while it holds up those that wait for what it has.
    """
    if cores() == 1 or nbytes <= THREADED_BYTES or nbytes <= chunk_bytes:
        yield from (function(*item) for item in items)
        return
    helpers = cores() - 1
    ahead = max(cores(), min(8 * cores(), _IN_FLIGHT_BYTES // max(1, chunk_bytes)))
    shared = _Shared(function)
    left = iter(items)
    pending: deque[_Task[T]] = deque()
    try:
        for item in islice(left, ahead + 1):
            pending.append(shared.add(item))
            shared.call(min(helpers, len(pending) - 1))
        while pending:
            task = pending[0]
            while not task.done:
                shared.go_on()
            pending.popleft()
            for item in islice(left, 1):
                pending.append(shared.add(item))
                shared.call(helpers)
            yield task.outcome()
    finally:
        # Nobody may still read a file or fill an array that the caller has given up.
        shared.end()


class _Task(Generic[T]):
    """One call, and what came of it."""

    __slots__ = ("done", "error", "item", "result")

    def __init__(self, item: tuple[Any, ...]) -> None:
        self.item = item
        self.done = False
        self.error: BaseException | None = None
        self.result: T | None = None

    def run(self, function: Callable[..., T]) -> None:
        try:
            self.result = function(*self.item)
        except BaseException as error:  # noqa: BLE001 (kept, and raised by outcome)
            self.error = error
        self.done = True

    def outcome(self) -> T:
        error, self.error = self.error, None  # its traceback leads back here
        if error is not None:
            raise error
        return cast(T, self.result)


class _Shared(Generic[T]):
    """Calls that the caller and its helpers take from one row, whoever is free."""

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._row: deque[_Task[T]] = deque()
        self._finished: SimpleQueue[None] = SimpleQueue()
        self._helpers: list[Future[None]] = []

    def add(self, item: tuple[Any, ...]) -> _Task[T]:
        task = _Task[T](item)
        self._row.append(task)
        return task

    def call(self, count: int) -> None:
        """See to it that so many helpers are at work."""
        self._helpers = [helper for helper in self._helpers if not helper.done()]
        try:
            for _ in range(count - len(self._helpers)):
                self._helpers.append(_threads().submit(self._help))
        except RuntimeError:
            pass  # the interpreter is closing down: the caller does it all

    def go_on(self) -> None:
        """Do the next call, or wait until a helper has finished one."""
        try:
            task = self._row.popleft()
        except IndexError:
            self._finished.get()
        else:
            task.run(self._function)
            if task.error is not None and not isinstance(task.error, Exception):
                raise task.error  # an interrupt: not in its turn, and not only perhaps

    def end(self) -> None:
        self._row.clear()
        # Those that have not begun may be waiting for the end of somebody else's work.
        wait([helper for helper in self._helpers if not helper.cancel()])

    def _help(self) -> None:
        while True:
            try:
                task = self._row.popleft()
            except IndexError:
                return
            task.run(self._function)
            self._finished.put(None)
