from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.times import to_us
from server.demo import run, system
from server.demo.experiment import read_experiment
from server.demo.progress import Steps
from server.demo.run import MARKER, prepare, run_demo
from server.processes.layout import Lock

EXPERIMENT = """
[experiment]
name = "x"
model = "delay"
policy = "weighted"
key = ""
start = 2013-10-01T04:00:00Z
end = 2014-01-01T05:00:00Z
[[arms]]
arm = "a"
version = "champion"
role = "live"
weight = 0.9
from = 2013-10-01T04:00:00Z
"""


def test_an_empty_folder_is_marked_and_a_demos_own_is_wiped(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    prepare(folder)
    (folder / "log").mkdir()
    (folder / "log" / "old.parquet").write_text("old")
    prepare(folder)
    assert [path.name for path in folder.iterdir()] == [MARKER]


def test_somebody_elses_folder_is_never_wiped(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FailedPreconditionError, match="no demo's"):
        prepare(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FailedPreconditionError):
        prepare(tmp_path / "file")


def test_the_folder_of_a_running_demo_is_left_alone(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "run").mkdir()
    with (
        Lock(tmp_path / "run" / "supervisor.lock", "a headrace supervisor"),
        pytest.raises(FailedPreconditionError, match="still runs"),
    ):
        prepare(tmp_path)
    assert (tmp_path / "run").is_dir()


def test_the_experiment_is_read_with_its_times(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    found = read_experiment(path)
    assert found.model == "delay"
    assert found.arms[0].from_us == found.start_us == to_us(found.experiment.start)


@pytest.mark.parametrize(
    ("old", "new"),
    [("weight = 0.9", ""), ("weight = 0.9", "weigth = 0.9"), ('"live"', '"boss"'), ("[[", "[")],
)
def test_a_broken_experiment_is_named(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT.replace(old, new))
    with pytest.raises(InvalidArgumentError, match=r"experiment\.toml"):
        read_experiment(path)


def test_steps_are_timed_and_told_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=100)
    with Steps(console) as steps:
        with steps.step("First") as bar:
            bar.update(0.5, "half")
        parts = steps.sequence("Pipeline")
        parts.update("validate_data", "", 0.5)
        parts.update("validate_data", "all there", 1.0)
        parts.update("train", "", 0.1)
        parts.finish()
        parts.finish()
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert [t.step for t in steps.timings] == [
        "First",
        "Pipeline: validate data",
        "Pipeline: train",
    ]
    assert all(t.seconds >= 0 for t in steps.timings)
    assert "✓ First: 0.0 s (half)" in text
    assert "(all there)" in text


def test_a_bar_shows_its_time_and_only_while_it_runs_the_rest() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Steps(console) as steps, steps.step("First") as bar:
        bar.update(0.5)
    assert isinstance(console.file, io.StringIO)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).rpartition("✓")[2]
    assert last.split() == ["First", "━" * 28, "0", "s"]


def test_a_folder_that_is_no_project_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no project"):
        run_demo(tmp_path / "nope", tmp_path / "demo")
    (tmp_path / "pipeline.py").write_text("")
    with pytest.raises(NotFoundError, match=r"no definitions\.py, experiment\.toml"):
        run_demo(tmp_path, tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_ctrl_c_says_that_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "start_system", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_demo(data_dir=tmp_path / "demo")
    assert capsys.readouterr().err == "stopped; nothing is left running\n"


def test_a_system_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    # Held by somebody: the supervisor must refuse, and its words must reach the caller.
    with (
        Lock(tmp_path / "run" / "supervisor.lock", "a headrace supervisor"),
        pytest.raises(UnavailableError, match="already runs"),
    ):
        system.start_system(tmp_path, well_known_ports=False)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_three_days_of_flights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_demo(data_dir=tmp_path / "demo", days=3)
    text = capsys.readouterr().out
    assert code == 0, text
    assert "checks passed" in text
    assert (tmp_path / "demo" / "report.html").stat().st_size > 50_000
