"""The admin API on an HTTP server of the supervisor's.

It lives there because a worker that hangs must not take what is to mend it with it. A browser on
the machine can be made to call any port: so a call that changes something has to be JSON, which
other sites' pages may not send, and the host has to be the machine's own, which theirs is not.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Protocol

import msgspec

from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from server.access.callers import Caller
from server.access.file import parse_limits
from server.access.gate import Gate
from server.access.principal import Scope
from server.admin.document import OPERATIONS, PREFIX, openapi, page
from server.wire.routes import JSON, Request, Response, Routes, error_response, json_response

_TRACE_S = 5.0
_TRACE_S_MIN, _TRACE_S_MAX = 0.1, 60.0
_BODY_BYTES_MAX = 1 << 20
_PAGE_HEADERS = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ("X-Content-Type-Options", "nosniff"),
)


class _Logging(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    log_info: bool | None = None
    log_warning: bool | None = None
    log_error: bool | None = None
    log_verbose_level: int | None = None


class Fleet(Protocol):
    """The workers of one machine, and the server that they are."""

    def listed(self) -> list[dict[str, Any]]:
        """Return number, process and addresses of each worker."""

    async def drain(self, number: int) -> None:
        """Replace a worker. Raises NotFoundError, UnavailableError."""

    async def ask(self, number: int | None, what: str, timeout_s: float, **arguments: Any) -> Any:
        """Return a worker's answer, of any one that is ready without a number."""

    async def change_model(self, operation: str, name: str) -> None:
        """Load or unload in all workers."""

    def change(self, name: str, value: dict[str, Any]) -> None:
        """Change a setting in all workers, and in those that start later."""

    def reload(self) -> None:
        """Begin to replace all workers."""

    def end(self) -> None:
        """Begin to end the server."""


class AdminApi:
    """The operations of `document.OPERATIONS`. `gate` is asked for each call; None: open."""

    def __init__(self, fleet: Fleet, host: str, gate: Callable[[], Gate | None]) -> None:
        self._fleet = fleet
        self._host = host
        self._gate = gate

    def routes(self) -> Routes:
        """Return all paths."""
        routes = Routes()
        for operation in OPERATIONS:
            handler = getattr(self, f"_{operation.name}")
            pattern = PREFIX + operation.path.replace("{worker}", "(?P<worker>[0-9]{1,4})")
            pattern = pattern.replace("{model}", "(?P<model>[^/]+)")
            routes.add(
                operation.method, pattern, self._guarded(handler), body_bytes_max=_BODY_BYTES_MAX
            )
        routes.add("GET", "/openapi.json", self._openapi)
        routes.add("GET", "/", self._page)
        return routes

    def _guarded(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                self._check(request)
                return await handler(request)
            except HeadraceError as error:
                return error_response(error)

        return answer

    def _check(self, request: Request) -> None:
        gate = self._gate()
        if gate is not None:
            caller = Caller(gate, gate.grant_of_headers(request.headers))
            caller.check(Scope.ADMIN, "server")
        elif not is_own_host(request.headers.get("host", ""), self._host):
            raise PermissionDeniedError(
                "the header Host is not this machine's", mend="call it by its address"
            )
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if request.method != "GET" and kind != JSON:
            raise InvalidArgumentError(
                "what changes something is sent as JSON", expected=f"content-type: {JSON}"
            )

    async def _page(self, _: Request) -> Response:
        return Response(200, page().encode(), "text/html; charset=utf-8", _PAGE_HEADERS)

    async def _openapi(self, _: Request) -> Response:
        return json_response(openapi())

    async def _workers(self, _: Request) -> Response:
        return json_response({"workers": self._fleet.listed()})

    async def _drain_worker(self, request: Request) -> Response:
        await self._fleet.drain(int(request.params["worker"]))
        return json_response({"workers": self._fleet.listed()})

    async def _trace(self, request: Request) -> Response:
        seconds = _seconds(request.query.get("seconds"))
        number = int(request.params["worker"])
        found = await self._fleet.ask(number, "trace", seconds + 10.0, seconds=seconds)
        return json_response(found)

    async def _reload(self, _: Request) -> Response:
        self._fleet.reload()
        return json_response({}, 202)

    async def _drain(self, _: Request) -> Response:
        # The answer goes first.
        asyncio.get_running_loop().call_later(0.1, self._fleet.end)
        return json_response({}, 202)

    async def _models(self, _: Request) -> Response:
        return json_response({"models": await self._fleet.ask(None, "index", 10.0)})

    async def _load(self, request: Request) -> Response:
        return await self._change_model("load", request)

    async def _unload(self, request: Request) -> Response:
        return await self._change_model("unload", request)

    async def _change_model(self, operation: str, request: Request) -> Response:
        await self._fleet.change_model(operation, request.params["model"])
        return json_response({})

    async def _limits(self, _: Request) -> Response:
        limits = self._limited().whole_limits
        return json_response([{k: v for k, v in asdict(each).items() if v is not None}
                              for each in limits])  # fmt: skip

    async def _set_limits(self, request: Request) -> Response:
        gate = self._limited()
        gate.set_limits(parse_limits(request.body))
        self._fleet.change("limits", {"document": request.body.decode()})
        return await self._limits(request)

    def _limited(self) -> Gate:
        gate = self._gate()
        if gate is None:
            raise NotFoundError("there are no limits", mend="start with --access FILE")
        return gate

    async def _logging(self, _: Request) -> Response:
        return json_response(await self._fleet.ask(None, "logging", 10.0))

    async def _set_logging(self, request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(request.body, type=_Logging)
        except msgspec.DecodeError as error:
            raise InvalidArgumentError(f"no settings of the log: {error}") from None
        if wanted.log_verbose_level is not None and not 0 <= wanted.log_verbose_level < 2**31:
            raise InvalidArgumentError("log_verbose_level is out of range", expected="0 to 2^31-1")
        self._fleet.change("logging", msgspec.to_builtins(wanted))
        return await self._logging(request)


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


def _seconds(text: str | None) -> float:
    if text is None:
        return _TRACE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not _TRACE_S_MIN <= seconds <= _TRACE_S_MAX:
        raise InvalidArgumentError(
            "not a time to look", expected=f"seconds={_TRACE_S_MIN:g} to {_TRACE_S_MAX:g}",
            got=text[:32],
        )  # fmt: skip
    return seconds
