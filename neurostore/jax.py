"""Recording from inside ``jit`` and ``scan``: values leave the computation by an ordered callback.

The callback copies them into a bounded queue, and a thread appends what is there to a recorder,
many steps at a time.  The computation waits for a copy, or where it makes more than the disk
takes, for room in the queue.  What is recorded, and when it is committed, is the recorder's
affair.  JAX is imported when a tap is first used.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import numpy as np

from neurostore.errors import ClosedError, ValidationError
from neurostore.recording import Recorder

__all__ = ["Tap", "events", "tap"]

Values = dict[str, Any]
#: Appends that are written in one go.
_MOST = 4096
#: Seconds after which a full queue is looked at again, whether the writing has failed meanwhile.
_PATIENCE = 0.1
_END = object()


def tap(
    recorder: Recorder, *, convert: Callable[..., Mapping[str, Any]] | None = None, depth: int = 256
) -> Tap:
    """Return what records from inside JAX computations.

    Parameters
    ----------
    recorder
        As :meth:`neurostore.Store.record` returns it. With ``commit_every`` as a number of seconds
        many steps go into one commit.
    convert
        Makes of the values that were tapped, NumPy arrays by name, what ``recorder.append`` takes
        by name; it runs in the thread that writes. `events` makes spikes of masks.
    depth
        Calls that may wait to be written; more let the computation wait.

    Examples
    --------
    >>> import jax, neurostore
    >>> import neurostore.jax
    >>> with neurostore.open(tmp / "run.h5") as store:
    ...     rec = store.record("reservoir_states", timestamp=0.0, reservoir_id="main")
    ...     with rec, neurostore.jax.tap(rec) as tap:
    ...
    ...         @jax.jit
    ...         def run(state):
    ...             def step(state, _):
    ...                 state = 0.5 * state
    ...                 tap(states=state)
    ...                 return state, None
    ...             return jax.lax.scan(step, state, None, length=3)[0]
    ...
    ...         last = run(jax.numpy.ones(2))
    ...     store.retrieve(rec.id)["states"].values[0].tolist()
    [0.5, 0.25, 0.125]
    """
    return Tap(recorder, convert, depth)


def events(spikes: Any, time: Any) -> Values:
    """Make spikes of a mask: the neurons that fired, and when; for ``tap(convert=...)``.

    Parameters
    ----------
    spikes
        bool, shape (neuron,) or (step, neuron): who fires.
    time
        float, shape () or (step,): when, in the unit of the record's spike times.

    Examples
    --------
    >>> events([[True, False, True], [False, True, False]], [0.1, 0.2])
    {'spike_times': array([0.1, 0.1, 0.2]), 'neuron_ids': array([0, 2, 1])}
    """
    mask, moments = np.atleast_2d(np.asarray(spikes)), np.atleast_1d(np.asarray(time))
    if mask.ndim != 2 or moments.shape != mask.shape[:1]:
        raise ValidationError(
            f"events: spikes of shape {np.shape(spikes)} with times of shape {np.shape(time)}, "
            "expected (neuron,) with (), or (step, neuron) with (step,)"
        )
    step, neuron = np.nonzero(mask)
    return {"spike_times": moments[step], "neuron_ids": neuron}


class Tap:
    """Records from inside JAX computations; made by `tap`.

    A context manager: leaving it waits until everything that was tapped is with the recorder.  It
    does not close the recorder.
    """

    def __init__(
        self, recorder: Recorder, convert: Callable[..., Mapping[str, Any]] | None, depth: int
    ) -> None:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValidationError(f"depth is {depth!r}, expected a positive int")
        self._recorder = recorder
        self._convert = convert
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._lost = 0
        self._emit: Callable[[Values], Any] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._drain, name="neurostore-tap", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    # -- inside the computation ------------------------------------------------------------

    def __call__(self, *, coords: Mapping[str, Any] | None = None, **values: Any) -> Any:
        """Record values, in the order of the computation, in and outside of ``jit``.

        Parameters
        ----------
        coords, **values
            As for :meth:`neurostore.Recorder.append`, or what ``convert`` takes: JAX arrays, or
            dicts of them. Under ``vmap`` the members of the batch are appended one after the
            other.

        Returns
        -------
        jax.Array
            A zero, shape (). JAX leaves callbacks out when it differentiates a ``scan``, unless
            something needs their result: add the zero to a value that the gradient depends on.

        Raises
        ------
        Exception
            In the computation: what kept earlier values from being recorded.
        """
        import jax

        given: Values = dict(values)
        if coords is not None:
            given["coords"] = dict(coords)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)):
            jax.effects_barrier()  # type: ignore[no-untyped-call] # what was computed before is first
            return jax.numpy.asarray(self._receive(given))
        if self._emit is None:
            self._emit = self._emitter()
        stopped = jax.tree.map(jax.lax.stop_gradient, given)
        return jax.lax.stop_gradient(self._emit(stopped))

    def _emitter(self) -> Callable[[Values], Any]:
        import jax
        import jax.numpy as jnp
        from jax.experimental import io_callback

        zero = jax.ShapeDtypeStruct((), np.float32)  # type: ignore[no-untyped-call]

        @jax.custom_batching.custom_vmap
        def emit(given: Values) -> Any:
            return io_callback(self._receive, zero, given, ordered=True)

        # An ordered callback cannot be batched: the whole batch leaves by one instead.
        @emit.def_vmap
        def _(size: int, batched: list[Values], given: Values) -> tuple[Any, bool]:
            whole = jax.tree.map(
                lambda value, is_batched: value if is_batched else jnp.stack([value] * size),
                given,
                batched[0],
            )
            sent = io_callback(lambda v: self._receive_batch(v, size), zero, whole, ordered=True)
            return jnp.broadcast_to(sent, (size,)), True

        return emit

    def _receive(self, given: Values) -> np.ndarray[Any, Any]:
        self._put(_copied(given))
        return np.zeros((), np.float32)

    def _receive_batch(self, given: Values, size: int) -> np.ndarray[Any, Any]:
        import jax

        whole = _copied(given)
        for member in range(size):
            self._put(jax.tree.map(lambda value, at=member: value[at], whole))
        return np.zeros((), np.float32)

    def _put(self, item: Any) -> None:
        while True:
            self._raise_error()
            if self._closed and item is not _END:
                raise ClosedError("the tap is closed; the computation was traced inside its block")
            try:
                self._queue.put(item, timeout=_PATIENCE)
            except queue.Full:
                continue
            return

    # -- the thread that writes ------------------------------------------------------------

    def _drain(self) -> None:
        """Append what is in the queue, until the end; after a failure only count what is lost."""
        ended = False
        while not ended:
            taken = [self._queue.get()]
            while len(taken) < _MOST and not self._queue.empty():
                taken.append(self._queue.get_nowait())
            ended = taken[-1] is _END
            items = taken[:-1] if ended else taken
            try:
                if self._error is None and items:
                    self._append(items)
                elif items:
                    self._lost += len(items)
            except BaseException as error:  # noqa: BLE001 (raised where the tap is used)
                self._error = error
                self._lost += len(items)
            finally:
                for _ in taken:
                    self._queue.task_done()

    def _append(self, items: list[Values]) -> None:
        appends = [dict(self._convert(**item)) if self._convert else item for item in items]
        whole = self._recorder.joined(appends) if len(appends) > 1 else None
        for append in [whole] if whole is not None else appends:
            self._recorder.append(**append)

    # -- the end ---------------------------------------------------------------------------

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def flush(self) -> None:
        """Wait until everything that was tapped is committed.

        Raises
        ------
        Exception
            What kept it from being recorded.
        """
        self._settle()
        self._recorder.flush()

    def _settle(self) -> None:
        """Wait for callbacks that are on their way, and for the thread."""
        import jax

        try:
            jax.effects_barrier()  # type: ignore[no-untyped-call]
        except Exception as error:
            _forget_failed()
            if self._error is None:
                raise
            raise self._error from error
        self._queue.join()
        self._raise_error()

    def close(self) -> None:
        """Wait until everything that was tapped is with the recorder; closing twice is fine.

        Raises
        ------
        Exception
            What kept it from being recorded.
        """
        if self._closed:
            return
        try:
            self._settle()
        finally:
            self._closed = True
            atexit.unregister(self.close)
            self._queue.put(_END)
            self._thread.join()
            if self._error is not None and self._lost:
                self._error.add_note(f"{self._lost} values that were tapped are not recorded")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _forget_failed() -> None:
    """Let ordered callbacks go on after one that failed.

    On a GPU the next of this thread would wait for it, and fail with its error, for ever. JAX has
    no public way to end that.
    """
    with suppress(ImportError, AttributeError):
        from jax._src.dispatch import runtime_tokens

        runtime_tokens.clear()  # type: ignore[no-untyped-call] # of JAX's own, without types


def _copied(given: Mapping[str, Any]) -> Values:
    """JAX may use the memory of what it hands out again."""
    return {
        name: _copied(value) if isinstance(value, Mapping) else np.array(value)
        for name, value in given.items()
    }
