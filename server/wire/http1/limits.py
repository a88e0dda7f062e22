"""The bounds of one HTTP/1.1 server. A hostile client meets one of these; an honest one never."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one request, one connection and all of them together may cost."""

    head_bytes_max: int = 64 * 1024  # request line and headers, and again trailers
    headers_max: int = 100
    body_bytes_max: int = 64 << 20  # Triton's default for HTTP input; a route may have its own
    # A body in one-byte chunks costs far more than its bytes: so many chunks are free, then they
    # must carry at least 1 KiB each.
    chunks_max: int = 65_536
    # Of chunked framing beside 16 bytes a chunk (its size line): extensions are thrown away, but
    # have to be read (CVE-2023-39326).
    chunk_overhead_bytes_max: int = 16 * 1024
    # Of all bodies that come in pieces or compressed, until they are answered.
    held_bytes_max: int = 1 << 30
    # Of a streamed body, before its handler takes them: reading pauses above.
    stream_bytes_max: int = 1 << 20
    pipelined_max: int = 64  # requests of a connection under way; the others stay in the socket
    calls_max: int = 8192  # handlers at work, also those whose client has left
    connections_max: int = 10_000
    # Of one IPv4 address or IPv6 /64 network. A proxy is one address: lower it where clients come
    # directly.
    connections_per_address_max: int = 10_000
    tls_handshake_timeout_s: float = 10.0
    head_timeout_s: float = 15.0  # from the first byte of a request to the end of its headers
    # A body may stall this long; beyond, it must come at the rate below.
    body_grace_s: float = 20.0
    body_bytes_per_s_min: int = 4096
    body_timeout_s: float = 600.0  # of a body that is not streamed, however fast
    idle_timeout_s: float = 75.0  # keep-alive without a request
    # A client that does not read its answer: as for bodies.
    write_grace_s: float = 30.0
    write_bytes_per_s_min: int = 4096
    handler_timeout_s: float = 600.0  # of a handler that does not stream
    linger_s: float = 2.0  # how long a refused client may take to read the refusal
    busy_poll_ns: int = 0  # see `busy_poll`; 0: always sleep between ticks
