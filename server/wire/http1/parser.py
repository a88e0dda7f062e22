"""Bytes to requests, without IO: httptools parses, this module bounds what it is given.

It is fed piece by piece, cut where requests end, so that a read of many pipelined requests can
be stopped between two of them.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import httptools

from server.wire.http1.head import CHUNKED, Head, Refused, checked
from server.wire.http1.limits import HttpLimits

# Where chunks end is httptools' business: of a chunked body so much is parsed at once, and what
# is pipelined behind it may be in the same piece.
_CHUNKED_PIECE_BYTES = 8192
_CHUNK_BODY_BYTES_MIN = 1024  # on average, beyond `chunks_max`
_FRAMING_BYTES = 16  # of a chunk: its size line and two line ends
_END_OF_HEAD = b"\r\n\r\n"
_ONCE = frozenset({"content-length", "host", "transfer-encoding", "content-encoding", "expect"})


class Phase(Enum):
    """What the parser waits for."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"


class Incoming(Protocol):
    """Who gets what was parsed. Each may raise Refused."""

    def head(self, head: Head) -> int:
        """A head is complete; return how long its body may be."""

    def body(self, data: bytes) -> None:
        """A piece of the body."""

    def end(self) -> None:
        """The request is complete."""


class RequestParser:
    """The requests of one connection.

    An offer to upgrade is passed over (Java's client makes one with every first request). llhttp
    takes each for accepted and ends the request at its headers; a parser that is told of the same
    body without the offer then goes on.
    """

    __slots__ = (
        "_body_bytes",
        "_body_bytes_max",
        "_chunks",
        "_head",
        "_head_bytes",
        "_header_count",
        "_headers",
        "_incoming",
        "_limits",
        "_overhead_bytes",
        "_parser",
        "_passes_over",
        "_target",
        "alone",
        "phase",
    )  # fmt: skip

    def __init__(self, limits: HttpLimits, incoming: Incoming) -> None:
        self._limits = limits
        self._incoming = incoming
        self._parser = httptools.HttpRequestParser(self)
        self.phase = Phase.IDLE
        self._passes_over = False
        # The head that the last piece consisted of, all of it and nothing else; else None.
        self.alone: Head | None = None
        self._reset()

    def _reset(self) -> None:
        self._head: Head | None = None
        self._target = b""
        self._headers: dict[str, str] = {}
        self._header_count = 0
        self._head_bytes = 0
        self._body_bytes = 0
        self._chunks = 0
        self._overhead_bytes = 0

    def close(self) -> None:
        """Parse nothing any more: it is held by both whom it holds."""
        del self._parser, self._incoming

    def feed(self, data: bytes, at: int) -> int:
        """Parse the next piece of `data` from `at` on; return where it ends. Raises Refused."""
        end = len(data)
        head = self._head
        self.alone = None
        idle = self.phase is Phase.IDLE
        if head is None:
            found = data.find(_END_OF_HEAD, at)
            if found >= 0:
                end = found + 4
            self._head_bytes += end - at
            if self._head_bytes > self._limits.head_bytes_max:
                raise self._head_too_large()
        elif head.length == CHUNKED:
            end = min(end, at + _CHUNKED_PIECE_BYTES)
        else:
            end = min(end, at + head.length - self._body_bytes)
        self._parse(data if end - at == len(data) else data[at:end])
        if not idle or found < 0:
            self.alone = None
        return end

    def _parse(self, piece: bytes) -> None:
        head, body_bytes = self._head, self._body_bytes
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._pass_over_upgrade()
            if upgrade.args[0] < len(piece):
                self._parse(piece[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            refused = error.__context__
            if isinstance(refused, Refused):
                raise refused from None
            raise
        except httptools.HttpParserError as error:
            raise Refused(400, "malformed", f"malformed HTTP/1.1 request: {error}") from None
        if head is not None and head is self._head and head.length == CHUNKED:
            self._overhead_bytes += len(piece) - (self._body_bytes - body_bytes)
            free = self._chunks * _FRAMING_BYTES
            allowed = self._limits.chunk_overhead_bytes_max + free
            if self._overhead_bytes > allowed:
                raise Refused(
                    413, "chunk_overhead", "the body's framing is larger than its content allows"
                )

    def _pass_over_upgrade(self) -> None:
        """Go on behind the headers of a request that offered an upgrade."""
        head = self._head
        assert head is not None
        chunked = head.length == CHUNKED
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {head.length}"
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(f"POST / HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())

    def _head_too_large(self) -> Refused:
        limit = self._limits.head_bytes_max
        return Refused(431, "head_too_large", f"the headers are larger than {limit} bytes")

    # httptools' callbacks, in the order in which they come.

    def on_message_begin(self) -> None:
        """A first byte."""
        if self._passes_over:
            return
        self.phase = Phase.HEAD

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        if self._passes_over:
            return
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer: that is counted, and never merged with the headers."""
        if self._passes_over:
            return
        self._header_count += 1
        if self._header_count > self._limits.headers_max:
            raise Refused(431, "headers", f"more than {self._limits.headers_max} headers")
        if self._head is not None:
            return
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").strip(" \t")
        headers = self._headers
        if key in headers:
            if key in _ONCE:
                raise Refused(400, "framing", f"header {key} is repeated")
            text = f"{headers[key]}, {text}"
        headers[key] = text

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self._passes_over:  # the same once more, without the offer
            self._passes_over = False
            return
        parser = self._parser
        head = checked(
            parser.get_method().decode("latin-1"), self._target, parser.get_http_version(),
            self._headers, parser.should_keep_alive(),
        )  # fmt: skip
        self._body_bytes_max = self._incoming.head(head)
        if head.length > self._body_bytes_max:
            raise self._body_too_large()
        self._head = head
        self.alone = head
        self.phase = Phase.BODY
        self._passes_over = parser.should_upgrade()

    def _body_too_large(self) -> Refused:
        limit = self._body_bytes_max
        return Refused(413, "body_too_large", f"the body is larger than {limit} bytes")

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._chunks += 1
        if self._chunks > self._limits.chunks_max + self._body_bytes // _CHUNK_BODY_BYTES_MIN:
            raise Refused(413, "chunk_flood", "the body is in too many small chunks")

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self.alone = None
        self._body_bytes += len(data)
        if self._body_bytes > self._body_bytes_max:
            raise self._body_too_large()
        self._incoming.body(data)

    def on_message_complete(self) -> None:
        """The request is there."""
        if self._passes_over:  # its body is still to come
            return
        self.phase = Phase.IDLE
        self._reset()
        self._incoming.end()
