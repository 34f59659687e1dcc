"""Time two ways of doing one thing in alternate blocks, and say how the ratios lie.

It knows no case and prints nothing. Ratios are taken within a round, so a machine that slows down
between rounds does not move them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

Task = Callable[[int], object]
"""One call of the thing measured; the argument counts the calls, so that each can differ."""


@dataclass(frozen=True)
class Spread:
    """The median of some figures, and where nine tenths of them lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: list[float]) -> Spread:
        """Median, 5 % and 95 % quantile (the extremes, where there are few figures)."""
        if len(figures) < 2:
            return cls(figures[0], figures[0], figures[0])
        cuts = statistics.quantiles(figures, n=20, method="inclusive")
        return cls(statistics.median(figures), cuts[0], cuts[-1])


@dataclass(frozen=True)
class Duel:
    """Seconds per call of neurostore and of its peer, one pair for each round."""

    ours: list[float]
    peer: list[float]

    @property
    def ratio(self) -> Spread:
        """Our time over the peer's, round by round."""
        return Spread.of([a / b for a, b in zip(self.ours, self.peer, strict=True)])

    @property
    def speedup(self) -> Spread:
        """The peer's time over ours, round by round."""
        return Spread.of([b / a for a, b in zip(self.ours, self.peer, strict=True)])


def duel(
    ours: Task,
    peer: Task,
    *,
    rounds: int,
    calls: int = 1,
    peer_calls: int | None = None,
    warm: bool = True,
) -> Duel:
    """Run ``calls`` of ours and ``peer_calls`` of the peer's in turn, ``rounds`` times.

    Who goes first changes from round to round. With ``warm``, a round before them is not
    counted: it fills caches on both sides.
    """
    numbers = count(), count()
    result = Duel([], [])
    for turn in range(0 if warm else 1, rounds + 1):
        sides = [
            (result.ours, ours, numbers[0], calls),
            (result.peer, peer, numbers[1], peer_calls or calls),
        ]
        for times, task, number, times_called in sides if turn % 2 else reversed(sides):
            seconds = block(task, number, times_called)
            if turn:
                times.append(seconds)
    return result


def block(task: Task, numbers: Iterator[int], calls: int) -> float:
    """Seconds per call over one block of calls."""
    chosen = [next(numbers) for _ in range(calls)]
    start = time.perf_counter()
    for number in chosen:
        task(number)
    return (time.perf_counter() - start) / calls
