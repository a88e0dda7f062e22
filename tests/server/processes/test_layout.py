from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from headrace.errors import AlreadyExistsError, UnavailableError
from server.processes.layout import DataDir, Lock, socket_path, write_atomically


def test_one_holder_at_a_time_and_the_error_names_it(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.lock"
    with (
        Lock(path, "a headrace supervisor"),
        pytest.raises(AlreadyExistsError, match=rf"\(pid {os.getpid()}\)"),
        Lock(path, "a headrace supervisor"),
    ):
        pass
    with Lock(path, "a headrace supervisor"):
        pass


def test_a_socket_in_a_deep_folder_gets_a_short_stand_in_that_works(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    deep.mkdir(parents=True)
    path = socket_path(deep, "collector.sock")
    assert path == socket_path(deep, "collector.sock")
    assert path != socket_path(deep.parent, "collector.sock")
    assert path.parent.stat().st_mode & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    path.unlink()
    path.parent.rmdir()


def test_a_socket_in_a_shallow_folder_lies_in_it(tmp_path: Path) -> None:
    assert socket_path(Path("/run/x"), "a.sock") == Path("/run/x/a.sock")


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="--data-dir"):
        DataDir(tmp_path / "file" / "data").create()
