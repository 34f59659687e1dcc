"""A process that reads for another one, and may die of what it reads.

Requests and answers are lines of JSON.  The process is started when it is first asked and again
after it died; what it is asked is its own affair (`neurostore.verify.worker`).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Self

from neurostore.errors import StoreError

__all__ = ["Died", "Helper"]

#: Seconds that a new interpreter may need to import the package on a busy machine.
_START = 120.0
# The modules that the asking process would find, whatever it did to its path; as an argument, not
# in the environment, because that is for every process below.
_CODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from neurostore.verify.worker import main
main(int(sys.argv[2]))
"""


class Died(Exception):
    """The process was killed by what it read, or had to be killed."""


class Helper:
    """The process; a context manager that ends it.

    Parameters
    ----------
    memory_limit
        Bytes of memory that it may use beyond what it needs to start (on Linux).
    code
        What it runs; its arguments are the module path as JSON and the limit.
    """

    def __init__(self, memory_limit: int, code: str = _CODE) -> None:
        self._memory_limit = memory_limit
        self._code = code
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader: threading.Thread | None = None

    def ask(self, operation: str, time_limit: float, **arguments: Any) -> Any:
        """Return the answer to one request.

        Raises
        ------
        Died
            The process ended, or gave no answer within ``time_limit`` seconds.
        """
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError):  # it died before it could be asked; the answer says so
            self._process.stdin.write(json.dumps([operation, arguments]) + "\n")
            self._process.stdin.flush()
        return self._answer(time_limit)

    def _answer(self, time_limit: float) -> Any:
        try:
            line = self._answers.get(timeout=time_limit)
        except queue.Empty:
            self.close(kill=True)
            raise Died(f"reading it took more than {time_limit:g} s and was stopped") from None
        if line is None:
            code = self.close()
            raise Died(f"reading it ended the process: {_reason(code)}")
        return json.loads(line)

    def _start(self) -> None:
        # A file may ask HDF5 for a filter; code from a folder of plugins is not run for that.
        environment = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._code, json.dumps(sys.path), str(self._memory_limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        assert self._process.stdout is not None
        self._answers = queue.Queue()
        self._reader = threading.Thread(
            target=_pass_on, args=(self._process.stdout, self._answers), daemon=True
        )
        self._reader.start()
        try:
            self._answer(_START)
        except Died as error:
            raise StoreError(
                f"{sys.executable}: expected a process to read the file, which did not start: "
                f"{error}"
            ) from error

    def close(self, kill: bool = False) -> int:
        """End the process and return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if kill:
            process.kill()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):  # what was still to be said to it
            process.stdin.close()
        try:
            code = process.wait(_START)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        assert self._reader is not None
        self._reader.join()
        process.stdout.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(kill=error is not None)


def _pass_on(stream: IO[str], answers: queue.Queue[str | None]) -> None:
    for line in stream:
        answers.put(line)
    answers.put(None)


def _reason(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
