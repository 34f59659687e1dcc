"""Which picture a kind of record gets: a table, and the panels that its rows are made of.

A row has one picture for a record and one for a range of them.  A kind without a row gets a panel
for each of its variables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from neurostore import matrices, records, schema
from neurostore.errors import ValidationError
from neurostore.optional import needs
from neurostore.plot.axes import Panel, dated, note, plain, unit_of
from neurostore.plot.heat import MOST, colour_bar, matrix
from neurostore.plot.lines import curve, evolution, histogram, moments, traces
from neurostore.plot.spikes import raster, rates
from neurostore.plot.thinning import numbers
from neurostore.wording import moment, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "PICTURES",
    "Picture",
    "heading",
    "is_range",
    "limited",
    "panels_of",
    "record",
    "remarked",
    "said",
]

#: Panels beyond which a picture cannot be read; it then says how many there were.
_MOST = 12
_WIDE = 3


@dataclass(frozen=True)
class Picture:
    """The panels that a kind of record is shown by.

    Parameters
    ----------
    one
        Returns the panels of one record.
    many
        Returns the panels of a range.
    stacked
        The panels of one record stand above each other and share their axis; else side by side.
    """

    one: Callable[[xr.Dataset], list[Panel]]
    many: Callable[[xr.Dataset], list[Panel]]
    stacked: bool = False


# -- panels ----------------------------------------------------------------------------------------


def said(text: str, ax: Axes, **style: Any) -> Any:
    """Say something where there is nothing to draw."""
    ax.set_axis_off()
    look: dict[str, Any] = {
        "ha": "center",
        "va": "center",
        "fontsize": "small",
        "wrap": True,
    } | style
    return ax.text(0.5, 0.5, plain(text, 200), transform=ax.transAxes, **look)


def _panel(da: xr.DataArray, draw: Callable[..., Any], name: str, **more: Any) -> Panel:
    """Return a panel that draws ``da``, or says why it cannot."""
    if not da.size:
        return Panel(name, partial(said, "no values"), **more)
    if numbers(da[(0,) * da.ndim].values).dtype.kind not in "biuf":
        return Panel(name, partial(said, f"{da.dtype}: not numbers"), **more)
    return Panel(name, partial(draw, da), **more)


def _with_colours(da: xr.DataArray, ax: Axes, **style: Any) -> Any:
    rows, columns = da.shape
    if not 0.4 < rows / columns < 2.5 or set(da.dims) & {"time", "sample", "state"}:
        style.setdefault("aspect", "auto")
    image = matrix(da, ax, **({"aspect": "equal"} | style))
    colour_bar(image, ax, unit_of(da))
    return image


def _flat(da: xr.DataArray) -> xr.DataArray:
    """Return two dimensions: the first, and all others one after the other."""
    if da.ndim <= 2:
        return da
    first, *others = da.dims
    shape = " × ".join(str(da.sizes[dim]) for dim in others)
    name = f"{shape} values, in order"
    flat = xr.DataArray(numbers(da.values).reshape(len(da), -1), dims=(first, name), attrs=da.attrs)
    return flat.assign_coords({first: da[first]}) if first in da.coords else flat


def _any(da: xr.DataArray, name: str, **more: Any) -> Panel:
    """Return the panel for an array of any rank."""
    if da.ndim == 0:
        return Panel(name, partial(said, str(da.values)), **more)
    draw: Callable[..., Any] = curve if da.ndim == 1 else _with_colours
    return _panel(_flat(da), draw, name, **more)


def limited(
    panels: list[Panel], what: str, most: int = _MOST, total: int | None = None
) -> list[Panel]:
    """Return the first ``most`` panels; the last of them says of how many they are."""
    total = len(panels) if total is None else total
    if total <= most:
        return panels
    shown = panels[:most]
    return [*shown[:-1], remarked(shown[-1], f"{len(shown)} of {total:,} {what} shown")]


def remarked(panel: Panel, remark: str) -> Panel:
    """Return a panel with a note more."""

    def draw(ax: Axes, **style: Any) -> Any:
        artist = panel.draw(ax, **style)
        note(ax, remark)
        return artist

    return replace(panel, draw=draw)


# -- one record ------------------------------------------------------------------------------------


def _snapshot(ds: xr.Dataset) -> list[Panel]:
    panels = []
    if "weights" in ds:
        weights, where, title = ds["weights"], None, "weights"
        if matrices.is_gathered(ds, "weights"):
            title = "weights of synapses"
        elif "adjacency" in ds and ds["adjacency"].dims == weights.dims:
            where, title = ds["adjacency"], "weights of connections"
        panels.append(_matrix(ds, "weights", _with_colours, title, where))
        steps = partial(histogram, where=where)
        panels.append(_panel(weights, steps, "distribution", title=f"all {title}"))
    if "states" in ds:
        panels.append(_states(ds["states"]))
    if "adjacency" in ds:
        panels.append(_matrix(ds, "adjacency", _connections, "connections"))
    return panels


def _matrix(
    ds: xr.Dataset,
    name: str,
    draw: Callable[..., Any],
    title: str,
    where: xr.DataArray | None = None,
) -> Panel:
    """Return the image of a matrix; of a sparse one places without a synapse stay blank."""
    if not matrices.is_gathered(ds, name) or not ds[name].size:
        draw = draw if where is None else partial(draw, where=where)
        return _panel(ds[name], draw, name, title=title)
    is_share = draw is _connections
    means, (tall, wide) = matrices.coarse(ds, name, MOST, whole=is_share)
    panel = _panel(means, draw, name, title=title)
    if tall * wide == 1:
        return panel
    of = "values" if is_share else "synapses"
    return remarked(panel, f"each cell is the mean of the {of} in {tall:,} × {wide:,}")


def _connections(da: xr.DataArray, ax: Axes, **style: Any) -> Any:
    return _with_colours(da, ax, **({"cmap": "Greys"} | style))


def _states(da: xr.DataArray) -> Panel:
    if da.ndim != 2 or not da.size or numbers(da[:1, :1].values).dtype.kind not in "biuf":
        return _any(da, "states", title="states")
    return Panel("states", partial(_scaled, da), title="states of the neurons")


def _scaled(da: xr.DataArray, ax: Axes, **style: Any) -> Any:
    """Draw states, of which each has a unit and a scale of its own."""
    values = numbers(da.values).astype(np.float64)
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    width = np.where(high > low, high - low, 1.0)
    image = matrix(da.copy(data=(values - low) / width), ax, vmin=0.0, vmax=1.0, **style)
    note(ax, "columns scaled one by one")
    return image


def _spikes(ds: xr.Dataset) -> list[Panel]:
    return [
        Panel("raster", partial(raster, ds), weight=2.6),
        Panel("rates", partial(rates, ds), weight=1.0),
    ]


def _bytes(ds: xr.Dataset) -> list[Panel]:
    data = ds["data"]
    title = f"{data.dtype} {' × '.join(map(str, data.shape))}, compressed"
    return [
        _any(data, "data", title=title),
        _panel(data, histogram, "distribution", title="all values"),
    ]


def _reservoir(ds: xr.Dataset) -> list[Panel]:
    states = ds["states"]
    if schema.TIME in states.dims:  # some write it first; time goes to the right
        states = states.transpose(..., schema.TIME)
    if states.ndim < 2:
        return [_any(states, "states"), _panel(states, histogram, "distribution")]
    return [
        _panel(states, _with_colours, "states", weight=1.5),
        _panel(states, traces, "traces"),
    ]


def _layers(ds: xr.Dataset) -> list[Panel]:
    panels = []
    for name, da in ds.data_vars.items():
        title = str(da.attrs.get(records.ORIGINAL_NAME, name))
        shape = " × ".join(map(str, da.shape))
        panels.append(_any(da, str(name), title=f"{title} ({shape})"))
    return limited(panels, "layers")


def _attention(ds: xr.Dataset) -> list[Panel]:
    maps, times = ds["maps"], ds.sizes.get(schema.TIME, 0)
    if times:  # recorded as they came
        maps = maps.isel({schema.TIME: -1}, drop=True)
    if "head" not in maps.dims:
        return [_any(maps, "maps")]
    top = max((float(np.nanmax(numbers(m.values))) for m in maps if m.size), default=1.0)
    names = maps["head"].values if "head" in maps.coords else range(maps.sizes["head"])
    panels = [
        _panel(
            maps.isel(head=position).drop_vars("head", errors="ignore"),
            _with_colours,
            f"head {name}",
            title=f"head {name}",
            style={"vmin": 0.0, "vmax": top, "cmap": "magma"},
        )
        for position, name in enumerate(names)
    ]
    shown = limited(panels, "heads")
    return [remarked(panel, f"the last of {times:,} times") for panel in shown] if times else shown


def _changes(ds: xr.Dataset) -> list[Panel]:
    changes = ds["changes"]
    return [
        _panel(changes, histogram, "distribution", title="distribution"),
        _matrix(ds, "changes", _with_colours, "one by one")
        if matrices.is_gathered(ds, "changes")
        else _any(changes, "changes", title="one by one"),
    ]


def _metrics(ds: xr.Dataset) -> list[Panel]:
    values = ds["values"].compute()  # once, not for each metric
    if "metric" not in values.dims:
        return [_any(values, "values")]
    if schema.TIME in values.dims:  # recorded as they came
        return _by_metric(values, lambda first: _alone)
    return [_panel(values, _bars, "values")]


def _by_metric(values: xr.DataArray, drawing: Callable[[bool], Callable[..., Any]]) -> list[Panel]:
    """Return a panel for each metric; ``drawing`` is told which is the first."""
    panels = [
        _panel(
            values.isel(metric=position).drop_vars("metric"),
            drawing(not position),
            str(name),
            title=str(name),
        )
        for position, name in enumerate(values["metric"].values.tolist())
    ]
    return limited(panels, "metrics")


def _alone(da: xr.DataArray, ax: Axes, **style: Any) -> Any:
    """Draw one metric over the time of its record."""
    line = curve(da, ax, **style)
    ax.set_ylabel("")
    return line


def _bars(da: xr.DataArray, ax: Axes, **style: Any) -> Any:
    """Draw a bar for each metric and write its value beside it."""
    values = numbers(da.values).astype(np.float64)
    names = [plain(name, 40) for name in da["metric"].values.tolist()]
    bars = ax.barh(range(len(values)), values, **({"color": "tab:blue"} | style))
    ax.bar_label(bars, [f"{value:.4g}" for value in values], padding=3, fontsize="small")
    positive = values[values > 0]
    if len(positive) == len(values) and positive.max() > 100 * positive.min():
        ax.set_xscale("log")
    ax.set_yticks(range(len(values)), names)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.set_xlabel("value")
    return bars


def _variables(ds: xr.Dataset) -> list[Panel]:
    """Return a panel for each variable: the picture of a kind that has none of its own."""
    return limited(
        [_any(da, str(name), title=str(name)) for name, da in ds.data_vars.items()], "variables"
    )


# -- ranges ----------------------------------------------------------------------------------------


def _evolutions(ds: xr.Dataset) -> list[Panel]:
    """Return a panel for each variable that says how its values change over the records."""
    panels = [
        _panel(da, partial(_by_name, ds), str(name), title=str(name))
        for name, da in ds.data_vars.items()
        if "record" in da.dims
    ]
    return limited(panels, "variables")


def _names(ds: xr.Dataset) -> tuple[str, np.ndarray[Any, Any]]:
    """Return what the user-given names of the records are, and the names."""
    row = schema.KINDS.get(str(ds.attrs.get("kind")))
    label = row.label if row is not None else None
    if label is None or label not in ds.coords or ds[label].dims != ("record",):
        return "", np.full(ds.sizes["record"], "")
    return label, ds[label].values


def _by_name(ds: xr.Dataset, da: xr.DataArray, ax: Axes, **style: Any) -> Any:
    label, names = _names(ds)
    different = np.unique(names).tolist()
    lines = [
        evolution(da.isel(record=names == name), ax, **({"label": plain(name)} | style))
        for name in different[:_MOST]
    ]
    for extra in [t for t in ax.texts if t.get_gid() == "note"][1:]:
        extra.remove()
    if len(different) > 1:
        ax.legend(title=plain(label), fontsize="x-small")
    if len(different) > _MOST:
        note(ax, f"{_MOST} of {len(different):,} names")
    return lines[0]


def _metric_curves(ds: xr.Dataset) -> list[Panel]:
    values = ds["values"].compute()  # once, not for each metric
    if "metric" not in values.dims:
        return _evolutions(ds)
    draw = _recorded if schema.TIME in values.dims else _curves
    return _by_metric(values, lambda first: partial(draw, ds, legend=first))


def _recorded(ds: xr.Dataset, da: xr.DataArray, ax: Axes, *, legend: bool, **style: Any) -> Any:
    """Draw one metric over the time of each record, a curve for each of them."""
    names = ds["record"].values.tolist()
    drawn = [
        curve(da.isel(record=position, drop=True), ax, **({"label": plain(name)} | style))
        for position, name in enumerate(names[:_MOST])
    ]
    ax.set_ylabel("")
    if len(names) > 1 and legend:
        ax.legend(title="record", fontsize="x-small")
    if len(names) > _MOST:
        note(ax, f"{_MOST} of {len(names):,} records")
    return drawn[0]


def _curves(ds: xr.Dataset, da: xr.DataArray, ax: Axes, *, legend: bool, **style: Any) -> Any:
    """Draw one metric over the records, a curve for each task; gaps are records without it."""
    label, names = _names(ds)
    x, text = moments(ds)
    values = numbers(da.values).astype(np.float64)
    different = np.unique(names).tolist()
    drawn = []
    for name in different[:_MOST]:
        there = (names == name) & ~np.isnan(values)
        if there.any():
            one = xr.DataArray(values[there], {"at": x[there]}, ["at"])
            drawn.append(curve(one, ax, **({"label": plain(name)} | style)))
    ax.set(xlabel=text, ylabel="")
    dated(ax, x)
    if len(different) > 1 and legend:
        ax.legend(title=plain(label), fontsize="x-small")
    if len(different) > _MOST:
        note(ax, f"{_MOST} of {len(different):,} tasks")
    return drawn[0] if drawn else said("no values", ax)


#: What a kind of record looks like; adding a kind is adding a row, or leaving it out.
PICTURES: dict[str, Picture] = {
    "network_snapshot": Picture(_snapshot, _evolutions),
    "spike_train": Picture(_spikes, _spikes, stacked=True),
    "compressed_spike_train": Picture(_bytes, _evolutions),
    "reservoir_states": Picture(_reservoir, _evolutions, stacked=True),
    "layer_outputs": Picture(_layers, _evolutions),
    "attention_maps": Picture(_attention, _evolutions),
    "plasticity_trace": Picture(_changes, _evolutions),
    "homeostatic_trace": Picture(_changes, _evolutions),
    "performance_metrics": Picture(_metrics, _metric_curves),
}
_DEFAULT = Picture(_variables, _evolutions)


# -- the whole -------------------------------------------------------------------------------------


def is_range(ds: xr.Dataset) -> bool:
    """Tell whether ``ds`` holds many records."""
    return "record" in ds.dims


def panels_of(ds: xr.Dataset) -> tuple[list[Panel], bool]:
    """Return the panels of a record or range, and whether they stand above each other."""
    kind = records.infer_kind(ds)
    if kind is None:
        raise ValidationError(
            "this Dataset is no record, so no picture of it is known; set ds.attrs['kind'] to one "
            f"of {', '.join(schema.KINDS)}, or use the plots of xarray"
        )
    picture = PICTURES.get(kind.name, _DEFAULT)
    many = is_range(ds)
    panels = (picture.many if many else picture.one)(ds)
    if not panels:
        panels = [Panel("nothing", partial(said, "no variables"))]
    return panels, picture.stacked or many


def record(
    ds: xr.Dataset,
    ax: Axes | Sequence[Axes] | None = None,
    *,
    figure: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
    **style: Any,
) -> dict[str, Any]:
    """Draw the picture of a record, or of a range of records.

    Parameters
    ----------
    ds : Dataset
        A record, or what ``range`` returned.
    ax : matplotlib.axes.Axes, or several, optional
        One gets the first panel, which is the main one; several get one panel each.
    figure : matplotlib figure or subfigure, optional
        Is filled with all panels. Without `ax` and `figure` a new one is made by pyplot.
    figsize : (float, float), optional
        Width and height of a new figure in inches.
    **style
        For the main artist of the first panel.

    Returns
    -------
    dict
        The main artist of each panel by the panel's name, in the order of the panels.

    Raises
    ------
    ValidationError
        `ds` is no record, or there are more axes than panels.
    MissingPackageError
        matplotlib is not installed.

    Examples
    --------
    >>> import neurostore
    >>> from matplotlib.figure import Figure
    >>> ds = neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=12.5)
    >>> list(record(ds, figure=Figure()))
    ['raster', 'rates']
    """
    panels, stacked = panels_of(ds)
    if ax is None:
        axes = _axes(panels, stacked, figure, figsize)
        axes[0].figure.suptitle(heading(ds), fontsize="medium")
    else:
        axes = list(np.ravel(np.asarray(ax, dtype=object)))
        if len(axes) > len(panels):
            raise ValidationError(
                f"{len(axes)} axes for {len(panels)} panels ({', '.join(p.name for p in panels)}); "
                "give one, or at most as many as there are panels"
            )
    styles = [style] + [{}] * (len(axes) - 1)
    drawn = {p.name: p.on(on, **look) for p, on, look in zip(panels, axes, styles, strict=False)}
    if ax is None and stacked:
        for upper in axes[:-1]:
            upper.set_xlabel("")
    return drawn


def heading(ds: xr.Dataset) -> str:
    """Return the line above a picture: kind, name and time."""
    kind = records.infer_kind(ds)
    words = [kind.name.replace("_", " ") if kind is not None else "record"]
    if is_range(ds):
        stamps = ds[schema.TIMESTAMP].values
        words[0] = f"{ds.sizes['record']:,} records: {words[0]}"
        words.append(span(float(stamps.min()), float(stamps.max())) if len(stamps) else "")
    else:
        name = ds.attrs.get(kind.label) if kind is not None and kind.label else None
        words += [plain(name, 40)] if name else []
        words += [moment(float(ds[schema.TIMESTAMP]))] if schema.TIMESTAMP in ds.coords else []
    return " · ".join(word for word in words if word)


def _axes(
    panels: list[Panel],
    stacked: bool,
    figure: Figure | SubFigure | None,
    figsize: tuple[float, float] | None,
) -> list[Axes]:
    """Return an axes for every panel on a figure that has room for them."""
    weights = [panel.weight for panel in panels]
    columns = 1 if stacked else min(len(panels), _WIDE if len(panels) != 4 else 2)
    rows = -(-len(panels) // columns)
    if figure is None:
        with needs("plot", "a picture"):
            import matplotlib.pyplot as plt
        height = max(3.4, 1.7 * sum(weights)) if stacked else 3.4 * rows
        width = 8.0 if stacked else 1.0 + 3.8 * columns
        figure = plt.figure(figsize=figsize or (width, height), layout="constrained")
    grid: Any = figure.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=stacked,
        height_ratios=weights if stacked else None,
    )
    axes = list(grid.ravel())
    for unused in axes[len(panels) :]:
        unused.remove()
    return axes[: len(panels)]
