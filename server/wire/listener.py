"""Accepting connections: counted and bounded before a byte of theirs is read.

asyncio's own servers hand a connection over when its TLS handshake is done, so that one which never
ends is seen by no limit. Here a connection counts from `accept` on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence

_LOG = logging.getLogger(__name__)

_BACKLOG = 4096
_ACCEPTED_AT_ONCE_MAX = 256
_PAUSE_S = 1.0  # after an accept that failed for want of descriptors or memory


class Listener:
    """Accepts on listening sockets and makes a protocol of each connection.

    `make` gets the address that the connection counts for; whoever it makes says `released` with
    that address when it is lost. `abuse` counts what is refused. `pass_on` may give an accepted
    connection to another process (True: it did); `watch` is told how many are open here.
    """

    def __init__(
        self,
        make: Callable[[str], asyncio.BaseProtocol],
        abuse: Counter[str],
        *,
        connections_max: int = 10_000,
        connections_per_address_max: int = 10_000,
        tls: ssl.SSLContext | None = None,
        tls_handshake_timeout_s: float = 10.0,
    ) -> None:
        self._make = make
        self._abuse = abuse
        self._connections_max = connections_max
        self._connections_per_address_max = connections_per_address_max
        self._tls = tls
        self._tls_handshake_timeout_s = tls_handshake_timeout_s
        self._sockets: list[socket.socket] = []
        self._by_address: Counter[str] = Counter()
        self._opening: set[asyncio.Task[None]] = set()
        self._resume: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.open_connections = 0
        self.pass_on: Callable[[socket.socket], bool] | None = None
        self.watch: Callable[[int], None] | None = None

    def start(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listen on every address of `host`; return the port. Raises OSError when it is taken."""
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets: list[socket.socket] = []
        try:
            for family, kind, protocol, _, address in dict.fromkeys(infos):
                sock = socket.socket(family, kind, protocol)
                sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if reuse_port:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # A port of 0 was chosen by the first address.
                sock.bind((address[0], port, *address[2:]))
                port = sock.getsockname()[1]
                sock.listen(_BACKLOG)
        except OSError:
            for sock in sockets:
                sock.close()
            raise
        for sock in sockets:
            self.listen(sock)
        return port

    def share(self, sockets: Sequence[socket.socket]) -> int:
        """Listen on bound sockets that other processes have, too; return the port."""
        for sock in sockets:
            # Connections inherit it: those that we closed must not keep the next start from the
            # port, nor those of whoever had it before us.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.listen(_BACKLOG)
            self.listen(sock)
        port: int = sockets[0].getsockname()[1]
        return port

    def listen(self, sock: socket.socket) -> None:
        """Accept on a socket that listens already; it is closed with the others."""
        sock.setblocking(False)
        self._sockets.append(sock)
        self._loop.add_reader(sock.fileno(), self._accept, sock)

    def adopt(self, sock: socket.socket) -> None:
        """Take over one accepted connection."""
        sock.setblocking(False)
        address = _counted_address(sock)
        reason = ""
        if self.open_connections >= self._connections_max:
            reason = "connections"
        elif self._by_address[address] >= self._connections_per_address_max:
            reason = "connections_per_address"
        if reason:
            self._abuse[reason] += 1
            sock.close()
            return
        self._count(1)
        self._by_address[address] += 1
        task = self._loop.create_task(self._open(sock, address))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def renew(self, tls: ssl.SSLContext | None) -> None:
        """Open connections with these certificates from here on; those that are open stay."""
        self._tls = tls

    def released(self, address: str) -> None:
        """Count a connection as gone."""
        self._count(-1)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    async def close(self) -> None:
        """Take what waits to be accepted, then stop; handshakes under way may finish."""
        if self._resume is not None:
            self._resume.cancel()
        for sock in self._sockets:
            self._accept(sock)
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()
        if self._opening:
            await asyncio.wait(self._opening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE_MAX):
            try:
                sock, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno == errno.EINVAL:  # it listens no more: everybody stops
                    self._loop.remove_reader(listening.fileno())
                    return
                # Out of descriptors or memory: the readable socket would spin the loop.
                _LOG.error("cannot accept connections: %s", error)
                self._abuse["accept_failed"] += 1
                self._loop.remove_reader(listening.fileno())
                self._resume = self._loop.call_later(_PAUSE_S, self._go_on)
                return
            if self.pass_on is None or not self.pass_on(sock):
                self.adopt(sock)

    def _count(self, change: int) -> None:
        self.open_connections += change
        if self.watch is not None:
            self.watch(self.open_connections)

    def _go_on(self) -> None:
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    async def _open(self, sock: socket.socket, address: str) -> None:
        timeout_s = None if self._tls is None else self._tls_handshake_timeout_s
        connected = False
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._make(address), sock, ssl=self._tls, ssl_handshake_timeout=timeout_s
            )
            connected = True
        except (ConnectionAbortedError, TimeoutError):  # what the loop says of a handshake too long
            self._abuse["tls_timeout"] += 1
        except ssl.SSLError:
            self._abuse["tls_failed"] += 1
        except OSError as error:
            _LOG.debug("a connection was gone before it was open: %s", error)
        finally:
            if not connected:
                self.released(address)
                with contextlib.suppress(OSError):
                    sock.close()


def _counted_address(sock: socket.socket) -> str:
    """Return what a client counts for: an IPv4 address, of IPv6 the /64 network, "" for others."""
    try:
        peer = sock.getpeername()
    except OSError:  # it is gone already; the transport will find out
        return ""
    if not isinstance(peer, tuple):
        return ""
    address = ipaddress.ip_address(peer[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return address.packed[:8].hex()
