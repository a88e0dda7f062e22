"""A data-plane worker: `python -m server.worker '{"worker": 0, "host": …}'`.

It keeps nothing that cannot be rebuilt. Release plans arrive as JSON lines on stdin; when stdin
ends the supervisor is gone and the worker serves on (CONTRACTS §2). On stdout it prints one ready
line and one line per plan; everything else goes to stderr. SIGTERM drains and exits 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from headrace.errors import FailedPreconditionError, HeadraceError, UnavailableError
from headrace.ids import PredictionIds
from server import logs
from server.access.doors import rest_admission
from server.access.file import parse_limits, read_access_file
from server.access.gate import Gate
from server.access.guard import GuardedRoutes
from server.answering import Answering
from server.attribution_log import AttributionLog
from server.execution.rate_limiter import RateLimiter
from server.execution.response_cache import ResponseCache
from server.execution.shared_resources import SharedResources
from server.execution.threads import RunThreads
from server.execution.watchdog import RUN_MAX_S, watchdog
from server.feature_access import FeatureAccess
from server.gpus import Gpus
from server.grpc_port import HEADRACE, GrpcPort
from server.machine import MachineLoad, machine_metrics, process_metrics
from server.metrics import (
    CONTENT_TYPE,
    Metric,
    Sample,
    gate_metrics,
    http_metrics,
    model_metrics,
    parts_of,
)
from server.models.budget import MemoryBudget, fence, share_of_machine
from server.models.bundles import ReleasedModels
from server.models.cached import CachedModels
from server.models.control import Mode, ModelControl
from server.models.loaded import ServedModel
from server.models.repository import ModelRepository
from server.models.sources import places
from server.models.versions import BundleSource, VersionLoader
from server.observing import Observing
from server.operator_answers import OperatorAnswers
from server.predict import Clocks, Predictor
from server.processes.child import STORE_VARIABLE
from server.processes.cores import available_cores
from server.processes.layout import DataDir
from server.processes.live_settings import CHANGED, DONE, OUTCOME
from server.processes.model_commands import COMMAND
from server.processes.model_commands import OUTCOME as MODEL_OUTCOME
from server.processes.ports import inherited
from server.processes.questions import ASK
from server.protocol.headrace_v1 import HeadraceCalls
from server.protocol.oip import InferenceProtocol
from server.protocol.oip_rest import InferenceRoutes
from server.protocol.shared_memory import SharedMemory
from server.released import ReleasedTensors
from server.scrape import Portion, Scrape
from server.shared_control import SharedControl
from server.shared_settings import SharedSettings
from server.tap import Tap
from server.wire.handover import Handover
from server.wire.http1.limits import HttpLimits
from server.wire.http1.server import HttpServer
from server.wire.routes import Request, Response, Routes, json_response
from server.wire.tls import HTTP1, TlsFiles, tls_files

_LOG = logging.getLogger("headrace")
_DRAIN_SHARE = 0.8  # of drain_s for calls that are under way; the rest is for the tap
_UNREADY_MIN_S = 0.05
_RUN_THREADS_MIN = 4  # a model that takes long must not keep others from their turn
_LAST_TRACES_S = 1.0
_GC_OBJECTS = 20_000  # more than a full tick makes
_HTTP_LIMITS = HttpLimits(busy_poll_ns=200_000)  # see `wire.busy_poll`; as the gRPC port


_SAYING = threading.Lock()


class WorkerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON in argv[1]; the store's URL may come by the environment instead."""

    worker: int
    host: str
    grpc_port: int
    http_port: int
    metrics_port: int
    data_dir: str
    model_repository: str | list[str] = []
    model_control_mode: Mode = "none"
    load_model: list[str] = []
    repository_poll_s: float = 15.0
    strict_readiness: bool = False  # ready only when all models are
    exit_on_error: bool = False  # no start when a model does not load
    run_timeout_s: float = RUN_MAX_S
    rate_limits: dict[str, int] | None = None  # counts of resources; None: they are not looked at
    model_memory_bytes: int | None = None  # None: a share of what the machine has left
    shares_models: bool = False  # what requests load, all workers load: by the supervisor
    cache_bytes: int | None = None  # of the response cache; None: there is none
    shared_memory: bool = False  # whether requests may name regions of it
    redis: str | None = None
    registry: str | None = None
    collector: str | None = None
    replay_scope: bool = False
    plan: dict[str, Any] | None = None
    drain_s: float = 10.0
    unready_s: float = 0.0
    transport: str = HEADRACE
    connection_age_s: float = 0.0  # 0: connections may grow as old as they like
    cores: int = 0  # its share of the machine; 0: all that the process may use
    slot: int = 0  # its place among `slots` processes that pass connections to each other
    slots: int = 0
    log_requests: bool = False
    trace_endpoint: str | None = None
    trace_rate: int = 1000
    changed: dict[str, Any] = {}  # settings that clients have changed, by the extension's name
    metrics_host: str | None = None  # of `host`, without
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    access: str | None = None  # the access file
    admin_only: bool = False  # no client loads or unloads models


class Worker:
    """Everything one worker holds, put together in the order of the request's way."""

    def __init__(self, config: WorkerConfig, sockets: Mapping[str, list[socket.socket]]) -> None:
        """Make it out of its settings, and the sockets that it shares with other workers."""
        self._config = config
        self._data = DataDir(Path(config.data_dir))
        self._sockets = sockets
        self._ready = False
        cores = config.cores or available_cores()
        self._executor = RunThreads(max(cores, _RUN_THREADS_MIN), cores)
        self._executor.rate_limiter = self._rate_limiter()
        self._repository: ModelRepository | None = None
        self._cache: ResponseCache | None = None
        self._following: ModelControl | None = None
        self._control: ModelControl | SharedControl | None = None
        self._budget = MemoryBudget(config.model_memory_bytes or share_of_machine(1))
        if config.model_repository:
            self._open_repository()
        loader, registry = None, config.registry or ""
        if config.registry is not None:
            source = BundleSource(config.registry, Path(config.data_dir) / "cache")
            loader = VersionLoader(source, self._executor, self._budget)
        self._models = ReleasedModels(loader, self._executor)
        self._gate = gate = _gate(config)
        self._features = FeatureAccess(
            config.redis or os.environ.get(STORE_VARIABLE),
            registry if registry.startswith("http") else None,
            self._models.versions,
            self._executor,
        )
        self._tap = Tap(config.collector, config.worker)
        self._attributions = AttributionLog(self._tap)
        clocks = Clocks(PredictionIds(config.worker, secrets.randbits(32)))
        self._settings = SharedSettings(say, shared=config.shares_models)
        self._observing = self._observed()
        self._predictor = Predictor(
            self._models,
            self._features,
            self._tap,
            clocks,
            replay_scope=config.replay_scope or gate is not None,  # which asks for the scope
            watch=self._observing.watch,
            attributions=self._attributions,
        )
        self._protocol = InferenceProtocol(
            self._repository,
            ReleasedTensors(self._models, self._tap, clocks, self._attributions),
            self._is_ready,
            self._control,
            SharedMemory(self._data.regions) if config.shared_memory else None,
            self._observing.watch,
        )
        self.answering = self._answering()
        headrace = HeadraceCalls(self._predictor, self._models, self._features, self._tap)
        self._grpc = GrpcPort(
            self._protocol,
            {**headrace.table(), **self._observing.table()},
            transport=config.transport,
            connection_age_s=config.connection_age_s,
            threads=self._executor,
            gate=gate,
            admin_only=config.admin_only,
            features_door=headrace.features_door,
        )
        self._http = self._clients_server(headrace)
        self._handover: Handover | None = None
        self._metrics = HttpServer(self._operators_routes())
        self._started_ns = time.monotonic_ns()
        self._load = MachineLoad()
        self._gpus = Gpus()
        self._collecting = self._scrape_of_all()

    def _rate_limiter(self) -> RateLimiter | None:
        config, shared = self._config, None
        if config.rate_limits is None:
            return None
        if config.slots > 1:
            shared = SharedResources(self._data.resources, config.slots, config.slot)
        return RateLimiter(config.rate_limits, shared)

    def _scrape_of_all(self) -> Scrape:
        paths = [self._data.metrics_socket(slot) for slot in range(self._config.slots)]
        return Scrape(self._portion, paths, self._config.slot)

    def _observed(self) -> Observing:
        config = self._config
        return Observing(
            config.worker,
            self._settings.tell,
            lambda name: self._protocol.is_known(name),  # noqa: PLW0108 - it is made later
            log_requests=config.log_requests,
            trace_endpoint=config.trace_endpoint,
            trace_rate=config.trace_rate,
        )

    def _open_repository(self) -> None:
        config, data = self._config, self._data
        roots, sources = places(config.model_repository, data.repositories)
        self._repository = ModelRepository(roots, self._executor, self._budget)
        self._repository.on_change.append(self._say_whether_ready)
        if config.cache_bytes is not None:
            self._cache = ResponseCache(config.cache_bytes)
        CachedModels(self._repository, self._cache)
        self._following = control = ModelControl(
            self._repository,
            config.model_control_mode,
            sources=sources,
            at_start=config.load_model,
            poll_s=config.repository_poll_s,
        )
        self._control = (
            SharedControl(control, say, data.models, data.model_files)
            if config.shares_models
            else control
        )

    async def start(self) -> dict[str, Any]:
        """Load everything, then listen; return the ready line. Raises HeadraceError."""
        config = self._config
        self._apply(config.changed)
        if self._control is not None:
            await self._control.start()
            self._check_models()
        if config.plan is not None:
            say(await self._models.apply(config.plan))
        self._tap.start()
        self._observing.start()
        tls = tls_files(config.tls_cert, config.tls_key, config.tls_client_ca)
        metrics_host = config.metrics_host or config.host
        shared = self._sockets
        await _listen(self._grpc, config.host, config.grpc_port, "grpc", tls, shared)
        await _listen(self._http, config.host, config.http_port, "http", tls, shared)
        await _listen(self._metrics, metrics_host, config.metrics_port, "metrics", None, shared)
        await self._collecting.start()
        self._share_connections()
        # What is loaded by now stays: the collector need not walk it again and again. And what a
        # busy tick makes dies with it, without its help: so it looks for cycles less often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_OBJECTS)
        self._ready = True
        self._say_whether_ready()
        return {
            "event": "ready",
            "pid": os.getpid(),
            "grpc": _address(config.host, self._grpc.port),
            "http": _address(config.host, self._http.port),
            "metrics": _address(metrics_host, self._metrics.port),
        }

    def _is_ready(self) -> bool:
        return self._ready and not (
            self._config.strict_readiness
            and self._repository is not None
            and not self._repository.all_ready()
        )

    def _say_whether_ready(self) -> None:
        if self._ready:
            self._grpc.set_ready(self._is_ready())

    def _check_models(self) -> None:
        failing = {} if self._repository is None else self._repository.failing()
        if self._config.exit_on_error and failing:
            raise FailedPreconditionError(
                f"{len(failing)} models cannot be loaded, and exit_on_error is set",
                got="; ".join(f"{name}: {error.message}" for name, error in failing.items()),
            )

    def _share_connections(self) -> None:
        """Pass connections to workers that have fewer, and take theirs."""
        config, data, grpc = self._config, self._data, self._grpc.listener
        if config.slots < 2 or grpc is None:
            return
        paths = [data.worker_socket(slot) for slot in range(config.slots)]
        ports = [grpc, self._http.listener]
        self._handover = Handover(data.connections, paths, config.slot, ports)
        self._handover.start()

    async def take_line(self, line: bytes) -> None:
        """Do what a line of stdin says, and say what came of it; other lines are passed over."""
        try:
            said = msgspec.json.decode(line, type=dict[str, dict[str, Any]])
        except msgspec.DecodeError:
            said = {}
        control = self._control
        if "plan" in said:
            say(await self._models.apply(said["plan"]))
        elif CHANGED in said:
            self._apply(said[CHANGED]["settings"])
            say({"event": DONE, "number": said[CHANGED]["number"]})
        elif OUTCOME in said:
            self._settings.hear(said[OUTCOME])
        elif ASK in said:
            await self.answering.answer(said[ASK])
        elif isinstance(control, SharedControl) and COMMAND in said:
            await control.take_command(said[COMMAND])
        elif isinstance(control, SharedControl) and MODEL_OUTCOME in said:
            control.take_outcome(said[MODEL_OUTCOME])
        else:
            _LOG.error("a line on stdin is neither a release plan nor about models or settings")

    def _apply(self, changed: Mapping[str, Any]) -> None:
        """Take settings that were changed at another worker, or by an operator."""
        self._observing.apply(changed)
        if self._gate is not None and "limits" in changed:
            self._gate.set_limits(parse_limits(changed["limits"]["document"].encode()))

    def _answering(self) -> Answering:
        """Return what answers the supervisor's questions."""
        named = self._config.model_repository
        repositories = [named] if isinstance(named, str) else named
        answers = OperatorAnswers(self._protocol, self._observing, self._repository, repositories)
        return Answering(say, answers.table(), threading.get_ident())

    def leave_alone(self) -> None:
        """Stdin has ended: the supervisor is gone."""
        self._settings.leave_alone()
        if isinstance(self._control, SharedControl):
            self._control.leave_alone()

    async def drain(self) -> None:
        """Say so, refuse what is new, finish what is under way, flush the tap, close."""
        self._ready = False
        self._grpc.set_unready()
        if self._handover is not None:
            self._handover.leave()
        # Whoever asks whether this worker is ready, or waits to hear of it, hears it before its
        # connections are asked to go.
        await asyncio.sleep(max(self._config.unready_s, _UNREADY_MIN_S))
        grace_s = self._config.drain_s * _DRAIN_SHARE
        await asyncio.gather(self._grpc.drain(grace_s), self._http.drain(grace_s))
        if self._handover is not None:
            self._handover.close()
        if self._following is not None:
            await self._following.stop()
        await self._predictor.close()
        await self._models.close()
        await self._attributions.close()
        await self._tap.close(max(self._config.drain_s - grace_s, 1.0))
        if self._repository is not None:
            await self._repository.close()
        await self._observing.close(_LAST_TRACES_S)
        await self._collecting.close()
        await self._metrics.drain(0.1)
        await self._features.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _clients_server(self, headrace: HeadraceCalls) -> HttpServer:
        server = HttpServer(self._clients_routes(headrace), _HTTP_LIMITS)
        server.threads = self._executor
        server.identify = None if self._gate is None else self._gate.identify
        return server

    def _clients_routes(self, headrace: HeadraceCalls) -> Routes:
        gate = self._gate
        routes = Routes()
        if gate is not None or self._config.admin_only:
            routes = GuardedRoutes(gate, admin_only=self._config.admin_only)
        admission = None if gate is None else rest_admission(gate)
        InferenceRoutes(self._protocol, admission).add_to(routes)
        headrace.add_to(routes, admission)
        self._observing.add_to(routes)
        return routes

    def _operators_routes(self) -> Routes:
        routes = Routes()
        routes.add("GET", "/metrics", self._scrape)
        routes.add("GET", "/debug/grpc", self._debug_grpc)
        return routes

    async def _scrape(self, _: Request) -> Response:
        machine = [*machine_metrics(self._load), *await self._gpus.metrics()]
        text = await self._collecting.text(machine)
        return Response(200, text, CONTENT_TYPE)

    async def _portion(self) -> Portion:
        """Return what this worker counted."""
        self._load.look()  # so that whoever is scraped next tells of the time since this scrape
        served: list[ServedModel] = [version.model for version in self._models.versions()]
        if self._repository is not None:
            served += self._repository.models()
        models = list({id(model): model for model in served}.values())
        labels = {"worker": str(self._config.worker)}
        own = [*model_metrics(models, labels), *self._own_metrics(labels)]
        return Portion(self._config.worker, self._started_ns, await parts_of(own))

    async def _debug_grpc(self, _: Request) -> Response:
        return json_response(self._grpc.debug())

    def _own_metrics(self, labels: dict[str, str]) -> list[Metric]:
        values: list[tuple[str, str, str, Callable[[], float]]] = [
            ("log_rows_sent_total", "counter", "Log rows handed to the collector",
             lambda: self._tap.rows_logged),
            ("log_rows_dropped_total", "counter", "Log rows dropped by this worker",
             lambda: self._tap.rows_dropped),
            ("log_attributions_total", "counter",
             "Log rows explained because the release plan's sample took them",
             lambda: self._attributions.rows_explained),
            ("log_attributions_skipped_total", "counter",
             "Log rows of that sample without attributions: too many waited, or it failed",
             lambda: self._attributions.rows_skipped),
            ("truths_total", "counter", "Truths that the collector acknowledged",
             lambda: self._tap.truths_sent),
            ("shadows_skipped_total", "counter", "Copies for shadow arms not made under load",
             lambda: self._predictor.shadows_skipped),
            ("model_memory_limit_bytes", "gauge",
             "What this worker may hold more than at its start before it refuses to load a model",
             lambda: self._budget.limit_bytes),
            ("model_memory_used_bytes", "gauge", "What it holds more than at its start",
             lambda: self._budget.used_bytes),
            ("release_plan", "gauge", "Number of the release plan that is served",
             lambda: self._models.number),
        ]  # fmt: skip
        if (cache := self._cache) is not None:
            values += [
                ("response_cache_bytes", "gauge", "Bytes of answers in the response cache",
                 lambda: cache.bytes),
                ("response_cache_entries", "gauge", "Answers in the response cache",
                 lambda: len(cache)),
                ("response_cache_evictions_total", "counter",
                 "Answers that made room for others in the response cache",
                 lambda: cache.evictions),
            ]  # fmt: skip
        if (handover := self._handover) is not None:
            values += [
                ("connections_passed_on_total", "counter",
                 "Connections accepted here and passed to a worker that had fewer",
                 lambda: handover.passed_on),
                ("connections_received_total", "counter", "Connections that other workers passed",
                 lambda: handover.received),
            ]  # fmt: skip
        own = [
            Metric(f"headrace_{name}", kind, text, [Sample(value(), labels)])
            for name, kind, text, value in values
        ]
        if self._gate is not None:
            own += gate_metrics(self._gate, labels)
        own += process_metrics(labels) + self._observing.metrics(labels)
        return own + self._grpc.metrics(labels) + http_metrics(self._http, labels)


def _gate(config: WorkerConfig) -> Gate | None:
    """Return what lets callers in; None lets in everybody."""
    if config.access is None:
        return None
    workers = max(config.slots // 2, 1)  # each has two places
    return Gate(read_access_file(Path(config.access)), parts=workers)


async def _listen(
    server: GrpcPort | HttpServer,
    host: str,
    port: int,
    name: str,
    tls: TlsFiles | None,
    sockets: Mapping[str, list[socket.socket]],
) -> None:
    shared = sockets.get(f"{name}_port", [])
    try:
        if not isinstance(server, HttpServer):
            await server.start(host, port, tls, shared=shared)
            return
        context = None if tls is None else tls.context(HTTP1)
        if shared:
            await server.share(shared, context)
        else:
            await server.start(host, port, context, reuse_port=True)
    except OSError as error:
        raise UnavailableError(
            f"cannot listen on {_address(host, port)} for {name}: {error.strerror or error}",
            mend=f"stop what listens there, or choose another --{name}-port (0: any free one)",
        ) from None


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def say(event: dict[str, Any]) -> None:
    """Write one event on stdout, from any thread; the supervisor may be gone."""
    with _SAYING, contextlib.suppress(OSError):
        sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        sys.stdout.flush()


def _follow_stdin(worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
    """Hand the lines of stdin to the loop until it ends. Runs in a thread of its own: an event loop
    refuses a stdin that is a file or /dev/null, and uvloop ends the process over it."""
    for line in sys.stdin.buffer:
        if worker.answering.take_at_once(line):
            continue
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            asyncio.run_coroutine_threadsafe(worker.take_line(line), loop)
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(worker.leave_alone)


async def run(config: WorkerConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises HeadraceError when it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    watchdog.run_max_s = config.run_timeout_s
    watchdog.guard_loop()
    fence(config.model_memory_bytes or share_of_machine(1))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    # At once: nothing that it starts may inherit them, too.
    worker = Worker(config, inherited(os.environ))
    ready = await worker.start()
    threading.Thread(target=_follow_stdin, args=(worker, loop), daemon=True).start()
    say(ready)
    _LOG.info(
        "ready: grpc %s, http %s, metrics %s", *(ready[k] for k in ("grpc", "http", "metrics"))
    )
    await stop.wait()
    await worker.drain()


def main() -> int:
    """Run one worker; 1 when it cannot start."""
    logs.setup("worker")
    try:
        config = msgspec.json.decode(sys.argv[1], type=WorkerConfig)
    except (IndexError, msgspec.DecodeError) as error:
        _LOG.error("bad configuration in the first argument: %s", error)
        return 1
    logs.setup(f"worker-{config.worker}")
    try:
        uvloop.run(run(config))
    except HeadraceError as error:
        _LOG.error("%s", error.message)
        os._exit(1)
    # Threads may still be in a model's run, and a half-started grpc says much at its end: nothing
    # of theirs is wanted any more. Both streams are flushed.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
