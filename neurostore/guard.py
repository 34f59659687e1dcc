"""What is not done for a file that somebody else made: follow it elsewhere, or run what it names.

HDF5 follows external storage, soft and external links and virtual datasets without a word, so that
any file of the user can be read, and overwritten, through a file they were sent; it loads code for
filters from ``HDF5_PLUGIN_PATH``; and a few KB can unfold to whatever the machine has.  These
functions say no, by name.  They look at one link or dataset at a time and read nothing.
"""

from __future__ import annotations

import h5py
from h5py import h5d, h5g, h5l, h5z

from neurostore.errors import RefusedError

__all__ = ["BUILT_IN", "BY_HAND", "check_dataset", "check_path", "check_size", "exists", "is_hard"]

_LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}
#: Filters that are part of HDF5 or of h5py: nothing is loaded for them.
BUILT_IN = frozenset(
    {
        h5z.FILTER_DEFLATE,
        h5z.FILTER_SHUFFLE,
        h5z.FILTER_FLETCHER32,
        h5z.FILTER_SZIP,
        h5z.FILTER_NBIT,
        h5z.FILTER_SCALEOFFSET,
        h5z.FILTER_LZF,
    }
)
#: Zstandard, whose chunks this package decodes itself.
BY_HAND = frozenset({32015})
#: Without a limit of the caller's: so many bytes, or so many times what is stored, since deflate
#: packs at most 1,032 to one.
_FREE = 1024**3
_TIMES = 1100


def is_hard(group: h5g.GroupID, link: bytes) -> bool:
    """Tell whether a link that is there is a plain name of an object in the same file."""
    return bool(group.links.get_info(link).type == h5l.TYPE_HARD)


def exists(root: h5g.GroupID, path: bytes) -> bool:
    """Tell whether something stands at a path, without opening it.

    Raises
    ------
    RefusedError
        The path leads through a link that is not hard; it names the link and what it leads to.
    """
    end = -1
    while end < len(path):
        end = path.find(b"/", end + 1) % (len(path) + 1)  # find says -1 for the last part
        try:
            kind = root.links.get_info(path[:end]).type
        except RuntimeError:  # to h5py, a name that is not there is as bad as a damaged group
            if root.links.exists(path[:end]):
                raise
            return False
        if kind != h5l.TYPE_HARD:
            raise _refused_link(root, path[:end], kind)
    return True


def check_path(root: h5g.GroupID, path: bytes) -> None:
    """Refuse a path that leads through a link that is not hard; what is absent passes.

    Raises
    ------
    RefusedError
        Names the link and what it leads to.
    """
    exists(root, path)


def _refused_link(root: h5g.GroupID, path: bytes, kind: int) -> RefusedError:
    target = ""
    if kind in _LINKS:
        value = root.links.get_val(path)
        said = value if isinstance(value, tuple) else (value,)
        target = " to " + ":".join(part.decode("utf-8", "replace") for part in said)
    return RefusedError(
        f"/{path.decode('utf-8', 'replace')}: is {_LINKS.get(kind, 'a link of an unknown kind')}"
        f"{target}, which is not followed; expected a plain (hard) link; copy what it leads to"
    )


def check_dataset(dataset: h5d.DatasetID, where: str, *, by_hdf5: bool = False) -> None:
    """Refuse a dataset whose values are in other files, or need code that has to be loaded.

    Parameters
    ----------
    by_hdf5
        Whether HDF5 is to read it, and not this package.

    Raises
    ------
    RefusedError
        Says which.
    """
    dcpl = dataset.get_create_plist()
    layout = dcpl.get_layout()
    if layout == h5d.VIRTUAL:
        raise RefusedError(
            f"{where}: is a virtual dataset, whose values may be in any file, and is not read; "
            "copy it to a dataset of its own"
        )
    if dcpl.get_external_count():
        name = dcpl.get_external(0)[0]
        raise RefusedError(
            f"{where}: its values are in another file ({name!r}), which is not read; copy them "
            "into this one"
        )
    if layout == h5d.CHUNKED:
        allowed = BUILT_IN if by_hdf5 else BUILT_IN | BY_HAND
        for index in range(dcpl.get_nfilters()):
            code, _, _, name = dcpl.get_filter(index)
            if code not in allowed:
                said = name.decode("utf-8", "replace")
                raise RefusedError(
                    f"{where}: its chunks need the filter {code} ({said}), for which HDF5 would "
                    "load code; expected gzip, szip, lzf and their kin; h5repack converts it"
                )


def check_size(dataset: h5d.DatasetID, nbytes: int, limit: int | None) -> None:
    """Refuse to make more of a dataset than the caller allows, or than it can be worth.

    Raises
    ------
    RefusedError
        Says how much it would be, and how to allow it.
    """
    if limit is None:
        if nbytes <= _FREE:
            return
        limit = max(_FREE, _TIMES * int(dataset.get_storage_size()))
    if nbytes > limit:
        name = (h5py.h5i.get_name(dataset) or b"a dataset").decode("utf-8", "replace")
        raise RefusedError(
            f"{name}: reading it takes {nbytes:,} bytes, more than the limit of {limit:,}; "
            "neurostore.open(..., max_variable_bytes=...) allows it"
        )
