"""What a connection tells the layer above, beside the whole requests in their sinks."""

from __future__ import annotations

from dataclasses import dataclass

from server.wire.http2.stream import Stream


@dataclass(frozen=True, slots=True)
class Opened:
    """A request began whose body is still to come, or whose head the layer above refuses."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Body:
    """Body bytes. The layer above gives their window back with `Connection.consume`."""

    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The request is whole."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Reset:
    """The stream is gone: the peer cancelled it, broke a rule on it, or does not read."""

    stream_id: int
    stream: Stream | None  # None for a whole request


@dataclass(frozen=True, slots=True)
class Writable:
    """A stream that was full takes more."""

    stream: Stream


Event = Opened | Body | Ended | Reset | Writable
