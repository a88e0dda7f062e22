"""The document of the benchmark contract, and the peers' environments, with pip run for real."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.harness import Figure, Peer

PEER = Peer("rival", ("rival==1.2",))


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is all that pip knows of: no index, no network."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def add_wheel(folder: Path, version: str) -> None:
    facts = f"rival-{version}.dist-info"
    with zipfile.ZipFile(folder / f"rival-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("rival.py", f"VERSION = {version!r}\n")
        wheel.writestr(
            f"{facts}/METADATA", f"Metadata-Version: 2.1\nName: rival\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{facts}/RECORD", "")


def figure(
    *runs: float, peer_runs: list[float] | None = None, target: float | None = None
) -> Figure:
    return Figure("a call", "µs", runs, PEER.name, peer_runs, target)


def test_the_document_is_the_contract(tmp_path: Path) -> None:
    figures = [figure(1.0, 9.0, 2.0, peer_runs=[4.0, 3.0, 80.0], target=1.5), figure(3.0)]
    versions = harness.versions(["rich"], [(PEER, Path("python"))])
    document = harness.document("some", harness.machine(), versions, figures)
    file = tmp_path / "results" / "some.json"
    harness.publish(document, figures, file)

    read = json.loads(file.read_text())
    assert read == document
    assert list(read) == ["name", "date", "machine", "versions", "figures"]
    assert read["name"] == "some"
    assert datetime.fromisoformat(read["date"]).utcoffset() == timedelta(0)
    assert {"cpu", "cpus", "memory_bytes", "system"} <= set(read["machine"])
    assert read["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert read["versions"]["rival"] == "rival==1.2"
    columns = [
        *("figure", "unit", "value", "peer", "peer_value", "ratio", "target", "met"),
        *("better", "ratio_low", "ratio_high", "limit"),
    ]
    assert [list(row) for row in read["figures"]] == [columns, columns]
    assert [list(row.values()) for row in read["figures"]] == [
        ["a call", "µs", 2.0, "rival", 4.0, 2.0, 1.5, True, "lower", 0.3333, 40.0, None],
        ["a call", "µs", 3.0, "rival", None, None, None, None, "lower", None, None, None],
    ]


def test_without_a_file_stdout_holds_the_document_alone(capsys: pytest.CaptureFixture[str]) -> None:
    figures = [figure(2.0, 2.0, peer_runs=[3.0, 5.0], target=3.0)]
    document = harness.document("some", {}, {}, figures)
    harness.publish(document, figures, None)
    out, err = capsys.readouterr()
    assert json.loads(out) == document
    assert all(text in err for text in ("rival 4", "2.00", "1.50 to 2.50", "≥ 3", "no"))


@pytest.mark.parametrize(("target", "met"), [(1.99, True), (2.0, True), (2.01, False)])
def test_a_target_is_met_from_its_very_value_on(target: float, met: bool) -> None:
    assert figure(5.0, peer_runs=[10.0], target=target).met is met


def test_rounding_does_not_meet_a_target() -> None:
    near = figure(1.0, peer_runs=[1.99996], target=2.0).document()
    assert (near["ratio"], near["met"]) == (2.0, False)


def test_a_peer_without_a_pinned_version_is_refused() -> None:
    with pytest.raises(AssertionError, match="pinned"):
        Peer("rival", ("rival>=1",))


def test_a_missing_peer_is_said_to_be_missing(
    wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_wheel(wheels, "1.3")  # Another version is not the one that was asked for.
    python = harness.peer_python(PEER, tmp_path / "peers")
    assert python is None
    assert harness.versions([], [(PEER, python)])["rival"] == "missing"
    harness.print_table("some", [figure(2.0, target=1.5)])
    assert "rival missing" in capsys.readouterr().err


def test_a_peer_is_installed_on_first_use_only(wheels: Path, tmp_path: Path) -> None:
    peers = tmp_path / "peers"
    assert harness.peer_python(PEER, peers) is None
    # What the failed attempt has left behind is no environment.
    add_wheel(wheels, "1.2")
    python = harness.peer_python(PEER, peers)
    assert python is not None
    code = "import rival, sys; print(rival.VERSION, sys.prefix)"
    said = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.split() == ["1.2", str(python.parent.parent)]

    (wheels / "rival-1.2-py3-none-any.whl").unlink()
    assert harness.peer_python(PEER, peers) == python
    # Another version has an environment of its own.
    assert harness.peer_python(Peer("rival", ("rival==1.3",)), peers) is None


def test_a_peer_that_did_nothing_has_no_ratio() -> None:
    some = Figure("goodput", "requests/s", [3.0, 4.0], "peer", [0.0, 2.0], higher_is_better=True)
    assert some.ratio_range == (2.0, 2.0)
    none = Figure("goodput", "requests/s", [3.0], "peer", [0.0], higher_is_better=True)
    assert (none.ratio, none.ratio_range, none.document()["ratio"]) == (None, None, None)
