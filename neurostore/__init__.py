"""A labelled, crash-safe home for neural-simulation data in one plain HDF5 file.

Importing it registers ``.neuro`` with xarray. All else is imported when something of it is first
used, as Scientific Python's SPEC 1 has it: a program that only may store something starts a
quarter of a second earlier.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import xarray as xr

from neurostore._version import __version__ as __version__

if TYPE_CHECKING:
    from neurostore._public import *  # noqa: F403 (the list of names stands there, once)
    from neurostore._public import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        is_dunder = name.startswith("__")
        if not is_dunder and find_spec(f"neurostore.{name}") is not None:
            return import_module(f"neurostore.{name}")
        if not is_dunder or name == "__all__":
            public = vars(import_module("neurostore._public"))
            if name in ("__all__", *public["__all__"]):
                return globals().setdefault(name, public[name])
        raise AttributeError(f"module 'neurostore' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})


def _accessor(name: str) -> Callable[[Any], Any]:
    def neuro(obj: Any) -> Any:
        return getattr(import_module("neurostore.accessor"), name)(obj)

    neuro.__doc__ = f"Make a `neurostore.accessor.{name}`."
    return neuro


# xarray gives its registering functions no types.
xr.register_dataset_accessor("neuro")(_accessor("DatasetNeuro"))  # type: ignore[no-untyped-call]
xr.register_dataarray_accessor("neuro")(_accessor("DataArrayNeuro"))  # type: ignore[no-untyped-call]
xr.register_datatree_accessor("neuro")(_accessor("DataTreeNeuro"))  # type: ignore[no-untyped-call]
