"""ModelInfer cut wherever it can be: in its queue, in its run, at its answer; by both ways in.

A real model on a real port. Its runs go to an executor that runs them when the test says so, which
holds a call at each stage for as long as the cut takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from server.execution.batcher import Batcher
from server.execution.threads import RunThreads
from server.grpc_port import GrpcPort
from server.models.repository import ModelRepository
from server.protocol.oip import InferenceProtocol
from server.protocol.oip_grpc import MODEL_INFER
from server.wire.grpc.connection import GrpcConnection
from server.wire.grpc.server import GrpcServer
from tests.server.onnx_models import mlp_model, put
from tests.server.protocol.infer_worlds import Released, rows_of
from tests.support.attacker import fields_for, message
from tests.support.await_points import AwaitPoints
from tests.support.frame_factory import FrameFactory, Pair
from tests.support.raw_client import RawClient, holds_nothing, server_tasks, until

_CANCEL = 8
_INITIAL_WINDOW_SIZE = 4
_LONG_NS = 50_000_000  # a run that is expected to take so long leaves the event loop
_POINTS_MAX = 50


class HeldExecutor(RunThreads):
    """Runs what it is given when `run_all` is called."""

    def __init__(self) -> None:
        super().__init__(1, 2)
        self.held: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.held.append((future, lambda: work(*args, **kwargs)))
        return future

    def run_all(self) -> None:
        while self.held:
            future, work = self.held.popleft()
            if future.set_running_or_notify_cancel():
                future.set_result(work())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    put(root, "mlp", mlp_model(), config="max_batch_size: 8")
    return root


class Port:
    """A gRPC port with one model."""

    def __init__(self, repository: ModelRepository, executor: HeldExecutor) -> None:
        self.repository = repository
        self.executor = executor
        self.port = GrpcPort(InferenceProtocol(repository, Released(), lambda: True), {})
        server = self.port._own
        assert server is not None
        self.server: GrpcServer = server
        self._tasks_before = asyncio.all_tasks()

    @classmethod
    async def start(cls, folder: Path, *, learnt: bool) -> Port:
        """`learnt`: its door knows the form of our requests."""
        executor = HeldExecutor()
        with RunThreads(1, 1) as loader:
            repository = ModelRepository(folder, loader)
            await repository.load_all()
        found = cls(repository, executor)
        found.batcher._threads = executor
        await found.port.start("127.0.0.1", 0)
        if learnt:
            teacher = await RawClient.open(found.server.port)
            ask(teacher, 1)
            assert (await teacher.answer(1)).status == 0
            await teacher.close()
            await until(lambda: not found.server.connections, "the teacher is gone")
        found.runs_are(_LONG_NS)
        return found

    @property
    def batcher(self) -> Batcher:
        return self.repository.get("mlp").batcher

    def runs_are(self, run_ns: int) -> None:
        """Let the model expect runs of this time."""
        for rows in range(1, 9):
            for _ in range(50):
                self.batcher.expect(rows, run_ns)

    async def leaves_nothing(self, where: str) -> None:
        """Let what is held run; then end the server."""
        server, batcher = self.server, self.batcher

        def is_quiet() -> bool:
            self.executor.run_all()
            return holds_nothing(server) and batcher.waiting == 0 and not batcher.running

        await until(is_quiet, f"nothing is held, {where}: {server.calls.live} calls live")
        assert not batcher._lots
        await self.port.drain(0)
        await until(lambda: not server_tasks(), f"no task of the server's, {where}")
        await until(lambda: server.listener.open_connections == 0, f"no connection, {where}")
        left = asyncio.all_tasks() - self._tasks_before
        await until(lambda: all(task.done() for task in left), f"no task is left of {left}")
        statistics = self.repository.get("mlp").statistics
        assert not server.abuse
        assert server.calls.started == server.calls.ended.total()
        assert statistics.success.count + statistics.fail.count <= server.calls.started


def ask(client: RawClient, stream_id: int, *more: Pair, whole: bool = True) -> None:
    """Send a ModelInfer of one row; all but its last byte with `whole=False`."""
    head = [
        (name, MODEL_INFER.encode() if name == b":path" else value)
        for name, value in fields_for("Method", *more)
    ]
    framed = message(rows_of(1))
    client.send(client.factory.headers(stream_id, head))
    if whole:
        client.send(client.factory.data(stream_id, framed, end_stream=True))
    else:
        client.send(client.factory.data(stream_id, framed[:-1]))


def is_answered(messages: list[bytes]) -> bool:
    reply = pb.ModelInferResponse.FromString(messages[0])
    return np.frombuffer(reply.raw_output_contents[0], np.float32).shape == (1,)


# Cuts.


def reset(port: Port, connection: GrpcConnection) -> None:
    connection.data_received(FrameFactory().rst_stream(1, _CANCEL))


def lose(port: Port, connection: GrpcConnection) -> None:
    connection.abort()


def expire(port: Port, connection: GrpcConnection) -> None:
    """Its timer fires, if it has one: the door's calls have none."""
    for call in list(connection.calls.values()):
        call._expire()


_DRAINS: set[asyncio.Task[None]] = set()


def drain(port: Port, connection: GrpcConnection) -> None:
    task = asyncio.get_running_loop().create_task(port.port.drain(0))
    _DRAINS.add(task)
    task.add_done_callback(_DRAINS.discard)


CUTS = {"reset": reset, "lost": lose, "deadline": expire, "drain": drain}


@contextlib.asynccontextmanager
async def opened(port: Port, window: int = 65_535) -> Any:
    """A client and the server's side of its connection."""
    known = set(port.server.connections)
    client = await RawClient.open(port.server.port, {_INITIAL_WINDOW_SIZE: window})
    await client.wait_for(4, flags=1)
    (connection,) = set(port.server.connections) - known
    try:
        yield client, connection
    finally:
        await client.close()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("learnt", [False, True], ids=["general", "door"])
@pytest.mark.parametrize("stage", ["running", "waiting", "window", "half"])
async def test_an_infer_cut_at_any_stage_leaves_nothing(
    folder: Path, stage: str, learnt: bool, cut: str
) -> None:
    port = await Port.start(folder, learnt=learnt)
    async with opened(port) as (other, _), opened(port, 0 if stage == "window" else 65_535) as both:
        client, connection = both
        if stage == "waiting":  # behind a run of somebody else's
            ask(other, 1)
            await until(lambda: port.executor.held, "the other's run is held")
        ask(client, 1, whole=stage != "half")
        if stage == "running":
            await until(lambda: port.executor.held, "its run is held")
            assert bool(connection.calls) is not learnt  # the door makes no call of it
        elif stage == "waiting":
            await until(lambda: port.batcher.waiting == 1, "it waits")
        elif stage == "window":
            await until(lambda: port.executor.held, "its run is held")
            port.executor.run_all()
            await until(lambda: connection.core.pending_bytes, "its answer waits for a window")
        else:
            await until(lambda: connection.core.streams, "half of it is there")
        CUTS[cut](port, connection)
        port.executor.run_all()
        if stage == "waiting" and cut != "drain":
            # Who came before it has an answer.
            assert is_answered((await answer(port, other, 1)).messages)
        if cut != "drain":
            again = client if cut == "reset" else other
            again.send(again.factory.settings({_INITIAL_WINDOW_SIZE: 65_535}))
            ask(again, 3)
            assert is_answered((await answer(port, again, 3)).messages)
        await client.close()
        await other.close()
    await until(lambda: port.executor.run_all() or not _DRAINS, "drains have ended")
    await port.leaves_nothing(f"{cut} at {stage}")


@pytest.mark.parametrize("learnt", [False, True], ids=["general", "door"])
async def test_a_deadline_that_passes_in_the_queue_ends_the_call_unrun(
    folder: Path, learnt: bool
) -> None:
    port = await Port.start(folder, learnt=learnt)
    statistics = port.repository.get("mlp").statistics
    before = statistics.execution_count
    async with opened(port) as (other, _), opened(port) as (client, _connection):
        ask(other, 1)
        await until(lambda: port.executor.held, "the other's run is held")
        # Long enough to be let in behind that run, as far as anybody knows.
        ask(client, 1, (b"grpc-timeout", b"200m"))
        began_s = time.monotonic()
        await until(lambda: time.monotonic() > began_s + 0.25, "its time is over")
        assert (await answer(port, client, 1)).status == 4
        assert is_answered((await answer(port, other, 1)).messages)
        assert statistics.execution_count == before + 1
    await port.leaves_nothing("deadline in the queue")


async def answer(port: Port, client: RawClient, stream_id: int) -> Any:
    """Wait for an answer; what is held runs meanwhile."""
    answering = asyncio.ensure_future(client.answer(stream_id))
    await until(lambda: port.executor.run_all() or answering.done(), "an answer")
    return answering.result()


def is_of_a_call(code: CodeType) -> bool:
    return code.co_qualname == "Call._run"


@pytest.mark.parametrize("cut", CUTS)
async def test_the_general_way_cut_at_any_await_point_leaves_nothing(
    folder: Path, cut: str
) -> None:
    for point in count(1):
        assert point < _POINTS_MAX
        port = await Port.start(folder, learnt=False)
        async with opened(port) as (client, connection):

            def act(port: Port = port, connection: GrpcConnection = connection) -> None:
                CUTS[cut](port, connection)

            with AwaitPoints(is_of_a_call, point, act) as points:
                ask(client, 1)
                answering = asyncio.ensure_future(client.answer(1))
                ended = points.was_cut.is_set
                await until(lambda: ended() or port.executor.held, "it is held or cut")  # noqa: B023
                port.executor.run_all()
                await until(lambda: ended() or answering.done(), "it is answered or cut")  # noqa: B023
            answering.cancel()
            with contextlib.suppress(asyncio.CancelledError, AssertionError, ConnectionError):
                await answering
        await until(lambda: not _DRAINS, "drains have ended")
        await port.leaves_nothing(f"{cut} at {points.names[-1:]}")
        if len(points.names) < point:
            assert point > 1
            return
