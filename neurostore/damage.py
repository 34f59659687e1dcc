"""Turn what h5py raises where HDF5 cannot read into the error that names the place.

It raises nothing on its own account and hides nothing: errors that name their place already pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neurostore.errors import DamagedError, HDF5StorageError

__all__ = ["UNREADABLE", "naming_damage"]

#: A header that fails its checksum is a KeyError to h5py, a link that does a RuntimeError.
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError)


@contextmanager
def naming_damage(what: str) -> Iterator[None]:
    """Raise DamagedError, beginning with ``what``, for an error of HDF5 itself.

    >>> with naming_damage("run.h5: train_1.0"):
    ...     raise RuntimeError("incorrect metadata checksum")
    Traceback (most recent call last):
    neurostore.errors.DamagedError: run.h5: train_1.0: incorrect metadata checksum
    """
    try:
        yield
    except HDF5StorageError:
        raise
    except UNREADABLE as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise DamagedError(f"{what}: {text}") from error
