"""What a person reads at a glance, as text and as HTML in the look of xarray.

A page has a title and sections, a section a line or items.  The styles are those that xarray puts
into the HTML of its own objects.  What is shown is decided elsewhere.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape

import xarray as xr

from neurostore.wording import printable

__all__ = ["Item", "Page", "Section"]

_INDENT = " " * 4
#: Names of kinds are longer than those of variables, for which xarray's first column is made.
_WIDER = "grid-template-columns: 235px auto auto 1fr 0 20px 0 20px"


@dataclass(frozen=True)
class Item:
    """One line of a section: up to four columns, and what unfolds beneath it in HTML."""

    name: str
    dims: str = ""
    dtype: str = ""
    preview: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A name with a line beside it, or with items beneath it."""

    name: str
    line: str = ""
    items: Sequence[Item] = ()


@dataclass(frozen=True)
class Page:
    """The whole.

    Examples
    --------
    >>> page = Page("neurostore.Store", "2 records", [Section("Kinds", items=[Item("a", "2")])])
    >>> print(page.text())
    <neurostore.Store> 2 records
    Kinds:
        a  2
    """

    kind: str
    title: str
    sections: Sequence[Section]

    def text(self) -> str:
        """Return it as lines of text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"<{self.kind}> {printable(self.title)}"
        widest = max((len(s.name) + 1 for s in self.sections if s.line), default=0)
        for section in self.sections:
            if section.line:
                yield f"{section.name + ':':{widest}} {printable(section.line)}"
            else:
                yield f"{section.name}:"
                yield from _aligned(section.items)

    def html(self) -> str:
        """Return it as HTML for a notebook; the text stands in where styles are not shown."""
        sections = "".join(map(_section_html, self.sections))
        return (
            f"<div>{_head()}<pre class='xr-text-repr-fallback'>{escape(self.text())}</pre>"
            "<div class='xr-wrap' style='display:none'><div class='xr-header'>"
            f"<div class='xr-obj-type'>{escape(self.kind)}</div>"
            f"<div class='xr-obj-name'>{_shown(self.title)}</div></div>"
            f"<ul class='xr-sections' style='{_WIDER}'>{sections}</ul></div></div>"
        )


def _aligned(items: Sequence[Item]) -> Iterator[str]:
    rows = [[printable(c) for c in (i.name, i.dims, i.dtype, i.preview)] for i in items]
    widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True) if width]
        yield (_INDENT + "  ".join(cells)).rstrip()


@cache
def _head() -> str:
    """Return icons and styles as xarray sends them with an object; empty if it sends none."""
    whole = xr.Dataset()._repr_html_()  # the protocol of notebooks, not a private name
    head, found, _ = whole.partition("<pre class='xr-text-repr-fallback'>")
    return head.removeprefix("<div>") if found else ""


def _shown(text: str) -> str:
    return escape(printable(text))


def _section_html(section: Section) -> str:
    name = f"section-{uuid.uuid4()}"
    count = f" <span>({len(section.items)})</span>" if section.items else ""
    state = "checked" if section.items else "disabled"
    items = "".join(f"<li class='xr-var-item'>{_item_html(item)}</li>" for item in section.items)
    return (
        "<li class='xr-section-item'>"
        f"<input id='{name}' class='xr-section-summary-in' type='checkbox' {state} />"
        f"<label for='{name}' class='xr-section-summary'>{_shown(section.name)}:{count}</label>"
        f"<div class='xr-section-inline-details'>{_shown(section.line)}</div>"
        f"<div class='xr-section-details'><ul class='xr-var-list'>{items}</ul></div></li>"
    )


def _item_html(item: Item) -> str:
    name = f"attrs-{uuid.uuid4()}"
    details = "".join(
        f"<dt><span>{_shown(key)} :</span></dt><dd>{_shown(value)}</dd>"
        for key, value in item.details.items()
    )
    return (
        f"<div class='xr-var-name'><span>{_shown(item.name)}</span></div>"
        f"<div class='xr-var-dims'>{_shown(item.dims)}</div>"
        f"<div class='xr-var-dtype'>{_shown(item.dtype)}</div>"
        f"<div class='xr-var-preview xr-preview'>{_shown(item.preview)}</div>"
        f"<input id='{name}' class='xr-var-attrs-in' type='checkbox'"
        f"{'' if details else ' disabled'}>"
        f"<label for='{name}' title='Show/Hide details'>"
        "<svg class='icon xr-icon-file-text2'><use xlink:href='#icon-file-text2'></use></svg>"
        f"</label><div class='xr-var-attrs'><dl class='xr-attrs'>{details}</dl></div>"
    )
