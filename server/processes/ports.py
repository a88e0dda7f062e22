"""Ports that the supervisor chooses and keeps, and that its workers share.

A held socket is bound; the workers inherit it and listen on it together. So a connection that waits
to be accepted belongs to none of them, and is not lost when one is replaced or killed. Who cannot
inherit (the reference transport, control, metrics) binds the same address with SO_REUSEPORT.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, MutableMapping
from types import TracebackType
from typing import Any

from headrace.errors import InvalidArgumentError, PermissionDeniedError, UnavailableError

# Name and descriptor of each socket that a child inherits, as NAME:DESCRIPTOR, with commas between.
_VARIABLE = "_HEADRACE_SOCKETS"
_TRIES = 5


class HeldPort:
    """A port that stays bound, on every address of `host`, until `close`."""

    def __init__(self, sockets: list[socket.socket], host: str, port: int) -> None:
        self.sockets = sockets
        self.host = host
        self.port = port

    @property
    def address(self) -> str:
        """`host:port`, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def refuse(self) -> None:
        """Listen no more, for good: whoever connects is refused."""
        for sock in self.sockets:
            with contextlib.suppress(OSError):  # nobody listened
                sock.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Give the port back."""
        for sock in self.sockets:
            sock.close()

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
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror:
        raise InvalidArgumentError(f"unknown host {host!r}", mend="check --host") from None
    tries_left = _TRIES
    while True:
        try:
            return _hold_all(infos, host, port)
        except OSError as error:
            # A port that the first address chose may be busy on the next.
            tries_left -= 1
            if port or error.errno != errno.EADDRINUSE or not tries_left:
                raise _explain(error, host, port, flag) from None


def _hold_all(infos: Iterable[tuple[Any, ...]], host: str, port: int) -> HeldPort:
    held = HeldPort([], host, port)
    try:
        for family, _, _, _, address in dict.fromkeys(infos):
            held.sockets.append(_bound(family, (address[0], held.port, *address[2:])))
            held.port = held.sockets[0].getsockname()[1]
    except OSError:
        held.close()
        raise
    return held


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Bound with SO_REUSEADDR alone, so that a listener or holder of anyone (another headrace
        # too) is an error but connections in TIME_WAIT are not; only then opened to our children.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        sock.close()
        raise
    return sock


def inheritance(names: Iterable[str], descriptors: Iterable[int]) -> dict[str, str]:
    """Return what tells a child by its environment which descriptors it inherits."""
    pairs = [f"{name}:{number}" for name, number in zip(names, descriptors, strict=True)]
    return {_VARIABLE: ",".join(pairs)} if pairs else {}


def inherited(environment: MutableMapping[str, str]) -> dict[str, list[socket.socket]]:
    """Return the sockets that this process inherited, by name. Its own children inherit none."""
    sockets: dict[str, list[socket.socket]] = {}
    for pair in filter(None, environment.pop(_VARIABLE, "").split(",")):
        name, _, number = pair.partition(":")
        os.set_inheritable(int(number), False)
        sockets.setdefault(name, []).append(socket.socket(fileno=int(number)))
    return sockets


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
