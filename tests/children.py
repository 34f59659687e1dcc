"""Work done in a forked child: its result or error comes back, and it never outlives the test.

A fork costs milliseconds where a fresh interpreter costs most of a second. The child ends without
the parent's handlers of exit.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pytest

from neurostore.session import close_all

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the superuser can be another user"
)
NOBODY = 65534
Say = Callable[[Any], None]


class Child:
    """A process that runs ``work(say)``; what it says comes out of `hear`, in order.

    What ``work`` returns is said last; what it raises is raised by `hear`.
    """

    def __init__(
        self, work: Callable[[Callable[[Any], None]], Any], user: int | None = None
    ) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            self._run(work, writing, user)
        os.close(writing)
        self._pipe = os.fdopen(reading, "rb")
        self.status: int | None = None

    def _run(self, work: Callable[..., Any], writing: int, user: int | None) -> None:
        with os.fdopen(writing, "wb") as pipe:

            def say(what: Any) -> None:
                pickle.dump(what, pipe)
                pipe.flush()

            try:
                if user is not None:
                    os.setgroups([])
                    os.setgid(user)
                    os.setuid(user)
                say(work(say))
                close_all()
            except BaseException as error:  # noqa: BLE001 (raised again by the parent)
                say(_Raised(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
            finally:
                pipe.flush()
                os._exit(0)

    def hear(self, timeout: float = 60.0) -> Any:
        """Wait for what the child says next."""
        if not self._pipe.peek(1)[:1] and not select.select([self._pipe], [], [], timeout)[0]:
            raise AssertionError(f"the child said nothing for {timeout} s")
        said = pickle.load(self._pipe)
        if isinstance(said, _Raised):
            raise AssertionError(said.text)
        return said

    def rest(self) -> list[Any]:
        """Return everything that a child said before it was killed and that was not heard."""
        said = []
        while True:
            try:
                said.append(pickle.load(self._pipe))
            except (EOFError, pickle.UnpicklingError):
                return said

    def kill(self) -> None:
        """End the child at once, whatever it is doing."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.status is None:
            self.kill()
        self._pipe.close()


class _Raised:
    def __init__(self, text: str) -> None:
        self.text = text
