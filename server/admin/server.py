"""The admin API as servers that the supervisor runs beside its children."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import InvalidArgumentError
from server.access.file import parse_limits, read_access_file
from server.access.gate import Gate
from server.admin.app import AdminApi
from server.admin.operations import Operations
from server.config import ADMIN_PORTS, Settings, admin_ports
from server.processes.fleet import WorkerFleet
from server.processes.ports import HeldPort
from server.processes.supervisor import Supervisor
from server.processes.workers import Workers
from server.wire.grpc.limits import ServerLimits
from server.wire.http1.server import HttpServer
from server.wire.tls import H2, HTTP1, tls_files

if TYPE_CHECKING:
    from server.wire.grpc.server import GrpcServer

_HTTP_PORT, _GRPC_PORT = ADMIN_PORTS
_DRAIN_S = 1.0
_MESSAGE_BYTES_MAX = 1 << 20


class AdminServer:
    """Answers on the held ports that there are. TLS is that of the other ports."""

    def __init__(self, supervisor: Supervisor, workers: Workers, settings: Settings) -> None:
        self._workers = workers
        self._gate = self._read_access(settings)
        self._servers: list[tuple[HttpServer | GrpcServer, str]] = []  # and its name by ALPN
        self._operations = Operations(WorkerFleet(supervisor, workers), lambda: self._gate)

    async def start(self, ports: Mapping[str, HeldPort], settings: Settings) -> None:
        """Begin to answer. Raises HeadraceError for TLS files of no use."""
        if _HTTP_PORT in ports:
            http = HttpServer(AdminApi(self._operations, settings.admin_host).routes())
            http.identify = _as_it_is
            await http.share(ports[_HTTP_PORT].sockets, _tls(settings, HTTP1))
            self._servers.append((http, HTTP1))
        if _GRPC_PORT in ports:
            grpc = _grpc_server(self._operations)
            grpc.identify = _as_it_is
            await grpc.share(ports[_GRPC_PORT].sockets, _tls(settings, H2))
            self._servers.append((grpc, H2))

    def take(self, settings: Settings) -> None:
        """Let in who the files name now. Raises HeadraceError; then those of before hold."""
        gate = self._read_access(settings)
        renewed = [(server, _tls(settings, protocol)) for server, protocol in self._servers]
        self._gate = gate
        for server, tls in renewed:
            server.listener.renew(tls)

    def _read_access(self, settings: Settings) -> Gate | None:
        if settings.access is None:
            return None
        gate = Gate(read_access_file(Path(settings.access)))
        changed = self._workers.live.changed.get("limits")
        if changed is not None:
            gate.set_limits(parse_limits(changed["document"].encode()))
        return gate

    async def stop(self) -> None:
        """Answer who waits, and close."""
        await asyncio.gather(*(server.drain(_DRAIN_S) for server, _ in self._servers))


def _grpc_server(operations: Operations) -> GrpcServer:
    # Only who asks for it has the messages in this process.
    from server.admin.grpc_door import AdminCalls
    from server.wire.grpc.server import GrpcServer

    limits = ServerLimits(message_bytes_max=_MESSAGE_BYTES_MAX, busy_poll_ns=0)
    return GrpcServer(AdminCalls(operations).table(), limits=limits)


def _tls(settings: Settings, protocol: str) -> ssl.SSLContext | None:
    files = tls_files(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    return None if files is None else files.context(protocol)


def _as_it_is(certificate: bytes) -> bytes:
    return certificate


def check_admin(settings: Settings) -> None:
    """Raise InvalidArgumentError where everybody in reach could do anything."""
    if not admin_ports(settings):
        if settings.admin_only:
            raise InvalidArgumentError(
                "--admin-only leaves nobody to load models",
                mend="give --admin-port or --admin-grpc-port, too",
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
