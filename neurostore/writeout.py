"""Bytes on their way to the medium while the next ones are being made.

A commit waits for the medium, and longest for what it appended.  `WriteOut` syncs a file in a
thread meanwhile, so that little is left to do then.  That is a hint and no more: it replaces no
sync of the protocol, but an error that it met is the commit's, because the system reports it once.
It neither writes nor knows what the bytes are.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Final

from neurostore.osio import IO

__all__ = ["WriteOut"]

#: Bytes with which the first sync is worth it, which costs the file system a commit of its own
#: journal; and which the next ones wait for at most, each for twice as many as the one before: they
#: hold up whoever writes meanwhile.
_BYTES: Final = 1 << 20
_MOST_BYTES: Final = 8 << 20

_pool: tuple[int, ThreadPoolExecutor] | None = None


def _thread() -> ThreadPoolExecutor:
    """Get the thread of this process; a forked child has none of its parent's."""
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        _pool = os.getpid(), ThreadPoolExecutor(1, "neurostore-writeout")
    return _pool[1]


class WriteOut:
    """Syncs one open file ahead of its commit.

    Parameters
    ----------
    io
        The operations of the operating system.
    fd
        Descriptor of the file; it stays open until `wait` has returned.
    step
        Bytes after which the first sync is worth while.
    """

    def __init__(self, io: IO, fd: int, step: int = _BYTES) -> None:
        self._io = io
        self._fd = fd
        self._step = self._needed = step
        self._pid = os.getpid()
        self._waiting = 0
        self._running: Future[None] | None = None

    def wrote(self, count: int) -> None:
        """Note that so many bytes were handed to the system; begin to sync once it is many."""
        self._waiting += count
        if self._waiting < self._needed:
            return
        running = self._running
        if running is not None and not (running.done() and running.exception() is None):
            return  # one at a time, and none after an error
        self._waiting = 0
        self._needed = max(self._step, min(2 * self._needed, _MOST_BYTES))
        try:
            self._running = _thread().submit(self._io.sync, self._fd)
        except RuntimeError:  # the interpreter is closing down: the commit syncs by itself
            self._running = None

    def wait(self) -> None:
        """Return when nothing is under way; raise the error that was met, if any."""
        running = self._running
        if running is not None and self._pid == os.getpid():
            wait([running])
            self._running = None
            running.result()
        self._waiting, self._needed = 0, self._step
