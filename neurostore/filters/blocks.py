"""Arrays that are not in memory: which chunks suit them, and in which pieces they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Slices = tuple[slice, ...]


class Blocks(Protocol):
    """An array of which parts can be had: shape and dtype as those of NumPy."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    #: Along each axis, pieces of so many values are cheapest to ask for.
    edges: tuple[int, ...]
    #: Whether to ask for a part of such a piece costs as much as all of it.
    costly: bool

    def block(self, where: Slices) -> Array:
        """Return one part."""
        ...


def fitting(chunks: tuple[int, ...], edges: tuple[int, ...]) -> tuple[int, ...]:
    """Shorten chunks to divide the pieces of an array, where that costs less than half of one.

    A chunk across the edge of two pieces needs both, and one of them is made twice.

    Examples
    --------
    >>> fitting((241, 250), (4096, 1000))
    (128, 250)
    """
    return tuple(
        next((c for c in range(min(chunk, edge), chunk // 2, -1) if edge % c == 0), chunk)
        for chunk, edge in zip(chunks, edges, strict=True)
    )


def first(array: Blocks) -> Array:
    """Return the first piece, to look at."""
    ends = map(min, array.edges, array.shape)
    return array.block(tuple(slice(0, end) for end in ends))


def pieces(array: Blocks, chunks: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield an array in pieces of whole chunks, each with its offset."""
    steps = [math.ceil(e / c) * c for e, c in zip(array.edges, chunks, strict=True)]
    grid = [range(0, n, step) for n, step in zip(array.shape, steps, strict=True)]
    for offset in product(*grid):
        ends = (min(o + s, n) for o, s, n in zip(offset, steps, array.shape, strict=True))
        yield offset, array.block(tuple(map(slice, offset, ends)))
