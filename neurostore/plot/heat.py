"""Two dimensions as an image: matrices of weights and changes, maps, activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from neurostore.plot.axes import along, cell_edges, note
from neurostore.plot.thinning import block_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

__all__ = ["MOST", "colour_bar", "colours", "matrix"]

#: Rows and columns of an image, as many as a printed panel has dots; matplotlib averages the rest.
MOST = 500
#: An image with a dimension of fewer cells is drawn cell by cell, since averaging would blur them,
#: and has as many cells along the other as a panel on a screen has dots.
_FEW, _DOTS = 65, 200


def matrix(
    da: xr.DataArray,
    ax: Axes,
    *,
    most: int | None = None,
    where: xr.DataArray | None = None,
    **style: Any,
) -> AxesImage:
    """Draw a 2-D array as an image, its first dimension downwards.

    Parameters
    ----------
    da : DataArray
        Numbers, shape (rows, columns). Text coordinates become tick labels, evenly spaced numbers
        the extent.
    ax : matplotlib.axes.Axes
    most : int, optional
        Rows and columns beyond which a cell is the mean of a block, which the picture then says.
    where : DataArray, optional
        Of the shape of `da`; cells where it is 0 stay blank.
    **style
        Passed on to ``ax.imshow``, such as ``cmap`` and ``vmax``. As in xarray, the colours
        diverge from 0 where values have both signs.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from matplotlib.figure import Figure
    >>> ax = Figure().subplots()
    >>> image = matrix(xr.DataArray(np.eye(3), dims=("pre", "post")), ax)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('post', 'pre')
    """
    rows, columns = (along(da, dim) for dim in da.dims)
    few = min(da.shape) < _FEW
    values, (tall, wide) = block_mean(da, most or (_DOTS if few else MOST), where)
    left, right = cell_edges(columns.positions)
    top, bottom = cell_edges(rows.positions)
    # The last blocks may have fewer values; they begin where they begin, and end with the axes.
    wider = (right - left) * values.shape[1] * wide / max(1, da.shape[1])
    taller = (bottom - top) * values.shape[0] * tall / max(1, da.shape[0])
    extent = (left, left + wider, top + taller, top)
    look = {"extent": extent, "aspect": "auto"} | colours(values)
    look = look | ({"interpolation": "nearest"} if few else {}) | style
    image = ax.imshow(values, **look)
    ax.set(xlim=(left, right), ylim=(bottom, top))
    columns.whole(ax.xaxis)
    rows.whole(ax.yaxis)
    columns.ticks(ax.set_xticks, rotation=_slant(columns.texts), ha="center")
    rows.ticks(ax.set_yticks)
    ax.set(xlabel=columns.label, ylabel=rows.label)
    if tall * wide > 1:
        note(ax, f"each cell is the mean of {tall} × {wide} values")
    return image


def _slant(texts: Any) -> float:
    return 90.0 if sum(map(len, texts)) > 16 else 0.0


def colours(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return colours that diverge from 0 where there are both signs, else run from low to high.

    The scale ends at the 99th percentile where a few cells go more than twice as far; the colour
    bar then ends in an arrow.

    >>> colours(np.array([-1.0, 3.0]))
    {'cmap': 'RdBu_r', 'vmin': -3.0, 'vmax': 3.0}
    >>> colours(np.array([1.0, 3.0]))
    {'cmap': 'viridis', 'vmin': 1.0, 'vmax': 3.0}
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return {"cmap": "viridis"}
    low, high = float(finite.min()), float(finite.max())
    present = np.abs(finite[finite != 0])
    usual = float(np.quantile(present, 0.99)) if present.size else 0.0
    if low < 0 < high:
        top = max(-low, high)
        top = usual if top > 2 * usual else top
        return {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
    if low >= 0 and high > 2 * usual > 2 * low:
        high = usual
    return {"cmap": "viridis", "vmin": low, "vmax": high}


def colour_bar(image: AxesImage, ax: Axes, name: str) -> None:
    """Put the colour scale of ``image`` beside ``ax``; an arrow says that values go further."""
    figure: Any = ax.figure
    low, high = image.get_clim()
    values: Any = np.ma.masked_invalid(np.ma.asarray(image.get_array()))
    beyond = bool((values < low).any()), bool((values > high).any())
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond)
    figure.colorbar(image, ax=ax, label=name, shrink=0.9, pad=0.02, extend=extend or "neither")
