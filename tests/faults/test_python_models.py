"""Python models that raise, hang, leak, exit or are killed: whom it costs what."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client

from headrace.errors import (
    DeadlineExceededError,
    HeadraceError,
    InternalError,
    UnavailableError,
)
from server.models.loaded import CalledModel
from tests.server.backends.serving import Served, config, outputs, processes_of, put_python
from tests.server.onnx_models import add_model, put
from tests.server.processes.running import alive, eventually, eventually_dead
from tests.server.serving import start_worker

pytestmark = pytest.mark.slow
WAIT_S = 30.0

# What it does is what its input says: -1 raises, -2 hangs, -3 exits, -4 takes memory; else it waits
# so many milliseconds.
WILD = """
kept = []

def execute(self, requests):
    found = []
    for request in requests:
        value = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().reshape(-1)[0])
        if value == -1:
            raise ValueError("it raises")
        while value == -2:
            pass
        if value == -3:
            os._exit(7)
        if value == -4:
            self.kept.append(np.ones(16 << 20, np.uint8))
        if value == -5:
            self.kept.append(np.ones(1 << 34, np.uint8))
        if value > 0:
            time.sleep(value / 1000)
        array = np.array([[os.getpid()]], np.int32)
        found.append(pb_utils.InferenceResponse([pb_utils.Tensor("PID", array)]))
    return found
"""


def settings(more: str = "", **parameters: object) -> str:
    """Batches of one, so that each request is a run of its own."""
    lines = [
        f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'
        for name, value in parameters.items()
    ]
    return config("IN:INT32:1", "PID:INT32:1", "\n".join([more, *lines]), batch=8)


def value(number: int) -> dict[str, Any]:
    return {"IN": np.array([[number]], np.int32)}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    opened = []

    def start(config: str, cores: int = 2) -> Served:
        put(tmp_path, "add", add_model())
        put_python(tmp_path, "wild", WILD, config)
        served = Served(tmp_path, cores=cores)
        opened.append(served)
        return served

    yield start
    for served in opened:
        served.__exit__()


def test_what_raises_costs_its_own_request_only(serve: Callable[..., Served]) -> None:
    served = serve(settings())
    (pid,) = processes_of(served, "wild")
    found = served.infers("wild", [value(0), value(-1), value(0), value(-1)])
    assert [isinstance(each, InternalError) for each in found] == [False, True, False, True]
    assert "ValueError: it raises" in found[1].message
    assert processes_of(served, "wild") == [pid]


@pytest.mark.parametrize("cores", [1, 2])
def test_what_ends_a_process_costs_none_of_those_that_wait_in_it(
    serve: Callable[..., Served], cores: int
) -> None:
    """Short runs are sent before the one before them is done; each is a run of its own."""
    served = serve(settings(), cores)
    pids = {int(served.infer("wild", **value(0))["PID"][0, 0]) for _ in range(20)}
    found = served.infers("wild", [value(each) for each in (0, 0, -3, 0, 0, -3, 0, 0, 0, 0)])
    assert [isinstance(each, UnavailableError) for each in found] == [
        each in (2, 5) for each in range(10)
    ]
    answered = [int(each["PID"][0, 0]) for each in found if isinstance(each, dict)]
    assert set(answered[:2]) == pids
    assert len(set(answered)) == 3
    assert answered[-1] not in pids


def test_those_that_wait_in_a_process_that_hangs_run_in_the_next(
    serve: Callable[..., Served],
) -> None:
    served = serve(settings(EXECUTE_SECONDS_MAX=0.5))
    for _ in range(20):
        served.infer("wild", **value(0))
    found = served.infers("wild", [value(each) for each in (0, -2, 0, 0, 0)])
    assert [isinstance(each, UnavailableError) for each in found] == [
        False, True, False, False, False,
    ]  # fmt: skip


def test_one_that_fills_under_load_is_started_anew_before_it_fails(
    serve: Callable[..., Served],
) -> None:
    served = serve(settings(MEMORY_BYTES_MAX=600 << 20))
    for _ in range(20):
        served.infer("wild", **value(0))
    found = []
    for _ in range(8):  # 16 MB each, while others wait all the time
        found += served.infers("wild", [value(each) for each in (-4, -4, -4, 1, -4, -4, -4, 1)])
        if len({int(each["PID"][0, 0]) for each in found if isinstance(each, dict)}) > 1:
            break
    assert [each for each in found if isinstance(each, HeadraceError)] == []
    assert len({int(each["PID"][0, 0]) for each in found}) > 1


def test_the_requests_of_a_batch_fail_together(serve: Callable[..., Served]) -> None:
    """As in Triton: a model that answers its requests one by one says which of them is wrong."""
    served = serve(settings("dynamic_batching {}"))
    found = served.infers("wild", [value(0), value(-1)])
    assert all(isinstance(each, InternalError) for each in found)
    assert served.infer("wild", **value(0))


@pytest.mark.parametrize("cores", [1, 2])
def test_one_that_hangs_keeps_no_caller_beyond_its_deadline_and_no_other_model(
    serve: Callable[..., Served], cores: int
) -> None:
    served = serve(settings(EXECUTE_SECONDS_MAX=2), cores)
    for _ in range(20):  # its runs are known to be short
        served.infer("wild", **value(0))
    (pid,) = processes_of(served, "wild")
    start_s = time.monotonic()
    hanging = served.start(served.answer("wild", value(-2)))
    with pytest.raises(DeadlineExceededError):
        served.run(served.answer("wild", value(-2), timeout_s=0.2))
    assert time.monotonic() - start_s < 2
    rows = np.ones((1, 4), np.int32)
    for _ in range(20):
        assert served.infer("add", INPUT0=rows, INPUT1=rows)["OUTPUT0"].tolist() == [[2] * 4]
    with pytest.raises(UnavailableError, match="took longer than 2 s"):
        hanging.result(WAIT_S)
    assert served.infer("wild", **value(0))["PID"] != pid
    assert not alive(pid)


def test_many_that_are_busy_leave_the_servers_threads_alone(serve: Callable[..., Served]) -> None:
    served = serve(settings("instance_group { count: 6 }"))
    busy = [served.start(served.answer("wild", value(1_500))) for _ in range(6)]
    served.run(served.repository.load("add"))  # it needs a thread
    assert not any(each.done() for each in busy)
    pids = {int(outputs(each.result(WAIT_S))["PID"][0, 0]) for each in busy}
    assert len(pids) == 6


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_one_that_ends_costs_what_was_in_it_and_is_started_again(
    serve: Callable[..., Served], how: str
) -> None:
    served = serve(settings("instance_group { count: 2 }"))
    first, second = processes_of(served, "wild")

    async def ask(number: int) -> int | HeadraceError:
        try:
            return int(outputs(await served.answer("wild", value(number)))["PID"][0, 0])
        except HeadraceError as error:
            return error

    async def load() -> list[int | HeadraceError]:
        asked = [asyncio.create_task(ask(20)) for _ in range(40)]
        await asyncio.sleep(0.1)
        if how == "kill":
            os.kill(first, signal.SIGKILL)
        else:
            asked.append(asyncio.create_task(ask(-3)))
        return list(await asyncio.gather(*asked))

    found = served.run(load())
    lost = [each for each in found if isinstance(each, HeadraceError)]
    assert [error.code for error in lost] == ["unavailable"]
    assert ("signal SIGKILL" if how == "kill" else "exit code 7") in lost[0].message
    eventually(
        lambda: len(processes_of(served, "wild")) == 2 and served.infer("wild", **value(0)),
        "both answer",
    )
    eventually(lambda: {first, second} != set(processes_of(served, "wild")), "one of them is new")
    assert all(map(alive, processes_of(served, "wild")))


def test_one_that_cannot_be_started_again_is_refused_at_once(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve(settings())
    (tmp_path / "wild" / "1" / "model.py").write_text("raise ValueError('broken meanwhile')")
    with pytest.raises(UnavailableError):
        served.infer("wild", **value(-3))
    eventually(lambda: isinstance(_tried(served), UnavailableError), "it is refused")
    assert "no process of model 'wild' is running" in served.error("wild", **value(0)).message
    assert not served.protocol.is_model_ready("wild")
    put_python(tmp_path, "wild", WILD)
    eventually(lambda: not isinstance(_tried(served), UnavailableError), "it is served again")
    assert served.protocol.is_model_ready("wild")


def _tried(served: Served) -> object:
    try:
        return served.run(served.answer("wild", value(0), timeout_s=0.5))
    except HeadraceError as error:
        return error


def test_one_that_leaks_is_started_anew_before_it_fails(serve: Callable[..., Served]) -> None:
    """Its requests go on: between two of them the full process makes room for a new one."""
    served = serve(settings(MEMORY_BYTES_MAX=400 << 20))
    pids = {int(served.infer("wild", **value(-4))["PID"][0, 0]) for _ in range(60)}
    assert len(pids) > 1
    assert sum(map(alive, pids)) == 1


def test_one_that_wants_too_much_at_once_fails_alone(serve: Callable[..., Served]) -> None:
    served = serve(settings(MEMORY_BYTES_MAX=400 << 20))
    (pid,) = processes_of(served, "wild")
    assert "MemoryError" in served.error("wild", **value(-5)).message
    assert int(served.infer("wild", **value(0))["PID"][0, 0]) == pid


def test_unloading_waits_for_who_is_there_and_ends_the_process(
    serve: Callable[..., Served],
) -> None:
    served = serve(settings())
    (pid,) = processes_of(served, "wild")
    running = served.start(served.answer("wild", value(300)))
    engine = served.repository.get("wild")._engine  # type: ignore[attr-defined]
    eventually(lambda: not engine.has_room, "it is busy")
    served.run(served.repository.unload("wild"))
    assert int(outputs(running.result(WAIT_S))["PID"][0, 0]) == pid
    assert eventually_dead(pid)


def test_one_that_does_not_finalize_is_ended(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(settings())
    body = WILD + "\ndef finalize(self):\n    time.sleep(1000)\n"
    put_python(tmp_path, "stuck", body, settings(FINALIZE_SECONDS_MAX=0.3))
    served.run(served.repository.load("stuck"))
    (pid,) = processes_of(served, "stuck")
    model = served.repository.get("stuck")
    assert isinstance(model, CalledModel)
    served.run(served.repository.unload("stuck"))
    served.run(model.closed())
    assert not alive(pid)


def test_a_worker_that_is_killed_leaves_no_process_and_no_memory(tmp_path: Path) -> None:
    root = tmp_path / "models"
    put_python(root, "wild", WILD, settings("instance_group { count: 2 }"))
    before = set(Path("/dev/shm").iterdir())
    with start_worker(tmp_path / "data", model_repository=str(root)) as worker:
        ready = worker.event("ready")
        client = grpc_client.InferenceServerClient(ready["grpc"])
        pids = set()

        def ask(number: int) -> None:
            tensor = grpc_client.InferInput("IN", [1, 1], "INT32")
            tensor.set_data_from_numpy(np.array([[number]], np.int32))
            pids.add(int(client.infer("wild", [tensor]).as_numpy("PID")[0, 0]))

        eventually(lambda: ask(1) or len(pids) == 2, "both have answered")
        tensor = grpc_client.InferInput("IN", [1, 1], "INT32")
        tensor.set_data_from_numpy(np.array([[-2]], np.int32))
        client.async_infer("wild", [tensor], callback=lambda **_: None)  # one hangs in its run
        eventually(lambda: _spins(pids), "one hangs")
        os.kill(worker.process.pid, signal.SIGKILL)
        assert all(map(eventually_dead, pids))
        client.close()
    assert set(Path("/dev/shm").iterdir()) <= before


def _spins(pids: set[int]) -> bool:
    def ticks(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])

    first = {pid: ticks(pid) for pid in pids}
    time.sleep(0.1)
    return any(ticks(pid) - first[pid] > 2 for pid in pids)


def test_a_drained_worker_lets_its_models_finalize(tmp_path: Path) -> None:
    root = tmp_path / "models"
    marker = tmp_path / "finalized"
    body = WILD + f"\ndef finalize(self):\n    open({json.dumps(str(marker))}, 'w').close()\n"
    put_python(root, "wild", body, settings())
    with start_worker(tmp_path / "data", model_repository=str(root)) as worker:
        worker.event("ready")
        assert worker.end() == 0
    assert marker.exists()
