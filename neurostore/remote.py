"""A remote file for HDF5: byte ranges through fsspec, kept, and asked for many at once.

What HDF5 itself asks for are structures of some hundred bytes, many of them side by side: they are
read in blocks, which are kept. Chunks are asked for all together, past HDF5, and not kept. The
file is taken for one that does not change while it is open; nothing here writes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import h5py

from neurostore.errors import (
    HDF5StorageError,
    NotAStoreError,
    ReadOnlyError,
    StoreError,
    StoreNotFoundError,
)
from neurostore.optional import needs
from neurostore.places import Url

__all__ = ["RemoteFile", "of"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: Bytes that are read at once for HDF5, and of which so many are kept.
_BLOCK = 8 * 1024
_KEPT = 8192
#: Blocks of the first request: the superblock, the top of the tree, and the state of the catalogue
#: are in it.
_FIRST = 17
#: Blocks that are read at once, at most, where one is read after the other.
_LONGEST = 128
#: Ranges nearer than this are one request.
_GAP = 32 * 1024
#: Requests that are made at once.
_TOGETHER = 16
Range = tuple[int, int]

_served: WeakValueDictionary[str, RemoteFile] = WeakValueDictionary()


def of(item: Any) -> RemoteFile | None:
    """Return the remote file that an HDF5 object is in, if it is in one."""
    if not _served:
        return None
    return _served.get(h5py.h5f.get_name(item).decode())


class RemoteFile:
    """Read-only file object for h5py's ``fileobj`` driver.

    Nothing leaves a callback of HDF5; the first error is kept, and raised by `checked`.

    Parameters
    ----------
    url
        Any that fsspec knows.

    Attributes
    ----------
    requests, received
        How many byte ranges were asked for, and how many bytes came.

    Raises
    ------
    StoreNotFoundError, ReadOnlyError, NotAStoreError
        There is none, it may not be read, or it is no HDF5 file.
    MissingPackageError
        fsspec, or what it needs for this kind of URL, is not installed.
    """

    def __init__(self, url: Url) -> None:
        self.url = url
        self.error: BaseException | None = None
        self.requests = 0
        self.received = 0
        self._position = 0
        self._guard = threading.RLock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._last, self._run = -1, 1
        with needs("remote", f"{url}: reading a remote file"):
            import fsspec
        with self._asking(), needs("remote", f"{url}: this kind of URL"):
            self._fs, self._key = fsspec.core.url_to_fs(str(url), **url.options)
        head = self._get([(0, _FIRST * _BLOCK)])[0]
        if not head.startswith(_SIGNATURE):
            raise NotAStoreError(f"{url}: expected an HDF5 file; it begins with {head[:8]!r}")
        self.size = self._end(head)
        for number in range(_FIRST):
            self._blocks[number] = head[number * _BLOCK : (number + 1) * _BLOCK]
        _served[repr(self)] = self

    def _end(self, head: bytes) -> int:
        """Return the size of the file, as its superblock has it: that spares a request."""
        if len(head) < _FIRST * _BLOCK:
            return len(head)
        if head[8] in (2, 3) and head[9] == 8:
            return int.from_bytes(head[28:36], "little")
        self.requests += 1
        with self._asking():
            return int(self._fs.size(self._key))

    # -- asking the server -----------------------------------------------------------------

    def fetch(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of many ranges, each an offset and a length; near ones in one request.

        Raises
        ------
        StoreError
            The server refused, or sent less.
        """
        if sum(length for _, length in ranges) < _BLOCK:
            return self._small(ranges)
        return self._joined(ranges)

    def _small(self, ranges: Sequence[Range]) -> list[bytes]:
        """Fetch little with what lies behind it, which is asked for next more often than not."""
        with self._guard:
            self.anticipate([(start, length + _BLOCK) for start, length in ranges])
            found = [self._checked(self._held(*one), *one) for one in ranges]
            self._forget()
            return found

    def _joined(self, ranges: Sequence[Range]) -> list[bytes]:
        order = sorted(range(len(ranges)), key=lambda number: ranges[number])
        joined: list[Range] = []
        member: dict[int, int] = {}
        for number in order:
            start, length = ranges[number]
            if joined and start <= sum(joined[-1]) + _GAP:
                first, before = joined[-1]
                joined[-1] = (first, max(before, start + length - first))
            else:
                joined.append((start, length))
            member[number] = len(joined) - 1
        got = self._get(joined)
        found = []
        for number, (start, length) in enumerate(ranges):
            first = joined[member[number]][0]
            data = got[member[number]][start - first : start - first + length]
            found.append(self._checked(data, start, length))
        return found

    def _checked(self, data: bytes, start: int, length: int) -> bytes:
        if len(data) != length:
            raise StoreError(
                f"{self.url}: {len(data)} of {length} bytes at {start}; the file is shorter than "
                "it says, or was replaced while it was open; open it anew"
            )
        return data

    def _get(self, ranges: list[Range]) -> list[bytes]:
        if not ranges:
            return []
        starts = [start for start, _ in ranges]
        ends = [start + length for start, length in ranges]
        keys = [self._key] * len(ranges)
        with self._asking():
            got = self._fs.cat_ranges(keys, starts, ends, on_error="raise", batch_size=_TOGETHER)
        with self._guard:
            self.requests += len(ranges)
            self.received += sum(map(len, got))
        return [bytes(data) for data in got]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what fsspec and the server say into errors of ours."""
        try:
            yield
        except HDF5StorageError:
            raise
        except FileNotFoundError as error:
            raise StoreNotFoundError(
                f"{self.url}: there is no such file; expected one to read"
            ) from error
        except PermissionError as error:
            raise self._forbidden(error) from error
        except ValueError as error:  # a protocol that fsspec does not know
            raise NotAStoreError(
                f"{self.url}: cannot be opened: {error}; expected a URL that fsspec knows"
            ) from error
        except Exception as error:  # each server's library has its own
            if getattr(error, "status", None) in (401, 403):  # as aiohttp says it
                raise self._forbidden(error) from error
            raise StoreError(
                f"{self.url}: cannot be read ({type(error).__name__}: {error}); expected a "
                "server that is reached and answers requests for byte ranges"
            ) from error

    def _forbidden(self, error: Exception) -> ReadOnlyError:
        return ReadOnlyError(
            f"{self.url}: may not be read ({error}); expected permission; pass what the server "
            "asks for in storage_options="
        )

    # -- callbacks of HDF5 ------------------------------------------------------------------

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to ``offset``."""
        self._position = offset if whence == 0 else self.size + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the position."""
        view = memoryview(buffer)
        try:
            with self._guard:
                self._fill(view)
        except BaseException as error:  # noqa: BLE001 (kept, and raised by checked)
            self.error = self.error or error
        self._position += len(view)
        return len(view)

    def _fill(self, view: memoryview) -> None:
        start, stop = self._position, min(self._position + len(view), self.size)
        if stop <= start:
            return
        self._read_on(start, stop)
        view[: stop - start] = self._held(start, stop - start)
        self._forget()

    def _held(self, start: int, length: int) -> bytes:
        """Put together what is kept of a range, as far as the file goes."""
        stop = min(start + length, self.size)
        parts = []
        for number in range(start // _BLOCK, -(-stop // _BLOCK)):
            self._blocks.move_to_end(number)
            at = number * _BLOCK
            parts.append(self._blocks[number][max(0, start - at) : stop - at])
        return b"".join(parts)

    def _forget(self) -> None:
        """Let go of the blocks that were used longest ago."""
        while len(self._blocks) > _KEPT:
            self._blocks.popitem(last=False)

    def _read_on(self, start: int, stop: int) -> None:
        """Have the blocks of a range, and of what follows where HDF5 reads one after another."""
        first, last = start // _BLOCK, (stop - 1) // _BLOCK
        if all(number in self._blocks for number in range(first, last + 1)):
            return
        self._run = min(2 * self._run, _LONGEST) if first - self._last in (0, 1) else 1
        self._last = max(last, first + self._run - 1)
        self.anticipate([(first * _BLOCK, (self._last + 1 - first) * _BLOCK)])

    def anticipate(self, ranges: Sequence[Range]) -> None:
        """Have the blocks of these ranges, asked for together, ready for HDF5."""
        with self._guard:
            wanted = {
                number
                for start, length in ranges
                for number in range(start // _BLOCK, (start + max(1, length) - 1) // _BLOCK + 1)
                if number not in self._blocks and number * _BLOCK < self.size
            }
            missing = sorted(wanted)
            got = self._joined([(n * _BLOCK, min(_BLOCK, self.size - n * _BLOCK)) for n in missing])
            self._blocks.update(zip(missing, got, strict=True))

    def write(self, data: Any) -> int:
        """Do nothing; HDF5 does not write to a file that it opened for reading."""
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Do nothing."""
        return self.size

    def flush(self) -> None:
        """Do nothing."""

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Raise the error that a callback kept inside; what HDF5 made of it is beside the point."""
        try:
            yield
        except Exception:
            self._check()
            raise
        self._check()

    def _check(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Let what was kept go."""
        _served.pop(repr(self), None)
        self._blocks.clear()
