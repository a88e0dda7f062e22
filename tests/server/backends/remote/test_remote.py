"""Models of another server: a gRPC one that errs as it is told, and a real worker that dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from headrace.errors import (
    DeadlineExceededError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from server.models.loading import Overrides
from tests.server.backends.serving import Served, outputs
from tests.server.onnx_models import add_model, put
from tests.server.processes.running import Running, eventually
from tests.server.test_serve import children, ready, serve
from tests.support.tls import Certificates
from tests.support.valkey import free_port

ROW = {name: np.array([[1, 2, 3, 4]], np.int32) for name in ("INPUT0", "INPUT1")}
CONFIG = """
backend: "remote"
parameters {{ key: "URL" value {{ string_value: "{address}" }} }}
parameters {{ key: "MODEL" value {{ string_value: "add" }} }}
"""


def parameter(name: str, value: object) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


def put_remote(root: Path, name: str, address: str, more: str = "") -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(CONFIG.format(address=address) + more)


def put_certificates(folder: Path, made: Certificates, client: str | None) -> str:
    """Put them beside a model's versions, and return the parameters that name them."""
    (folder / "tls").mkdir(parents=True)
    (folder / "tls" / "ca.pem").write_bytes(made.cert("ca").read_bytes())
    more = parameter("TLS_CA", "ca.pem")
    if client is not None:
        (folder / "tls" / "c.pem").write_bytes(made.cert(client).read_bytes())
        (folder / "tls" / "c.key").write_bytes(made.key(client).read_bytes())
        more += parameter("TLS_CERTIFICATE", "c.pem") + parameter("TLS_KEY", "c.key")
    return more


class Erring:
    """A server whose model doubles `x` FP32 [-1, 2]; `status` says what it does instead."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.statuses: list[grpc.StatusCode] = []
        self.answer: Callable[[Any], Any] = self.doubled
        self.cancelled = asyncio.Event()
        self.left_s: float | None = None

    @staticmethod
    def doubled(request: Any) -> Any:
        found = service_pb2.ModelInferResponse(model_name="add", model_version="1")
        values = np.frombuffer(request.raw_input_contents[0], np.float32) * 2
        found.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
        found.raw_output_contents.append(values.tobytes())
        return found

    async def infer(self, data: bytes, context: Any) -> bytes:
        request = service_pb2.ModelInferRequest.FromString(data)
        self.requests.append(request)
        self.left_s = context.time_remaining()
        if self.statuses:
            await context.abort(self.statuses.pop(0), "so I was told")
        if request.id == "hang":
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return bytes(self.answer(request).SerializeToString())

    async def metadata(self, data: bytes, context: Any) -> bytes:
        found = service_pb2.ModelMetadataResponse(name="add", versions=["1"])
        found.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
        found.outputs.add(name="y", datatype="FP32", shape=[-1, 2])
        return bytes(found.SerializeToString())

    async def start(self, credentials: Any = None) -> str:
        self.server = grpc.aio.server()
        methods = {"ModelInfer": self.infer, "ModelMetadata": self.metadata}
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
        }
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)
        self.server.add_generic_rpc_handlers((service,))
        if credentials is None:
            port = self.server.add_insecure_port("127.0.0.1:0")
        else:
            port = self.server.add_secure_port("127.0.0.1:0", credentials)
        await self.server.start()
        return f"127.0.0.1:{port}"


class Pair:
    """Our server, and the erring one, in one loop."""

    def __init__(self, root: Path, more: str = "") -> None:
        root.mkdir(exist_ok=True)
        self.served = Served(root, [])
        self.other = Erring()
        address = self.served.run(self.other.start())
        put_remote(root, "remote", address, more)
        self.served.run(self.served.repository.load("remote"))

    def ask(self, **more: Any) -> Any:
        row = {"x": np.array([[1.0, 2.0]], np.float32)}
        return outputs(self.served.run(self.served.answer("remote", row, **more)))["y"].tolist()


@contextmanager
def pair(root: Path, more: str = "") -> Iterator[Pair]:
    found = Pair(root, more)
    with found.served:
        try:
            yield found
        finally:
            found.served.run(found.other.server.stop(0))


def test_a_request_goes_on_as_it_came(tmp_path: Path) -> None:
    with pair(tmp_path, "max_batch_size: 4\n") as both:
        assert both.ask(request_id="seven", parameters={"a": 1, "b": "c"}, timeout_s=5) == [[2, 4]]
        (request,) = both.other.requests
        assert (request.model_name, request.id) == ("add", "seven")
        assert request.parameters["a"].int64_param == 1
        assert request.parameters["b"].string_param == "c"
        assert both.other.left_s is not None
        assert 1 < both.other.left_s < 6  # gRPC rounds it up
        model = both.served.repository.get("remote")
        assert (model.max_batch_size, model.config.backend) == (4, "remote")
        assert model.statistics.execution_count == 1
        large = {"x": np.ones((4, 2), np.float32)}
        assert both.served.infer("remote", **large)["y"].shape == (4, 2)


def test_what_did_not_arrive_is_sent_again_but_not_of_a_sequence(tmp_path: Path) -> None:
    unavailable = grpc.StatusCode.UNAVAILABLE
    with pair(tmp_path) as both:
        both.other.statuses = [unavailable] * 2
        assert both.ask() == [[2, 4]]
        assert len(both.other.requests) == 3
        both.other.statuses = [unavailable] * 3
        with pytest.raises(UnavailableError, match="does not answer"):
            both.ask()
        assert both.other.statuses == []
        both.other.statuses = [grpc.StatusCode.INVALID_ARGUMENT]
        with pytest.raises(InvalidArgumentError, match="so I was told"):
            both.ask()
        both.other.statuses = [grpc.StatusCode.INTERNAL]
        with pytest.raises(InternalError, match="the remote server failed"):
            both.ask()
        both.other.statuses = [unavailable]
        with pytest.raises(UnavailableError):
            both.ask(parameters={"sequence_id": 5})
        both.other.requests.clear()
        both.other.statuses = [unavailable] * 3
        with pytest.raises(HeadraceError):  # no time for a second attempt
            both.ask(timeout_s=0.009)
        assert len(both.other.requests) <= 1


def test_the_breaker_opens_and_a_probe_closes_it(tmp_path: Path) -> None:
    more = parameter("FAILURES_MAX", 2) + parameter("RETRIES_MAX", 0)
    more += parameter("OPEN_SECONDS", 0.3)
    with pair(tmp_path, more) as both:
        model = both.served.repository.get("remote")
        both.other.statuses = [grpc.StatusCode.UNAVAILABLE] * 2
        for _ in range(2):
            with pytest.raises(UnavailableError, match="does not answer"):
                both.ask()
        with pytest.raises(UnavailableError, match="left alone") as caught:
            both.ask()
        assert caught.value.retry_after_s is not None
        assert not model.ready
        assert len(both.other.requests) == 2
        eventually(lambda: model.ready, "the breaker lets a probe through")
        assert both.ask() == [[2, 4]]
        assert both.ask() == [[2, 4]]


def test_a_caller_who_leaves_or_is_late_ends_the_remote_call(tmp_path: Path) -> None:
    with pair(tmp_path, parameter("FAILURES_MAX", 1)) as both:
        with pytest.raises(DeadlineExceededError):
            both.ask(request_id="hang", timeout_s=0.2)
        both.served.run(asyncio.wait_for(both.other.cancelled.wait(), 10))
        both.other.cancelled.clear()
        seen = len(both.other.requests)
        row = {"x": np.ones((1, 2), np.float32)}
        running = both.served.start(both.served.answer("remote", row, request_id="hang"))
        eventually(lambda: len(both.other.requests) > seen, "the request has arrived")
        running.cancel()
        both.served.run(asyncio.wait_for(both.other.cancelled.wait(), 10))
        assert both.ask() == [[2, 4]]  # neither was the remote server's fault


def test_a_limit_of_our_own_counts_against_the_remote_server(tmp_path: Path) -> None:
    more = parameter("FAILURES_MAX", 1) + parameter("TIMEOUT_SECONDS_MAX", 0.2)
    with pair(tmp_path, more) as both:
        with pytest.raises(DeadlineExceededError):
            both.ask(request_id="hang")
        with pytest.raises(UnavailableError, match="left alone"):
            both.ask()


@pytest.mark.parametrize("wrong", ["name", "datatype", "shape", "content", "nothing"])
def test_a_reply_that_does_not_fit_harms_its_own_request_only(tmp_path: Path, wrong: str) -> None:
    def answer(request: Any) -> Any:
        found = Erring.doubled(request)
        if wrong == "name":
            found.outputs[0].name = "z"
        elif wrong == "datatype":
            found.outputs[0].datatype = "INT32"
        elif wrong == "shape":
            found.outputs[0].shape[1] = 3
        elif wrong == "content":
            found.raw_output_contents[0] = b"123"
        else:
            found.Clear()
        return found

    with pair(tmp_path) as both:
        both.other.answer = answer
        with pytest.raises(InternalError, match="does not fit its signature"):
            both.ask()
        both.other.answer = Erring.doubled
        assert both.ask() == [[2, 4]]


def test_contents_that_are_not_raw(tmp_path: Path) -> None:
    def answer(request: Any) -> Any:
        found = Erring.doubled(request)
        found.outputs[0].contents.fp32_contents.extend([7, 8])
        del found.raw_output_contents[:]
        return found

    with pair(tmp_path) as both:
        both.other.answer = answer
        assert both.ask() == [[7, 8]]


def test_configurations_that_are_wrong(tmp_path: Path) -> None:
    cases = {
        "url": ("remote", "", "expected host:port"),
        "other": ("127.0.0.1:1", parameter("NAME", "x"), "a parameter is unknown"),
        "pool": ("127.0.0.1:1", parameter("POOL_SIZE", 0), "whole number from 1 to 1024"),
        "time": ("127.0.0.1:1", parameter("OPEN_SECONDS", "nan"), "seconds from 0.001"),
        "tls": ("127.0.0.1:1", parameter("TLS_CA", "../../key"), "is not there"),
        "half": ("127.0.0.1:1", parameter("TLS_KEY", "key.pem"), "TLS is said in part"),
        "batch": ("127.0.0.1:1", "dynamic_batching { }\n", "scheduled by its own server"),
        "down": ("127.0.0.1:1", "", "does not answer"),
    }
    for name, (address, more, _) in cases.items():
        put_remote(tmp_path, name, address, more)
    with Served(tmp_path) as served:
        for name, (_, _, reason) in cases.items():
            assert reason in served.reason(name), (name, served.reason(name))


@pytest.mark.slow
def test_certificates_of_both_sides(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    made = Certificates(tmp_path / "made")
    pair_of = [(made.key("server").read_bytes(), made.cert("server").read_bytes())]
    asks = grpc.ssl_server_credentials(pair_of, made.cert("clients-ca").read_bytes(), True)
    root = tmp_path / "models"
    root.mkdir()
    with Served(root, []) as served:
        other = Erring()
        address = served.run(other.start(asks))
        for name, client in (("known", "client"), ("stranger", "stranger"), ("nobody", None)):
            put_remote(root, name, address, put_certificates(root / name, made, client))
        served.run(served.repository.load("known"))
        answer = served.infer("known", x=np.ones((1, 2), np.float32))
        assert answer["y"].tolist() == [[2, 2]]
        for name in ("stranger", "nobody"):
            with pytest.raises(HeadraceError, match="does not answer"):
                served.run(served.repository.load(name))
        served.run(other.server.stop(0))


def test_tensors_that_are_configured_are_compared(tmp_path: Path) -> None:
    more = 'input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }\nmax_batch_size: 4\n'
    with pytest.raises(HeadraceError, match=r"expected x TYPE_FP32 \[2\], got x TYPE_FP32 \[3\]"):
        Pair(tmp_path, more)


def test_where_requests_go_is_never_said_by_a_request(tmp_path: Path) -> None:
    with pair(tmp_path) as both:
        config = {"backend": "remote", "parameters": {"URL": {"string_value": "127.0.0.1:9"}}}
        overrides = Overrides(json.dumps(config))
        with pytest.raises(HeadraceError, match="cannot come with a request"):
            both.served.run(both.served.repository.load("remote", overrides))
        assert both.ask() == [[2, 4]]


def headrace(models: Path, data: Path, port: int) -> Running:
    started = serve(
        "--model-repository", str(models), "--data-dir", str(data),
        "--grpc-port", str(port), "--http-port", "0", "--metrics-port", "0",
    )  # fmt: skip
    ready(started)
    return started


@pytest.mark.slow
def test_a_worker_behind_us_stops_dies_and_comes_back(tmp_path: Path) -> None:
    port, data = free_port(), tmp_path / "data"
    put(tmp_path / "theirs", "add", add_model())
    ours = tmp_path / "ours"
    put_remote(ours, "remote", f"127.0.0.1:{port}", parameter("OPEN_SECONDS", 0.2))
    put(ours, "near", add_model())
    sums = [[2, 4, 6, 8]]

    def answers() -> bool:
        try:
            return bool(served.infer("remote", **ROW)["OUTPUT0"].tolist() == sums)
        except UnavailableError:
            return False

    with headrace(tmp_path / "theirs", data, port) as other, Served(ours) as served:
        assert served.infer("remote", **ROW)["OUTPUT0"].tolist() == sums
        # It hangs: who waits for it has his deadline, and nobody else waits.
        os.kill(children(data)["worker-0"], signal.SIGSTOP)
        late = served.start(served.answer("remote", ROW, timeout_s=1.0))
        start_s = time.monotonic()
        assert served.infer("near", **ROW)["OUTPUT0"].tolist() == sums
        assert not late.done()
        with pytest.raises(DeadlineExceededError):
            late.result(20)
        assert time.monotonic() - start_s < 15
        os.kill(children(data)["worker-0"], signal.SIGCONT)
        eventually(answers, "it answers again")
        # It is killed under load: each request has the right answer, or is told.
        many = [served.start(served.answer("remote", ROW, timeout_s=20)) for _ in range(200)]
        os.kill(children(data)["worker-0"], signal.SIGKILL)
        for each in many:
            try:
                assert outputs(each.result(30))["OUTPUT0"].tolist() == sums
            except UnavailableError:
                continue
        eventually(answers, "it answers again")
        other.send(signal.SIGTERM)
        other.process.wait(30)
        eventually(lambda: not answers(), "it is gone")
        with headrace(tmp_path / "theirs", data, port):
            eventually(answers, "it answers again")
