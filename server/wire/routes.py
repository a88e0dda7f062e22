"""What a handler of the HTTP transport sees: a request, a response, and the routes between them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec

from headrace.errors import HeadraceError

JSON = "application/json"
_PATTERN_SIGNS = frozenset("([\\|*+?")


def _nothing_to_hold(_: int) -> None:
    """Of a request that no server counts."""


async def _no_body() -> AsyncIterator[bytes]:
    """The streamed body of a request that has none."""
    return
    yield b""


@dataclass(slots=True)
class Request:
    """One request. Header names are lower case; a repeated header is joined with ", ".

    `body` is whole, except on a route that streams: there it is empty, and `stream` brings the
    pieces as they come. A handler that takes them slowly slows its client down.
    """

    method: str
    path: str  # as sent, without the query, still percent-encoded
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""
    params: Mapping[str, str] = field(default_factory=dict)  # the route's named groups, decoded
    peer: str = ""
    identity: object = None  # what the server's `identify` made of the client's certificate
    stream: AsyncIterator[bytes] = field(default_factory=_no_body)
    # Counts bytes that the request's handling holds beside its body (what it inflates to) against
    # the server's budget until it is answered. Raises ResourceExhaustedError when that is spent.
    hold: Callable[[int], None] = _nothing_to_hold


@dataclass(slots=True)
class Response:
    """`body` is one buffer, several that are sent back to back without being joined, or a stream.

    A stream is sent as it comes, as fast as the client reads; when the client goes away it is
    closed (`aclose`, where it is a generator).
    """

    status: int = 200
    body: bytes | list[bytes | memoryview] | AsyncIterator[bytes] = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


HttpHandler = Callable[[Request], Awaitable[Response]]
# Gets a request's headers and its connection's identity while the body is still to come; raises
# HeadraceError for one that would be refused whatever comes.
Judge = Callable[[Mapping[str, str], object], None]

# connection, place in its order of answers, head, body
Call = tuple[Any, int, Any, Any]


class Answers(Protocol):
    """Where a door's answers go. Every call that it took ends by exactly one of the first four."""

    def reply_all(
        self, calls: Sequence[Call], start: ReplyStart, tails: Sequence[bytes | memoryview]
    ) -> None:
        """Answer call i with 200 and the body `start.prefix` + `tails[i]`."""

    def answer(self, call: Call, response: Response) -> None:
        """Answer one call with any response that is no stream."""

    def drop(self, call: Call) -> None:
        """End a call whose client went away."""

    def hand_back(self, calls: Sequence[Call]) -> None:
        """Leave calls that the door took to the route's handler, after all."""

    def is_open(self, call: Call) -> bool:
        """Return whether the client still waits."""


class Door(Protocol):
    """Gets all whole requests of a route in a tick together, before any task is made."""

    def lane(self, params: Mapping[str, str], headers: Mapping[str, str]) -> object | None:
        """Return what requests of this head have in common (`call[2].lane`); None: not for it."""

    def take(self, calls: list[Call], now_ns: int, answers: Answers) -> list[Call]:
        """Take what it can; return the others, which go to the route's handler."""


class ReplyStart:
    """What many 200 replies have in common: their headers and how their bodies begin.

    A transport keeps what it makes of it in `made`, by the length of the rest.
    """

    __slots__ = ("content_type", "headers", "made", "prefix")

    def __init__(
        self,
        prefix: bytes,
        content_type: str = JSON,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.prefix = prefix
        self.content_type = content_type
        self.headers = headers
        self.made: dict[int, bytes] = {}


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a request. `body_bytes_max` None: the server's limit."""

    handler: HttpHandler
    streams: bool = False
    body_bytes_max: int | None = None
    door: Door | None = None
    judge: Judge | None = None


def json_response(value: object, status: int = 200) -> Response:
    """Return `value` as a JSON response (msgspec: structs, dataclasses, dicts, lists …)."""
    return Response(status, msgspec.json.encode(value))


def error_response(error: HeadraceError) -> Response:
    """Return `{"error": text, "code": code}` with the error's HTTP status (CONTRACTS §8)."""
    response = json_response({"error": error.message, "code": error.code}, error.status.http)
    response.headers = advice(error)
    return response


def advice(error: HeadraceError) -> tuple[tuple[str, str], ...]:
    """Return the headers that say how to do better: when to try again, how to say who one is."""
    if error.retry_after_s is not None:
        return (("Retry-After", str(ceil(error.retry_after_s))),)
    if error.code == "unauthenticated":
        return (("WWW-Authenticate", "Bearer"),)
    return ()


class Routes:
    """(method, path pattern) → route. A pattern is a regular expression for the whole path."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []

    def add(
        self,
        method: str,
        pattern: str,
        handler: HttpHandler,
        *,
        streams: bool = False,
        body_bytes_max: int | None = None,
        door: Door | None = None,
        judge: Judge | None = None,
    ) -> None:
        """Add one route; named groups of `pattern` arrive in `Request.params`, percent-decoded.

        With `streams` the handler gets its request when the headers are there, and the body as
        `Request.stream`.
        """
        route = Route(handler, streams, body_bytes_max, door, judge)
        if not _PATTERN_SIGNS.intersection(pattern):
            self._exact.setdefault(pattern, {})[method] = route
            return
        compiled = re.compile(pattern)
        for known, methods in self._patterns:
            if known.pattern == compiled.pattern:
                methods[method] = route
                return
        self._patterns.append((compiled, {method: route}))

    def resolve(self, method: str, path: str) -> tuple[Route | Response, dict[str, str]]:
        """Return the route and its parameters, or the 404 or 405 response."""
        methods = self._exact.get(path)
        params: dict[str, str] = {}
        if methods is None:
            for pattern, candidates in self._patterns:
                match = pattern.fullmatch(path)
                if match is not None:
                    methods = candidates
                    params = {
                        name: unquote(value)
                        for name, value in match.groupdict().items()
                        if value is not None
                    }
                    break
        if methods is None:
            return json_response({"error": "Not Found"}, 404), params
        route = methods.get(method)
        if route is None and method == "HEAD":
            route = methods.get("GET")
        if route is None:
            refused = json_response({"error": "Method Not Allowed"}, 405)
            refused.headers = (("Allow", ", ".join(sorted(methods))),)
            return refused, params
        return route, params
