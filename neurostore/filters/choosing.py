"""Which filters and which encoder suit the values of a variable, told from a sample of them.

A level keeps its meaning: what zlib makes of the unshuffled values at that level is the measure,
and the fastest way that is as small is taken. The same values always get the same answer. Chunk
shapes are given; nothing is written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from .encoders import ISAL, RLE, Encoder, libdeflate, plain_zlib, zng
from .planes import joint_share, shuffled

__all__ = ["ARCHIVE_LEVEL", "Choice", "quick", "trial"]

Array = np.ndarray[Any, np.dtype[Any]]

#: From this level on the smallest size is looked for.
ARCHIVE_LEVEL = 7
_SAMPLE_BYTES = 32 * 1024
_GLANCE_BYTES = 2 * 1024
_SMALL_BYTES = 64 * 1024
#: Planes that shrink by less than a third may be stored as they are, if the size allows it.
_NOISE_SHARE = 0.66
_ROOM = 0.97
#: From the fastest to the slowest, measured on spikes, ids, connectomes, weights and states.
_LADDER = (ISAL, RLE, zng(2), libdeflate(1), libdeflate(5), zng(6), libdeflate(7))
#: Whole chunks shrink a little better than the pieces of a sample.
_TOLERANCE = 1.02
#: ISA-L loses most on repetitions that are long or far apart, and a sample shows least of them.
_REPETITIVE, _MIXED = 0.85, 0.95


@dataclass(frozen=True)
class Choice:
    """What a sample spoke for.

    Parameters
    ----------
    shuffle : bool
        Whether the bytes of the values are transposed before compression.
    encoder : Encoder
        Who makes the streams.
    noise : int
        How many planes of shuffled bytes, from the first, are not worth packing.
    noise_share : float
        To what share of their size the sample of those planes shrinks all the same.
    """

    shuffle: bool
    encoder: Encoder
    noise: int = 0
    noise_share: float = 0.0


def trial(array: Array, chunks: tuple[int, ...], level: int) -> Choice:
    """Decide on shuffle and encoder for the values at a level of gzip."""
    if level == 0:
        return Choice(False, libdeflate(0))
    if array.size == 0:
        return Choice(array.itemsize > 1, ISAL)
    if array.nbytes <= _SMALL_BYTES and level < ARCHIVE_LEVEL:
        found = _glance(_sample(array, chunks, _GLANCE_BYTES))
        if found is not None:
            return found
    sample = _Sample(_sample(array, chunks, _SAMPLE_BYTES))
    return _smallest(sample, level) if level >= ARCHIVE_LEVEL else _fastest(sample, level)


def quick(shuffle: bool) -> Choice:
    """Return the fastest way, for bytes that are written anew soon."""
    return Choice(shuffle, ISAL)


def prefers_shuffle(
    array: Array, chunks: tuple[int, ...], pack: Callable[[Any], Any] = ISAL.whole
) -> bool:
    """Whether a shuffle helps another compression than that of gzip."""
    if array.size == 0 or array.itemsize == 1:
        return array.itemsize > 1
    sample = _Sample(_sample(array, chunks, _SAMPLE_BYTES))
    encoder = Encoder("", pack)
    return sample.shuffled(encoder) < sample.plain(encoder)


class _Sample:
    """Some values, and how small they get."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.nbytes = values.nbytes
        self._bytes = values.view(np.uint8)
        self.planes = shuffled(values, values.shape)

    def size(self, encoder: Encoder, *, shuffle: bool) -> int:
        """Bytes that an encoder makes of it."""
        return len(encoder.whole(self.planes.reshape(-1) if shuffle else self._bytes))

    def plain(self, encoder: Encoder) -> int:
        """Bytes without shuffle."""
        return self.size(encoder, shuffle=False)

    def shuffled(self, encoder: Encoder) -> float:
        """Bytes with shuffle; single bytes count as endless, there being nothing to shuffle."""
        return self.size(encoder, shuffle=True) if self.values.itemsize > 1 else math.inf


def _glance(values: Array) -> Choice | None:
    """Decide about a small array where that is easy; a full trial would cost more than it gains."""
    sample = _Sample(values)
    plain, planes = sample.plain(ISAL), sample.shuffled(ISAL)
    clear = planes < 0.8 * plain and plain > 0.15 * sample.nbytes
    dense = plain > 0.95 * sample.nbytes
    return Choice(planes < plain, ISAL) if clear or dense else None


def _fastest(sample: _Sample, level: int) -> Choice:
    """Go from the fastest encoder to the slowest, up to one that is as small as zlib."""
    found = _of_noise(sample)
    if found is not None:
        return found
    reference = sample.plain(plain_zlib(level))
    ways = [True, False] if sample.values.itemsize > 1 else [False]
    best: tuple[float, Choice] = _TOLERANCE * reference, Choice(False, plain_zlib(level))
    for encoder in _LADDER:
        sizes = {way: sample.size(encoder, shuffle=way) for way in ways}
        smallest = min(sizes.values())
        # Where they are alike, shuffled bytes are packed and unpacked faster.
        shuffle = sizes.get(True, math.inf) <= 1.01 * smallest
        if smallest <= reference * _margin(encoder, shuffle, reference / sample.nbytes):
            if shuffle:
                return _with_noise(sample, encoder, sizes[True], reference)[0]
            return Choice(False, encoder)
        if smallest <= best[0]:
            best = smallest, Choice(shuffle, encoder)
        ways = [way for way, size in sizes.items() if size <= 1.4 * smallest]
    return best[1]


def _of_noise(sample: _Sample) -> Choice | None:
    """Decide about noise without zlib, which takes a millisecond and shrinks it no better."""
    plain = sample.plain(ISAL)
    if plain < 0.9 * sample.nbytes or sample.values.itemsize == 1:
        return None
    choice, size = _with_noise(sample, ISAL, sample.shuffled(ISAL), plain)
    return choice if size <= 0.97 * plain else None


def _margin(encoder: Encoder, shuffle: bool, share: float) -> float:
    """To what part of the size in question a sample must shrink for the whole to be as small."""
    if encoder is ISAL and share < 0.02:
        return _REPETITIVE
    return _MIXED if encoder is ISAL and not shuffle and 0.05 < share < 0.9 else 1.0


def _smallest(sample: _Sample, level: int) -> Choice:
    """Try everything that can win."""
    found: list[tuple[float, bool, Encoder]] = []
    for encoder in (libdeflate(level + 3), zng(9), RLE, plain_zlib(level)):
        found.append((sample.plain(encoder), False, encoder))
        found.append((sample.shuffled(encoder), True, encoder))
    _, shuffle, encoder = min(found, key=lambda entry: entry[0])
    return Choice(shuffle, encoder)


def _with_noise(
    sample: _Sample, encoder: Encoder, size: float, reference: float
) -> tuple[Choice, float]:
    """See how many of the first planes can be stored as they are, and the size still be kept.

    The others pack better without them, each code being made for all that is packed at once.
    """
    planes = sample.planes
    shares = (len(encoder.whole(plane)) / plane.size for plane in planes[:-1])
    noise = sum(1 for _ in takewhile(lambda share: share >= _NOISE_SHARE, shares))
    while noise:
        packed = len(encoder.whole(planes[noise:].reshape(-1)))
        split = planes[:noise].size + packed
        if split <= max(_ROOM * reference, size):
            return Choice(True, encoder, noise, joint_share(planes[:noise])), split
        noise -= 1
    return Choice(True, encoder), size


def _sample(array: Array, chunks: tuple[int, ...], nbytes: int) -> Array:
    """Take up to ``nbytes`` of values, in one dimension, from up to four chunks, in their order."""
    grid = [-(-length // chunk) for length, chunk in zip(array.shape, chunks, strict=True)]
    count = math.prod(grid)
    pieces = min(4, count)
    wanted = nbytes // (pieces * array.itemsize)
    found = []
    for piece in range(pieces):
        where = np.unravel_index((2 * piece + 1) * count // (2 * pieces), grid)
        tile = array[tuple(slice(i * c, (i + 1) * c) for i, c in zip(where, chunks, strict=True))]
        rows = min(len(tile), -(-wanted * len(tile) // tile.size))
        start = (len(tile) - rows) // 2
        found.append(tile[start : start + rows].reshape(-1)[:wanted])
    return np.ascontiguousarray(found[0]) if pieces == 1 else np.concatenate(found)
