"""A file as HDF5 sees it with changed bytes laid over: for readers who may not write.

`View` is what the file objects for h5py's ``fileobj`` driver share: a position, and reading
through changed pages. `Overlay` shows the data file finished by its journal, in memory. Nothing
here writes to a file; the object that does is `neurostore.safefile`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from neurostore.journal import read_journal, stated_end
from neurostore.names import beside
from neurostore.osio import FLAGS, IO, OsIO, read_all, refused

__all__ = ["PAGE", "Overlay", "View"]

PAGE: Final = 4096
_KEPT: Final = 1024


class _Pages:
    """Changed bytes below an end, by pages of 4 KiB; each with the span that was written."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.spans: dict[int, tuple[int, int]] = {}
        # What the first pages held before, so that small commits need not read it again.
        self.before: dict[int, bytes] = {}

    def put(self, data: Any, offset: int, load: Callable[[int, int], bytes]) -> None:
        """Lay ``data`` at ``offset``; ``load(length, offset)`` gives what a page held before."""
        page, start = divmod(offset, PAGE)
        length = len(data)
        stop = start + length
        if stop <= PAGE:
            self._put(data, page, start, stop, load)
            return
        view = memoryview(data)
        done = 0
        while done < length:
            take = min(PAGE - start, length - done)
            self._put(view[done : done + take], page, start, start + take, load)
            page, start, done = page + 1, 0, done + take

    def _put(
        self, data: Any, page: int, start: int, stop: int, load: Callable[[int, int], bytes]
    ) -> None:
        held = self.pages.get(page)
        if held is None:
            if stop - start == PAGE:
                held = bytearray(PAGE)
            else:
                loaded = load(PAGE, page * PAGE)
                if len(self.before) < _KEPT:
                    self.before[page] = loaded
                held = bytearray(loaded)
            self.pages[page] = held
            self.spans[page] = (start, stop)
        else:
            first, last = self.spans[page]
            if start < first or stop > last:
                self.spans[page] = (min(start, first), max(stop, last))
        held[start:stop] = data

    def patch(self, buffer: Any, offset: int, stop: int) -> None:
        """Lay the changed bytes between ``offset`` and ``stop`` over ``buffer``."""
        pages = self.pages
        first, last = offset // PAGE, (stop - 1) // PAGE
        span: Any = range(first, last + 1)
        if len(pages) < last - first:
            span = [page for page in pages if first <= page <= last]
        for page in span:
            held = pages.get(page)
            if held is not None:
                start, end = max(page * PAGE, offset), min((page + 1) * PAGE, stop)
                memoryview(buffer)[start - offset : end - offset] = held[
                    start - page * PAGE : end - page * PAGE
                ]

    def clear(self) -> None:
        self.pages.clear()
        self.spans.clear()
        self.before.clear()


class View:
    """What both file objects share: a position, and reading through the changed pages.

    Nothing leaves a callback of HDF5: the driver would swallow it, poison the handle, or crash
    when the file is closed. The first error is kept in `error` instead.
    """

    def __init__(self, path: str, flags: int, io: IO) -> None:
        self.path = path
        self.error: BaseException | None = None
        self._failed = ""
        self._io = io
        self._preadinto = io.preadinto
        self._fd = io.open(path, flags | FLAGS)
        self._changed = _Pages()
        self._position = 0
        self._end = 0
        # Written behind the end, and not yet handed to the system.
        self._tail = bytearray()
        self._tail_start = 0

    def _patch_tail(self, buffer: Any, offset: int) -> None:
        start = max(offset, self._tail_start)
        stop = min(offset + len(buffer), self._tail_start + len(self._tail))
        if start < stop:
            held = self._tail[start - self._tail_start : stop - self._tail_start]
            memoryview(buffer)[start - offset : stop - offset] = held

    def _keep(self, operation: str, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            self._failed = operation

    def fileno(self) -> int:
        """Descriptor of the data file."""
        return self._fd

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to ``offset``."""
        self._position = offset if whence == 0 else self._size() + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def _size(self) -> int:
        return self._end

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the position, with zeros where there is nothing."""
        try:
            start = self._position
            length = len(buffer)
            done = self._preadinto(self._fd, buffer, start)
            if done < length:
                self._read_rest(memoryview(buffer), done)
            if self._tail:
                self._patch_tail(buffer, start)
            if start < self._end and self._changed.pages:
                self._changed.patch(buffer, start, min(start + length, self._end))
            self._position = start + length
        except BaseException as error:  # noqa: BLE001 (kept, and raised by check and commit)
            self._keep("read", error)
        return len(buffer)

    def _read_rest(self, view: memoryview, done: int) -> None:
        while done < len(view):
            more = self._preadinto(self._fd, view[done:], self._position + done)
            if not more:
                view[done:] = bytes(len(view) - done)
                return
            done += more

    def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes at ``offset`` as HDF5 sees them; errors are raised here."""
        data = bytearray(read_all(self._io, self._fd, length, offset))
        if self._tail:
            self._patch_tail(data, offset)
        if self._changed.pages and offset < self._end:
            self._changed.patch(data, offset, min(offset + length, self._end))
        return bytes(data)

    def flush(self) -> None:
        """Do nothing: what is written counts from the commit on."""

    def check(self) -> None:
        """Raise the first error that a callback kept."""
        if self.error is None:
            return
        if isinstance(self.error, Exception):
            raise refused(
                self.path, self._failed, self.error, "the last commit stands; reopen the store"
            ) from self.error
        raise self.error


class Overlay(View):
    """Read-only file object: the data file with its valid journal laid over it in memory.

    For readers who may not write, where `pending` is true. It shows one commit; after another one
    it is stale, as every open handle of a reader is.

    Parameters
    ----------
    path
        The data file.
    finished
        Whether the journal is laid over it; False shows the file as it is.
    whole
        Whether zeros stand for what the file lacks, if it was cut short: HDF5 opens no such file.
    io
        The operations of the operating system.

    Examples
    --------
    >>> with open_h5(Overlay("run.h5"), write=False) as h5file:  # doctest: +SKIP
    ...     list(h5file)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        finished: bool = True,
        whole: bool = False,
        io: IO | None = None,
    ) -> None:
        io = io or OsIO()
        super().__init__(os.path.realpath(os.fspath(path)), os.O_RDONLY, io)
        journal = read_journal(io, beside(self.path, "-journal"))[1] if finished else None
        self._end = io.size(self._fd)
        if whole:
            self._end = max(self._end, stated_end(io, self._fd) or 0)
        if journal is not None and journal.verdict(io, self._fd) == "apply":
            self._end = journal.new_end
            for offset, data in journal.extents:
                self._changed.put(data, offset, self._load)

    def _load(self, length: int, offset: int) -> bytes:
        return read_all(self._io, self._fd, length, offset)

    def write(self, data: Any) -> int:
        """Do nothing; HDF5 does not write to a file that it opened for reading."""
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Do nothing."""
        return self._end

    def close(self) -> None:
        """Close the data file; after the HDF5 handle on it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._io.close(fd)

    def __del__(self) -> None:
        """Close the data file with the HDF5 handle, which holds this."""
        if hasattr(self, "_fd"):  # it was opened
            self.close()
