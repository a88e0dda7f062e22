"""The operations over HTTP: paths, JSON, the document and the page.

A browser on the machine can be made to call any port: so a call that changes something has to be
JSON, which other sites' pages may not send, and the host has to be the machine's own, which theirs
is not.
"""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import Any

import msgspec

from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnimplementedError,
)
from server.admin.document import OPERATIONS, PREFIX, Operation, openapi, page
from server.admin.operations import Operations
from server.wire.routes import JSON, Request, Response, Route, Routes, error_response, json_response

_BODY_BYTES_MAX = 1 << 20
_PAGE_HEADERS = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ("X-Content-Type-Options", "nosniff"),
)


class AdminApi:
    """Routes to `operations`; `host` is what the port was bound to."""

    def __init__(self, operations: Operations, host: str) -> None:
        self._operations = operations
        self._host = host

    def routes(self) -> Routes:
        """Return all paths."""
        routes = _AdminRoutes()
        for operation in OPERATIONS:
            pattern = PREFIX + operation.path.replace("{worker}", "(?P<worker>[0-9]{1,4})")
            pattern = pattern.replace("{model}", "(?P<model>[^/]+)")
            handler = partial(self._call, operation)
            routes.add(operation.method, pattern, handler, body_bytes_max=_BODY_BYTES_MAX)
        routes.add("GET", "/openapi.json", self._openapi)
        routes.add("GET", "/", self._page)
        return routes

    async def _call(self, operation: Operation, request: Request) -> Response:
        try:
            by = self._check(request)
            arguments = _arguments(operation, request)
            answer = await self._operations.call(operation.name, arguments, by)
        except HeadraceError as error:
            return error_response(error)
        value = answer if operation.bare is None else answer[operation.bare]
        return json_response(value, operation.status)

    def _check(self, request: Request) -> str | None:
        """Return who asks; None: nobody is asked who he is."""
        by = self._operations.let_in(
            request.identity, lambda gate, owner: gate.grant_of_headers(request.headers, owner)
        )
        if by is None and not is_own_host(request.headers.get("host", ""), self._host):
            raise PermissionDeniedError(
                "the header Host is not this machine's", mend="call it by its address"
            )
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method != "GET" and kind != JSON:
            raise InvalidArgumentError(
                "what changes something is sent as JSON", expected=f"content-type: {JSON}"
            )
        return by

    async def _page(self, _: Request) -> Response:
        return Response(200, page().encode(), "text/html; charset=utf-8", _PAGE_HEADERS)

    async def _openapi(self, _: Request) -> Response:
        return json_response(openapi())


class _AdminRoutes(Routes):
    """Refuses a path or a method in the shape in which the operations refuse: with a code."""

    def resolve(self, method: str, path: str) -> tuple[Route | Response, dict[str, str]]:
        """Return the route and its parameters, or the 404 or 405 response."""
        found, params = super().resolve(method, path)
        if isinstance(found, Route):
            return found, params
        mend = "/openapi.json lists all paths and methods"
        error: HeadraceError = NotFoundError(f"there is no path {path[:128]}", mend=mend)
        allowed = dict(found.headers).get("Allow")
        if allowed is not None:
            error = UnimplementedError(
                f"{path[:128]} has no such method", expected=allowed, got=method[:16], mend=mend
            )
        refused = error_response(error)
        refused.status, refused.headers = found.status, found.headers
        return refused, params


def _arguments(operation: Operation, request: Request) -> dict[str, Any]:
    """Return what path, query and body say. Raises InvalidArgumentError."""
    arguments: dict[str, Any] = dict(request.params)
    if "worker" in arguments:
        arguments["worker"] = int(arguments["worker"])
    for name, _, _ in operation.query:
        if name in request.query:
            arguments[name] = _number(name, request.query[name])
    if operation.body is None:
        return arguments
    body = _json(request.body)
    if operation.bare is not None:
        return arguments | {operation.bare: body}
    if not isinstance(body, dict):
        raise InvalidArgumentError("no object", where="request body", expected="a JSON object")
    return arguments | body


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidArgumentError("no JSON", where="request body") from None


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidArgumentError("no number", where=name, got=text[:32]) from None


def is_own_host(header: str, host: str) -> bool:
    """Return whether a Host header names this machine: an address, `localhost`, or what was bound.

    Another name may be anybody's, who lets it point here (DNS rebinding).
    """
    name = header
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") <= 1:
        name = name.partition(":")[0]
    if name.lower() in {"localhost", host.lower()}:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
