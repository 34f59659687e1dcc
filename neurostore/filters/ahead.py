"""The large arrays of a record, encoded while its place in the file is being prepared.

`Ahead` begins at once, in the threads that every chunk is encoded in: first which filters suit each
array, then their chunks, in order, a bounded number of them.  It writes nothing; `write` takes
from it what it would have made itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any

import numpy as np

from .pipeline import CHUNKED_HERE, Pipeline, choose, chunk_shape
from .threads import THREADED_BYTES, Stream, submitted
from .writing import Encoded, Slices, encoded, tiles

__all__ = ["Ahead"]

Array = np.ndarray[Any, np.dtype[Any]]
#: Less is encoded by the time that the threads are awake.
_BYTES = 2**20
#: Bytes of chunks that wait to be taken.
_WAITING_BYTES = 8 * 2**20


class Ahead:
    """Encodes arrays from the moment it is made, by `of`; it has to be closed."""

    def __init__(
        self, arrays: Sequence[Array], compression: str | None, level: int | None, chunk_size: int
    ) -> None:
        self._counts: dict[int, int] = {}
        self._arrays = arrays  # kept alive: they are known by their identity
        self._pipelines: dict[int, Future[Pipeline]] = {
            id(array): submitted(choose, (array, compression, level, chunk_size))
            for array in arrays
        }
        largest = max(array.itemsize * math.prod(_chunks(array, chunk_size)) for array in arrays)
        jobs = self._jobs(arrays, chunk_size)
        self._stream: Stream[tuple[int, Encoded]] = Stream(
            self._encode, jobs, max(1, _WAITING_BYTES // largest)
        )

    @classmethod
    def of(
        cls, arrays: Iterable[Any], compression: str | None, level: int | None, chunk_size: int
    ) -> Ahead | None:
        """Begin with arrays, or return None where it does not pay.

        Parameters
        ----------
        arrays
            Those that are to be written, in this order; small ones, and those that this package
            does not encode, are passed over.
        compression, level, chunk_size
            As for `choose`.
        """
        if compression not in CHUNKED_HERE:
            return None
        large = [array for array in arrays if _is_large(array, chunk_size)]
        if sum(array.nbytes for array in large) < _BYTES:
            return None
        return cls(large, compression, level, chunk_size)

    def close(self) -> None:
        """Wait for what is under way, and forget what nobody took."""
        self._stream.close()

    def has(self, array: Any) -> bool:
        """Tell whether an array was begun."""
        return id(array) in self._pipelines

    def pipeline(self, array: Any) -> Pipeline | None:
        """Return what was chosen for an array; None if it was passed over."""
        found = self._pipelines.get(id(array))
        return None if found is None else found.result()

    def take(self, array: Any) -> Iterator[Encoded] | None:
        """Yield the chunks of the next array, with their offsets; None if it was passed over."""
        return self._taken(id(array)) if self.has(array) else None

    def _taken(self, key: int) -> Iterator[Encoded]:
        for owner, chunk in islice(self._stream, self._counts[key]):
            assert owner == key, "arrays are taken in the order in which they were given"
            yield chunk

    def _jobs(
        self, arrays: Iterable[Array], chunk_size: int
    ) -> Iterator[tuple[Array, tuple[int, ...], Slices]]:
        for array in arrays:
            found = list(tiles(array.shape, _chunks(array, chunk_size)))
            self._counts[id(array)] = len(found)
            for offset, tile in found:
                yield array, offset, tile

    def _encode(self, array: Array, offset: tuple[int, ...], tile: Slices) -> tuple[int, Encoded]:
        # Its choice was handed to the threads before, so that it is made, or being made.
        pipeline = self._pipelines[id(array)].result()
        return id(array), (offset, encoded(array[tile], pipeline))


def _chunks(array: Array, chunk_size: int) -> tuple[int, ...]:
    return chunk_shape(array.shape, array.itemsize, chunk_size)


def _is_large(array: Any, chunk_size: int) -> bool:
    if not isinstance(array, np.ndarray) or array.nbytes <= THREADED_BYTES:
        return False
    return bool(_chunks(array, chunk_size) != array.shape)
