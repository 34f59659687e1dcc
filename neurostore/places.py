"""Where files are: paths of this machine, and URLs that fsspec can read byte ranges of.

A `Url` stands where a `pathlib.Path` of a file does: it has a name, and neighbours by name. It
reads nothing; `neurostore.remote` does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

__all__ = ["Url", "is_url", "place", "spot"]

#: A name before ``://``; a chain such as ``simplecache::s3://`` is one, too.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+://")
#: How the URLs that this process has opened are to be opened again.
_known: dict[str, dict[str, Any]] = {}


class Url:
    """The URL of one file, with the options that fsspec needs for it.

    Two are equal where their texts are. In a string only the text is shown: options may be
    secret.

    >>> Url("s3://bucket/run.h5").with_name("run.0001.h5")
    Url('s3://bucket/run.0001.h5')
    """

    def __init__(self, text: str, options: Mapping[str, Any] | None = None) -> None:
        self._text = text
        if options is not None:
            _known[text] = dict(options)
        self.options: dict[str, Any] = _known.get(text, {})

    @property
    def name(self) -> str:
        """The part after the last slash, without a query."""
        return self._split()[1]

    def with_name(self, name: str) -> Url:
        """Return the URL of a neighbour."""
        head, _, query = self._split()
        return Url(f"{head}{name}{query}", self.options)

    def _split(self) -> tuple[str, str, str]:
        path, mark, query = self._text.partition("?")
        folder, slash, name = path.rpartition("/")
        return f"{folder}{slash}", name, f"{mark}{query}"

    def exists(self) -> bool:
        """Whether anything is there is known when it is read."""
        return False

    def __fspath__(self) -> str:
        return self._text

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Url({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[Any, ...]:
        return Url, (self._text, self.options)


def is_url(path: object) -> bool:
    """Tell whether a path is that of a remote file.

    >>> is_url("s3://bucket/run.h5"), is_url("run.h5"), is_url("C:/run.h5")
    (True, False, False)
    """
    return isinstance(path, Url) or (isinstance(path, str) and bool(_SCHEME.match(path)))


def place(path: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> Path:
    """Return the one name of a file: its URL, or its path with all links resolved."""
    if is_url(path):
        # It has what is asked of the path of a file that is only read.
        return cast(Path, path if isinstance(path, Url) else Url(str(path), options))
    return Path(os.path.realpath(path))


def spot(path: Path | Url) -> str | Url:
    """Return what a lazy array remembers of a file's place, in any process."""
    return path if isinstance(path, Url) else str(path)
