"""The bounds of a gRPC server; those of each connection are in `http2.limits`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What all connections of one server together may cost."""

    # Handlers at work, also those whose client has left: streams alone can be reset and opened
    # again while the work goes on (CVE-2023-44487).
    calls_max: int = 8192
    message_bytes_max: int = 64 << 20  # also of what a compressed one becomes
    request_bytes_max: int = (
        1 << 30
    )  # of all that come in pieces or compressed, until they are answered
    connections_max: int = 10_000
    # Of one IPv4 address or IPv6 /64 network. A proxy is one address: lower it where clients come
    # directly.
    connections_per_address_max: int = 10_000
    tls_handshake_timeout_s: float = 10.0
    # Written to a client that does not read, beside what made its transport full: answers that no
    # window holds back (CVE-2019-9514, -9517).
    unread_bytes_max: int = 1 << 20
    busy_poll_ns: int = 200_000  # see `busy_poll`; 0: always sleep between ticks
    linger_s: float = 2.0  # how long a closed connection may take to read our last bytes
