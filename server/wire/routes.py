"""What a handler of the HTTP transport sees: a request, a response, and the routes between them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

import msgspec

from headrace.errors import HeadraceError

_JSON = "application/json"
_PATTERN_SIGNS = frozenset("([\\|*+?")


@dataclass(slots=True)
class Request:
    """One whole request. Header names are lower case; a repeated header is joined with ", "."""

    method: str
    path: str  # as sent, without the query, still percent-encoded
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    params: dict[str, str] = field(default_factory=dict)  # the route's named groups, decoded
    peer: str = ""
    keep_alive: bool = True


@dataclass(slots=True)
class Response:
    """`body` is one buffer, or several that are sent back to back without being joined."""

    status: int = 200
    body: bytes | list[bytes | memoryview] = b""
    content_type: str = _JSON
    headers: tuple[tuple[str, str], ...] = ()


HttpHandler = Callable[[Request], Awaitable[Response]]


def json_response(value: object, status: int = 200) -> Response:
    """Return `value` as a JSON response (msgspec: structs, dataclasses, dicts, lists …)."""
    return Response(status, msgspec.json.encode(value))


def error_response(error: HeadraceError) -> Response:
    """Return `{"error": text, "code": code}` with the error's HTTP status (CONTRACTS §8)."""
    return json_response({"error": error.message, "code": error.code}, error.status.http)


class Routes:
    """(method, path pattern) → handler. A pattern is a regular expression for the whole path."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, HttpHandler]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, HttpHandler]]] = []

    def add(self, method: str, pattern: str, handler: HttpHandler) -> None:
        """Add one route; named groups of `pattern` arrive in `Request.params`, percent-decoded."""
        if not _PATTERN_SIGNS.intersection(pattern):
            self._exact.setdefault(pattern, {})[method] = handler
            return
        compiled = re.compile(pattern)
        for known, methods in self._patterns:
            if known.pattern == compiled.pattern:
                methods[method] = handler
                return
        self._patterns.append((compiled, {method: handler}))

    def find(self, request: Request) -> HttpHandler | Response:
        """Return the handler for `request` (its `params` filled in), or the 404 or 405 response."""
        methods = self._exact.get(request.path)
        if methods is None:
            for pattern, candidates in self._patterns:
                match = pattern.fullmatch(request.path)
                if match is not None:
                    methods = candidates
                    request.params = {
                        name: unquote(value)
                        for name, value in match.groupdict().items()
                        if value is not None
                    }
                    break
        if methods is None:
            return json_response({"error": "Not Found"}, 404)
        handler = methods.get(request.method)
        if handler is None and request.method == "HEAD":
            handler = methods.get("GET")
        if handler is None:
            refused = json_response({"error": "Method Not Allowed"}, 405)
            refused.headers = (("Allow", ", ".join(sorted(methods))),)
            return refused
        return handler
