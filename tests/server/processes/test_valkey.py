"""The embedded store as the supervisor starts it."""

from __future__ import annotations

import signal
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from features.online.store import OnlineStore
from headrace.errors import UnavailableError
from server.processes import valkey
from server.processes.child import Child
from server.processes.layout import socket_path
from server.processes.valkey import ping, valkey_spec, valkey_url


async def start(folder: Path) -> Child:
    child = await Child.start(valkey_spec(folder / "valkey", socket_path(folder, "v.sock")), None)
    await child.wait_ready()
    return child


async def test_what_was_written_survives_kill_9(tmp_path: Path) -> None:
    url = valkey_url(socket_path(tmp_path, "v.sock"))
    child = await start(tmp_path)
    store = OnlineStore(url)
    for number in range(100):
        await store.execute("SET", f"key-{number}", number)
    child.signal(signal.SIGKILL)
    await child.wait()
    await store.close()
    again = await start(tmp_path)
    store = OnlineStore(url)
    assert await store.execute("GET", "key-99") == b"99"
    assert await store.execute("DBSIZE") == 100
    await store.close()
    assert await again.stop(10)


async def test_it_listens_on_no_port_and_evicts_nothing(tmp_path: Path) -> None:
    child = await start(tmp_path)
    store = OnlineStore(valkey_url(socket_path(tmp_path, "v.sock")))
    wanted = {
        b"port": b"0",
        b"appendonly": b"yes",
        b"appendfsync": b"everysec",
        b"maxmemory-policy": b"noeviction",
    }
    for name, value in wanted.items():
        assert await store.execute("CONFIG", "GET", name) == [name, value]
    assert socket_path(tmp_path, "v.sock").stat().st_mode & 0o077 == 0
    await store.close()
    assert await child.stop(10)


async def test_ping_of_nobody(tmp_path: Path) -> None:
    assert not await ping(tmp_path / "nobody.sock")


def test_a_platform_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(valkey, "files", missing)
    with pytest.raises(UnavailableError, match="--redis"):
        valkey.binary_path()
