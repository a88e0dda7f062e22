"""What operators can ask of a whole server. REST and gRPC are doors to it.

It lives in the supervisor because a worker that hangs must not take what is to mend it with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from headrace.errors import InvalidArgumentError, NotFoundError
from server import logs
from server.access.callers import Caller
from server.access.file import parse_limits
from server.access.gate import Gate
from server.access.principal import Grant, Scope
from server.admin.document import OPERATIONS

_LOG = logging.getLogger("headrace")
_READS = frozenset(each.name for each in OPERATIONS if each.method == "GET")
_ANSWERED_S = 0.1  # the answer goes before the server does
_WORKER_TIMEOUT_S = 10.0
_Number = Annotated[int, Meta(ge=0, le=9999)]


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _Worker(msgspec.Struct, forbid_unknown_fields=True):
    worker: _Number


class _Trace(msgspec.Struct, forbid_unknown_fields=True):
    worker: _Number
    seconds: Annotated[float, Meta(ge=0.1, le=60.0)] = 5.0


class _Model(msgspec.Struct, forbid_unknown_fields=True):
    model: Annotated[str, Meta(min_length=1)]


class _Limits(msgspec.Struct, forbid_unknown_fields=True):
    limits: list[dict[str, Any]] = []


class _Logging(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    log_info: bool | None = None
    log_warning: bool | None = None
    log_error: bool | None = None
    log_verbose_level: Annotated[int, Meta(ge=0, lt=2**31)] | None = None


_TAKES: dict[str, type[msgspec.Struct]] = {
    "drain_worker": _Worker,
    "trace": _Trace,
    "load": _Model,
    "unload": _Model,
    "set_limits": _Limits,
    "set_logging": _Logging,
}


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

    async def change(self, name: str, value: dict[str, Any]) -> None:
        """Change a setting in all workers, and in those that start later."""

    def reload(self) -> None:
        """Begin to replace all workers."""

    def end(self) -> None:
        """Begin to end the server."""


class Operations:
    """The operations of `document.OPERATIONS`. `gate` is asked for each call; None: open."""

    def __init__(self, fleet: Fleet, gate: Callable[[], Gate | None]) -> None:
        self._fleet = fleet
        self._gate = gate

    def let_in(
        self, certificate: object, grant_of: Callable[[Gate, Grant | None], Grant]
    ) -> str | None:
        """Return who asks; None: nobody is asked who he is. Raises unless he has the scope `admin`.

        `certificate` is what the connection's client has shown, DER if anything. `grant_of` finds
        what the call may, by what the certificate's owner may. Raises UnauthenticatedError,
        PermissionDeniedError.
        """
        gate = self._gate()
        if gate is None:
            return None
        # Not kept with the connection: a reload may have taken it out of the file.
        owner = gate.grant_of_certificate(certificate) if isinstance(certificate, bytes) else None
        caller = Caller(gate, grant_of(gate, owner))
        caller.check(Scope.ADMIN, "server")
        return caller.grant.principal.name

    async def call(self, name: str, arguments: Mapping[str, Any], by: str | None) -> dict[str, Any]:
        """Do the operation of this name; arguments and answer are JSON values.

        What changes something is a line of the log, with whom it is done for. Raises
        InvalidArgumentError for other arguments than it takes, and what it is refused with.
        """
        try:
            given: Any = msgspec.convert(dict(arguments), _TAKES.get(name, _Nothing))
        except msgspec.ValidationError as error:
            raise InvalidArgumentError(str(error), where=name) from None
        if name not in _READS:
            about = logs.about(principal=by or "", model=getattr(given, "model", ""))
            _LOG.info("admin: %s", name, extra=about)
        answer: dict[str, Any] = await getattr(self, f"_{name}")(given)
        return answer

    async def _workers(self, _: _Nothing) -> dict[str, Any]:
        return {"workers": self._fleet.listed()}

    async def _drain_worker(self, given: _Worker) -> dict[str, Any]:
        await self._fleet.drain(given.worker)
        return {"workers": self._fleet.listed()}

    async def _trace(self, given: _Trace) -> dict[str, Any]:
        seconds = given.seconds
        timeout_s = seconds + _WORKER_TIMEOUT_S
        found = await self._fleet.ask(given.worker, "trace", timeout_s, seconds=seconds)
        return dict(found)

    async def _reload(self, _: _Nothing) -> dict[str, Any]:
        self._fleet.reload()
        return {}

    async def _drain(self, _: _Nothing) -> dict[str, Any]:
        asyncio.get_running_loop().call_later(_ANSWERED_S, self._fleet.end)
        return {}

    async def _models(self, _: _Nothing) -> dict[str, Any]:
        return {"models": await self._fleet.ask(None, "index", _WORKER_TIMEOUT_S)}

    async def _load(self, given: _Model) -> dict[str, Any]:
        await self._fleet.change_model("load", given.model)
        return {}

    async def _unload(self, given: _Model) -> dict[str, Any]:
        await self._fleet.change_model("unload", given.model)
        return {}

    async def _limits(self, _: object) -> dict[str, Any]:
        limits = self._limited().whole_limits
        return {"limits": [{k: v for k, v in asdict(each).items() if v is not None}
                           for each in limits]}  # fmt: skip

    async def _set_limits(self, given: _Limits) -> dict[str, Any]:
        gate = self._limited()
        document = msgspec.json.encode(given.limits)
        gate.set_limits(parse_limits(document))
        await self._fleet.change("limits", {"document": document.decode()})
        return await self._limits(given)

    def _limited(self) -> Gate:
        gate = self._gate()
        if gate is None:
            raise NotFoundError("there are no limits", mend="start with --access FILE")
        return gate

    async def _logging(self, _: object) -> dict[str, Any]:
        return dict(await self._fleet.ask(None, "logging", _WORKER_TIMEOUT_S))

    async def _set_logging(self, given: _Logging) -> dict[str, Any]:
        await self._fleet.change("logging", msgspec.to_builtins(given))
        return await self._logging(given)
