"""The command line, run as a person and as a pipe run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

import neurostore
from neurostore import cli


@pytest.fixture(scope="module")
def run_h5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "run.h5"
    with neurostore.open(path) as store, store.batch():
        for second in range(3):
            store.store(neurostore.spike_train([0.1, 0.3], [1, 3], timestamp=1.7e9 + second))
        odd = "main \x1b[31m/" + "x" * 150
        store.store(neurostore.reservoir_states(np.zeros((3, 4)), odd, timestamp=5.0))
        store.store(neurostore.performance_metrics({"a": np.nan}, "task", timestamp=6.0))
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def parsed(*arguments: object) -> Any:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout, parse_constant=pytest.fail)


def in_a_shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from neurostore.cli import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


def test_info_says_what_is_there(run_h5: Path) -> None:
    said = invoke("info", run_h5).stdout
    assert "spike_train" in said
    assert "attention_maps" not in said
    found = parsed("info", run_h5)
    assert found["records"]["spike_train"] == 3
    assert (found["start"], found["end"]) == (5.0, 1.7e9 + 2)


def test_export_writes_what_is_chosen(run_h5: Path, tmp_path: Path) -> None:
    target = tmp_path / "metrics.csv"
    done = invoke("export", run_h5, target, "--kind", "performance_metrics")
    assert (done.exit_code, done.stdout) == (0, f"{target}: 1 record\n")
    assert target.read_text().startswith("id,kind,name,timestamp,a")
    refused = in_a_shell("export", run_h5, target, "task_6.0")
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert invoke("export", run_h5, target, "--to", "matlab").exit_code == 2


def test_publish_refers_to_the_records_of_sealed_files(tmp_path: Path) -> None:
    path, target = tmp_path / "run.h5", tmp_path / "run.json"
    with neurostore.open(path, durability="process") as store:
        store.store(neurostore.spike_train([0.1], [1], timestamp=1.0))
        store.rotate()
        store.store(neurostore.spike_train([0.1], [1], timestamp=2.0))
    assert invoke("publish", path, target).stdout == f"{target}: 1 record\n"
    assert any("train_1.0" in key for key in json.loads(target.read_text())["refs"])
    assert isinstance(invoke("publish", path, target).exception, neurostore.StoreExistsError)
    assert parsed("publish", path, target, "--unsealed", "--force")["records"] == 2


def test_plot_makes_a_picture(run_h5: Path, tmp_path: Path) -> None:
    for name, *chosen in (
        ("run.png",),
        ("train.svg", "train_1700000000.0"),
        ("metrics.pdf", "--range", "--kind", "performance_metrics"),
    ):
        done = invoke("plot", run_h5, *chosen, "-o", tmp_path / name)
        assert done.exit_code == 0, done.output
        assert (tmp_path / name).stat().st_size > 1_000
    assert invoke("plot", run_h5, "--range").exit_code == 2
    assert invoke("plot", run_h5, "-o", tmp_path / "run.docx").exit_code == 2
    assert in_a_shell("plot", run_h5, "-o", tmp_path / "run.png").returncode == 1


def test_ls_filters_by_kind_time_and_name(run_h5: Path) -> None:
    assert len(parsed("ls", run_h5)) == 5
    assert [r["id"] for r in parsed("ls", run_h5, "--name", "task")] == ["task_6.0"]
    late = parsed("ls", run_h5, "--kind", "spike_train", "--start", "2023-11-14T22:13:21Z")
    assert [row["timestamp"] for row in late] == [1.7e9 + 1, 1.7e9 + 2]


def test_a_pipe_gets_whole_lines_without_colours_or_boxes(run_h5: Path) -> None:
    lines = invoke("ls", run_h5).stdout.splitlines()
    assert len(lines) == 6
    assert lines[0].split() == ["id", "kind", "name", "time", "length", "bytes"]
    assert not any("\x1b" in line or "─" in line or "…" in line for line in lines)
    assert any("x" * 150 in line for line in lines)
    assert "2023-11-14 22:13:20Z" in "\n".join(lines)


def test_show_prints_a_record_and_its_values(run_h5: Path) -> None:
    assert "spike_times" in invoke("show", run_h5, "train_1700000000.0").stdout
    assert parsed("show", run_h5, "task_6.0", "--values")["data_vars"]["values"]["data"] == ["NaN"]
    values = invoke("show", run_h5, "train_1700000000.0", "--values").stdout
    assert "spike_times:\n[0.1 0.3]" in values
    assert "data" not in parsed("show", run_h5, "task_6.0")["data_vars"]["values"]


def test_an_error_is_one_line_and_status_1(run_h5: Path, tmp_path: Path) -> None:
    done = in_a_shell("show", run_h5, "train_7")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("neurostore: ")
    assert done.stderr.count("\n") == 1
    assert in_a_shell("info", tmp_path / "none.h5").returncode == 1


def test_a_missing_folder_is_one_line_whatever_is_to_be_made(run_h5: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    for name, options in (
        ("export", [nowhere / "a.nc", "task_6.0"]),
        ("plot", ["task_6.0", "-o", nowhere / "a.png"]),
        ("repair", ["-o", nowhere / "a.h5", "--this-file"]),
        ("migrate", ["-o", nowhere / "a.h5"]),
    ):
        done = in_a_shell(name, run_h5, *options)
        assert (done.returncode, done.stdout) == (1, ""), name
        assert done.stderr.startswith("neurostore: "), done.stderr
        assert done.stderr.count("\n") == 1
        assert str(nowhere) in done.stderr
        assert ".a." not in done.stderr.removesuffix("\n")


def test_a_typing_error_makes_no_file(tmp_path: Path) -> None:
    done = invoke("cleanup", tmp_path / "rnu.h5", "--days", "1", "--yes")
    assert done.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_understood_is_status_2(run_h5: Path) -> None:
    assert invoke("ls", run_h5, "--kind", "spikes").exit_code == 2
    assert invoke("nothing").exit_code == 2


def test_every_command_that_prints_can_print_json() -> None:
    for name in typer.main.get_command(cli.app).commands:  # type: ignore[attr-defined]
        assert "--json" in invoke(name, "--help").stdout, name


def test_rotate_tells_the_new_name(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    neurostore.spike_train([0.1], [1], timestamp=1.0).neuro.store(path)
    told = parsed("rotate", path)
    assert Path(told["rotated_to"]).is_file()
    assert [row["id"] for row in parsed("ls", path)] == ["train_1.0"]


def test_what_is_made_is_told_as_json(run_h5: Path, tmp_path: Path) -> None:
    told = parsed("export", run_h5, tmp_path / "one.nc", "task_6.0")
    assert told == {"path": str(tmp_path / "one.nc"), "records": ["task_6.0"]}
    told = parsed("plot", run_h5, "task_6.0", "-o", tmp_path / "one.png")
    assert told == {"picture": str(tmp_path / "one.png"), "panels": ["values"]}
    told = parsed("demo", tmp_path / "d.h5", "--picture", tmp_path / "d.png", "--seconds", "0.3")
    assert told["trials"] == 2


def test_version() -> None:
    assert invoke("--version").stdout == f"neurostore {neurostore.__version__}\n"
