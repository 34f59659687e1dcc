"""Times as users give them, and float seconds as the store keeps them.

A timestamp is a float: seconds since 1970-01-01 UTC, or of model time.  This module converts to
it and back to ``datetime64``.  It keeps no clock.
"""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np

__all__ = ["TimeLike", "bounds", "decoded", "decoded_many", "to_seconds"]

#: Float seconds, ``datetime`` (naive means UTC), ``numpy.datetime64``, pandas Timestamp, ISO text.
TimeLike = Any

_NS = 1_000_000_000
_LAST_NS = 2**63 - 1
_LARGEST = sys.float_info.max

#: 1980-01-01: earlier timestamps are taken for model seconds, which have no date and no age.
EARLIEST_DATE = 315_532_800.0


def to_seconds(value: TimeLike, what: str = "timestamp") -> float:
    """Return ``value`` as float seconds since 1970-01-01 UTC.

    Raises
    ------
    ValueError
        It is not a time, not finite, or NaT.

    >>> to_seconds("2023-11-14T22:13:20Z"), to_seconds(np.datetime64(1500, "ms"))
    (1700000000.0, 1.5)
    """
    seconds = _seconds(value, what)
    if not math.isfinite(seconds):
        raise ValueError(f"{what} is {value!r}; expected a finite time")
    return seconds + 0.0  # -0.0 becomes 0.0: two ids for one time would be a surprise


def _seconds(value: Any, what: str) -> float:
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) <= _LARGEST else math.inf
    if isinstance(value, str):
        return _from_text(value, what)
    if isinstance(value, datetime):  # pandas Timestamp is one
        return _from_datetime(value)
    array = np.asarray(value)
    if array.shape == () and array.dtype.kind == "M":
        return _from_datetime64(array, what)
    if array.shape == () and array.dtype.kind in "iuf":
        return float(array)
    raise ValueError(
        f"{what} is {value!r}, a {type(value).__name__}; expected seconds as a number, "
        "datetime, numpy.datetime64, pandas.Timestamp or ISO 8601 text"
    )


def _from_text(text: str, what: str) -> float:
    try:
        return _from_datetime(datetime.fromisoformat(text))
    except ValueError:
        raise ValueError(
            f"{what} is {text!r}; expected ISO 8601 text such as '2026-05-01T12:00:00Z'"
        ) from None


def _from_datetime(moment: datetime) -> float:
    if moment != moment:  # pandas NaT
        return math.nan
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.timestamp()


def _from_datetime64(moment: np.ndarray[Any, Any], what: str) -> float:
    if np.isnat(moment):
        raise ValueError(f"{what} is NaT; expected a time")
    unit = np.datetime_data(moment.dtype)[0]
    if unit in ("ps", "fs", "as"):
        moment = moment.astype("datetime64[ns]")
    whole = moment.astype("datetime64[s]")
    rest = (moment - whole) / np.timedelta64(1, "s")
    return float(whole.astype(np.int64)) + float(rest)


def bounds(start: TimeLike | None, end: TimeLike | None) -> tuple[float, float]:
    """Return a closed interval in seconds; ``None`` leaves a side open.

    >>> bounds(None, 5)
    (-inf, 5.0)
    """
    low = -math.inf if start is None else _bound(start, "start")
    high = math.inf if end is None else _bound(end, "end")
    return low, high


def _bound(value: TimeLike, what: str) -> float:
    if isinstance(value, float) and math.isinf(value):
        return value
    return to_seconds(value, what)


def decoded(seconds: float) -> np.datetime64 | None:
    """Return ``seconds`` as ``datetime64[ns]`` in UTC, or None where that does not fit.

    >>> decoded(1.5)
    np.datetime64('1970-01-01T00:00:01.500000000')
    """
    whole = math.floor(seconds)
    nanoseconds = whole * _NS + round((seconds - whole) * _NS)
    return np.datetime64(nanoseconds, "ns") if abs(nanoseconds) <= _LAST_NS else None


def decoded_many(seconds: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Return an array of `seconds` as ``datetime64[ns]``, or None where one does not fit.

    >>> decoded_many(np.array([0.0, 1.5]))[1]
    np.datetime64('1970-01-01T00:00:01.500000000')
    """
    if len(seconds) and not bool((np.abs(seconds) < _LAST_NS // _NS).all()):
        return None
    whole = np.floor(seconds)
    nanoseconds = whole.astype(np.int64) * _NS + np.rint((seconds - whole) * _NS).astype(np.int64)
    return np.asarray(nanoseconds.astype("datetime64[ns]"))
