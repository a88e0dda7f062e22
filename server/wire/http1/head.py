"""The head of a request: its line and its headers, checked; and the heads that are known already.

httptools' parser (llhttp, strict) refuses what is no HTTP/1; here stands what it lets pass and
a server must not: other versions, ambiguous lengths, a target that contradicts Host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from headrace.errors import HeadraceError
from server.wire.routes import Response, Route

CHUNKED = -1
# A client says the same head again and again. Those that vary each time fill the table, which then
# starts from nothing.
_KNOWN_HEADS_MAX = 1024
_KNOWN_HEAD_BYTES_MAX = 4096
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
# RFC 3986's reg-name, IPv4 and [IPv6] with a port; no user information, no percent-encoding.
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")


class Refused(Exception):  # noqa: N818 - it never leaves the transport
    """The request breaks a rule: answer with this status, then close. `reason` is counted.

    `error` is what the answer is made of where a handler's would have been.
    """

    def __init__(
        self, status: int, reason: str, text: str, error: HeadraceError | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text
        self.error = error


@dataclass(slots=True, eq=False)
class Head:
    """What a request's head says. `length` is the body's, CHUNKED where it comes in chunks.

    `route`, `params` and `lane` are what the server found for it. A head may belong to many
    requests: nobody changes it.
    """

    timeout_ns: ClassVar[int] = -1  # REST has no deadline of the transport's

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    length: int
    keep_alive: bool
    http_1_0: bool
    expects_continue: bool = False
    route: Route | Response | None = None
    params: dict[str, str] = field(default_factory=dict)
    lane: object | None = None
    sink: list[Any] | None = None  # of the route's door

    @property
    def traceparent(self) -> bytes:
        """Of W3C trace context, as it came; empty without."""
        return self.headers.get("traceparent", "").encode("latin-1", "replace")

    @property
    def tracestate(self) -> str:
        """Beside it."""
        return self.headers.get("tracestate", "")


def checked(
    method: str, target: bytes, version: str, headers: dict[str, str], keep_alive: bool
) -> Head:
    """Return the head. Raises Refused."""
    if version not in {"1.0", "1.1"}:
        raise Refused(505, "version", "the only version is HTTP/1.1")
    http_1_0 = version == "1.0"
    length = _length(headers, http_1_0)
    path, query = _target(method, target.decode("latin-1"), headers.get("host"), http_1_0)
    head = Head(method, path, query, headers, length, keep_alive, http_1_0)
    expect = headers.get("expect")
    if expect is not None and not http_1_0:
        if expect.lower() != "100-continue":
            raise Refused(417, "expectation", "the only expectation is 100-continue")
        head.expects_continue = length != 0
    return head


def _length(headers: dict[str, str], http_1_0: bool) -> int:
    coding = headers.get("transfer-encoding")
    text = headers.get("content-length")
    if coding is not None:
        if text is not None:
            raise Refused(400, "framing", "Content-Length and Transfer-Encoding together")
        if http_1_0:
            raise Refused(400, "framing", "HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != "chunked":
            raise Refused(501, "framing", "the only transfer coding is chunked")
        return CHUNKED
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise Refused(400, "framing", "Content-Length is no number")
    return int(text)


def _target(method: str, text: str, host: str | None, http_1_0: bool) -> tuple[str, dict[str, str]]:
    """Return path and query; an absolute form loses its scheme and host."""
    if host is None:
        if not http_1_0:
            raise Refused(400, "host", "header Host is missing")
    elif not _HOST.fullmatch(host):
        raise Refused(400, "host", "header Host is no host")
    absolute = _ABSOLUTE.match(text)
    if absolute is not None:
        authority = absolute[1]
        if not authority or (host is not None and authority.lower() != host.lower()):
            raise Refused(400, "host", "the request target contradicts header Host")
        rest = text[absolute.end() :]
        text = rest if rest.startswith("/") else f"/{rest}"
    elif not text.startswith("/") and (text, method) != ("*", "OPTIONS"):
        raise Refused(400, "malformed", "malformed request target")
    if "#" in text:
        raise Refused(400, "malformed", "a request target has no fragment")
    path, _, query = text.partition("?")
    return path, dict(parse_qsl(query, keep_blank_values=True)) if query else {}


class HeadTable:
    """The heads of requests with a door, by their bytes: equal bytes mean the same again."""

    __slots__ = ("_known", "find")

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self.find = self._known.get

    def learn(self, raw: bytes, head: Head) -> None:
        """Keep a head that was parsed alone out of `raw`."""
        if len(raw) > _KNOWN_HEAD_BYTES_MAX:
            return
        if len(self._known) >= _KNOWN_HEADS_MAX:
            self._known.clear()
        self._known[raw] = head
