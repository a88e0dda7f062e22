"""What runs on one machine: `headrace serve` (collector, workers) and `headrace up` (store and
control too), put together from the settings.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec

from headrace.errors import HeadraceError, InvalidArgumentError, NotFoundError
from server.access.file import check_access
from server.config import (
    ADMIN_PORTS,
    Settings,
    admin_ports,
    cache_bytes,
    mask_url,
    resource_counts,
)
from server.models.budget import share_of_machine
from server.models.urls import check_url, is_url
from server.processes.child import ChildSpec, python_command, store_environment
from server.processes.layout import DataDir, Lock, replace_orphans
from server.processes.plans import Plan, PlanFollower, plan_of_folder, read_plan
from server.processes.ports import HeldPort, hold
from server.processes.supervisor import StopRequested, Supervisor
from server.processes.valkey import valkey_spec, valkey_url
from server.processes.workers import Workers
from server.tracing.export import check_endpoint
from server.wire.tls import tls_files

if TYPE_CHECKING:
    from server.admin.server import AdminServer

_LOG = logging.getLogger("headrace")

# How long a start waits for control's first word before it goes on with the plan on disk.
_FIRST_PLAN_TIMEOUT_S = 5.0
# A child drains within `unready_s + drain_s` by itself; what has not ended so long after hangs.
_KILL_MARGIN_S = 2.0
_MIB = 1 << 20
_LOOPBACK = "127.0.0.1"
_CONNECTION_AGE_S = 1800.0
# What more than the workers depend on: a reload leaves it as it was.
_ONLY_AT_START = (
    "host", "grpc_port", "http_port", "metrics_port", "metrics_host", "control_port", "workers",
    "redis", "registry", "data_dir", "drain_s", "unready_s", "transport", "log_format",
    *ADMIN_PORTS, "admin_host",
)  # fmt: skip
_NOT_OF_WORKERS = {"control_port", *ADMIN_PORTS}
_REFUSE_AFTER_S = 0.2  # behind the moment in which the workers stop to accept


async def run(
    settings: Settings,
    *,
    whole: bool,
    on_ready: Callable[[dict[str, object]], None] | None = None,
    reread: Callable[[], Settings] | None = None,
) -> None:
    """Run until a signal; `whole` adds control (and, by its default, the embedded store).

    Prints the ready line on stdout and hands it to `on_ready`. SIGHUP replaces the workers one
    after another, with the settings that `reread` returns. Raises HeadraceError when something
    cannot start or keeps dying; after a signal it drains and returns.
    """
    check(settings)
    names = ["grpc_port", "http_port", "metrics_port"] + (["control_port"] if whole else [])
    names += admin_ports(settings)
    _check_ports(settings, names)
    data = DataDir(Path(settings.data_dir)).create()
    with ExitStack() as stack:
        stack.enter_context(Lock(data.run / "supervisor.lock", "a headrace supervisor"))
        for child in replace_orphans(data.children, settings.unready_s + settings.drain_s):
            _LOG.warning("ended %s (pid %d) of a supervisor that was killed", child.role, child.pid)
        ports = {
            name: stack.enter_context(hold(_host(settings, name), getattr(settings, name), name))
            for name in names
        }
        kill_after_s = settings.unready_s + settings.drain_s + _KILL_MARGIN_S
        async with Supervisor(data.children, drain_s=kill_after_s) as supervisor:
            # Left before the supervisor ends its children: a control that goes is asked nothing.
            with ExitStack() as following:
                try:
                    ready, workers = await _start(supervisor, settings, data, ports, following)
                except StopRequested:
                    return
                admin = await _open_admin(supervisor, workers, settings, ports)
                _warn_of_emptiness(settings, whole=whole)
                if on_ready is not None:
                    on_ready(ready)
                sys.stdout.write(json.dumps(ready, separators=(",", ":")) + "\n")
                sys.stdout.flush()
                while await supervisor.wait():
                    newer = await _reload(workers, settings, reread)
                    if newer is None:
                        continue
                    settings = newer
                    _warn_of_emptiness(settings, whole=whole)
                    if admin is not None:
                        _renew(admin, settings)
                if admin is not None:
                    await admin.stop()
                # While the workers drain, who connects anew goes elsewhere at once.
                for name in _shared(settings):
                    asyncio.get_running_loop().call_later(
                        settings.unready_s + _REFUSE_AFTER_S, ports[name].refuse
                    )


async def _open_admin(
    supervisor: Supervisor, workers: Workers, settings: Settings, ports: dict[str, HeldPort]
) -> AdminServer | None:
    if not admin_ports(settings):
        return None
    # Only who asks for it has a server in this process.
    from server.admin.server import AdminServer

    admin = AdminServer(supervisor, workers, settings)
    await admin.start(ports, settings)
    return admin


def check(settings: Settings) -> None:
    """Raise a HeadraceError for settings that can never work, before anything starts."""
    for repository in settings.model_repository:
        if is_url(repository):
            check_url(repository)
        elif not Path(repository).is_dir():
            raise NotFoundError(
                f"no model repository {repository}",
                expected="a folder that holds NAME/1/model.onnx",
                mend="check --model-repository",
            )
    tls = tls_files(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    if tls is not None:
        tls.check()
    if settings.cache_config is not None:
        cache_bytes(settings.cache_config)
    resource_counts(settings.rate_limit_resource)
    if settings.trace_endpoint is not None:
        check_endpoint(settings.trace_endpoint)
    if settings.access is not None:
        check_access(Path(settings.access), settings.tls_client_ca)
    if settings.admin_only or admin_ports(settings):
        from server.admin.server import check_admin

        check_admin(settings)
    _check_url("redis", settings.redis, {"redis", "rediss", "unix"}, {"none", "embedded"})
    _check_url("registry", settings.registry, {"http", "https", "file"}, {"none"})


def _warn_of_emptiness(settings: Settings, *, whole: bool) -> None:
    """Say it where no model can ever come: a server that is ready looks as if it had some."""
    if not (whole or settings.model_repository or settings.registry != "none"):
        _LOG.warning(
            "this server is ready, but serves nothing: it was given no models; start it with "
            "--model-repository FOLDER (that holds NAME/1/model.onnx) or --registry URL"
        )


def _shared(settings: Settings) -> list[str]:
    """Return the ports that the workers listen on together.

    Of metrics each has its own socket, and of gRPC on the reference transport.
    """
    return ["grpc_port", "http_port"] if settings.transport == "headrace" else ["http_port"]


def _host(settings: Settings, port_name: str) -> str:
    """Return the address to bind for a port."""
    if port_name in ADMIN_PORTS:
        return settings.admin_host
    if port_name != "metrics_port":
        return settings.host
    # Metrics are always plain: where the others are worth encrypting, they stay on the machine
    # unless somebody says otherwise.
    return settings.metrics_host or (settings.host if settings.tls_cert is None else _LOOPBACK)


def _check_ports(settings: Settings, names: list[str]) -> None:
    """Raise InvalidArgumentError when two of these settings are the same port (0 is any free)."""
    taken: dict[int, str] = {}
    for name in names:
        port = getattr(settings, name)
        other = taken.setdefault(port, name) if port else name
        if other != name:
            flags = [f"--{each.replace('_', '-')}" for each in (other, name)]
            raise InvalidArgumentError(
                f"{flags[0]} and {flags[1]} are both {port}",
                mend=f"choose another for {flags[1]} (0 = any free port)",
            )


def _check_url(name: str, value: str, schemes: set[str], words: set[str]) -> None:
    if value in words or urlsplit(value).scheme in schemes:
        return
    expected = ", ".join([*sorted(words), *(f"{scheme}://…" for scheme in sorted(schemes))])
    raise InvalidArgumentError(f"bad value for {name}", expected=expected, mend=f"check --{name}")


async def _start(
    supervisor: Supervisor,
    settings: Settings,
    data: DataDir,
    ports: dict[str, HeldPort],
    following: ExitStack,
) -> tuple[dict[str, object], Workers]:
    redis = None if settings.redis == "none" else settings.redis
    if redis == "embedded":
        await supervisor.start([valkey_spec(data.root / "valkey", data.valkey_socket)])
        redis = valkey_url(data.valkey_socket)
    registry = None if settings.registry == "none" else settings.registry
    if "control_port" in ports:
        await supervisor.start([_control(settings, data, redis, ports["control_port"].port)])
        registry = f"http://{ports['control_port'].address}"
    await _first_plan(supervisor, data, registry, following)
    await supervisor.start([_collector(data)])
    fixed = {
        **{name: port.port for name, port in ports.items() if name not in _NOT_OF_WORKERS},
        "registry": registry,
        "data_dir": str(data.root),
        "collector": str(data.collector_socket),
        "shares_models": True,
    }
    room = share_of_machine(settings.workers)
    for table in (data.connections, data.resources):
        table.unlink(missing_ok=True)  # of another number of workers
    data.regions.unlink(missing_ok=True)
    workers = Workers(
        supervisor,
        lambda chosen: _worker_config(chosen, room) | fixed,
        store_environment(redis),
        {name: ports[name] for name in _shared(settings)},
        data,
        windows=redis is not None or registry is not None,
    )
    await workers.start(settings)
    ready: dict[str, object] = {"event": "ready", "pid": os.getpid()}
    ready |= {name.removesuffix("_port"): port.address for name, port in ports.items()}
    if "control_port" in ports:
        ready |= {"control": registry, "redis": redis and mask_url(redis)}
    return ready, workers


def _renew(admin: AdminServer, settings: Settings) -> None:
    try:
        admin.take(settings)
    except HeadraceError as error:  # a file that was changed since the workers have read it
        _LOG.error("the admin ports stay as they were: %s", error)


async def _reload(
    workers: Workers, settings: Settings, reread: Callable[[], Settings] | None
) -> Settings | None:
    """Replace the workers; return the settings that hold from here on, None: those of before."""
    _LOG.info("SIGHUP: replacing the workers, one after another")
    try:
        newer = settings if reread is None else _changed(settings, reread())
        check(newer)
        await workers.reload(newer)
    except StopRequested:
        return None
    except HeadraceError as error:
        _LOG.error("the reload ended: %s; the workers that were not replaced serve on", error)
        return None
    _LOG.info("reloaded")
    return newer


def _changed(settings: Settings, newer: Settings) -> Settings:
    """Return `newer`, but for what only a new start can change."""
    kept = {name: getattr(settings, name) for name in _ONLY_AT_START}
    for name, value in kept.items():
        if getattr(newer, name) != value:
            _LOG.warning("the new %s is not used: it takes a new start", name)
    return msgspec.structs.replace(newer, **kept)


async def _first_plan(
    supervisor: Supervisor, data: DataDir, registry: str | None, following: ExitStack
) -> None:
    """Give the supervisor its first plan, and start to follow the registry where there is one."""
    if registry is None:
        return
    parts = urlsplit(registry)
    if parts.scheme == "file":
        supervisor.publish(plan_of_folder(Path(unquote(parts.path))))
        return
    kept = read_plan(data.plan)
    if kept is not None:
        supervisor.publish(kept)
    loop = asyncio.get_running_loop()

    def on_plan(plan: Plan) -> None:
        with suppress(RuntimeError):  # the loop has closed: this process ends
            loop.call_soon_threadsafe(supervisor.publish, plan)

    follower = PlanFollower(registry, data.plan, kept, on_plan)
    follower.start()
    following.callback(follower.stop)
    await asyncio.to_thread(follower.contacted.wait, _FIRST_PLAN_TIMEOUT_S)


def _control(settings: Settings, data: DataDir, redis: str | None, port: int) -> ChildSpec:
    config = {
        "host": settings.host,
        "port": port,
        "data_dir": str(data.root),
        "drain_s": settings.drain_s,
    }
    return ChildSpec(
        "control",
        lambda _plan: python_command("server.control", config),
        environment=store_environment(redis),
    )


def _collector(data: DataDir) -> ChildSpec:
    config = {"data_dir": str(data.root), "socket": str(data.collector_socket)}
    return ChildSpec("collector", lambda _plan: python_command("server.collector", config))


def _rate_limits(settings: Settings) -> dict[str, int] | None:
    if settings.rate_limit == "off":
        return None
    return resource_counts(settings.rate_limit_resource)


def _worker_config(settings: Settings, room_bytes: int) -> dict[str, Any]:
    """Return what a worker is told of the settings; `room_bytes` is its share of the memory."""
    if settings.model_memory_mib is not None:
        room_bytes = int(settings.model_memory_mib * _MIB)
    return {
        "host": settings.host,
        "model_repository": settings.model_repository,
        "model_control_mode": settings.model_control_mode,
        "load_model": settings.load_model,
        "repository_poll_s": settings.repository_poll_s,
        "shared_memory": settings.shared_memory,
        "cache_bytes": cache_bytes(settings.cache_config) if settings.cache_config else None,
        "rate_limits": _rate_limits(settings),
        "strict_readiness": settings.strict_readiness,
        "exit_on_error": settings.exit_on_error,
        "run_timeout_s": settings.run_timeout_s,
        "model_memory_bytes": room_bytes,
        "replay_scope": settings.replay_scope,
        "drain_s": settings.drain_s,
        "unready_s": settings.unready_s,
        "transport": settings.transport,
        "metrics_host": _host(settings, "metrics_port"),
        "tls_cert": settings.tls_cert,
        "tls_key": settings.tls_key,
        "tls_client_ca": settings.tls_client_ca,
        "access": settings.access,
        "admin_only": settings.admin_only,
        "connection_age_s": _connection_age_s(settings),
        "log_requests": settings.log_requests,
        "trace_endpoint": settings.trace_endpoint,
        "trace_rate": settings.trace_rate,
    }


def _connection_age_s(settings: Settings) -> float:
    """Return after how long a client is asked to connect anew.

    With several workers, so that one that was started again gets its share of those that stay.
    """
    if settings.connection_age_s is not None:
        return settings.connection_age_s
    return _CONNECTION_AGE_S if settings.workers > 1 else 0.0
