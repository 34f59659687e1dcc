"""Pictures of records: functions that draw a labelled object on an axes and return the artist.

Labels, units and extents come from the object's coordinates and attributes. Matplotlib is never
imported here; the axes bring it, from a figure of any backend. Nothing is read from files and no
figure is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

__all__ = ["curve", "matrix", "raster"]


def raster(ds: xr.Dataset, ax: Axes, **style: Any) -> PathCollection:
    """Draw one mark per spike: time to the right, neuron upwards.

    Parameters
    ----------
    ds : Dataset
        A spike train with `spike_times` and `neuron_ids`, shape (spike,).
    ax : matplotlib.axes.Axes
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
    times, ids = ds["spike_times"], ds["neuron_ids"]
    look: dict[str, Any] = {"marker": "|", "s": 9, "lw": 0.9} | style
    marks = ax.scatter(times.values, ids.values, **look)
    ax.set(xlabel=f"spike time ({times.attrs.get('units', 's')})", ylabel="neuron")
    return marks


def matrix(da: xr.DataArray, ax: Axes, **style: Any) -> AxesImage:
    """Draw a 2-D array as an image, its first dimension downwards.

    Parameters
    ----------
    da : DataArray
        Numbers, shape (rows, columns). Text coordinates become tick labels, numbers the extent.
    ax : matplotlib.axes.Axes
    **style
        Passed on to ``ax.imshow``, such as ``cmap`` and ``vmax``.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> image = matrix(xr.DataArray(np.eye(3), dims=("pre", "post")), ax)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('post', 'pre')
    """
    rows, columns = da.dims
    left, right = _extent(da, columns)
    top, bottom = _extent(da, rows)
    look: dict[str, Any] = {
        "extent": (left, right, bottom, top),
        "aspect": "auto",
        "interpolation": "nearest",
    } | style
    image = ax.imshow(da.values, **look)
    _tick_labels(da, columns, ax.set_xticks)
    _tick_labels(da, rows, ax.set_yticks)
    ax.set(xlabel=_axis_label(da, columns), ylabel=_axis_label(da, rows))
    return image


def curve(da: xr.DataArray, ax: Axes, **style: Any) -> Line2D:
    """Draw a 1-D array against the coordinate of its dimension, or its positions.

    Parameters
    ----------
    da : DataArray
        Numbers, shape (n,).
    ax : matplotlib.axes.Axes
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
    (line,) = ax.plot(da[dim].values, da.values, **style)
    ax.set(xlabel=_axis_label(da, dim), ylabel=_label(da, str(da.name or "")))
    return line


def _extent(da: xr.DataArray, dim: Any) -> tuple[float, float]:
    """Outer edges of the first and last cell along ``dim``."""
    values = da[dim].values
    if values.dtype.kind not in "iuf" or len(values) < 2:
        return -0.5, da.sizes[dim] - 0.5
    half = (float(values[-1]) - float(values[0])) / (len(values) - 1) / 2
    return float(values[0]) - half, float(values[-1]) + half


def _tick_labels(da: xr.DataArray, dim: Any, set_ticks: Any) -> None:
    values = da[dim].values
    if values.dtype.kind in "UTO":
        set_ticks(np.arange(len(values)), [str(value) for value in values])


def _axis_label(da: xr.DataArray, dim: Any) -> str:
    return _label(da[dim], str(dim)) if dim in da.coords else str(dim)


def _label(da: xr.DataArray, name: str) -> str:
    text = str(da.attrs.get("long_name", name))
    units = da.attrs.get("units", "1")
    return text if units == "1" else f"{text} ({units})"
