"""Packages that not everybody has: the error of a missing one says how to get it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neurostore.errors import MissingPackageError

__all__ = ["needs"]


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Say, of a package that cannot be imported inside, which extra of neurostore brings it.

    Parameters
    ----------
    extra
        Name of the extra in ``pyproject.toml``.
    what
        What the package is needed for, as the subject of "needs".

    Examples
    --------
    >>> with needs("plot", "a picture"):
    ...     import matplotlib
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if isinstance(error, MissingPackageError) or (error.name or "").startswith("neurostore"):
            raise
        raise MissingPackageError(
            f"{what} needs {error.name}, which is not installed; "
            f"pip install '.[{extra}]', in the folder of neurostore, brings it",
            name=error.name,
        ) from error
