"""What is shown at a glance, as text and as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import samples
import xarray as xr

import neurostore
from neurostore.page import Item, Page, Section
from neurostore.schema import KINDS
from neurostore.store import Store

VOID = {"input", "use", "path", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed, or closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.opened += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.opened.pop() == tag


def assert_sound(html: str) -> None:
    parser = Balanced()
    parser.feed(html)
    assert parser.opened == []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with neurostore.open(tmp_path / "run.h5", durability="process") as opened:
        yield opened


def test_a_store_shows_kinds_counts_times_size_and_health(store: Store) -> None:
    assert "none yet" in repr(store)
    assert repr(store).endswith("1 file; none removed")
    for stamp in (1.0, 2.0):
        store.store(neurostore.spike_train([0.1], [1], timestamp=stamp))
    store.store(neurostore.reservoir_states(np.ones((2, 3)), "main", timestamp=5.0))
    shown = repr(store)
    assert shown.startswith("<neurostore.Store> 3 records, ")
    assert re.search(r"spike_train +2 +\d+ B +1 s to 2 s", shown)
    assert "Time:   1 s to 5 s" in shown
    assert shown.endswith("Health: 1 file; none removed")
    assert str(store.path) in shown
    html = store._repr_html_()
    assert_sound(html)
    assert "main" in html


def test_a_line_of_a_kind_fits_the_page(store: Store) -> None:
    for stamp in (1.7e9, 1.7e9 + 60, 1.7e9 + 1e5):
        store.store(neurostore.spike_train([0.1], [1], timestamp=stamp))
    catalogue = store.catalogue(end=1.7e9 + 60)
    assert "2023-11-14 22:13:20 to 22:14:20Z" in repr(catalogue.neuro)
    assert "2023-11-14 22:13:20Z to 2023-11-16 02:00:00Z" in repr(store)


def test_a_unit_without_a_name_is_said_alone() -> None:
    ds = neurostore.reservoir_states(np.ones((1, 2)), "main", timestamp=0.0)
    ds = ds.assign_coords(time=("time", [0.0, 0.1], {"units": "s"}))
    assert re.search(r"time +\(time: 2\)  float64  \[s\]", repr(ds.neuro))


def test_health_says_what_was_removed_and_what_is_missing(store: Store) -> None:
    for stamp in (1.0, 5.0):
        store.store(neurostore.spike_train([0.1], [1], timestamp=stamp))
    store.cleanup(0, now=2.0, model_time=True)
    assert "1 removed, compact()" in repr(store)
    rotated = store.rotate()
    store.store(neurostore.spike_train([0.1], [1], timestamp=3.0))
    assert "2 files" in repr(store)
    rotated.unlink()
    assert "1 rotated away and missing" in repr(store)


def test_a_repr_raises_nothing(store: Store) -> None:
    with store.batch():
        store.store(neurostore.spike_train([0.1], [1], timestamp=1.0))
        assert "1 record," in repr(store)
    other = neurostore.open(store.path, mode="r")
    store.path.unlink()
    assert "cannot be looked at" in repr(other)
    other.close()
    assert repr(other).startswith("<neurostore.Store> closed")
    assert_sound(other._repr_html_())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_record_is_shown(kind: str, store: Store) -> None:
    row = KINDS[kind]
    ds = samples.record(row, timestamp=12.5, name="<b>\x1b[31m&")
    shown = repr(ds.neuro)
    assert shown.startswith(f"<neurostore record> {row.name}")
    assert "Time:" in shown
    assert "12.5 s" in shown
    assert "\x1b" not in shown
    html = ds.neuro._repr_html_()
    assert_sound(html)
    assert "<b>" not in html
    store.store(ds)
    assert repr(store.range(row.name).neuro).startswith(f"<neurostore range> 1 of {row.name}")


def test_a_catalogue_is_summed_up(store: Store) -> None:
    for stamp in (1.0, 2.0):
        store.store(neurostore.spike_train([0.1], [1], timestamp=stamp))
    table = store.catalogue()
    assert repr(table.neuro).startswith("<neurostore catalogue> 2 records, ")
    assert_sound(table.neuro._repr_html_())


def test_what_is_no_record_says_so() -> None:
    assert "no kind fits" in repr(xr.Dataset({"a": 1}).neuro)


def test_the_look_is_that_of_xarray() -> None:
    html = Page("k", "t", [Section("S", "line"), Section("T", items=[Item("a", "b")])]).html()
    styles = html[html.index("<style>") : html.index("</style>")]
    used = {c for names in re.findall(r"class='([^']+)'", html) for c in names.split()}
    known = {name for name in used if f".{name}" in styles}
    assert used - known <= {"icon", "xr-wrap", "xr-preview", "xr-var-item", "xr-obj-name"}
    assert '<symbol id="icon-file-text2"' in html
