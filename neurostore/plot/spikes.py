"""Spikes: one mark each, or counted in cells where they are too many; and their rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from neurostore import schema
from neurostore import times as clock
from neurostore.plot.axes import Along, note, plain
from neurostore.plot.thinning import even_edges
from neurostore.wording import moment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.image import AxesImage
    from matplotlib.patches import StepPatch

__all__ = ["counted", "raster", "rates"]

#: Marks that can be told apart and are drawn within a second.
_MOST = 50_000
#: Cells of the picture that counts spikes, to the right and upwards.
_CELLS = (600, 400)
#: Fewer rows are drawn cell by cell, since averaging would blur them into each other, and have as
#: many cells to the right as a small panel has dots.
_FEW, _DOTS = 65, 300
#: A neuron's mark stands at its id, unless ids are so thinly spread that most rows were empty.
_SPARSE = 20
#: Share of an axes that marks may cover, for lines of a point's width.
_INK = 0.25
#: Points that the mark of a spike is high, for it to be seen as a line.
_SEEN = 2.5
_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "µs", "microsecond", "microseconds"), 1e-6),
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), 1e-9),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
}


@dataclass(frozen=True)
class _Times:
    """Moments of spikes on the axis of a picture, its label, and its unit in seconds."""

    values: np.ndarray[Any, Any]
    label: str
    seconds: float | None


def _times(ds: xr.Dataset) -> _Times:
    """Spikes of one train as they are; those of a range at the time of their record."""
    variable = ds["spike_times"]
    units = str(variable.attrs.get("units", "s"))
    seconds = _SECONDS.get(units)
    values = variable.values.astype(np.float64)
    if "record_index" not in ds.variables:
        return _Times(values, f"spike time ({plain(units, 20)})", seconds)
    starts = np.atleast_1d(ds[schema.TIMESTAMP].values.astype(np.float64))
    zero = float(starts[0]) if len(starts) and starts[0] >= clock.EARLIEST_DATE else 0.0
    if seconds is None:
        return _Times(values, f"spike time of all records ({plain(units, 20)})", None)
    values = values * seconds + (starts - zero)[ds["record_index"].values]
    since = f"s since {moment(zero)}" if zero else "s"
    return _Times(values, f"time ({since})", 1.0)


def _neurons(ids: np.ndarray[Any, Any]) -> Along:
    """Where neurons stand: at their ids, or in the order of them where ids are far apart."""
    different, ranks = np.unique(ids, return_inverse=True)
    if ids.dtype.kind in "iu":
        spread = int(different[-1]) - int(different[0]) if len(different) else 0
        if spread <= _SPARSE * len(different):
            return Along(ids, "neuron")
        return Along(ranks, f"neuron, by rank of {len(different):,} ids")
    return Along(ranks, f"neuron ({len(different):,} names)", different.astype(np.str_).tolist())


def raster(
    ds: xr.Dataset, ax: Axes, *, most: int = _MOST, **style: Any
) -> PathCollection | AxesImage:
    """Draw one mark per spike: time to the right, neuron upwards.

    Parameters
    ----------
    ds : Dataset
        A spike train with `spike_times` and `neuron_ids`, shape (spike,), or a range of them.
    ax : matplotlib.axes.Axes
    most : int
        Spikes beyond which they are counted in cells instead, which the picture then says.
    **style
        Passed on to ``ax.scatter``, such as ``color`` and ``label``.

    Examples
    --------
    >>> import xarray as xr
    >>> from matplotlib.figure import Figure
    >>> ds = xr.Dataset(
    ...     coords={
    ...         "spike_times": ("spike", [0.2, 0.1], {"units": "s"}),
    ...         "neuron_ids": ("spike", [7, 8]),
    ...     }
    ... )
    >>> ax = Figure().subplots()
    >>> len(raster(ds, ax, color="tab:blue").get_offsets()), ax.get_xlabel()
    (2, 'spike time (s)')
    """
    moments, neurons = _times(ds), _neurons(ds["neuron_ids"].values)
    ax.set(xlabel=moments.label, ylabel=neurons.label)
    Along(np.arange(len(neurons.texts)), "", neurons.texts).ticks(ax.set_yticks)
    if len(moments.values) > most:
        return counted(moments.values, neurons.positions, ax, "spikes", **style)
    tall = _mark_height(ax, len(moments.values))
    look: dict[str, Any] = {"marker": "|", "s": tall**2, "lw": 0.9}
    if tall < _SEEN:  # a shorter line is drawn as nothing
        look = {"marker": ".", "s": _SEEN, "lw": 0.0}
    look |= style
    marks = ax.scatter(moments.values, neurons.positions, **look)
    return marks


def _mark_height(ax: Axes, count: int) -> float:
    """Return the height of a mark in points: as high as leaves most of the axes blank."""
    box = ax.get_window_extent()
    area = box.width * box.height * (72 / ax.figure.dpi) ** 2
    return min(4.0, _INK * area / max(1, count))


def counted(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], ax: Axes, what: str, **style: Any
) -> AxesImage:
    """Draw how many of ``what`` fall in each cell of a grid; the picture says so.

    A cell holds a whole number of rows and of time steps: else some would hold one more than their
    neighbours, and stripes appear that are not in the data.
    """
    there = np.isfinite(x)
    x, y = x[there], y[there].astype(np.float64)
    bottom, top = float(y.min()) - 0.5, float(y.max()) + 0.5
    each = max(1, math.ceil((top - bottom) / _CELLS[1]))
    upwards = bottom + each * np.arange(math.ceil((top - bottom) / each) + 1.0)
    few = len(upwards) <= _FEW
    across = even_edges(x, _DOTS if few else _CELLS[0])
    counts, _, _ = np.histogram2d(x, y, bins=(across, upwards))
    look: dict[str, Any] = {"cmap": "Greys", "vmin": 0.0} | {
        key: value for key, value in style.items() if key in ("cmap", "vmin", "vmax", "alpha")
    }
    look |= {"interpolation": "nearest"} if few else {}
    look.setdefault("vmax", max(1.0, float(np.quantile(counts[counts > 0], 0.99))))
    extent = (across[0], across[-1], bottom, upwards[-1])
    image = ax.imshow(counts.T, origin="lower", aspect="auto", extent=extent, **look)
    ax.set_ylim(bottom, top)
    note(ax, f"{len(x):,} {what}, counted in {len(across) - 1} × {len(upwards) - 1} cells")
    return image


def rates(ds: xr.Dataset, ax: Axes, *, bins: int = 100, **style: Any) -> StepPatch:
    """Draw the mean rate of the neurons that fired, over time.

    Parameters
    ----------
    ds : Dataset
        A spike train, or a range of them.
    ax : matplotlib.axes.Axes
    bins : int
        Number of stretches of time in which spikes are counted; fewer where times stand on steps,
        of which each stretch then has a whole number.
    **style
        Passed on to ``ax.stairs``.

    Examples
    --------
    >>> import neurostore
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> ds = neurostore.spike_train([0.0, 0.1, 0.2, 1.0], [1, 1, 2, 2], timestamp=0.0)
    >>> rates(ds, ax, bins=2).get_data().values.tolist(), ax.get_ylabel()
    ([3.0, 1.0], 'spikes/s per neuron')
    """
    moments = _times(ds)
    finite = moments.values[np.isfinite(moments.values)]
    counts, edges = np.histogram(finite, even_edges(finite, bins))
    neurons = max(1, len(np.unique(ds["neuron_ids"].values)))
    width = float(edges[1] - edges[0])
    per = counts / neurons / (width * moments.seconds) if moments.seconds else counts / neurons
    look: dict[str, Any] = {"fill": True, "color": "0.35"} | style
    steps = ax.stairs(per, edges, **look)
    ax.set(
        xlabel=moments.label,
        ylabel="spikes/s per neuron" if moments.seconds else "spikes per neuron",
        ylim=(0.0, None),
    )
    if len(moments.values):
        unit = moments.label.partition("(")[2].rstrip(")").split(" ")[0]
        note(ax, f"{neurons:,} neurons that fired, bins of {width:.3g} {unit}")
    return steps
