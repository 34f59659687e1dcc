"""Pictures: which artists there are, what they are called, and that nothing is left out unsaid."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import neurostore
from neurostore import plot
from neurostore.errors import DamagedError, ValidationError
from neurostore.schema import KINDS
from neurostore.store import Store

EVERY = [pytest.param(kind, v, id=f"{kind}-{v}") for kind in KINDS for v in range(3)]


def notes(ax: Any) -> str:
    return "\n".join(t.get_text() for t in ax.texts if t.get_gid() == "note")


def drawn(ds: xr.Dataset, **options: Any) -> tuple[Figure, dict[str, Any]]:
    figure = Figure(layout="constrained")
    artists = ds.neuro.plot(figure=figure, **options)
    figure.canvas.draw()  # what goes wrong in text and layout goes wrong here
    return figure, artists


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with neurostore.open(tmp_path / "run.h5", durability="process") as opened:
        yield opened


def test_every_kind_has_a_row() -> None:
    assert plot.PICTURES.keys() == KINDS.keys()


@pytest.mark.parametrize(("kind", "variant"), EVERY)
def test_every_kind_is_drawn_in_every_shape(kind: str, variant: int) -> None:
    figure, artists = drawn(samples.record(KINDS[kind], variant=variant, name="a$b/ü\n"))
    assert artists
    assert len(figure.axes) >= len(artists)
    assert kind.replace("_", " ") in figure.get_suptitle()


@pytest.mark.parametrize("dtype", ["b", "c", "V", "U"])
def test_every_dtype_is_drawn(dtype: str) -> None:
    for kind in KINDS.values():
        assert drawn(samples.record(kind, dtype=dtype))[1]


def test_a_range_of_every_kind_is_drawn(store: Store) -> None:
    for kind in KINDS.values():
        for stamp in (1.0, 2.0):
            store.store(samples.record(kind, timestamp=stamp))
        figure, artists = drawn(store.range(kind.name))
        assert artists
        assert figure.get_suptitle().startswith("2 records")


def test_empty_records_are_drawn() -> None:
    train = neurostore.spike_train([], [], timestamp=0.0)
    assert list(drawn(train)[1]) == ["raster", "rates"]
    states = neurostore.reservoir_states(np.zeros((0, 4)), "main", timestamp=0.0)
    assert "no values" in drawn(states)[0].axes[0].texts[0].get_text()


def test_a_raster_shows_each_spike_once_with_its_unit() -> None:
    ds = neurostore.spike_train([3.0, 1.0, 2.0], [7, 9, 7], timestamp=0.0, units="ms")
    figure, artists = drawn(ds)
    assert artists["raster"].get_offsets().tolist() == [[3.0, 7.0], [1.0, 9.0], [2.0, 7.0]]
    raster, rates = figure.axes
    assert (rates.get_xlabel(), raster.get_ylabel()) == ("spike time (ms)", "neuron")
    per, edges = artists["rates"].get_data()[:2]
    width = (edges[1] - edges[0]) / 1000
    assert np.isclose((per * width).sum() * 2, 3)  # spikes/s x s x neurons
    assert "2 neurons that fired" in notes(rates)


@pytest.mark.parametrize("neurons", [10, 300, 4_000])
def test_spikes_can_be_seen(neurons: int) -> None:
    ids = np.arange(neurons).repeat(5)
    times = np.random.default_rng(0).uniform(0, 1, len(ids))
    figure = Figure(dpi=70)
    ax = figure.subplots()
    plot.raster(neurostore.spike_train(times, ids, timestamp=0.0), ax, color="red")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    red = np.asarray(canvas.buffer_rgba())[..., 1] < 200
    assert red.sum() > len(ids) / 10 + 1_000


def test_ids_that_are_far_apart_stand_by_rank() -> None:
    ids = np.array([720575940628857210, 720575940628857211, 5, 5])
    figure, artists = drawn(neurostore.spike_train([0.1, 0.2, 0.3, 0.4], ids, timestamp=0.0))
    assert artists["raster"].get_offsets()[:, 1].tolist() == [1, 2, 0, 0]
    assert figure.axes[0].get_ylabel() == "neuron, by rank of 3 ids"


def test_many_spikes_are_counted_and_none_is_left_out() -> None:
    rng = np.random.default_rng(0)
    ds = neurostore.spike_train(rng.uniform(0, 1, 5_000), rng.integers(0, 50, 5_000), timestamp=0.0)
    ax = Figure().subplots()
    image = plot.raster(ds, ax, most=1_000)
    assert int(np.asarray(image.get_array()).sum()) == 5_000
    assert notes(ax) == "5,000 spikes, counted in 300 × 50 cells"


def test_a_range_of_trains_stands_at_the_times_of_its_records(store: Store) -> None:
    for stamp in (1.7e9, 1.7e9 + 10):
        store.store(neurostore.spike_train([100.0], [1], timestamp=stamp, units="ms"))
    figure, artists = drawn(store.range("spike_train"))
    assert artists["raster"].get_offsets()[:, 0].tolist() == pytest.approx([0.1, 10.1])
    assert figure.axes[-1].get_xlabel() == "time (s since 2023-11-14 22:13:20Z)"


def test_a_fly_brain_is_drawn_whole(real_data: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = ["t", "flywire_id"]
    table = parquet.read_table(real_data / "flywire_brian2_sugarR.parquet", columns=columns)
    times, ids = (table[name].to_numpy() for name in columns)
    figure, artists = drawn(neurostore.spike_train(times, ids, timestamp=0.0))
    assert int(np.asarray(artists["raster"].get_array()).sum()) == 511_566
    assert "511,566 spikes, counted in" in notes(figure.axes[0])
    assert figure.axes[0].get_ylabel() == "neuron, by rank of 448 ids"


def test_a_large_matrix_is_averaged_and_says_so() -> None:
    weights = np.arange(1_000 * 600, dtype=float).reshape(1_000, 600)
    ax = Figure().subplots()
    image = plot.matrix(xr.DataArray(weights, dims=("pre", "post")), ax)
    shown = np.asarray(image.get_array())
    assert shown.shape == (500, 300)
    assert shown[0, 0] == weights[:2, :2].mean()
    assert notes(ax) == "each cell is the mean of 2 × 2 values"


def test_the_last_block_of_an_image_is_as_wide_as_what_it_holds() -> None:
    ax = Figure().subplots()
    image = plot.matrix(xr.DataArray(np.ones((3, 205)), dims=("neuron", "time")), ax)
    assert np.asarray(image.get_array()).shape == (3, 103)
    assert image.get_extent() == [-0.5, 205.5, 2.5, -0.5]
    assert ax.get_xlim() == (-0.5, 204.5)
    assert all(tick == round(tick) for tick in [*ax.get_yticks(), *ax.get_xticks()])


@pytest.mark.parametrize("step", [1.0, 0.001, 0.1])
def test_counts_have_no_stripes_that_are_not_in_the_data(step: float) -> None:
    """448 neurons that fire in each of 130 steps: a cell of any picture has as many as the next."""
    steps, ids = (a.ravel() for a in np.meshgrid(np.arange(130), np.arange(448)))
    ds = neurostore.spike_train(0.3 + steps * step, ids, timestamp=0.0)
    figure, artists = drawn(ds)
    assert np.unique(np.asarray(artists["raster"].get_array())).tolist() == [2]
    per = artists["rates"].get_data()[0]
    assert len(per) == 65
    assert np.allclose(per, 1 / step)
    assert figure.axes[0].get_ylim() == (-0.5, 447.5)


def test_sparse_connections_look_as_dense_ones() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.random.default_rng(0).random((1_001, 700)) < 0.1
    shown = []
    for adjacency in (dense, sparse.csr_array(dense)):
        ds = neurostore.network_snapshot(adjacency=adjacency, weights=adjacency, timestamp=0.0)
        figure, artists = drawn(ds)
        shown.append(np.asarray(artists["adjacency"].get_array()))
        assert any("each cell is the mean of" in notes(ax) for ax in figure.axes)
    assert np.allclose(*shown)


def test_notes_and_legends_cover_nothing() -> None:
    states = neurostore.reservoir_states(np.ones((20, 500)), "r", timestamp=0.0)
    figure, _ = drawn(states)
    for ax in figure.axes[:2]:
        frame = ax.get_window_extent()
        beside = [t for t in ax.texts if t.get_gid() == "note"] + [ax.get_legend()]
        assert not any(a.get_window_extent().overlaps(frame) for a in beside if a is not None)


def test_a_colour_bar_says_the_unit() -> None:
    ds = neurostore.reservoir_states(np.ones((3, 4)), "r", timestamp=0.0)
    ds["states"].attrs["units"] = "mV"
    assert drawn(ds)[0].axes[-1].get_ylabel() == "mV"


def test_weights_are_those_of_connections() -> None:
    ds = neurostore.network_snapshot(
        adjacency=np.eye(3, dtype=int), weights=np.full((3, 3), 2.0), timestamp=0.0
    )
    figure, artists = drawn(ds)
    assert list(artists) == ["weights", "distribution", "adjacency"]
    assert np.isnan(np.asarray(artists["weights"].get_array(), float)).sum() == 6
    assert artists["distribution"].get_data()[0].sum() == 3
    assert figure.axes[0].get_title(loc="left") == "weights of connections"


def test_a_curve_keeps_its_peaks() -> None:
    values = np.zeros(100_000)
    values[[12_345, 67_890]] = 5.0, -7.0
    ax = Figure().subplots()
    line = plot.curve(xr.DataArray(values, dims="time"), ax)
    y = np.asarray(line.get_ydata())
    assert len(y) <= 4_000
    assert (y.max(), y.min()) == (5.0, -7.0)
    assert notes(ax) == "smallest and largest of every 50 values"


def test_states_are_a_map_and_some_traces() -> None:
    ds = neurostore.reservoir_states(np.random.default_rng(0).random((20, 30)), "r", timestamp=0.0)
    figure, artists = drawn(ds)
    assert list(artists) == ["states", "traces"]
    assert len(artists["traces"]) == 8
    assert notes(figure.axes[1]) == "8 of 20 neurons"


def test_time_goes_to_the_right_however_states_are_stored() -> None:
    ds = neurostore.reservoir_states(np.ones((20, 30)), "r", timestamp=0.0)
    ds["states"] = ds["states"].transpose("time", "neuron")
    figure, artists = drawn(ds)
    assert [ax.get_xlabel() for ax in figure.axes[:2]] == ["", "time"]
    assert artists["states"].get_array().shape == (20, 30)
    assert len(artists["traces"][0].get_xdata()) == 30


def test_heads_share_their_colours() -> None:
    maps = np.stack([np.full((3, 3), 0.1), np.full((3, 3), 0.9)])
    _, artists = drawn(neurostore.attention_maps(maps, "encoder", timestamp=0.0))
    assert list(artists) == ["head 0", "head 1"]
    assert {image.get_clim() for image in artists.values()} == {(0.0, 0.9)}


def test_layers_have_a_panel_each_and_more_than_fit_are_counted() -> None:
    layers = {f"layer_{n}": np.ones((4, 2, 3)) for n in range(20)}
    figure, artists = drawn(neurostore.layer_outputs(layers, timestamp=0.0))
    assert len(artists) == 12
    assert "12 of 20 layers shown" in "".join(notes(ax) for ax in figure.axes)


def test_metrics_are_curves_over_the_records_one_for_each_task(store: Store) -> None:
    for stamp in (1.0, 2.0, 3.0):
        for task in ("digits", "_words"):
            values = {"accuracy": stamp / 10} | ({"loss": 1 / stamp} if task == "digits" else {})
            store.store(neurostore.performance_metrics(values, task, timestamp=stamp))
    figure, artists = drawn(store.range("performance_metrics"))
    assert list(artists) == ["accuracy", "loss"]
    accuracy, loss = figure.axes
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[0.1, 0.2, 0.3]] * 2
    assert len(loss.lines) == 1
    assert [t.get_text().strip() for t in accuracy.get_legend().get_texts()] == ["_words", "digits"]


def test_what_was_recorded_as_it_came_is_drawn_over_its_time(store: Store) -> None:
    for start in (0.0, 100.0):
        with store.record("performance_metrics", timestamp=start, task_type="t") as curves:
            for step in range(5):
                curves.append({"loss": 1.0 / (1 + step), "accuracy": step / 5})
    with store.record("attention_maps", timestamp=0.0, name="encoder") as maps:
        for step in range(3):
            maps.append(np.full((2, 4, 4), float(step)))
    figure, artists = drawn(store.retrieve("t_0.0"))
    assert list(artists) == ["loss", "accuracy"]
    assert artists["loss"].get_ydata().tolist() == [1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    figure, artists = drawn(store.range("performance_metrics"))
    assert len(figure.axes[0].lines) == 2
    figure, artists = drawn(store.retrieve(maps.id))
    assert (np.asarray(artists["head 1"].get_array()) == 2).all()
    assert notes(figure.axes[0]) == "the last of 3 times"
    assert {"loss", "accuracy", "t_0.0"} - set(store.plot(figure=Figure())) == {"t_0.0"}


def test_a_metric_has_a_bar_and_its_value() -> None:
    ds = neurostore.performance_metrics({"accuracy": 0.5, "loss": 2.0}, "t", timestamp=0.0)
    figure, artists = drawn(ds)
    assert [bar.get_width() for bar in artists["values"]] == [0.5, 2.0]
    assert [t.get_text() for t in figure.axes[0].texts] == ["0.5", "2"]


def test_a_trace_is_a_distribution_of_all_values() -> None:
    changes = np.zeros((100, 100))
    changes[:10] = np.linspace(-1, 1, 1_000).reshape(10, 100)
    figure, artists = drawn(neurostore.plasticity_trace(changes, "stdp", timestamp=0.0))
    assert artists["distribution"].get_data()[0].sum() == 1_000
    assert notes(figure.axes[0]) == "9,000 of 10,000 values are 0 and not counted"
    assert artists["changes"].get_clim() == (-1.0, 1.0)


def test_axes_in_artists_out() -> None:
    ds = neurostore.spike_train([0.1], [1], timestamp=0.0)
    upper, lower = Figure().subplots(2)
    assert list(ds.neuro.plot(upper, color="red")) == ["raster"]
    assert list(ds.neuro.plot([upper, lower])) == ["raster", "rates"]
    with pytest.raises(ValidationError, match="3 axes for 2 panels"):
        ds.neuro.plot([upper, lower, upper])


def test_what_is_no_record_has_no_picture() -> None:
    with pytest.raises(ValidationError, match="no record"):
        xr.Dataset({"x": ("y", [1.0])}).neuro.plot()


def test_the_overview_shows_every_kind(store: Store) -> None:
    for kind in KINDS.values():
        store.store(samples.record(kind, timestamp=5.0))
    figure = Figure(layout="constrained")
    artists = store.plot(figure=figure)
    figure.canvas.draw()
    assert {"timeline", "spike_train", "stored_bytes", "loss", *store.ids()} - set(artists) == {
        *store.ids("performance_metrics")
    }
    assert len(artists["timeline"].get_offsets()) == len(KINDS)
    assert f"{len(KINDS)} records" in figure.get_suptitle()


def test_the_overview_draws_only_what_is_chosen_and_says_what_it_leaves_out(store: Store) -> None:
    for stamp in (1.7e9, 1.7e9 + 5):
        for task in ("digits", "words"):
            values = {f"m{n}": float(n) for n in range(6)}
            store.store(neurostore.performance_metrics(values, task, timestamp=stamp))
    figure = Figure((12, 6), layout="constrained")
    store.plot(name="digits", figure=figure)
    figure.canvas.draw()
    metrics = {ax.get_title(loc="left"): ax for ax in figure.axes}
    assert len(metrics["m0"].lines) == 1
    assert notes(metrics["m3"]) == "4 of 6 metrics shown"
    labels = [t for t in metrics["stored"].get_xticklabels() if t.get_text()]
    boxes = [t.get_window_extent() for t in labels]
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_a_timeline_of_many_names_says_that_they_share_rows() -> None:
    table = xr.Dataset(
        {
            "kind": ("record", ["reservoir_states"] * 30),
            "name": ("record", list(map(str, range(30)))),
        },
        {"timestamp": ("record", np.arange(30.0))},
    )
    ax = Figure().subplots()
    plot.timeline(table, ax)
    assert "30 names of records" in notes(ax)


class Damaged:
    """A store of which one record cannot be found again and one cannot be read."""

    def __init__(self, store: Store) -> None:
        self.path, self.catalogue, self.range = store.path, store.catalogue, store.range
        self._retrieve = store.retrieve

    def retrieve(self, record_id: str) -> xr.Dataset:
        if record_id.startswith("train"):
            raise DamagedError("spike_times fail their checksum")
        return self._retrieve(record_id)


def test_a_damaged_record_is_named_in_its_place(store: Store) -> None:
    store.store(neurostore.spike_train([0.1], [1], timestamp=0.0))
    store.store(neurostore.reservoir_states(np.ones((2, 3)), "main", timestamp=0.0))
    artists = plot.overview(Damaged(store), figure=Figure())
    assert "fail their checksum" in artists["train_0.0"].get_text()
    assert artists["main_0.0"].get_array().shape == (2, 3)


def test_the_overview_of_nothing_says_so(store: Store) -> None:
    figure = Figure()
    assert list(store.plot(figure=figure)) == ["timeline"]


def test_many_records_are_counted(store: Store) -> None:
    size = 6_000
    table = xr.Dataset(
        {"kind": ("record", ["spike_train"] * size), "name": ("record", [""] * size)},
        {"timestamp": ("record", np.arange(float(size)))},
    )
    ax = Figure().subplots()
    image = plot.timeline(table, ax)
    assert int(np.asarray(image.get_array()).sum()) == size
    assert "6,000 records, counted" in notes(ax)


def test_without_matplotlib_the_error_names_the_extra(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.pyplot'] = None\n"
        "import neurostore\n"
        "ds = neurostore.spike_train([0.1], [1], timestamp=0.0)\n"
        "try: ds.neuro.plot()\n"
        "except neurostore.MissingPackageError as error: print(error)\n"
    )
    search = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | search,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "pip install '.[plot]'" in done.stdout
