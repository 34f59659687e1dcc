"""Sparse matrices: taken in any form, stored as CF gathers them, cut by label, given back."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cf_xarray
import h5py
import jax.experimental.sparse
import jax.numpy as jnp
import netCDF4
import numpy as np
import pytest
import scipy.sparse
import xarray as xr
from matplotlib.figure import Figure
from samples import assert_same, assert_same_values

import neurostore
from neurostore import HDF5Storage, matrices
from neurostore.errors import DamagedError, MisalignedRecordsError, ValidationError
from neurostore.export import export
from neurostore.patterns import PatternIndex

IDS = 720575940621039145 + np.arange(6)
DATA = Path(os.environ.get("NEUROSTORE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def weights(shape: tuple[int, int] = (6, 8), density: float = 0.3, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    made = scipy.sparse.random_array(shape, density=density, rng=rng, format="csr")
    made.data[:1] = 0.0  # an explicit zero: a synapse without weight
    return made


def snapshot(matrix: Any, **options: Any) -> xr.Dataset:
    return neurostore.network_snapshot(weights=matrix, **({"timestamp": 1.0} | options))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one sparse record of 6 x 8, labelled by large ids, in chunks of 64 values."""
    path = tmp_path_factory.mktemp("sparse") / "run.h5"
    matrix = weights()
    with neurostore.open(path, durability="process", chunk_size=1) as store:
        store.store(snapshot(matrix, adjacency=matrix != 0, coords={"pre": IDS}))
        store.store(snapshot(matrix, adjacency=matrix, coords={"pre": IDS}, timestamp=2.0))
    return path


@pytest.fixture
def record(stored: Path) -> xr.Dataset:
    return neurostore.open(stored, "r").retrieve("snapshot_2.0")


FORMS: dict[str, Any] = {
    name: lambda m, name=name: m.asformat(name)
    for name in ("csr", "csc", "coo", "lil", "dok", "bsr")
}
FORMS |= {
    "matrix": scipy.sparse.csr_matrix,
    "int64 indices": lambda m: scipy.sparse.csr_array(
        (m.data, m.indices.astype(np.int64), m.indptr.astype(np.int64)), shape=m.shape
    ),
    "unsorted": lambda m: scipy.sparse.coo_array(
        (m.data[::-1], (m.tocoo().row[::-1], m.tocoo().col[::-1])), shape=m.shape
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_scipy_is_taken(form: str) -> None:
    given = FORMS[form](weights())
    back = snapshot(given).neuro.to_scipy("weights")
    assert isinstance(back, scipy.sparse.csr_array)
    assert_same_values(back.toarray(), weights().toarray())
    kept = form not in ("lil", "dok", "bsr")  # these have a notion of zeros of their own
    assert not kept or back.nnz == weights().nnz


def test_jax_and_its_padding() -> None:
    dense = jnp.asarray(weights().toarray(), jnp.float32)
    given = jax.experimental.sparse.BCOO.fromdense(dense, nse=30)
    ds = snapshot(given)
    assert ds.sizes["synapse"] == np.count_nonzero(dense)
    back = ds.neuro.to_bcoo("weights")
    assert back.unique_indices
    assert back.dtype == jnp.float32
    assert_same_values(back.todense(), dense)
    assert set(ds.neuro.to_jax()) >= {"weights", "pre", "post"}  # nothing in it needs x64
    half = ds.assign(weights=ds["weights"].variable.astype("bfloat16"))
    assert half.neuro.to_bcoo("weights").dtype == jnp.bfloat16
    with pytest.raises(ValidationError, match="SciPy has no sparse matrices"):
        half.neuro.to_scipy("weights")


def test_pydata_arrays_through_every_face(tmp_path: Path) -> None:
    sparse = pytest.importorskip("sparse", reason="pydata/sparse is not installed")
    dense = weights().toarray()
    given = sparse.COO.from_numpy(dense)
    duck = xr.Dataset({"weights": (("post", "pre"), given.T)}, {"timestamp": 1.0, "pre": IDS})
    assert duck.neuro.kind == "network_snapshot"
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        for ds in (duck, snapshot(given), snapshot(sparse.GCXS(given))):
            back = store.retrieve(store.store(ds)).neuro.to_sparse("weights")
            assert isinstance(back, sparse.COO)
            assert_same_values(back.todense(), dense)
    with pytest.raises(ValidationError, match="fill value"):
        snapshot(sparse.COO.from_numpy(dense, fill_value=1.0))


def test_matrices_without_synapses(tmp_path: Path) -> None:
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        for shape in [(0, 0), (0, 5), (3, 0), (3, 5)]:
            back = store.retrieve(store.store(snapshot(scipy.sparse.csr_array(shape))))
            assert back.neuro.to_scipy("weights").shape == shape
            assert back.neuro.to_dense()["weights"].shape == shape
        assert store.verify().ok


def test_patterns_that_differ_have_a_dimension_each(tmp_path: Path) -> None:
    given = {"adjacency": weights(seed=1).astype(bool), "weights": weights()}
    with HDF5Storage(tmp_path / "run.h5", durability="process") as storage:
        name = storage.store_network_snapshot(
            1.0, given["adjacency"], given["weights"], np.zeros(14)
        )
        ds = storage.store.retrieve(name)
        dense = storage.retrieve_network_snapshot(name, dense=True)
        assert_same_values(dense.adjacency_matrix, given["adjacency"].toarray())
        sparse = storage.retrieve_network_snapshot(name)
        assert_same_values(sparse.weight_matrix.toarray(), given["weights"].toarray())
    assert {ds["weights"].dims, ds["adjacency"].dims} == {("synapse",), ("connection",)}
    part = ds.sel(pre=[4, 1])
    for name, matrix in given.items():
        assert_same_values(part.neuro.to_scipy(name).toarray(), matrix.toarray()[[4, 1]])
    with pytest.raises(ValidationError, match="name="):
        ds.neuro.synapses(pre=1)
    out = ds.neuro.synapses(pre=1, name="weights")
    assert_same_values(out["weights"].values, given["weights"][[1]].data)


def test_sparse_beside_dense(tmp_path: Path) -> None:
    matrix = weights()
    ds = snapshot(matrix, adjacency=matrix.toarray() != 0)
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        back = store.retrieve(store.store(ds))
        assert_same(back, ds)
        dense = store.store(snapshot(matrix.toarray(), timestamp=2.0))
        assert_same_values(store.retrieve(dense)["weights"].values, matrix.toarray())
        with pytest.raises(MisalignedRecordsError, match=r"snapshot_2\.0"):
            store.range("network_snapshot")
        with pytest.raises(MisalignedRecordsError, match="to_dense"):
            store.diff("snapshot_1.0", dense)
    with pytest.raises(ValidationError, match="along 'pre'"):
        snapshot(matrix, adjacency=np.zeros((5, 8)))


# -- selecting -----------------------------------------------------------------------------------

CHOICES: list[tuple[Any, Any]] = [
    (IDS[2], None),
    (IDS[[4, 1, 2]], None),
    (slice(IDS[1], IDS[3]), [5]),
    (None, [7, 0, 3]),
    (IDS[[5, 0]], [7, 0, 3]),
    ([], None),
]


@pytest.mark.parametrize(("pre", "post"), CHOICES)
def test_selections_by_label(record: xr.Dataset, pre: Any, post: Any) -> None:
    labels = {k: v for k, v in {"pre": pre, "post": post}.items() if v is not None}
    dense = record.neuro.to_dense().load()
    wanted = dense.sel(
        {k: v if isinstance(v, slice) else np.atleast_1d(v) for k, v in labels.items()}
    )
    found = record.sel(labels)
    assert isinstance(found.xindexes["synapse"], PatternIndex)
    assert found.identical(pickle.loads(pickle.dumps(record)).sel(labels))
    assert_same_values(found.neuro.to_dense()["weights"].values, wanted["weights"].values)
    loaded = record.load().sel(labels)
    assert_same_values(loaded["synapse"].values, found["synapse"].values)
    listed = record.neuro.synapses(pre, post)
    rows, columns = (
        dense.get_index(dim).get_indexer(listed[dim].values) for dim in ("pre", "post")
    )
    assert_same_values(listed["weights"].values, dense["weights"].values[rows, columns])
    found.neuro.validate()


def test_many_rows_at_once() -> None:
    matrix = weights((200, 30))
    ds = snapshot(matrix)
    rows = np.arange(0, 200, 2)[::-1]
    assert_same_values(ds.sel(pre=rows).neuro.to_scipy("weights").toarray(), matrix.toarray()[rows])


def test_a_lookup_reads_a_few_chunks() -> None:
    reads = []

    class Counted(xr.backends.BackendArray):
        shape, dtype = (40 * 65_536,), np.dtype("i8")

        def __getitem__(self, key: Any) -> Any:
            reads.append(key)
            return np.arange(self.shape[0])[key.tuple]

    places = xr.Variable(
        "synapse",
        xr.core.indexing.LazilyIndexedArray(Counted()),
        {"compress": "pre post"},
    )
    axes = {
        "pre": xr.IndexVariable("pre", np.arange(40 * 64)),
        "post": xr.IndexVariable("post", np.arange(1024)),
    }
    index = PatternIndex.from_variables({"synapse": places, **axes}, options={})
    found = index.sel({"pre": 1000}).dim_indexers["synapse"]
    assert (found.start, found.stop) == (1000 * 1024, 1001 * 1024)
    assert len(reads) < 12
    reads.clear()
    index.sel({"pre": 1001})
    assert len(reads) < 6


@pytest.mark.parametrize(
    ("cut", "problem"),
    [
        (lambda ds: ds.isel(pre=[0]), "leave the synapses"),
        (lambda ds: ds.sel(pre=IDS[[0, 0]]), "all different"),
        (lambda ds: ds.sel(synapse=3), "places are no labels"),
        (lambda ds: ds.rename(pre="source"), "named by a sparse matrix"),
        (lambda ds: ds.neuro.to_scipy("states"), "no variable"),
        (lambda ds: ds.neuro.to_dense().neuro.synapses(), "no sparse matrix"),
    ],
)
def test_what_would_break_a_pattern_is_refused(record: xr.Dataset, cut: Any, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        cut(record)


def test_synapses_by_position(record: xr.Dataset) -> None:
    some = record.isel(synapse=[3, 0])
    assert some.neuro.to_scipy("weights").nnz == 2
    assert_same_values(some.neuro.to_scipy("weights").data, record["weights"].values[[0, 3]])
    assert "synapse" not in record.isel(synapse=0).dims
    with pytest.raises(ValidationError, match="ascend"):
        some.neuro.validate()
    with pytest.raises(DamagedError, match="places from"):
        matrices.to_scipy(record.drop_indexes(["synapse", "pre", "post"]).isel(pre=[0]), "weights")


# -- refused -------------------------------------------------------------------------------------

ODD = scipy.sparse.csr_array(weights())
ODD.indices[3] = 99
BAD: dict[str, tuple[Any, str]] = {
    "a value twice": (
        scipy.sparse.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(2, 2)),
        "sum_duplicates",
    ),
    "an index outside": (ODD, "weights .*ind"),
    "long doubles": (
        scipy.sparse.coo_array((np.ones(1, np.longdouble), ([0], [0])), shape=(2, 2)),
        "dtype",
    ),
    "one dimension": (scipy.sparse.coo_array([1.0, 0.0]), "shape"),
    "blocks of JAX": (
        jax.experimental.sparse.BCOO.fromdense(jnp.ones((2, 2)), n_dense=1),
        "batch and dense",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_matrices_leave_nothing(name: str, tmp_path: Path) -> None:
    matrix, problem = BAD[name]
    with HDF5Storage(tmp_path / "run.h5", durability="process") as storage:
        before = storage.file_path.stat().st_size
        with pytest.raises(ValidationError, match=problem):
            storage.store_network_snapshot(1.0, None, matrix, None)
        assert storage.store.ids() == []
        assert storage.file_path.stat().st_size == before


def test_bad_places_are_named() -> None:
    ds = snapshot(weights()).drop_indexes(["synapse", "pre", "post"])
    outside = ds.assign_coords(synapse=ds["synapse"].copy(data=ds["synapse"].values + 40))
    with pytest.raises(ValidationError, match=r"expected places from 0 to 47 in a matrix of 6 x 8"):
        outside.neuro.validate()
    with pytest.raises(ValidationError, match="'post' has no size"):
        ds.drop_vars("post").neuro.validate()
    with pytest.raises(ValidationError, match="expected integers"):
        ds.assign_coords(synapse=ds["synapse"].astype(float)).neuro.validate()
    with pytest.raises(ValidationError, match="sparse csr_array is not taken"):
        neurostore.layer_outputs(layers={"a": weights()}, timestamp=1.0)
    with pytest.raises(ValidationError, match="expected dims"):  # as before
        neurostore.network_snapshot(weights=np.ones(3), timestamp=1.0)


# -- what else a file goes through ---------------------------------------------------------------


def test_a_sparse_record_goes_through_everything(tmp_path: Path) -> None:
    first, later = weights(), weights(seed=1)
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        ids = [
            store.store(snapshot(m, adjacency=m != 0, timestamp=float(n), coords={"pre": IDS}))
            for n, m in enumerate((first, later, first))
        ]
        wanted = [store.retrieve(name).load() for name in ids]
        change = store.diff(ids[0], ids[1])
        difference = change.assign_attrs(kind="network_snapshot").neuro.to_scipy("weights")
        assert_same_values(difference.toarray(), (later - first).toarray())
        with pytest.raises(MisalignedRecordsError, match="network_snapshot"):
            store.range("network_snapshot", join="outer")
        store.compact()
        store.repack()
        assert store.verify().ok
        for name, ds in zip(ids, wanted, strict=True):
            assert_same(store.retrieve(name), ds)
        assert "synapse" in repr(store.retrieve(ids[0]).neuro)
        assert set(store.retrieve(ids[0]).neuro.plot(figure=Figure())) >= {"weights", "adjacency"}
    neurostore.migrate(tmp_path / "run.h5", tmp_path / "new.h5")
    export(dict(zip(ids, wanted, strict=True)), tmp_path / "all.nc")
    with neurostore.open(tmp_path / "new.h5", "r") as store:
        assert_same(store.retrieve(ids[1]), wanted[1])
    with xr.open_dataset(
        tmp_path / "all.nc", group=f"network_snapshot/{ids[1]}", engine="h5netcdf"
    ) as ds:
        assert_same_values(matrices.to_scipy(ds, "weights").toarray(), later.toarray())


def test_weights_over_time_on_one_pattern(stored: Path) -> None:
    matrix = weights()
    with neurostore.open(stored, durability="process") as store:
        for step in (10.0, 11.0):
            store.store(neurostore.plasticity_trace(matrix * step, "stdp", timestamp=step))
        steps = store.range("plasticity_trace")
        assert steps["changes"].dims == ("record", "synapse")
        last = steps.isel(record=1).neuro.to_scipy("changes")
        assert_same_values(last.toarray(), (matrix * 11.0).toarray())
        assert steps.neuro.to_dense()["changes"].shape == (2, 6, 8)
        assert steps.sel(pre=[3])["changes"].shape == (2, np.diff(matrix.indptr)[3])
        with pytest.raises(ValidationError, match="isel"):
            steps.neuro.to_scipy("changes")
        lazily = store.retrieve("stdp_11.0", chunks={})
        assert_same_values(lazily.sel(pre=[3])["changes"].values, matrix[[3]].data * 11.0)


def test_a_picture_of_a_large_matrix_says_what_a_cell_is() -> None:
    matrix = scipy.sparse.coo_array(
        (
            [2.0, 4.0, -1.0],
            ([0, 1, 5000], [0, 1, 9]),
        ),
        shape=(6000, 1000),
    )
    ds = snapshot(matrix)
    means, block = matrices.coarse(ds, "weights", 500)
    assert block == (12, 2)
    assert means.shape == (500, 500)
    assert means.values[0, 0] == 3.0
    assert np.isnan(means.values).sum() == 500 * 500 - 2
    figure = Figure()
    ds.neuro.plot(figure=figure)
    assert any("in 12 × 2" in text.get_text() for ax in figure.axes for text in ax.texts)


# -- other tools ---------------------------------------------------------------------------------


def test_stock_tools_read_the_matrix(stored: Path) -> None:
    address = "network_states/weights/snapshot_2.0"
    wanted = weights()
    with xr.open_dataset(stored, group=address, engine="h5netcdf") as ds:
        decoded = cf_xarray.decode_compress_to_multi_index(ds.load(), "synapse")
        assert_same_values(decoded["pre"].values, IDS[wanted.tocoo().row])
        assert_same_values(decoded["post"].values, wanted.indices.astype(np.int32))
        assert_same_values(decoded["weights"].values, wanted.data)
    with netCDF4.Dataset(stored) as file:
        group = file[address]
        assert group["synapse"].compress == "pre post"
        places = np.unravel_index(group["synapse"][:], (len(group["pre"]), len(group["post"])))
        assert_same_values(wanted.toarray()[places], np.asarray(group["weights"][:]))
    with h5py.File(stored) as file:
        assert file[address]["weights"].dims[0][0] == file[address]["synapse"]


def test_what_cf_xarray_encodes_is_a_record(tmp_path: Path) -> None:
    matrix = weights()
    rows, columns = matrix.tocoo().coords
    pairs = xr.Dataset(
        {"weights": ("synapse", matrix.data)},
        {"pre": ("synapse", rows), "post": ("synapse", columns), "timestamp": 1.0},
    ).set_index(synapse=["pre", "post"])
    ds = cf_xarray.encode_multi_index_as_compress(pairs, "synapse")
    record_id = ds.neuro.store(tmp_path / "run.h5", durability="process")
    back = neurostore.open(tmp_path / "run.h5").retrieve(record_id)
    assert_same_values(back.neuro.to_dense()["weights"].values, matrix.toarray())


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data here")
def test_the_connectome_of_a_larva(tmp_path: Path) -> None:
    pre, post, count = np.loadtxt(DATA / "larva_full_edgelist.csv", delimiter=",", unpack=True)
    ids = np.unique(np.concatenate([pre, post])).astype(np.int64)
    places = np.searchsorted(ids, pre), np.searchsorted(ids, post)
    matrix = scipy.sparse.coo_array((count, places), shape=(len(ids),) * 2).tocsr()
    with neurostore.open(tmp_path / "run.h5", durability="process") as store:
        name = store.store(snapshot(matrix, labels=ids))
        assert (tmp_path / "run.h5").stat().st_size < 8 * len(pre)
        ds = store.retrieve(name)
        out = ds.neuro.synapses(pre=29)
        assert_same_values(out["post"].values, np.sort(post[pre == 29]).astype(np.int64))
        assert (ds.neuro.to_scipy("weights") != matrix).nnz == 0


# -- memory --------------------------------------------------------------------------------------

BEGIN = """
import sys
import numpy as np, scipy.sparse, neurostore

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

path, neurons, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
"""
STORING = """
columns = np.random.default_rng(0).integers(0, neurons // each, (neurons, each), np.int32)
columns = np.sort(columns * each + np.arange(each, dtype=np.int32), axis=1)
indptr = np.arange(neurons + 1) * each
data = np.ones(columns.size, np.float32)
matrix = scipy.sparse.csr_array((data, columns.ravel(), indptr), shape=(neurons, neurons))
with neurostore.open(path, durability="process") as store:
    store.store(neurostore.network_snapshot(weights=matrix[:1], timestamp=0.0))
    before = peak()
    store.store(neurostore.network_snapshot(weights=matrix, timestamp=1.0))
print(peak() - before)
"""
SLICING = """
neurostore.open(path, "r").retrieve("snapshot_0.0").sel(pre=[0]).neuro.to_scipy("weights")
before = peak()
ds = neurostore.open(path, "r").retrieve("snapshot_1.0").sel(pre=[neurons - 7])
assert ds.neuro.to_scipy("weights").nnz == each
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_large_network_takes_memory_by_its_synapses(tmp_path: Path) -> None:
    neurons, each = 20_000, 50
    taken = []
    for code in (STORING, SLICING):
        done = subprocess.run(
            [sys.executable, "-c", BEGIN + code, str(tmp_path / "run.h5"), "20000", "50"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        taken.append(int(done.stdout))
    assert taken[0] < 80 * neurons * each  # dense it would be 4 * neurons * neurons: 1.6 GB
    assert taken[1] < 4 * neurons * each  # less than the places alone, had they been read
