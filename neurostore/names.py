"""Names that users give, and the link names that HDF5 gets.

A name may hold any text; its link name is escaped, at most 255 bytes, and never a path.  This
module makes link names and record ids.  It does not look into files.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from functools import lru_cache

__all__ = [
    "beside",
    "check_name",
    "clashing",
    "escape",
    "escape_variable",
    "fitted",
    "leaf",
    "links",
    "moment_of",
]

#: One link name of 256 bytes stops netCDF4 from opening the whole file (NC_MAX_NAME).
LONGEST = 255
#: What stands between an id and the number that tells it from others of its name and moment.
SUFFIX = "~"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-+@.,:;=() ]*[A-Za-z0-9_\-+@)]|[A-Za-z0-9_]")


def check_name(name: object, what: str) -> str:
    """Return ``name``, or raise ``ValueError`` saying why it cannot be one.

    >>> check_name("../a/b", "reservoir_id")
    '../a/b'
    """
    if name is None:
        raise ValueError(f"{what} is missing, expected a str")
    if not isinstance(name, str):
        raise ValueError(f"{what} is a {type(name).__name__}, expected a str")
    if not name:
        raise ValueError(f"{what} is empty; expected at least one character")
    if "\0" in name:
        raise ValueError(f"{what} {name!r} holds a NUL character, which HDF5 cannot keep")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} {name!r} is not text that UTF-8 can hold: {error}") from None
    return name


@lru_cache(maxsize=4096)
def escape(name: str, *, reserved: frozenset[str] = frozenset(), longest: int = LONGEST) -> str:
    """Return a link name for ``name``: itself where it is plain, else percent-encoded.

    >>> escape("main_reservoir"), escape("enc/0"), escape("..")
    ('main_reservoir', 'enc%2F0', '%2E%2E')
    """
    if name in reserved:
        escaped = _percent(name[0]) + name[1:]
    elif _PLAIN.fullmatch(name):
        escaped = name
    else:
        escaped = _escape_odd(name)
    return escaped if len(escaped.encode()) <= longest else _shorten(name, escaped, longest)


def escape_variable(name: str) -> str:
    """Return the link name of a variable or dimension; blanks too are escaped.

    CF's ``coordinates`` attribute is a list divided by blanks.

    >>> escape_variable("cell type"), escape_variable("spike_times")
    ('cell%20type', 'spike_times')
    """
    # A percent sign stays, so that a name which is escaped already is not escaped again.
    if _PLAIN.fullmatch(name.replace("%", "p")) and " " not in name and len(name) <= LONGEST:
        return name
    return escape(name).replace(" ", "%20")


@lru_cache(maxsize=1024)
def links(names: tuple[str, ...]) -> dict[str, str]:
    """Return a link name for every variable and dimension of one record, no two alike.

    >>> links(("a b", "a%20b"))
    {'a%20b': 'a%20b', 'a b': 'a%20b~2'}
    """
    wanted = {name: escape_variable(name) for name in names}
    found: dict[str, str] = {}
    for name in sorted(wanted, key=lambda name: wanted[name] != name):
        link, count = wanted[name], 2
        while link in found.values():
            link, count = clashing(wanted[name], count), count + 1
        found[name] = link
    return found


def _escape_odd(name: str) -> str:
    """Letters of any script stay, in the composed form under which netCDF-C looks names up."""
    composed = unicodedata.is_normalized("NFC", name)
    out = [_kept(char, composed) for char in name]
    for edge in (0, -1):
        if not (name[edge].isalnum() or name[edge] in "_-+@)" or out[edge] != name[edge]):
            out[edge] = _percent(name[edge])
    if name[0] in "-+@)":
        out[0] = _percent(name[0])
    return "".join(out)


def _kept(char: str, composed: bool) -> str:
    if char.isascii():
        return char if char.isalnum() or char in "_-+@.,:;=() " else _percent(char)
    return char if composed and char.isalnum() else _percent(char)


def _percent(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode())


def _shorten(name: str, escaped: str, longest: int) -> str:
    digest = "%" + hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
    head = escaped.encode()[: longest - len(digest)].decode("utf-8", "ignore")
    return head.rstrip("%") + digest


def leaf(stem: str, timestamp: float) -> str:
    """Return the leaf name, which is the id, of a record: ``<stem>_<timestamp>``.

    >>> leaf("snapshot", 12.5), leaf("enc/0", 1.0)
    ('snapshot_12.5', 'enc%2F0_1.0')
    """
    stamp = f"_{timestamp!r}"
    return escape(stem, longest=LONGEST - len(stamp) - 12) + stamp


def clashing(leaf_name: str, count: int) -> str:
    """Return the id for the ``count``-th record that would have had ``leaf_name``.

    >>> clashing("snapshot_12.5", 2)
    'snapshot_12.5~2'
    """
    return f"{leaf_name}{SUFFIX}{count}"


def fitted(name: str, ending: str) -> str:
    """Return the name of a file that stands beside ``name``, at most 255 bytes with its ending.

    A longer one is cut, and a hash of the whole keeps it from meeting another's.

    >>> fitted("run.h5", "-lock")
    'run.h5-lock'
    >>> len(fitted("x" * 255, "-lock"))
    255
    """
    raw, tail = os.fsencode(name), os.fsencode(ending)
    if len(raw) + len(tail) <= LONGEST:
        return name + ending
    digest = b"~" + hashlib.blake2b(raw, digest_size=8).hexdigest().encode()
    head = raw[: LONGEST - len(tail) - len(digest)]
    # A character that was cut through would be a name that some file systems refuse.
    text = os.fsdecode(head) if _is_odd(raw) else head.decode("utf-8", "ignore")
    return text + os.fsdecode(digest + tail)


def beside(path: str, ending: str) -> str:
    """Return the path of a file that belongs to the one at ``path``.

    >>> beside("/data/run.h5", "-lock")
    '/data/run.h5-lock'
    """
    folder, name = os.path.split(path)
    return os.path.join(folder, fitted(name, ending))


def _is_odd(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def moment_of(record_id: str) -> float | None:
    """Return the moment that an id, or the address of a record, ends in; None without one.

    >>> moment_of("train_12.5"), moment_of("spike_trains/raw_data/train_12.5~3"), moment_of("x")
    (12.5, 12.5, None)
    """
    _, line, tail = record_id.rpartition("_")
    try:
        return float(tail.partition(SUFFIX)[0]) if line else None
    except ValueError:
        return None
