"""How sizes, times and texts are said to people, wherever that is: reprs, pictures, commands."""

from __future__ import annotations

from neurostore import times

__all__ = ["human_bytes", "moment", "printable", "span"]


def printable(value: object) -> str:
    r"""Return text of ``value`` that stays on its line and does not steer a terminal.

    >>> print(printable("a\tb\x1b[31m"))
    a\tb\x1b[31m
    """
    text = str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def human_bytes(count: int) -> str:
    """Return a number of bytes as people say it.

    >>> human_bytes(999), human_bytes(1_234_567)
    ('999 B', '1.23 MB')
    """
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{count} B" if unit == "B" else f"{size:.3g} {unit}"


def moment(seconds: float) -> str:
    """Return a timestamp: a date where it is one, else seconds (of model time).

    >>> moment(12.5), moment(1.7e9), moment(1.7e9 + 0.25)
    ('12.5 s', '2023-11-14 22:13:20Z', '2023-11-14 22:13:20.25Z')
    """
    date = times.decoded(seconds) if seconds >= times.EARLIEST_DATE else None
    if date is None:
        return f"{seconds:.15g} s"
    return str(date).replace("T", " ").rstrip("0").rstrip(".") + "Z"


def span(start: float | None, end: float | None) -> str:
    """Return a span of time; a day that is the same is said once.

    >>> span(0.0, 12.5), span(3.0, 3.0), span(None, None)
    ('0 s to 12.5 s', '3 s', 'no records')
    >>> span(1.7e9, 1.7e9 + 60)
    '2023-11-14 22:13:20 to 22:14:20Z'
    """
    if start is None or end is None:
        return "no records"
    first, last = moment(start), moment(end)
    day, _, clock = last.partition(" ")
    if clock.endswith("Z") and first.startswith(f"{day} "):
        first, last = first.removesuffix("Z"), clock
    return moment(start) if start == end else f"{first} to {last}"
