"""A run on one page: when what was stored, how metrics went, and the newest record of each kind.

It knows a store by its public methods.  A record that cannot be read is named in its place and
does not cost the page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr

from neurostore.errors import HDF5StorageError
from neurostore.optional import needs
from neurostore.plot.axes import Panel, dated, note, plain
from neurostore.plot.lines import moments
from neurostore.plot.pictures import heading, limited, panels_of, remarked, said
from neurostore.plot.spikes import counted
from neurostore.schema import KINDS, Kind
from neurostore.times import TimeLike
from neurostore.wording import human_bytes, moment, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["overview", "timeline"]

#: Records that get a mark each; more are counted.
_MARKS = 5_000
#: Rows of the timeline; with more names than these a kind has one row.
_ROWS = 24
#: Metrics of which a curve is shown.
_METRICS = 4
_WIDE = 3


class Asked(Protocol):
    """What the overview asks of a store."""

    path: Any

    def catalogue(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Return the table of records."""
        ...

    def retrieve(self, record_id: str) -> xr.Dataset:
        """Return a record."""
        ...

    def range(self, kind: str, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Return a range."""
        ...


def timeline(catalogue: xr.Dataset, ax: Axes, **style: Any) -> Any:
    """Draw when records of each kind and name were made.

    Parameters
    ----------
    catalogue : Dataset
        As ``store.catalogue()`` returns it.
    ax : matplotlib.axes.Axes
    **style
        Passed on to ``ax.scatter``, or to ``ax.imshow`` where records are counted.
    """
    keys = _keys(catalogue)
    rows = sorted(set(keys), key=lambda key: (list(KINDS).index(key[0]), key[1]))
    y = np.array([rows.index(key) for key in keys], np.float64)
    x, axis = moments(catalogue)
    if len(keys) > _MARKS:
        seconds = catalogue["timestamp"].values
        artist: Any = counted(
            seconds - seconds.min(), y, ax, "records", **({"cmap": "Blues"} | style)
        )
        axis = f"s since {moment(float(seconds.min()))}"
    else:
        look: dict[str, Any] = {
            "marker": "|",
            "s": 60,
            "lw": 1.0,
            "c": y % 10,
            "cmap": "tab10",
        } | style
        artist = ax.scatter(x, y, vmin=-0.5, vmax=9.5, **look)
    ax.set_yticks(range(len(rows)), [_row_label(*row) for row in rows], fontsize="small")
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(axis)
    if len(keys) <= _MARKS:
        dated(ax, x)
    if len(rows) < len(set(_named(catalogue))):
        note(ax, f"{len(set(_named(catalogue))):,} names of records, those of a kind in one row")
    return artist


def _keys(catalogue: xr.Dataset) -> list[tuple[str, str]]:
    """Return kind and name of every record; kinds alone where the names are too many."""
    keys = _named(catalogue)
    return keys if len(set(keys)) <= _ROWS else [(kind, "") for kind, _ in keys]


def _named(catalogue: xr.Dataset) -> list[tuple[str, str]]:
    kinds, names = catalogue["kind"].values.tolist(), catalogue["name"].values.tolist()
    return [(k, n if KINDS[k].label else "") for k, n in zip(kinds, names, strict=True)]


def _row_label(kind: str, name: str) -> str:
    return plain(" · ".join(filter(None, [kind.replace("_", " "), name])), 64)


def _sizes(catalogue: xr.Dataset, ax: Axes, **style: Any) -> Any:
    """Draw how the stored bytes grew."""
    x, axis = moments(catalogue)
    total = np.cumsum(catalogue["stored_bytes"].values)
    look: dict[str, Any] = {"drawstyle": "steps-post", "color": "0.3"} | style
    (line,) = ax.plot(x, total / 1e6, **look)
    ax.set(xlabel=axis, ylabel="MB of values", ylim=(0.0, None))
    dated(ax, x)
    return line


def _lengths(catalogue: xr.Dataset, ax: Axes, **style: Any) -> Any:
    """Draw how long records were: the spikes of a train."""
    x, axis = moments(catalogue)
    look: dict[str, Any] = {"marker": ".", "lw": 0.8} | style
    (line,) = ax.plot(x, catalogue["length"].values, **look)
    ax.set(xlabel=axis, ylabel="number", ylim=(0.0, None))
    dated(ax, x)
    return line


def _tried(make: Callable[[], list[Panel]], name: str) -> list[Panel]:
    """Return panels, or one that says why there are none."""
    try:
        return make()
    except HDF5StorageError as error:
        return [Panel(name, partial(said, str(error)), title=name)]


def _trends(store: Asked, catalogue: xr.Dataset, name: str | None) -> Iterator[Panel]:
    """Yield what changed over the run: lengths, metrics, bytes."""
    for kind in KINDS.values():
        there = catalogue.isel(record=catalogue["kind"].values == kind.name)
        if not there.sizes["record"]:
            continue
        if kind.combine == "ragged":
            title = f"{kind.elastic}s of a {kind.name.replace('_', ' ')}"
            yield Panel(kind.name, partial(_lengths, there), title=title)
        if kind.combine == "union":
            yield from _tried(partial(_metrics, store, kind, there, name), kind.plural)
    yield Panel("stored_bytes", partial(_sizes, catalogue), title="stored")


def _metrics(store: Asked, kind: Kind, there: xr.Dataset, name: str | None) -> list[Panel]:
    stamps = there["timestamp"].values
    ds = store.range(kind.name, float(stamps[0]), float(stamps[-1]), name=name)
    total = ds.sizes["record"]
    if total > _MARKS:
        ds = ds.isel(record=np.linspace(0, total - 1, _MARKS).round().astype(int))
    panels = limited(panels_of(ds)[0], "metrics", _METRICS, ds.sizes.get(kind.elastic))
    if total > _MARKS:
        panels = [remarked(panel, f"{_MARKS:,} of {total:,} records") for panel in panels]
    return panels


def _newest(store: Asked, catalogue: xr.Dataset) -> Iterator[Panel]:
    """Yield the main panel of the newest record of each kind."""
    kinds = catalogue["kind"].values
    for kind in KINDS.values():
        positions = np.flatnonzero(kinds == kind.name)
        if len(positions) and kind.combine != "union":
            record_id = str(catalogue["record"].values[positions[-1]])
            yield from _tried(partial(_main, store, record_id), record_id)


def _main(store: Asked, record_id: str) -> list[Panel]:
    ds = store.retrieve(record_id)
    panels, _ = panels_of(ds)
    return [replace(panels[0], name=record_id, title=heading(ds))]


def _on(panel: Panel, ax: Axes) -> Any:
    """Draw a panel; values are read here, so damage shows here."""
    try:
        return panel.on(ax)
    except HDF5StorageError as error:
        ax.clear()
        return said(str(error), ax)


def overview(
    store: Asked,
    kind: str | None = None,
    start: TimeLike | None = None,
    end: TimeLike | None = None,
    *,
    name: str | None = None,
    figure: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Draw a run on one page: when what was stored, how it went, the newest record of each kind.

    Parameters
    ----------
    store : Store
        An open store.
    kind, start, end, name
        Only these records, as for :meth:`neurostore.Store.ids`.
    figure : matplotlib figure or subfigure, optional
        Is filled; without it a new one is made by pyplot.
    figsize : (float, float), optional
        Width and height of a new figure in inches.

    Returns
    -------
    dict
        The main artist of each panel: ``"timeline"``, trends by kind, metric and
        ``"stored_bytes"``, and the newest records by id.

    Raises
    ------
    MissingPackageError
        matplotlib is not installed.

    Examples
    --------
    >>> import neurostore
    >>> from matplotlib.figure import Figure
    >>> with neurostore.open(tmp / "run.h5") as store:
    ...     _ = store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5))
    ...     list(overview(store, figure=Figure()))
    ['timeline', 'spike_train', 'stored_bytes', 'train_12.5']
    """
    catalogue = store.catalogue(kind, start, end, name=name)
    count = catalogue.sizes["record"]
    first = (
        Panel("timeline", partial(timeline, catalogue), title="records")
        if count
        else Panel("timeline", partial(said, "no records"))
    )
    trends = partial(_trends, name=name)
    rest = [_rows(list(found(store, catalogue))) for found in (trends, _newest) if count]
    groups = [[[first]], *filter(None, rest)]
    figure = figure if figure is not None else _figure(groups, figsize, catalogue)
    figure.suptitle(_headline(store, catalogue), fontsize="medium")
    return _fill(figure, groups, catalogue)


def _rows(panels: list[Panel]) -> list[list[Panel]]:
    return [panels[at : at + _WIDE] for at in range(0, len(panels), _WIDE)]


def _heights(groups: list[list[list[Panel]]], catalogue: xr.Dataset) -> list[float]:
    """Height in inches of every row of panels."""
    timeline_height = 1.0 + 0.24 * len(set(_keys(catalogue)))
    heights = [timeline_height]
    for group, height in zip(groups[1:], (2.3, 3.1), strict=False):
        heights += [height] * len(group)
    return heights


def _figure(
    groups: list[list[list[Panel]]], figsize: tuple[float, float] | None, catalogue: xr.Dataset
) -> Figure:
    with needs("plot", "a picture"):
        import matplotlib.pyplot as plt
    size = figsize or (12.0, sum(_heights(groups, catalogue)) + 0.5)
    return plt.figure(figsize=size, layout="constrained")


def _fill(
    figure: Figure | SubFigure, groups: list[list[list[Panel]]], catalogue: xr.Dataset
) -> dict[str, Any]:
    rows = [(row, len(group[0])) for group in groups for row in group]
    parts: Any = figure.subfigures(len(rows), 1, height_ratios=_heights(groups, catalogue))
    drawn: dict[str, Any] = {}
    for part, (row, columns) in zip(np.atleast_1d(parts), rows, strict=True):
        axes = np.atleast_1d(part.subplots(1, columns))
        for unused in axes[len(row) :]:
            unused.remove()
        for panel, ax in zip(row, axes, strict=False):
            drawn[panel.name] = _on(panel, ax)
    return drawn


def _headline(store: Asked, catalogue: xr.Dataset) -> str:
    stamps = catalogue["timestamp"].values
    words = [plain(os.path.basename(store.path)), f"{len(stamps):,} records"]
    if len(stamps):
        words.append(span(float(stamps[0]), float(stamps[-1])))
        words.append(f"{human_bytes(int(catalogue['stored_bytes'].sum()))} of values")
    return " · ".join(words)
