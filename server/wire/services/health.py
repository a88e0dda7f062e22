"""`grpc.health.v1.Health`: is the server, or one of its services, ready to be called?

Statuses are pushed in by whoever knows. A watcher holds no queue: it is woken, and sends the
status of that moment if it is not the one that it sent last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from enum import IntEnum

from headrace.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from server.wire.handlers import Context, Handlers, Kind, Method
from server.wire.services.descriptors import message_class, parse

SERVICE = "grpc.health.v1.Health"

# A watcher keeps its service's name: without a bound a thousand of them could hold gigabytes.
_REQUEST_BYTES_MAX = 1024


class ServingStatus(IntEnum):
    """As numbered on the wire."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


_Request = message_class("grpc.health.v1.HealthCheckRequest")
_Response = message_class("grpc.health.v1.HealthCheckResponse")
_ENCODED: dict[int, bytes] = {
    status: _Response(status=status).SerializeToString() for status in ServingStatus
}


class HealthService:
    """Holds the status of each service, and of the server as a whole under the empty name.

    All begin as NOT_SERVING. To be used from the event loop's thread.
    """

    def __init__(self, services: Iterable[str], *, watchers_max: int = 1024) -> None:
        self._statuses = dict.fromkeys(("", *services), ServingStatus.NOT_SERVING)
        self._watchers_max = watchers_max
        self._watchers = 0
        self._down = False
        self._changed = asyncio.Event()

    @property
    def watchers(self) -> int:
        """How many Watch calls are open."""
        return self._watchers

    def set(self, service: str, status: ServingStatus) -> None:
        """Set a service's status, of a new one too. After `shut_down` it changes nothing."""
        if not self._down and self._statuses.get(service) is not status:
            self._statuses[service] = status
            self._wake()

    def set_all(self, status: ServingStatus) -> None:
        """Set the status of the server and of all its services."""
        for service in self._statuses:
            self.set(service, status)

    def shut_down(self) -> None:
        """Make everything NOT_SERVING for good; watchers are told and their calls end."""
        self.set_all(ServingStatus.NOT_SERVING)
        self._down = True
        self._wake()

    def table(self) -> Handlers:
        """Return the handler table."""
        return {
            f"/{SERVICE}/Check": self._check,
            f"/{SERVICE}/Watch": Method(Kind.SERVER_STREAM, self._watch),
        }

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _check(self, data: bytes, _: Context) -> bytes:
        status = self._statuses.get(_service_of(data))
        if status is None:
            raise NotFoundError("unknown service")
        return _ENCODED[status]

    async def _watch(self, data: bytes, _: Context) -> AsyncIterator[bytes]:
        service = _service_of(data)
        if self._watchers >= self._watchers_max:
            raise ResourceExhaustedError("too many health watchers", mend="watch less, or Check")
        self._watchers += 1
        try:
            sent = None
            while True:
                # Read before the status: a change while the client takes it is not missed.
                changed, down = self._changed, self._down
                status = self._statuses.get(service, ServingStatus.SERVICE_UNKNOWN)
                if status is not sent:
                    yield _ENCODED[status]
                    sent = status
                if down:
                    return
                await changed.wait()
        finally:
            self._watchers -= 1


def _service_of(data: bytes) -> str:
    if len(data) > _REQUEST_BYTES_MAX:
        raise InvalidArgumentError(
            "the service's name is too long", expected=f"at most {_REQUEST_BYTES_MAX} bytes"
        )
    name: str = parse(_Request, data).service
    return name
