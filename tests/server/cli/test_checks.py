"""What `headrace doctor` finds."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from server.access.keys import new_key
from server.cli import checks
from server.cli.checks import Finding
from server.config import Settings

OURS = Path(checks.__file__).resolve().parents[2]


def test_a_sound_machine_has_no_blocker(tmp_path: Path) -> None:
    settings = Settings(
        grpc_port=0, http_port=0, metrics_port=0, control_port=0, data_dir=str(tmp_path / "data")
    )
    found = list(checks.check_all(settings))
    assert [finding for finding in found if finding.level == "blocker"] == []
    subjects = {finding.subject for finding in found}
    assert {"python", "numpy", "valkey", "data folder", "onnxruntime providers"} <= subjects


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10, 9), "blocker"), ((3, 11, 0), "ok"), ((3, 13, 9), "ok"), ((3, 14, 0), "blocker")],
)
def test_python(version: tuple[int, int, int], level: str) -> None:
    assert checks.check_python(version).level == level


@pytest.mark.parametrize(
    ("system", "machine", "level"),
    [
        ("Linux", "x86_64", "ok"),
        ("Linux", "aarch64", "ok"),
        ("Darwin", "arm64", "blocker"),
        ("Linux", "riscv64", "blocker"),
    ],
)
def test_platform(system: str, machine: str, level: str) -> None:
    assert checks.check_platform(system, machine).level == level


def make_package(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")


@pytest.mark.parametrize(
    "make",
    [make_package, Path.mkdir, lambda path: path.with_suffix(".py").write_text("")],
    ids=["package", "folder", "module"],
)
def test_a_local_folder_on_the_path_shadows_ours(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "features")
    found = list(checks.check_shadowed([str(tmp_path)], OURS, tmp_path))
    assert [(f.level, f.subject) for f in found] == [("blocker", "package features")]
    assert str(tmp_path) in found[0].text
    assert "PYTHONPATH" in found[0].mend


def test_a_local_folder_that_is_not_on_the_path_is_a_warning(tmp_path: Path) -> None:
    make_package(tmp_path / "server")
    found = list(checks.check_shadowed([], OURS, tmp_path))
    assert [(f.level, f.subject) for f in found] == [("warning", "package server")]
    assert "python -P" in found[0].mend


def test_our_own_tree_shadows_nothing() -> None:
    assert list(checks.check_shadowed([str(OURS), ""], OURS, OURS)) == []


def test_a_missing_system_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    found = list(checks.check_libraries())
    assert [(f.level, f.subject) for f in found] == [("blocker", "libgomp.so.1")]
    assert "apt-get install libgomp1" in found[0].mend


def test_a_busy_port_is_a_blocker_that_names_its_flag() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = Settings(
            grpc_port=0, http_port=other.getsockname()[1], metrics_port=0, control_port=0
        )
        found = [f for f in checks.check_ports(settings) if f.level != "ok"]
    assert [f.subject for f in found] == ["http_port"]
    assert "--http-port" in found[0].mend


def test_the_access_file_and_the_admin_port(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text("[[principals]]")
    (found,) = checks.check_access(Settings(access=str(path)))
    assert (found.level, found.mend) == ("blocker", "see docs/access.md")
    assert "access.toml: is no access file" in found.text
    _, stored = new_key(secrets.token_bytes)
    path.write_text(f'[[principals]]\nname = "a"\nkeys = ["{stored}"]\nallow = []\n')
    assert [f.level for f in checks.check_access(Settings(access=str(path)))] == ["ok"]
    assert list(checks.check_access(Settings())) == []
    (found,) = checks.check_access(Settings(admin_port=0, admin_host="0.0.0.0"))
    assert found.level == "blocker"
    ports = {f.subject for f in checks.check_ports(Settings(admin_port=0)) if f.level == "ok"}
    assert "admin_port" in ports


@pytest.mark.parametrize(
    ("free_bytes", "level"),
    [
        (checks.DISK_BLOCKER_BYTES - 1, "blocker"),
        (checks.DISK_BLOCKER_BYTES, "warning"),
        (checks.DISK_WARNING_BYTES, "ok"),
    ],
)
def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, level: str) -> None:
    usage = SimpleNamespace(free=free_bytes)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert checks.check_disk(tmp_path / "a" / "b").level == level


@pytest.mark.parametrize(("limit", "level"), [(256, "warning"), (1024, "ok"), (-1, "ok")])
def test_open_files(limit: int, level: str) -> None:
    assert checks.check_open_files(limit).level == level


def test_every_finding_that_is_not_ok_has_a_mend(tmp_path: Path) -> None:
    make_package(tmp_path / "router")
    bad: list[Finding] = [
        checks.check_python((3, 9, 0)),
        checks.check_platform("Plan9", "mips"),
        checks.check_open_files(10),
        *checks.check_shadowed([str(tmp_path)], OURS, tmp_path),
    ]
    assert all(finding.mend for finding in bad)


def test_the_command_exits_1_at_a_blocker_and_says_the_mend(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-P", "-m", "server.cli.main", "doctor"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env={"HEADRACE_GRPC_PORT": port, "PATH": ""},
        )
    assert done.returncode == 1
    assert f"blocker: grpc_port port {port} on 127.0.0.1 is busy; mend:" in done.stdout
