"""A worker's gRPC port: its services, health and reflection, on the transport of its setting."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from google.protobuf import descriptor_pool

from server.access.doors import Admission, grpc_admission
from server.access.gate import Gate
from server.access.guard import guarded_handlers
from server.metrics import Metric, Sample
from server.protocol.headrace_v1 import GET_FEATURES
from server.protocol.infer_door import InferDoor
from server.protocol.infer_template import InferTemplates
from server.protocol.oip import InferenceProtocol
from server.protocol.oip_grpc import MODEL_INFER, InferenceCalls
from server.protocol.oip_shared_memory import SharedMemoryCalls
from server.wire.busy_poll import Threads
from server.wire.grpc.server import GrpcServer
from server.wire.grpc.tick import Door, Tick
from server.wire.handlers import Handlers
from server.wire.http2.limits import Limits
from server.wire.listener import Listener
from server.wire.services import health, service_names
from server.wire.services.health import HealthService, ServingStatus
from server.wire.services.reflection import Reflection
from server.wire.tls import H2, TlsFiles

if TYPE_CHECKING:
    from server.wire import grpcio

HEADRACE, GRPCIO = "headrace", "grpcio"
TRANSPORTS = (HEADRACE, GRPCIO)


class GrpcPort:
    """Serves `handlers` and the inference protocol; `transport` is one of TRANSPORTS.

    A connection older than `connection_age_s` is asked to go, and its calls may take as long again
    (0: it may stay; our own transport only). It leaves `threads` the core that
    they need. `features_door` makes the door of GetFeatures, where there is one.

    Starts as NOT_SERVING.
    """

    def __init__(
        self,
        protocol: InferenceProtocol,
        handlers: Handlers,
        *,
        transport: str = HEADRACE,
        connection_age_s: float = 0.0,
        threads: Threads | None = None,
        gate: Gate | None = None,
        admin_only: bool = False,
        features_door: Callable[[Tick, Admission | None], Door] | None = None,
    ) -> None:
        templates = InferTemplates(protocol)
        learn = templates.learn if transport == HEADRACE else None
        handlers = {
            **InferenceCalls(protocol, learn).table(),
            **SharedMemoryCalls(protocol.memory).table(),
            **handlers,
        }
        services = service_names(handlers)
        self._health = HealthService(services)
        reflection = Reflection({*services, health.SERVICE}, descriptor_pool.Default())
        handlers = {**handlers, **self._health.table(), **reflection.table()}
        if gate is not None or admin_only:
            handlers = guarded_handlers(handlers, gate, admin_only=admin_only)
        admission = None if gate is None else grpc_admission(gate)
        identify = None if gate is None else gate.identify
        self._own: GrpcServer | None = None
        self._reference: grpcio.GrpcServer
        self._server: GrpcServer | grpcio.GrpcServer
        if transport == HEADRACE:
            limits = _limits_of_age(connection_age_s)
            self._own = self._server = GrpcServer(handlers, connection_limits=limits)
            self._own.threads = threads
            self._own.identify = identify
            door = InferDoor(templates, self._own.tick, protocol.watch, admission)
            self._own.add_door(MODEL_INFER, door)
            protocol.forget_on_change(door.forget)
            if features_door is not None:
                self._own.add_door(GET_FEATURES, features_door(self._own.tick, admission))
        else:
            # The reference: what nobody asks for costs no memory.
            from server.wire import grpcio

            self._reference = self._server = grpcio.GrpcServer(
                handlers, reuse_port=True, identify=identify
            )

    @property
    def listener(self) -> Listener | None:
        """What accepts its connections, once it listens; None on the reference."""
        return None if self._own is None else self._own.listener

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.port

    async def start(
        self,
        host: str,
        port: int,
        tls: TlsFiles | None = None,
        *,
        shared: Sequence[socket.socket] = (),
    ) -> None:
        """Listen, on sockets that are `shared` with other workers if there are any.

        The reference takes none: it binds the same port besides them. Raises OSError when the port
        is taken, HeadraceError for files of no use.
        """
        if self._own is None:
            await self._reference.start(host, port, tls)
            return
        context = None if tls is None else tls.context(H2)
        if shared:
            await self._own.share(shared, context)
        else:
            await self._own.start(host, port, context)

    def set_ready(self, ready: bool = True) -> None:
        """Let health say SERVING, or NOT_SERVING for now."""
        self._health.set_all(ServingStatus.SERVING if ready else ServingStatus.NOT_SERVING)

    def set_unready(self) -> None:
        """Let health say NOT_SERVING for good: clients go elsewhere before the drain."""
        self._health.shut_down()

    async def drain(self, grace_s: float) -> None:
        """Take no more connections, finish calls within `grace_s`, close."""
        await self._server.drain(grace_s)

    def debug(self) -> dict[str, object]:
        """Return counters and connections of our own transport, for people who look for a fault."""
        server = self._own
        if server is None:
            return {}
        calls = server.calls
        return {
            "calls": {
                "started": calls.started,
                "live": calls.live,
                "ended": {code.name: count for code, count in calls.ended.items()},
            },
            "abuse": dict(server.abuse),
            "connections": len(server.connections),
            "sockets": server.sockets(),
        }

    def metrics(self, labels: dict[str, str]) -> list[Metric]:
        """Return the counters of our own transport."""
        server = self._own
        if server is None:
            return []
        calls = server.calls
        ended = Counter({code.name: count for code, count in calls.ended.items()})
        return [
            _metric("grpc_connections", "gauge", "Open gRPC connections", labels,
                    len(server.connections)),
            _metric("grpc_calls_live", "gauge", "Calls at work", labels, calls.live),
            _metric("grpc_calls_started_total", "counter", "Calls that began", labels,
                    calls.started),
            _by("grpc_calls_ended_total", "Calls by their status", labels, "code", ended),
            _by("http2_abuse_total", "Hostile frames and connections, by what was done about them",
                labels, "reason", server.abuse),
        ]  # fmt: skip


def _limits_of_age(age_s: float) -> Limits:
    limits, age_ns = Limits(), int(age_s * 1e9)
    if not age_ns:
        return limits
    return replace(limits, age_max_ns=age_ns, age_grace_ns=max(age_ns, limits.age_grace_ns))


def _metric(name: str, kind: str, text: str, labels: dict[str, str], value: float) -> Metric:
    return Metric(f"headrace_{name}", kind, text, [Sample(value, labels)])


def _by(name: str, text: str, labels: dict[str, str], key: str, values: Counter[str]) -> Metric:
    samples = [Sample(count, {**labels, key: value}) for value, count in sorted(values.items())]
    return Metric(f"headrace_{name}", "counter", text, samples)
