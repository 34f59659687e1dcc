"""A file of its own for every process that stores into one folder, on any machine.

A file has one writer at a time.  Workers that store at once would wait for each other, and a file
system of a cluster may not keep locks between machines; so each has its file, and
``neurostore.open("runs/*.h5")`` shows all of them as one.  It opens nothing and knows no scheduler
but dask's.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

from neurostore.errors import StoreExistsError

__all__ = ["own_file"]


def own_file(folder: str | os.PathLike[str], stem: str = "run") -> Path:
    """Return the path of the file that this process alone writes to, in ``folder``.

    Inside a task of dask it has the worker's name, so that a worker that was restarted goes on in
    its file; elsewhere the number of the process.  The name of the machine is in it, too: two
    processes can only get the same file on one machine, where its lock makes them take turns.

    Parameters
    ----------
    folder
        The folder, which all workers see; it is made if need be.
    stem
        What the name begins with.

    Raises
    ------
    StoreExistsError
        A file stands where the folder should be.

    Examples
    --------
    >>> import neurostore
    >>> from neurostore.workers import own_file
    >>> with neurostore.open(own_file(tmp / "runs")) as store:
    ...     store.store(neurostore.spike_train([0.1], [1], timestamp=1.0))
    'train_1.0'
    >>> neurostore.open(tmp / "runs/*.h5").ids()
    ['train_1.0']
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreExistsError(f"{place}: is or is in a file, expected a folder") from error
    return place / f"{stem}-{_plain(socket.gethostname())}-{_plain(_worker())}.h5"


def _worker() -> str:
    """Return the name of the dask worker that this is, or else the number of the process."""
    # Where no worker runs, nobody has imported it.
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        try:
            return str(distributed.get_worker().name)
        except ValueError:
            pass  # no task of a worker asks
    return f"p{os.getpid()}"


def _plain(name: str) -> str:
    """Return a name with the letters that any file system takes.

    >>> _plain("tcp://10.0.0.1:4711")
    'tcp-10.0.0.1-4711'
    """
    return re.sub(r"[^\w.]+", "-", name)
