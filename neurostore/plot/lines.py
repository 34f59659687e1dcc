"""One dimension as a curve, many curves, or a distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from neurostore import schema, times
from neurostore.plot.axes import along, dated, label, note, plain, spaced, unit_of
from neurostore.plot.thinning import bands, envelope, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.patches import StepPatch

__all__ = ["curve", "evolution", "histogram", "moments", "traces"]

#: Dimensions whose neighbours have nothing to do with each other.
_UNORDERED = frozenset({"neuron", "pre", "post", *schema.GATHERED})
#: Points of a curve; a printed panel has fewer dots.
_MOST = 4_000
#: Curves that can be told apart.
_CURVES = 8
#: Up to so many points are marked one by one.
_MARKED = 40
#: Records of which quantiles are taken; each has to be read.
_RECORDS = 300
_QUANTILES = (0.05, 0.95)


def curve(da: xr.DataArray, ax: Axes, *, most: int = _MOST, **style: Any) -> Line2D:
    """Draw a 1-D array against the coordinate of its dimension, or its positions.

    Values of neurons, which have no order, are points that no line joins.

    Parameters
    ----------
    da : DataArray
        Numbers, shape (n,).
    ax : matplotlib.axes.Axes
    most : int
        Points beyond which the smallest and largest value of a stretch stand for it, which the
        picture then says.
    **style
        Passed on to ``ax.plot``, such as ``color`` and ``label``.

    Examples
    --------
    >>> import xarray as xr
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> da = xr.DataArray([0.2, 0.9], {"timestamp": [0.0, 1.0]}, ["timestamp"], "accuracy")
    >>> curve(da, ax).get_ydata().tolist(), ax.get_ylabel()
    ([0.2, 0.9], 'accuracy')
    """
    (dim,) = da.dims
    where = along(da, dim)
    x = da[dim].values if dim in da.coords and da[dim].dtype.kind in "iufM" else where.positions
    if dim in _UNORDERED:
        style = {"ls": "none", "marker": "."} | style
    line, length = _line(x, numbers(da.values), ax, most, style)
    where.ticks(ax.set_xticks, rotation=90.0)
    if dim not in da.coords:
        where.whole(ax.xaxis)
    ax.set(xlabel=_axis_label(da, dim), ylabel=label(da, str(da.name or "")))
    dated(ax, x)
    if length > 1:
        note(ax, _stretches(length))
    return line


def _line(x: Any, y: Any, ax: Axes, most: int, style: dict[str, Any]) -> tuple[Line2D, int]:
    x, y, length = envelope(x, y, most)
    marked = {"marker": "."} if len(y) <= _MARKED else {}
    (line,) = ax.plot(x, y, **({"lw": 1.0} | marked | style))
    return line, length


def _stretches(length: int) -> str:
    return f"smallest and largest of every {length} values"


def _axis_label(da: xr.DataArray, dim: Any) -> str:
    return label(da[dim], str(dim)) if dim in da.coords else plain(dim)


def traces(
    da: xr.DataArray, ax: Axes, *, count: int = _CURVES, most: int = _MOST, **style: Any
) -> list[Line2D]:
    """Draw some rows of a 2-D array as curves along its second dimension.

    Parameters
    ----------
    da : DataArray
        Numbers, shape (neuron, time) or the like.
    ax : matplotlib.axes.Axes
    count : int
        Rows to draw, evenly chosen; the picture says how many there are.
    most : int
        Points of a curve, as for :func:`curve`.
    **style
        Passed on to ``ax.plot``.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> len(traces(xr.DataArray(np.zeros((20, 5)), dims=("neuron", "time")), ax, count=4))
    4
    """
    rows, dim = da.dims
    total = da.sizes[rows]
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    names = da[rows].values[chosen] if rows in da.coords else chosen
    where = along(da, dim)
    x = da[dim].values if dim in da.coords and da[dim].dtype.kind in "iufM" else where.positions
    drawn, length = [], 1
    for row, name in zip(chosen.tolist(), names, strict=True):
        y = numbers(da.isel({rows: row}).values)
        line, length = _line(x, y, ax, most, {"label": plain(name), **style})
        drawn.append(line)
    ax.set(xlabel=_axis_label(da, dim), ylabel=label(da, str(da.name or "")))
    if total > len(drawn):
        note(ax, f"{len(drawn)} of {total:,} {plain(rows)}s")
    if length > 1:
        note(ax, _stretches(length))
    if drawn:
        beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        inside: dict[str, Any] = {"loc": "upper right", "ncols": 2}
        figure: Any = ax.figure
        room = beside if figure.get_layout_engine() is not None else inside
        ax.legend(title=plain(rows), fontsize="x-small", title_fontsize="small", **room)
    return drawn


def histogram(
    da: xr.DataArray,
    ax: Axes,
    *,
    bins: int = 80,
    where: xr.DataArray | None = None,
    **style: Any,
) -> StepPatch:
    """Draw how values are distributed, all of them; on a log scale where counts differ widely.

    Parameters
    ----------
    da : DataArray
        Numbers of any shape. Where most are exactly 0, those are left out, and the picture says so.
    ax : matplotlib.axes.Axes
    bins : int
        Number of bins between the smallest and the largest value.
    where : DataArray, optional
        Of the shape of `da`; values where it is 0 are left out.
    **style
        Passed on to ``ax.stairs``.

    Examples
    --------
    >>> import xarray as xr
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> steps = histogram(xr.DataArray([0.0, 0.0, 0.0, 1.0, 2.0], dims="synapse"), ax, bins=2)
    >>> steps.get_data().values.tolist(), ax.texts[0].get_text()
    ([1, 1], '3 of 5 values are 0 and not counted')
    """
    low, high, zeros, finite = np.inf, -np.inf, 0, 0
    for band in bands(da, where=where):
        there = band[np.isfinite(band)]
        kept = there[there != 0]
        zeros, finite = zeros + there.size - kept.size, finite + there.size
        if kept.size:
            low, high = min(low, float(kept.min())), max(high, float(kept.max()))
    sparse = 2 * zeros > finite and zeros < finite
    if not sparse and zeros:
        low, high = min(low, 0.0), max(high, 0.0)
    if low > high:
        low, high = 0.0, 0.0
    edges = np.histogram_bin_edges(np.array([low, high]), bins)
    counts = np.zeros(bins, np.int64)
    for band in bands(da, where=where):
        there = band[np.isfinite(band)]
        counts += np.histogram(there[there != 0] if sparse else there, edges)[0]
    look: dict[str, Any] = {"fill": True, "color": "tab:blue"} | style
    steps = ax.stairs(counts, edges, **look)
    if counts.any() and counts.max() > 100 * np.median(counts[counts > 0]):
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.5)
    ax.set(xlabel=label(da, str(da.name or "")), ylabel="number of values")
    spaced(ax.xaxis, nbins=5)
    if sparse:
        note(ax, f"{zeros:,} of {da.size:,} values are 0 and not counted")
    if finite < da.size and where is None:
        note(ax, f"{da.size - finite:,} of {da.size:,} values are not finite")
    return steps


def moments(ds: xr.Dataset) -> tuple[np.ndarray[Any, Any], str]:
    """Return the times of records for an axis, as dates where they are, and its label."""
    seconds = np.atleast_1d(ds[schema.TIMESTAMP].values.astype(np.float64))
    if len(seconds) and float(seconds.min()) >= times.EARLIEST_DATE:
        dates = times.decoded_many(seconds)
        if dates is not None:
            return dates, "time (UTC)"
    return seconds, "time (s)"


def evolution(da: xr.DataArray, ax: Axes, *, most: int = _RECORDS, **style: Any) -> Line2D:
    """Draw how values change from record to record: their mean, and where 90 % of them are.

    Parameters
    ----------
    da : DataArray
        Numbers, shape (record, ...), with the coordinate `timestamp`.
    ax : matplotlib.axes.Axes
    most : int
        Records beyond which evenly chosen ones are read; the picture says how many there are.
    **style
        Passed on to ``ax.plot``.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> da = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("record", "neuron"))
    >>> da = da.assign_coords(timestamp=("record", [0.0, 1.0]))
    >>> evolution(da, ax).get_ydata().tolist()
    [1.0, 4.0]
    """
    total = da.sizes["record"]
    chosen = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(int))
    rows = [_spread(da.isel(record=row)) for row in chosen.tolist()]
    low, middle, high = np.array(rows).reshape(-1, 3).T
    x, text = moments(da.to_dataset(name="values").isel(record=chosen))
    marked = {"marker": "."} if len(x) <= _MARKED else {}
    (line,) = ax.plot(x, middle, **({"lw": 1.2} | marked | style))
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)
    ax.set(xlabel=text, ylabel=unit_of(da))
    dated(ax, x)
    note(ax, "mean, and where 90 % of the values are")
    if total > len(chosen):
        note(ax, f"{len(chosen)} of {total:,} records")
    return line


def _spread(da: xr.DataArray) -> tuple[float, float, float]:
    values = numbers(da.values)
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return np.nan, np.nan, np.nan
    low, high = np.quantile(finite, _QUANTILES).tolist()
    return low, float(finite.mean()), high
