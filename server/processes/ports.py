"""Ports that the supervisor chooses and keeps for its workers.

A held socket is bound but never listens, so no connection ever reaches it; the workers bind the
same address with SO_REUSEPORT and listen. The port stays ours while workers come and go.
"""

from __future__ import annotations

import errno
import socket
from types import TracebackType

from headrace.errors import InvalidArgumentError, PermissionDeniedError, UnavailableError


class HeldPort:
    """A TCP address that stays bound until `close`."""

    def __init__(self, sock: socket.socket, host: str, port: int) -> None:
        self._socket = sock
        self.host = host
        self.port = port

    @property
    def address(self) -> str:
        """`host:port`, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()

    def __enter__(self) -> HeldPort:
        """Hold for the length of a `with` block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the port back."""
        self.close()


def hold(host: str, port: int, name: str) -> HeldPort:
    """Bind `host:port` (0 = any free port) and keep it; `name` is the setting to blame.

    Raises UnavailableError for a busy port, InvalidArgumentError for a host that is not of this
    machine and PermissionDeniedError for a privileged port.
    """
    flag = f"--{name.replace('_', '-')}"
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise InvalidArgumentError(f"unknown host {host!r}", mend="check --host") from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Bound with SO_REUSEADDR alone, so that a listener or holder of anyone (another headrace
        # too) is an error but connections in TIME_WAIT are not; only then opened to our workers.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError as error:
        sock.close()
        raise _explain(error, host, port, flag) from None
    return HeldPort(sock, host, sock.getsockname()[1])


def _explain(
    error: OSError, host: str, port: int, flag: str
) -> UnavailableError | InvalidArgumentError | PermissionDeniedError:
    if error.errno == errno.EADDRINUSE:
        return UnavailableError(
            f"port {port} on {host} is busy",
            mend=f"stop what listens there (ss -ltnp 'sport = :{port}'), or choose another with "
            f"{flag} (0 = any free port)",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidArgumentError(
            f"{host} is no address of this machine", mend="give one of its own with --host"
        )
    if error.errno == errno.EACCES:
        return PermissionDeniedError(
            f"port {port} needs privileges", mend=f"choose one above 1023 with {flag}"
        )
    return UnavailableError(f"cannot bind {host}:{port}: {error.strerror}")
