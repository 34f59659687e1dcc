"""What every picture needs of an axes: labels, notes, the coordinate of a dimension, panels."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from neurostore.wording import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = [
    "Along",
    "Panel",
    "along",
    "cell_edges",
    "dated",
    "label",
    "note",
    "plain",
    "spaced",
    "unit_of",
]

#: More tick labels than these cannot be read.
_TICKS = 24
#: Dates along an axis, each about as wide as a sixth of a small panel.
_DATES = 5
#: Characters of a title that fit above a third of a page, and points that a line of a note takes.
_TITLE, _LINE = 38, 9.0


@dataclass(frozen=True)
class Panel:
    """One axes of a picture.

    Parameters
    ----------
    name
        Key of its artist in what :func:`neurostore.plot.record` returns.
    draw
        Draws it on an axes, with style for its main artist.
    title
        Stands above it.
    weight
        Height, or width where panels stand side by side, relative to the others.
    """

    name: str
    draw: Callable[..., Any]
    title: str = ""
    weight: float = 1.0
    style: Mapping[str, Any] = field(default_factory=dict)

    def on(self, ax: Axes, **style: Any) -> Any:
        """Draw it and its title on ``ax``."""
        artist = self.draw(ax, **{**self.style, **style})
        if self.title:
            title = plain(self.title)
            if len(title) > _TITLE:
                said, dot, last = title.rpartition(" · ")
                title = f"{said}\n{last}" if dot else textwrap.fill(title, _TITLE)
            above = 6.0 + _LINE * sum(t.get_text().count("\n") + 1 for t in _notes(ax))
            ax.set_title(title, loc="left", fontsize="medium", pad=above)
        return artist


def plain(text: object, longest: int = 80) -> str:
    r"""Return text that matplotlib draws as it is: no mathematics, no second line, not endless.

    >>> print(plain("a$b$"), plain("_x"), plain("y" * 100, 6))
    a\$b\$  _x yyyyy…
    """
    shown = printable(text)
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    # A legend leaves out what begins with an underscore.
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")


def _notes(ax: Axes) -> list[Any]:
    return [text for text in ax.texts if text.get_gid() == "note"]


def note(ax: Axes, text: str) -> None:
    """Say above the picture what it does not show one by one; nothing of it is covered."""
    if not text:
        return
    previous = _notes(ax)
    text = "\n".join([*(t.get_text() for t in previous), text])
    for old in previous:
        old.remove()
    ax.annotate(
        text,
        (1.0, 1.0),
        (0.0, 2.0),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize="x-small",
        gid="note",
    )


def dated(ax: Axes, x: np.ndarray[Any, Any]) -> None:
    """Let an axis of dates have few and short labels; numbers stay as they are.

    The day stands at the right end, so the name of the axis moves to the left.
    """
    if x.dtype.kind != "M":
        return
    from matplotlib import dates

    # matplotlib.dates has no types.
    where: Any = dates.AutoDateLocator(minticks=3, maxticks=_DATES)  # type: ignore[no-untyped-call]
    ax.xaxis.set_major_locator(where)
    ax.set_xlabel(ax.get_xlabel(), loc="left")
    ax.xaxis.set_major_formatter(dates.ConciseDateFormatter(where))  # type: ignore[no-untyped-call]


def spaced(axis: Axis, **wanted: Any) -> None:
    """Say how ticks are chosen, unless somebody else has said so."""
    from matplotlib.ticker import AutoLocator

    where = axis.get_major_locator()
    if isinstance(where, AutoLocator):
        where.set_params(**wanted)


def label(da: xr.DataArray, name: str) -> str:
    """Return ``long_name`` and units of ``da``, else its name, on lines that fit a panel."""
    text, unit = plain(da.attrs.get("long_name", name), 60), unit_of(da)
    return textwrap.fill(f"{text} ({unit})" if unit else text, 30)


def unit_of(da: xr.DataArray) -> str:
    """Return the unit of ``da``; empty where it is a mere number.

    >>> unit_of(xr.DataArray(0.0, attrs={"units": "mV"})), unit_of(xr.DataArray(0.0))
    ('mV', '')
    """
    units = str(da.attrs.get("units", "1"))
    return "" if units == "1" else plain(units, 20)


@dataclass(frozen=True)
class Along:
    """A dimension as an axis: where its cells are, what it is called, texts for ticks."""

    positions: np.ndarray[Any, Any]
    label: str
    texts: Sequence[str] = ()

    def ticks(self, set_ticks: Callable[..., Any], **style: Any) -> None:
        """Label an axis with the texts, unless they are too many to be read."""
        if 0 < len(self.texts) <= _TICKS:
            set_ticks(self.positions, [plain(text, 24) for text in self.texts], **style)

    def whole(self, axis: Axis) -> None:
        """Put no ticks between positions that are whole numbers."""
        if self.positions.dtype.kind in "iu" and not 0 < len(self.texts) <= _TICKS:
            spaced(axis, integer=True)


def along(da: xr.DataArray, dim: Hashable) -> Along:
    """Return positions along ``dim``: its coordinate where that is numbers at equal steps.

    >>> da = xr.DataArray(np.zeros(3), {"x": ("x", [0.5, 1.0, 1.5], {"units": "s"})}, ["x"])
    >>> along(da, "x").positions, along(da, "x").label
    (array([0.5, 1. , 1.5]), 'x (s)')
    """
    counted = np.arange(da.sizes[dim])
    if dim not in da.coords:
        return Along(counted, plain(dim))
    coordinate = da[dim]
    values = coordinate.values
    name = label(coordinate, str(dim))
    if values.dtype.kind in "iuf" and _even(values):
        return Along(values, name)
    if values.dtype.kind in "UTO":
        return Along(counted, name, [str(value) for value in values])
    return Along(counted, f"{name}, by position")


def _even(values: np.ndarray[Any, Any]) -> bool:
    if len(values) < 2:
        return bool(np.isfinite(values.astype(np.float64)).all())
    steps = np.diff(values.astype(np.float64))
    return bool(steps[0] != 0 and np.allclose(steps, steps[0], rtol=1e-3, atol=0))


def cell_edges(positions: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the outer edges of the first and the last cell.

    >>> cell_edges(np.array([0.0, 2.0, 4.0]))
    (-1.0, 5.0)
    """
    if not len(positions):
        return -0.5, 0.5
    first, last = float(positions[0]), float(positions[-1])
    half = (last - first) / (len(positions) - 1) / 2 if len(positions) > 1 else 0.5
    return first - half, last + half
