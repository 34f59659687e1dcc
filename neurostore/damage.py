"""Turn what h5py raises where HDF5 cannot read into the error that names the place.

It raises nothing on its own account and hides nothing: errors that name their place already pass.
"""

from __future__ import annotations

from types import TracebackType

from neurostore.errors import DamagedError, HDF5StorageError

__all__ = ["UNREADABLE", "naming_damage"]

#: A header that fails its checksum is a KeyError to h5py, a link that does a RuntimeError.
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError)


# No generator: entering one takes four times as long, and every variable read enters three.
class naming_damage:  # noqa: N801 - a verb, as those of contextlib
    """Raise DamagedError, beginning with ``what``, for an error of HDF5 itself.

    >>> with naming_damage("run.h5: train_1.0"):
    ...     raise RuntimeError("incorrect metadata checksum")
    Traceback (most recent call last):
    neurostore.errors.DamagedError: run.h5: train_1.0: incorrect metadata checksum
    """

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, UNREADABLE) and not isinstance(error, HDF5StorageError):
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise DamagedError(f"{self._what}: {text}") from error
