"""Pictures of records: labelled objects in, matplotlib artists out, on axes of any backend.

``ds.neuro.plot()`` and ``store.plot()`` are :func:`record` and :func:`overview`; the other
functions draw one thing on one axes, and pictures are put together from them.  Labels, units and
extents come from coordinates and attributes.  What is too large to be seen is averaged or counted,
never skipped, and the picture says so.  matplotlib is imported by the functions that make a
figure.
"""

from __future__ import annotations

from neurostore.plot.axes import Panel
from neurostore.plot.heat import matrix
from neurostore.plot.lines import curve, evolution, histogram, traces
from neurostore.plot.overview import overview, timeline
from neurostore.plot.pictures import PICTURES, Picture, record
from neurostore.plot.spikes import raster, rates

__all__ = [
    "PICTURES",
    "Panel",
    "Picture",
    "curve",
    "evolution",
    "histogram",
    "matrix",
    "overview",
    "raster",
    "rates",
    "record",
    "timeline",
    "traces",
]
