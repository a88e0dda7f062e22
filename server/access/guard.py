"""Guards around the handlers of both wires: who calls, may that one call this at all, and on what.

A method or route that is in no table of `needs` is an error when the server is put together: who
adds one decides who may call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import InternalError, PermissionDeniedError
from server.access.callers import Caller, work_for
from server.access.gate import Gate
from server.access.needs import METHODS, Need, On, need_of_route
from server.access.principal import Grant, Scope
from server.wire.handlers import Context, Handlers, Method, method_of, stream_behind
from server.wire.routes import Door, HttpHandler, Judge, Request, Response, Routes


def guarded_handlers(handlers: Handlers, gate: Gate | None, *, admin_only: bool) -> Handlers:
    """Return a gRPC table whose methods let in who may; with `admin_only` nobody has control."""
    guarded = {}
    for path, entry in handlers.items():
        need, method = METHODS[path], method_of(entry)
        if admin_only and need.scope is Scope.CONTROL:
            method = Method(method.kind, _closed)
        elif gate is not None and need.scope is not None:
            method = _guarded_method(path, need, method, gate)
        guarded[path] = method
    return guarded


async def _closed(*_: Any) -> Any:
    raise PermissionDeniedError("models are loaded and unloaded by the admin port alone")


def _guarded_method(path: str, need: Need, method: Method, gate: Gate) -> Method:
    def judge(context: Context) -> None:
        grant = gate.grant_of_fields(context.fields, context.identity)
        with gate.counting(grant):
            _check(need, grant)

    def enter(request: Any, context: Context) -> Caller:
        caller = Caller(gate, gate.grant_of_fields(context.fields, context.identity))
        with gate.counting(caller.grant):
            _check(need, caller.grant)
            if need.name_of is not None:
                _check_name(need, caller.grant, need.name_of(request))
        work_for(caller)
        return caller

    async def answer(request: Any, context: Context) -> bytes:
        caller = enter(request, context)
        reply: bytes = await method.call(request, context)
        _check_asked(need, caller, path)
        return reply

    call = stream_behind(enter, method) if method.kind.value[1] else answer
    return Method(method.kind, call, judge)


class GuardedRoutes(Routes):
    """Routes whose handlers let in who may. Their doors ask the gate themselves."""

    def __init__(self, gate: Gate | None, *, admin_only: bool) -> None:
        super().__init__()
        self._gate = gate
        self._admin_only = admin_only

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
        """Add one route, guarded by what it needs."""
        need = need_of_route(method, pattern)
        if self._admin_only and need.scope is Scope.CONTROL:
            handler = _closed
        elif self._gate is not None and need.scope is not None:
            handler = _guarded_route(need, handler, self._gate)
            judge = _judge_of_route(need, self._gate)
        super().add(
            method, pattern, handler, streams=streams, body_bytes_max=body_bytes_max, door=door,
            judge=judge,
        )  # fmt: skip


def _judge_of_route(need: Need, gate: Gate) -> Judge:
    def judge(headers: Mapping[str, str], identity: object) -> None:
        grant = gate.grant_of_headers(headers, identity)
        with gate.counting(grant):
            _check(need, grant)

    return judge


def _guarded_route(need: Need, handler: HttpHandler, gate: Gate) -> HttpHandler:
    async def answer(request: Request) -> Response:
        caller = Caller(gate, gate.grant_of_headers(request.headers, request.identity))
        with gate.counting(caller.grant):
            _check(need, caller.grant)
            if need.on is On.NAMED:
                _check_name(need, caller.grant, request.params["model"])
        work_for(caller)
        response = await handler(request)
        if response.status < 400:  # who refuses a body has nothing to ask
            _check_asked(need, caller, request.path)
        return response

    return answer


def _check(need: Need, grant: Grant) -> None:
    assert need.scope is not None
    (grant.check_all if need.on is On.EVERYTHING else grant.check_any)(need.scope)


def _check_name(need: Need, grant: Grant, name: str) -> None:
    assert need.scope is not None
    if name:
        grant.check(need.scope, name)
    else:  # all of them, where the protocol takes it so
        grant.check_all(need.scope)


def _check_asked(need: Need, caller: Caller, where: str) -> None:
    """Keep an answer back that nobody asked the caller's permission for."""
    if need.on is On.ASKED and not caller.asked:
        raise InternalError("the call was answered unasked", where=where)
