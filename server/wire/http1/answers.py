"""Responses to bytes, and where a door's answers go."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from headrace.errors import InternalError
from server.wire.routes import Call, ReplyStart, Response, error_response

if TYPE_CHECKING:
    from server.wire.http1.server import HttpServer

_LOG = logging.getLogger(__name__)
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_BODYLESS = frozenset({204, 304})
_MADE_MAX = 256  # lengths of one kind of reply
_WRITTEN_JOINED_BYTES_MAX = 65_536  # above, copying costs more than a second buffer
Buffers = list[bytes | memoryview]


def head_bytes(
    response: Response, length: int | None, *, keep_alive: bool, http_1_0: bool
) -> bytes:
    """Return status line and headers. `length` None: chunked, or until the end for HTTP/1.0.

    Raises ValueError for a header that would break out of its line.
    """
    lines = [f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}\r\n"]
    if response.status not in _BODYLESS:
        lines.append(f"Content-Type: {response.content_type}\r\n")
        if length is not None:
            lines.append(f"Content-Length: {length}\r\n")
        elif not http_1_0:
            lines.append("Transfer-Encoding: chunked\r\n")
    for name, value in (*response.headers, ("Content-Type", response.content_type)):
        if "\r" in name + value or "\n" in name + value:
            raise ValueError(f"header {name!r} holds a line break")
    lines += [f"{name}: {value}\r\n" for name, value in response.headers]
    if not keep_alive:
        lines.append("Connection: close\r\n")
    elif http_1_0:
        lines.append("Connection: keep-alive\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("latin-1")


def whole_bytes(
    response: Response, *, keep_alive: bool, http_1_0: bool = False, head_only: bool = False
) -> Buffers:
    """Return a response that is no stream, as the buffers to send."""
    body = response.body
    assert isinstance(body, bytes | list)
    parts: Buffers = body if isinstance(body, list) else [body]
    length = sum(map(len, parts))
    head = head_bytes(response, length, keep_alive=keep_alive, http_1_0=http_1_0)
    if head_only or not length or response.status in _BODYLESS:
        return [head]
    if len(parts) == 1 and length < _WRITTEN_JOINED_BYTES_MAX:
        return [head + parts[0]]
    return [head, *parts]


def sendable_bytes(
    response: Response, where: str, *, keep_alive: bool, http_1_0: bool, head_only: bool
) -> Buffers:
    """As `whole_bytes`; a response that cannot be sent is an internal error, logged here."""
    try:
        return whole_bytes(response, keep_alive=keep_alive, http_1_0=http_1_0, head_only=head_only)
    except ValueError:
        _LOG.exception("the answer of %s cannot be sent", where)
        error = InternalError("internal error; the server's log has the cause")
        return whole_bytes(
            error_response(error), keep_alive=keep_alive, http_1_0=http_1_0, head_only=head_only
        )


class DoorAnswers:
    """Where the answers of a server's doors go (`routes.Answers`)."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server

    def reply_all(
        self, calls: Sequence[Call], start: ReplyStart, tails: Sequence[bytes | memoryview]
    ) -> None:
        """Answer call i with 200 and the body `start.prefix` + `tails[i]`."""
        server = self._server
        if server.draining:  # each is the last of its connection
            for call, tail in zip(calls, tails, strict=True):
                whole = Response(200, [start.prefix, tail], start.content_type, start.headers)
                self.answer(call, whole)
            return
        made = start.made
        for (connection, place, _, _), tail in zip(calls, tails, strict=True):
            length = len(tail)
            begin = made.get(length)
            if begin is None:
                begin = self._begin(start, length)
            if length < _WRITTEN_JOINED_BYTES_MAX:
                connection.deliver(place, begin + tail)
            else:
                connection.deliver_all(place, [begin, tail], keep_alive=True)
        server.calls.end(200, len(calls))

    def _begin(self, start: ReplyStart, rest_bytes: int) -> bytes:
        length = len(start.prefix) + rest_bytes
        response = Response(200, b"", start.content_type, start.headers)
        begin = head_bytes(response, length, keep_alive=True, http_1_0=False) + start.prefix
        if len(start.made) >= _MADE_MAX:
            start.made.clear()
        start.made[rest_bytes] = begin
        return begin

    def answer(self, call: Call, response: Response) -> None:
        """Answer one call."""
        keep_alive = not self._server.draining
        call[0].deliver_all(call[1], whole_bytes(response, keep_alive=keep_alive), keep_alive)
        self._server.calls.end(response.status)

    def drop(self, call: Call) -> None:
        """End a call whose client went away."""
        self._server.calls.end(499)

    def hand_back(self, calls: Sequence[Call]) -> None:
        """Leave calls that a door took to their handlers, after all."""
        self._server.leave_to_handlers(calls)

    def is_open(self, call: Call) -> bool:
        """Return whether the client still waits."""
        return not call[0].lost
