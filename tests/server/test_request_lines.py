"""What the log says of requests: a line for each where that is asked for, and whose a fault was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.server.onnx_models import info, model_bytes, put
from tests.server.processes.running import Running, eventually
from tests.server.test_reload import serving, workers

pytestmark = pytest.mark.slow
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HEADERS = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-00"}


def pick_model() -> bytes:
    """y = [10, 20, 30, 40][index]: an index beyond is a fault of the run."""
    table = helper.make_node(
        "Constant", [], ["table"],
        value=helper.make_tensor("t", TensorProto.FLOAT, [4], [10.0, 20.0, 30.0, 40.0]),
    )  # fmt: skip
    graph = helper.make_graph(
        [table, helper.make_node("Gather", ["table", "index"], ["y"])],
        "pick",
        [info("index", TensorProto.INT64, ["batch", 1])],
        [info("y", TensorProto.FLOAT, ["batch", 1])],
    )
    return model_bytes(graph)


def lines_of(process: Running) -> list[dict[str, Any]]:
    while not process.stderr.empty():
        process.seen.append(process.stderr.get_nowait())
    return [json.loads(line) for line in process.seen if not line.startswith('{"event"')]


def eventually_line(process: Running, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found[:] = [line for line in lines_of(process) if fits(line)]
        return bool(found)

    eventually(look, "there is such a line")
    return found[-1]


def ask_grpc(stub: Any, index: int, request_id: str, headers: dict[str, str]) -> None:
    request = pb.ModelInferRequest(model_name="pick", id=request_id)
    request.inputs.add(name="index", datatype="INT64", shape=[1, 1])
    request.raw_input_contents.append(np.int64(index).tobytes())
    stub.ModelInfer(request, metadata=tuple(headers.items()), timeout=20)


def ask_rest(client: Any, index: int, request_id: str, headers: dict[str, str]) -> None:
    tensor = triton_http.InferInput("index", [1, 1], "INT64")
    tensor.set_data_from_numpy(np.array([[index]], np.int64))
    client.infer("pick", [tensor], request_id=request_id, headers=headers)


@contextlib.contextmanager
def asking(line: dict[str, str], name: str) -> Iterator[Callable[..., None]]:
    if name == "grpc":
        with grpc.insecure_channel(line["grpc"]) as channel:
            yield partial(ask_grpc, GRPCInferenceServiceStub(channel))  # type: ignore[no-untyped-call]
    else:
        with triton_http.InferenceServerClient(line["http"]) as client:
            yield partial(ask_rest, client)


def test_every_process_writes_json_and_every_request_has_its_line(tmp_path: Path) -> None:
    put(tmp_path / "models", "pick", pick_model())
    arguments = ("--log-format", "json", "--log-requests")
    with serving(tmp_path / "models", tmp_path / "data", *arguments) as (process, line):
        for name in ("grpc", "http"):
            with asking(line, name) as ask:
                for number in range(4):  # by gRPC from the second on they go through the door
                    ask(1, f"{name}-{number}", HEADERS)
                with pytest.raises(Exception, match="the model failed on this input"):
                    ask(99, f"{name}-bad", HEADERS)
        for name in ("grpc", "http"):
            for number in range(4):
                said = eventually_line(process, lambda s: s.get("request_id") == f"{name}-{number}")  # noqa: B023
                assert said.pop("role").startswith("worker-")
                assert said.pop("total_us") >= said.pop("queue_us") + said.pop("compute_us") > 0
                said.pop("time")
                assert said == {
                    "level": "INFO", "message": "ModelInfer", "request_id": f"{name}-{number}",
                    "model": "pick", "version": "1", "trace_id": TRACE, "status": "OK",
                }  # fmt: skip
            cause = eventually_line(
                process,
                lambda s: s["level"] == "ERROR" and s.get("request_id") == f"{name}-bad",  # noqa: B023
            )
            assert cause["message"].startswith("model pick: ")
            assert (cause["model"], cause["version"], cause["trace_id"]) == ("pick", "1", TRACE)
            failed = eventually_line(
                process,
                lambda s: s["level"] == "INFO" and s.get("request_id") == f"{name}-bad",  # noqa: B023
            )
            assert failed["status"] == "INTERNAL"
            assert "the model failed on this input" in failed["error"]
        assert process.end() == 0
    roles = {line["role"] for line in lines_of(process)}
    assert roles >= {"supervisor", "worker-0", "worker-1"}


def test_without_it_no_request_makes_a_line_and_a_fault_says_whose_it_is(tmp_path: Path) -> None:
    put(tmp_path / "models", "pick", pick_model())
    with serving(tmp_path / "models", tmp_path / "data") as (process, line):
        with asking(line, "grpc") as ask:
            for number in range(3):
                ask(1, f"good-{number}", {})
            with pytest.raises(grpc.RpcError):
                ask(99, "a\nforged line", {})
        process.line("ERROR model pick: .*request_id=a.nforged line")
        assert process.end() == 0
    assert "good-" not in process.text
    assert not [line for line in process.seen if line.startswith("forged")]


def test_the_lines_of_all_workers_are_switched(tmp_path: Path) -> None:
    put(tmp_path / "models", "pick", pick_model())
    with serving(tmp_path / "models", tmp_path / "data") as (process, line):

        def states() -> set[bool]:
            found = set()
            for _ in range(4):  # new connections alternate between the workers
                with urllib.request.urlopen(f"http://{line['http']}/v2/logging", timeout=5) as got:
                    found.add(json.loads(got.read())["log_info"])
            return found

        with triton.InferenceServerClient(line["grpc"]) as client:
            assert "logging" in client.get_server_metadata().extensions
            settings = client.get_log_settings(as_json=True)["settings"]
            assert settings["log_info"] == {"bool_param": True}
            client.update_log_settings({"log_info": False, "log_error": None})
            with pytest.raises(triton.InferenceServerException, match="log file location"):
                client.update_log_settings({"log_file": "x"})
        eventually(lambda: states() == {False}, "every worker has switched")
        os.kill(workers(tmp_path / "data")["worker-1"], signal.SIGKILL)
        process.line("starting it again")
        process.line("worker-1 is ready")
        assert states() == {False}, "its successor, too"
        with triton_http.InferenceServerClient(line["http"]) as client:
            changed = client.update_log_settings({"log_info": True, "log_verbose_level": 1})
            assert changed["log_info"] is True
            assert client.get_log_settings() == changed
        eventually(lambda: states() == {True}, "every worker has switched back")
        assert process.end() == 0
