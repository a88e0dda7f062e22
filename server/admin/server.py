"""The admin API as a server that the supervisor runs beside its children."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from headrace.errors import InvalidArgumentError
from server.access.file import parse_limits, read_access_file
from server.access.gate import Gate
from server.admin.app import AdminApi
from server.config import Settings
from server.processes.fleet import WorkerFleet
from server.processes.ports import HeldPort
from server.processes.supervisor import Supervisor
from server.processes.workers import Workers
from server.wire.http1.server import HttpServer
from server.wire.tls import HTTP1, tls_files

_DRAIN_S = 1.0


class AdminServer:
    """Answers on a held port. TLS is that of the other ports."""

    def __init__(self, supervisor: Supervisor, workers: Workers, settings: Settings) -> None:
        self._workers = workers
        self._gate: Gate | None = None
        self.take(settings)
        fleet = WorkerFleet(supervisor, workers)
        api = AdminApi(fleet, settings.admin_host, lambda: self._gate)
        self._server = HttpServer(api.routes())

    async def start(self, port: HeldPort, settings: Settings) -> None:
        """Begin to answer. Raises HeadraceError for TLS files of no use."""
        tls = tls_files(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        await self._server.share(port.sockets, None if tls is None else tls.context(HTTP1))

    def take(self, settings: Settings) -> None:
        """Let in who the access file names now. Raises InvalidArgumentError."""
        if settings.access is None:
            self._gate = None
            return
        gate = Gate(read_access_file(Path(settings.access)))
        changed = self._workers.live.changed.get("limits")
        if changed is not None:
            gate.set_limits(parse_limits(changed["document"].encode()))
        self._gate = gate

    async def stop(self) -> None:
        """Answer who waits, and close."""
        await self._server.drain(_DRAIN_S)


def check_admin(settings: Settings) -> None:
    """Raise InvalidArgumentError where everybody in reach could do anything."""
    if settings.admin_port is None:
        if settings.admin_only:
            raise InvalidArgumentError(
                "--admin-only leaves nobody to load models", mend="give --admin-port, too"
            )
        return
    if settings.access is None and not _is_loopback(settings.admin_host):
        raise InvalidArgumentError(
            f"the admin port on {settings.admin_host} would be open to everybody who reaches it",
            mend="give --access FILE, or leave --admin-host at 127.0.0.1",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
