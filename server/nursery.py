"""The nursery: `python -m server.nursery '{"module": "server.worker"}'`.

It imports all that a worker needs, once, and then makes workers by forking: they share its pages,
and compile nothing. It serves nobody, and runs no thread, for a fork copies the locks of threads
but not the threads that would open them again. Requests come on the socket that is its stdin, as
`processes.nursery` sends them; where the supervisor is gone the socket ends, and so does the
nursery.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import json
import logging
import os
import random
import secrets
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from server import logs
from server.processes.ports import inheritance

_LOG = logging.getLogger("headrace")
_REQUEST_BYTES_MAX = 256 * 1024
_DESCRIPTORS_MAX = 64
_NAME_BYTES_MAX = 15  # what the kernel keeps of a process's name
_PR_SET_NAME = 15
# What a worker would import only when it needs it, each for itself.
_IMPORTED_LATE = (
    "encodings.idna",
    "features.windows.engine",
    "server.execution.trees.evaluator",
    "server.explain.tree_shap",
    "server.models.sequence_config",
)

Main = Callable[[], int]


class NurseryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON in argv[1]. `module` has the `main` of a worker; `windows`: it answers windows."""

    module: str
    windows: bool = False


class ForkRequest(msgspec.Struct, frozen=True):
    """One worker to make: its `argv[1:]`, and what its environment has besides the nursery's.

    Descriptors come with it: its stdin, its stdout, and one for each name of `sockets`.
    """

    id: int
    role: str
    arguments: list[str]
    environment: dict[str, str]
    sockets: list[str] = []


def main() -> int:
    """Make workers until the supervisor is gone; 1 when none can be made here."""
    logs.setup("nursery")
    config = msgspec.json.decode(sys.argv[1], type=NurseryConfig)
    try:
        worker_main: Main = importlib.import_module(config.module).main
        for module in _IMPORTED_LATE:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Without a nursery a worker would miss it, too.
        _LOG.exception("a worker needs %s; `headrace doctor` says what to install", error.name)
        return 1
    if config.windows:
        _load_feature_kernels()
    threads = _thread_names()
    if len(threads) > 1:
        _LOG.error(
            "%d threads run in the nursery, and would be missing in every worker: %s; "
            "start with --no-nursery, or find who starts them",
            len(threads), ", ".join(threads),
        )  # fmt: skip
        return 1
    # A collection in a worker would write to every object, and so copy all that is shared.
    gc.collect()
    gc.freeze()
    sys.stdout.write(json.dumps({"event": "ready", "pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    _make_workers(socket.socket(fileno=0), worker_main)
    return 0


def _make_workers(link: socket.socket, worker_main: Main) -> None:
    while True:
        data, descriptors, _, _ = socket.recv_fds(link, _REQUEST_BYTES_MAX, _DESCRIPTORS_MAX)
        if not data:
            return
        request = msgspec.json.decode(data, type=ForkRequest)
        reply: dict[str, Any] = {"id": request.id}
        try:
            reply["pid"] = _fork(request, descriptors, link, worker_main)
        except OSError as error:
            reply["error"] = error.strerror
        for descriptor in descriptors:
            os.close(descriptor)
        try:
            link.send(msgspec.json.encode(reply))
        except OSError:
            return  # the supervisor is gone; the worker was never told to go on, and ends


def _fork(
    request: ForkRequest, descriptors: list[int], link: socket.socket, worker_main: Main
) -> int:
    """Make a worker and return its pid; its parent is the supervisor.

    The nursery's own child ends at once, and its child falls to the nearest process that takes
    orphans in: the supervisor (`processes.nursery`), which so learns of its end from the kernel.
    """
    read_end, write_end = os.pipe()
    try:
        go_between = os.fork()
        if go_between == 0:
            status = 1
            try:
                pid = os.fork()
                if pid == 0:
                    link.detach()
                    _become(request, descriptors, (read_end, write_end), worker_main)
                os.write(write_end, pid.to_bytes(4, "little"))
                status = 0
            finally:
                os._exit(status)
        os.waitpid(go_between, 0)
        os.set_blocking(read_end, False)
        try:
            return int.from_bytes(os.read(read_end, 4), "little")
        except BlockingIOError:
            raise OSError(errno.EAGAIN, "no process could be made") from None
    finally:
        os.close(read_end)
        os.close(write_end)


def _become(
    request: ForkRequest, descriptors: list[int], unwanted: tuple[int, ...], worker_main: Main
) -> NoReturn:
    """Be the worker, as if it had been started by its command. Never returns."""
    code = 1
    try:
        os.setsid()
        pipes, sockets = descriptors[:2], descriptors[2:]
        for descriptor, place in zip(pipes, (0, 1), strict=True):
            os.dup2(descriptor, place)
        for descriptor in (*pipes, *unwanted):
            os.close(descriptor)
        # Whoever asked for this worker must have heard of it before it serves: a worker outlives
        # the supervisor, and one that is in nobody's record would never be ended.
        if os.read(0, 1) != b"\n":
            os._exit(0)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for life
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.argv[1:] = request.arguments
        os.environ.update(request.environment | inheritance(request.sockets, sockets))
        _name_process(request.role)
        _draw_new_seeds()
        code = worker_main()
    except BaseException:  # noqa: BLE001 - the end of this process, whatever it was
        traceback.print_exc()
    finally:
        os._exit(code)


def _draw_new_seeds() -> None:
    """Let no two workers draw the same numbers. The system's own source needs nothing."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(secrets.randbits(32))


def _name_process(role: str) -> None:
    """Show the role in `ps` and `top`: the command line is the nursery's."""
    name = role.encode()[:_NAME_BYTES_MAX]
    ctypes.CDLL(None).prctl(_PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)


def _load_feature_kernels() -> None:
    """Compile (or load from the cache) what reads rows: all views share the compiled code."""
    import features.last_known  # noqa: F401 - compiled where it is imported
    from features import Aggregation, Entity, EventSource, Field, Int64, StreamFeatureView, Window
    from features.windows.engine import WindowEngine

    source = EventSource("warm", [Field("id", Int64), Field("value", Int64)])
    windows = [Window("1h", "1min")]
    view = StreamFeatureView(
        "warm", Entity("warm", ["id"]), source, [Aggregation("value", ["sum"], windows)]
    )
    WindowEngine(view).warm_up_query()


def _thread_names() -> list[str]:
    """Return the name of each thread of this process, those of libraries too."""
    tasks = Path("/proc/self/task").iterdir()
    return sorted((task / "comm").read_text(encoding="utf-8").strip() for task in tasks)


if __name__ == "__main__":
    sys.exit(main())
