"""Work on many chunks at once: one pool for the process, a bounded number of chunks ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

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
        _pool = os.getpid(), ThreadPoolExecutor(cores(), "neurostore-chunks")
    return _pool[1]


def each(
    function: Callable[..., T], items: Iterable[tuple[Any, ...]], nbytes: int, chunk_bytes: int
) -> Iterator[T]:
    """Yield ``function(*item)`` in order; from threads, some chunks ahead, if it is much work."""
    if nbytes <= THREADED_BYTES or nbytes <= chunk_bytes:
        yield from (function(*item) for item in items)
        return
    workers = cores()
    ahead = max(workers, min(8 * workers, _IN_FLIGHT_BYTES // max(1, chunk_bytes)))
    left = iter(items)
    pending: deque[Future[T]] = deque()
    try:
        pending.extend(submitted(function, item) for item in islice(left, ahead + 1))
        while pending:
            result = pending[0].result()
            pending.popleft()
            pending.extend(submitted(function, item) for item in islice(left, 1))
            yield result
    finally:
        # Nobody may still read a file or fill an array that the caller has given up.
        wait([future for future in pending if not future.cancel()])


def submitted(function: Callable[..., T], item: tuple[Any, ...]) -> Future[T]:
    """Hand a call to the threads."""
    try:
        return _threads().submit(function, *item)
    except RuntimeError:
        # The interpreter is closing down: threads are over before ``atexit`` closes the files.
        future: Future[T] = Future()
        future.set_result(function(*item))
        return future
