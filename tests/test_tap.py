"""Recording from inside ``jit``, ``scan``, ``vmap`` and ``grad``: everything, and in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neurostore
from neurostore.errors import ValidationError

T = 0.0


def run(scan: Callable[..., Any], tap: Any, length: int) -> Any:
    def step(state: Any, n: Any) -> Any:
        state = state + 1
        zero = tap(states=state, coords={"time": n.astype(jnp.float32)})
        return state + zero, (state**2).sum()

    return lambda state: scan(step, state, jnp.arange(length))[1].sum()


def recorded(store: neurostore.Store, rec: neurostore.Recorder) -> tuple[Any, Any]:
    ds = store.retrieve(str(rec.id))
    return ds["states"].values[0].tolist(), ds["time"].values.tolist()


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with neurostore.open(tmp_path / "run.h5", durability="process") as opened:
        yield opened


def reservoir(store: neurostore.Store, **given: Any) -> neurostore.Recorder:
    return store.record("reservoir_states", timestamp=T, name="a", **given)


def python_scan(step: Any, carry: Any, xs: Any) -> Any:
    ys = []
    for x in xs:
        carry, y = step(carry, x)
        ys.append(y)
    return carry, jnp.stack(ys)


WAYS: dict[str, Callable[[Any], Any]] = {
    "scan": lambda tap: run(jax.lax.scan, tap, 500)(jnp.zeros(3)),
    "jit": lambda tap: jax.jit(run(jax.lax.scan, tap, 500))(jnp.zeros(3)),
    "python": lambda tap: run(python_scan, tap, 20)(jnp.zeros(3)),
    "grad": lambda tap: jax.grad(run(jax.lax.scan, tap, 500))(jnp.zeros(3)),
    "jit of grad": lambda tap: jax.jit(jax.grad(run(jax.lax.scan, tap, 500)))(jnp.zeros(3)),
}


@pytest.mark.parametrize(("way", "depth"), [*((way, 256) for way in WAYS), ("jit", 1)])
def test_every_step_comes_in_order(way: str, depth: int, store: neurostore.Store) -> None:
    with reservoir(store, commit_every=7) as rec, neurostore.jax.tap(rec, depth=depth) as tap:
        WAYS[way](tap)
        tap.flush()
        length = rec.length
    assert length == (20 if way == "python" else 500)
    states, time = recorded(store, rec)
    assert states == list(range(1, length + 1))
    assert time == list(range(length))


def test_members_of_a_batch_come_one_after_the_other(store: neurostore.Store) -> None:
    with reservoir(store) as rec, neurostore.jax.tap(rec) as tap:
        jax.vmap(run(jax.lax.scan, tap, 3))(jnp.array([[0.0, 0.0], [10.0, 10.0]]))
    states, time = recorded(store, rec)
    assert states == [1, 11, 2, 12, 3, 13]
    assert time == [0, 0, 1, 1, 2, 2]  # not batched, and shared


def test_spikes_come_as_events(store: neurostore.Store) -> None:
    masks = np.random.default_rng(0).random((200, 30)) < 0.1
    rec = store.record("spike_train", timestamp=T, commit_every=1.0)
    with rec, neurostore.jax.tap(rec, convert=neurostore.jax.events) as tap:

        @jax.jit
        def simulate(masks: Any) -> Any:
            def step(n: Any, mask: Any) -> Any:
                tap(spikes=mask, time=0.5 * n)
                return n + 1, None

            return jax.lax.scan(step, 0, masks)[0]

        simulate(masks)
    ds = store.retrieve(str(rec.id))
    steps, neurons = np.nonzero(masks)
    assert ds["neuron_ids"].values.tolist() == neurons.tolist()
    assert ds["spike_times"].values.tolist() == (0.5 * steps).tolist()
    with pytest.raises(ValidationError, match="expected"):
        neurostore.jax.events(np.ones((2, 2, 2)), 0.0)


@pytest.mark.parametrize(
    ("kind", "name", "values", "shape"),
    [
        ("performance_metrics", "values", {"loss": jnp.float32(1), "acc": jnp.float32(2)}, (9, 2)),
        ("layer_outputs", "layers", {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 1))}, (18, 3)),
        ("homeostatic_trace", "changes", jnp.ones(4), (9, 4)),
        ("plasticity_trace", "changes", jnp.ones((2, 3)), (9, 2, 3)),
        ("attention_maps", "maps", jnp.ones((5, 2, 2, 2)), (45, 2, 2, 2)),
    ],
)
def test_other_kinds_and_blocks_are_joined(
    kind: str, name: str, values: Any, shape: tuple[int, ...], store: neurostore.Store
) -> None:
    label = {"name": "x"} if neurostore.KINDS[kind].label else {}
    gate = threading.Event()

    def late(**given: Any) -> dict[str, Any]:
        gate.wait(60)
        return given

    rec = store.record(kind, timestamp=T, **label)
    with rec, neurostore.jax.tap(rec, convert=late) as tap:
        for _ in range(9):
            tap(**{name: values})
        gate.set()
    ds = store.retrieve(str(rec.id))
    assert next(iter(ds.data_vars.values())).shape == shape


def test_what_does_not_fit_is_raised_and_counted(store: neurostore.Store) -> None:
    gate = threading.Event()

    def late(**given: Any) -> dict[str, Any]:
        gate.wait(60)
        return given

    rec = reservoir(store)
    rec.append(jnp.zeros(3))
    tap = neurostore.jax.tap(rec, convert=late)
    tap(states=jnp.zeros(2))
    tap(states=jnp.zeros(3))
    gate.set()
    with pytest.raises(ValidationError, match="other sizes") as caught:
        tap.close()
    assert "are not recorded" in caught.value.__notes__[0]
    tap.close()
    rec.append(jnp.ones(3))
    rec.close()
    assert store.retrieve(str(rec.id)).sizes["time"] == 2


def test_a_computation_stops_where_nothing_can_be_recorded(store: neurostore.Store) -> None:
    rec = reservoir(store)
    rec.append(jnp.zeros(2))
    with pytest.raises(ValidationError, match="other sizes"), neurostore.jax.tap(rec) as tap:
        jax.jit(run(jax.lax.scan, tap, 200_000))(jnp.zeros(3)).block_until_ready()
    rec.close()
    again = reservoir(store)
    with again, neurostore.jax.tap(again) as tap:
        jax.jit(run(jax.lax.scan, tap, 3))(jnp.zeros(3))
    assert store.retrieve(str(again.id)).sizes["time"] == 3


def test_a_tap_that_is_closed_says_so(store: neurostore.Store) -> None:
    with reservoir(store) as rec, neurostore.jax.tap(rec) as tap:
        tap(states=jnp.zeros(2))
    with pytest.raises(Exception, match="the tap is closed"):
        jax.block_until_ready(tap(states=jnp.zeros(2)))
    assert store.retrieve(str(rec.id)).sizes["time"] == 1
    with pytest.raises(ValidationError, match="depth"):
        neurostore.jax.tap(rec, depth=0)
