"""The demo from beginning to end: simulate and store, then reopen, ask, and draw.

It knows the store only by its public methods, as any script of a user would.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr

from neurostore.demo import picture, records
from neurostore.demo.experiment import Experiment
from neurostore.errors import StoreExistsError, ValidationError
from neurostore.schema import KINDS
from neurostore.store import Store

__all__ = ["run", "summarise"]

#: A whole network is stored before the first trial, after every so many, and after the last.
SNAPSHOT_EVERY = 50


def run(
    path: str | Path = "demo.h5",
    picture: str | Path | None = "demo.png",
    seconds: float = 60.0,
    seed: int = 0,
    progress: bool = True,
    force: bool = False,
) -> dict[str, Any]:
    """Simulate a small liquid state machine, store every kind of record, and query the file.

    Parameters
    ----------
    path : path-like
        File to write. It must not exist, unless `force`.
    picture : path-like, optional
        PNG to draw from the stored records, over an older one; None for no picture. It needs
        matplotlib, the extra ``plot``; without it a line says so.
    seconds : float
        Model time in seconds; a trial takes 0.3 s of it, and the last quarter is held out.
    seed : int
        The same seed on the same machine stores the same values.
    progress : bool
        Show a progress bar where the standard error is a terminal.
    force : bool
        Replace `path`, whatever it holds.

    Returns
    -------
    dict
        What was printed, as numbers; see `summarise`.

    Raises
    ------
    StoreExistsError
        There already is a file at `path`.
    """
    if not 0.0 < seconds < math.inf:
        raise ValidationError(f"seconds is {seconds!r}, expected a positive number")
    target = _vacate(Path(path), force)
    experiment = Experiment(seconds, seed)
    _simulate(experiment, target, progress)
    with Store(target, mode="r") as store:
        summary = summarise(store, experiment)
        summary["picture"] = _draw(store, experiment, picture)
    _report(summary)
    return summary


def _vacate(path: Path, force: bool) -> Path:
    """Refuse an existing file, or remove it and what a writer keeps beside it."""
    if not path.exists():
        return path
    if not force:
        raise StoreExistsError(
            f"{path}: already exists, expected a new file; give another path, or force=True "
            "(--force) to replace it"
        )
    for stale in (path, path.with_name(path.name + "-journal")):
        stale.unlink(missing_ok=True)
    return path


def _simulate(experiment: Experiment, path: Path, progress: bool) -> None:
    liquid = experiment.build()
    with Store(path, mode="x") as store, _bar(experiment.trials, progress) as advance:
        store.store(records.snapshot(liquid, liquid.start, 0.0))
        for trial in experiment.run(liquid):
            with store.batch():
                for ds in records.trial_records(liquid, trial):
                    store.store(ds)
                done = trial.number + 1
                if done % SNAPSHOT_EVERY == 0 or done == experiment.trials:
                    end = round(done * experiment.design.trial_seconds, 6)
                    store.store(records.snapshot(liquid, trial.after, end))
            advance(f"accuracy {trial.accuracy:.0%}")


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("simulating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("trials  {task.description}"),
    )
    silent = not (progress and console.is_terminal)
    with Progress(*columns, console=console, disable=silent, transient=True) as bar:
        task = bar.add_task("compiling", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)


def summarise(store: Store, experiment: Experiment) -> dict[str, Any]:
    """Ask the file what the demo reports: counts, size, accuracy, a range, a labelled slice.

    Parameters
    ----------
    store : Store
        Open on what the demo wrote.
    experiment : Experiment
        What ran.

    Returns
    -------
    dict
        ``path``, ``bytes``, ``trials``, ``seconds``, ``records`` (count per kind), ``accuracy``
        (``first``, ``trained``, ``held_out``), ``range`` (``kind``, ``start``, ``end``,
        ``trials``, ``spikes``) and ``slice`` (``times``, ``neurons``, ``spikes``).
    """
    path = Path(store.path)
    window = min(experiment.design.window, experiment.training)
    training = _accuracy(store, records.TRAINING)
    start, end = _last_second(experiment)
    spikes = store.range("spike_train", start, end)
    part = spikes.sel(spike_times=slice(0.05, 0.1), neuron_ids=slice(0, 9))
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "trials": experiment.trials,
        "seconds": experiment.trials * experiment.design.trial_seconds,
        "records": {kind: len(store.ids(kind)) for kind in KINDS},
        "accuracy": {
            "first": float(training[window - 1]),
            "trained": float(training[-1]),
            "held_out": float(_accuracy(store, records.HELD_OUT)[-1]),
        },
        "range": {
            "kind": "spike_train",
            "start": start,
            "end": end,
            "trials": len(store.ids("spike_train", start, end)),
            "spikes": spikes.sizes["spike"],
        },
        "slice": {"times": (0.05, 0.1), "neurons": (0, 9), "spikes": part.sizes["spike"]},
    }


def _last_second(experiment: Experiment) -> tuple[float, float]:
    end = experiment.trials * experiment.design.trial_seconds
    return round(max(0.0, end - 1.0), 6), round(end, 6)


def _accuracy(store: Store, task_type: str) -> xr.DataArray:
    metrics = store.range("performance_metrics", name=task_type)
    return metrics["values"].sel(metric="accuracy").load()


def _draw(store: Store, experiment: Experiment, path: str | Path | None) -> str | None:
    if path is None:
        return None
    try:
        picture.draw(store, experiment, path)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "matplotlib":
            raise
        print("no picture: matplotlib is missing; pip install '.[plot]' brings it")
        return None
    return str(path)


def _report(summary: dict[str, Any]) -> None:
    counts = "\n".join(f"  {n:5d}  {kind}" for kind, n in summary["records"].items())
    accuracy, asked, part = summary["accuracy"], summary["range"], summary["slice"]
    print(
        f"{summary['path']}: {summary['trials']} trials, {summary['seconds']:.1f} s of model "
        f"time, {summary['bytes'] / 1e6:.1f} MB\n{counts}\n"
        f"accuracy of the readout: {accuracy['first']:.0%} in the first trials, "
        f"{accuracy['trained']:.0%} in the last, {accuracy['held_out']:.0%} held out "
        f"(chance 25%)\n"
        f"range {asked['start']:g} s to {asked['end']:g} s: {asked['trials']} spike trains, "
        f"{asked['spikes']} spikes\n"
        f"of these, neurons {part['neurons'][0]} to {part['neurons'][1]} between "
        f"{part['times'][0]:g} and {part['times'][1]:g} s of their trial: {part['spikes']} spikes"
    )
    if summary["picture"]:
        print(f"picture: {summary['picture']}")
