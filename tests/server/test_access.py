"""Access control on the ports of a worker and of `headrace serve`, by clients that users have."""

from __future__ import annotations

import json
import re
import secrets
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from server.access.keys import new_key
from server.access.needs import METHODS, ROUTES
from server.grpc_port import TRANSPORTS
from server.pb import headrace_pb2
from tests.server.backends.serving import config, put_python
from tests.server.onnx_models import mlp_model, put
from tests.server.processes.running import Running, eventually
from tests.server.serving import start_worker
from tests.server.test_serve import FREE_PORTS, serve
from tests.server.test_serve import ready as serve_ready

pytestmark = pytest.mark.slow
PATIENCE_S = 20.0
INFERENCE = "/inference.GRPCInferenceService/"
NAMES = ("all", "one", "none", "slow", "bounded")
KEYS = {name: new_key(secrets.token_bytes) for name in NAMES}
SCOPES = '"infer", "metadata", "statistics", "control", "predict", "feedback", "features", "push"'
FILE = f"""
[[principals]]
name = "all"
keys = ["{KEYS["all"][1]}"]
allow = [{{scopes = [{SCOPES}, "replay", "admin"]}}]

[[principals]]
name = "one"
keys = ["{KEYS["one"][1]}"]
allow = [{{scopes = [{SCOPES}], names = ["mlp"]}}]

[[principals]]
name = "none"
keys = ["{KEYS["none"][1]}"]
allow = []

[[principals]]
name = "slow"
keys = ["{KEYS["slow"][1]}"]
allow = [{{scopes = ["infer"]}}]

[[principals]]
name = "bounded"
keys = ["{KEYS["bounded"][1]}"]
allow = [{{scopes = ["infer"]}}]

[[limits]]
tenant = "bounded"
names = ["twice"]
requests_per_s = 0.001
burst = 2

[[limits]]
tenant = "slow"
requests_per_s = 0.001
burst = 3
"""


def header(name: str) -> dict[str, str]:
    return {"x-api-key": KEYS[name][0]}


# Two responses, so that it is a stream's.
TWICE = """
def execute(self, requests):
    for request in requests:
        sender = request.get_response_sender()
        tensor = pb_utils.Tensor("word", np.array([b"word"], object))
        for _ in range(2):
            sender.send(pb_utils.InferenceResponse([tensor]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name in ("mlp", "other"):
        put(root, name, mlp_model())
    decoupled = "model_transaction_policy { decoupled: true }"
    put_python(root, "twice", TWICE, config("text:STRING:1", "word:STRING:1", decoupled))
    return root


@pytest.fixture(scope="module", params=TRANSPORTS)
def ready(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("worker")
    (folder / "access.toml").write_text(FILE)
    with start_worker(
        folder, model_repository=str(repository), transport=request.param,
        access=str(folder / "access.toml"),
    ) as worker:  # fmt: skip
        yield worker.event("ready")
        assert worker.end() == 0


def call(
    address: str, path: str, headers: dict[str, str], message: bytes = b""
) -> grpc.RpcError | None:
    """Call a method of any kind; return how it failed."""
    with grpc.insecure_channel(address) as channel:
        metadata = list(headers.items())
        if "Stream" in path or path.endswith("Watch") or "Reflection" in path:
            replies = channel.stream_stream(path)(iter([message]), metadata=metadata, timeout=9)
            try:
                next(replies, None)
            except grpc.RpcError as error:
                return error
            replies.cancel()
            return None
        try:
            channel.unary_unary(path)(message, metadata=metadata, timeout=9)
        except grpc.RpcError as error:
            return error
    return None


def fetch(
    url: str, headers: dict[str, str], method: str = "GET", body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(f"http://{url}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


@pytest.mark.parametrize("path", METHODS)
def test_every_method_wants_a_credential_and_a_scope(ready: dict[str, Any], path: str) -> None:
    code = getattr(call(ready["grpc"], path, {}), "code", lambda: None)()
    assert code is not grpc.StatusCode.UNIMPLEMENTED
    if METHODS[path].scope is None:
        assert code in {None, grpc.StatusCode.INVALID_ARGUMENT}
        return
    assert code is grpc.StatusCode.UNAUTHENTICATED
    for bad in ({"x-api-key": "hr_"}, {"authorization": "Bearer e.y.J"}, {"authorization": "x"}):
        error = call(ready["grpc"], path, bad)
        assert error is not None
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    error = call(ready["grpc"], path, header("none"))
    assert error is not None
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert f"lacks scope '{METHODS[path].scope}'" in error.details()


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_wants_a_credential_and_a_scope(ready: dict[str, Any], route: str) -> None:
    method, path = route.replace("{model}", "mlp").split(" ")
    body = b"{}" if method == "POST" else None
    url = f"{ready['http']}{path}"
    status, headers, _ = fetch(url, {}, method, body)
    if status in {404, 405}:
        pytest.skip("not served yet")
    scope = ROUTES[route].scope
    if scope is None:
        assert status == 200
        return
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert fetch(url, {"authorization": "Basic eDp5"}, method, body)[0] == 401
    status, _, answer = fetch(url, header("none"), method, body)
    assert status == 403
    assert f"lacks scope '{scope}'" in json.loads(answer)["error"]


NAMED: list[tuple[str, Any, str]] = [
    ("ModelReady", pb.ModelReadyRequest, "name"),
    ("ModelMetadata", pb.ModelMetadataRequest, "name"),
    ("ModelConfig", pb.ModelConfigRequest, "name"),
    ("ModelStatistics", pb.ModelStatisticsRequest, "name"),
    ("RepositoryModelLoad", pb.RepositoryModelLoadRequest, "model_name"),
    ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest, "model_name"),
    ("ModelInfer", pb.ModelInferRequest, "model_name"),
]


@pytest.mark.parametrize(("method", "message", "field"), NAMED)
def test_a_scope_is_on_names(ready: dict[str, Any], method: str, message: Any, field: str) -> None:
    path = f"{INFERENCE}{method}"
    other = message(**{field: "other"}).SerializeToString()
    error = call(ready["grpc"], path, header("one"), other)
    assert error is not None
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    own = call(ready["grpc"], path, header("one"), message(**{field: "mlp"}).SerializeToString())
    assert own is None or own.code() is not grpc.StatusCode.PERMISSION_DENIED
    nothing = call(ready["grpc"], path, header("one"))  # no name: of all models, or of none
    assert nothing is not None
    assert nothing.code() is grpc.StatusCode.PERMISSION_DENIED


def test_the_names_of_our_own_service(ready: dict[str, Any]) -> None:
    def code(path: str, who: str, message: Any) -> grpc.StatusCode:
        error = call(
            ready["grpc"], f"/headrace.v1.{path}", header(who), message.SerializeToString()
        )
        assert error is not None
        return error.code()

    denied = grpc.StatusCode.PERMISSION_DENIED
    predict, get = "Predictions/Predict", "Features/GetFeatures"
    assert code(predict, "one", headrace_pb2.PredictRequest(model="other")) is denied
    assert code(predict, "one", headrace_pb2.PredictRequest(model="mlp")) is not denied
    replayed = headrace_pb2.PredictRequest(model="mlp", event_time=7)
    assert code(predict, "one", replayed) is denied
    assert code(predict, "all", replayed) is not denied
    assert code(get, "one", headrace_pb2.GetFeaturesRequest(service="other")) is denied
    assert code(get, "one", headrace_pb2.GetFeaturesRequest(service="mlp")) is not denied
    replayed = headrace_pb2.GetFeaturesRequest(service="mlp", event_time=7)
    assert code(get, "one", replayed) is denied
    batch = headrace_pb2.PushRequest()
    batch.batches.add(source="mlp")
    assert code("Features/Push", "one", batch) is not denied
    batch.batches.add(source="other")
    assert code("Features/Push", "one", batch) is denied
    for path, body in (
        ("/v1/predict", {"model": "other", "inputs": {}}),
        ("/v1/features", {"service": "other", "inputs": {}}),
        ("/v1/push", {"batches": [{"source": "other", "columns": {}, "event_times": []}]}),
    ):
        answer = fetch(f"{ready['http']}{path}", header("one"), "POST", json.dumps(body).encode())
        assert answer[0] == 403, answer


def infer(
    client: Any, model: str = "mlp", headers: dict[str, str] | None = None, value: float = 1.0
) -> Any:
    tensor = triton.InferInput("features", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.full((1, 3), value, np.float32))
    return client.infer(model, [tensor], headers=headers).as_numpy("probability")


def test_calls_of_a_learnt_form_are_asked_as_well(ready: dict[str, Any]) -> None:
    client = triton.InferenceServerClient(ready["grpc"])
    for _ in range(5):
        answers = [infer(client, headers=header(who)) for who in ("all", "one")]
        assert np.array_equal(answers[0], answers[1])
        infer(client, "other", header("all"))
        for headers, model, code in (
            ({}, "mlp", "UNAUTHENTICATED"),
            ({"x-api-key": KEYS["all"][0][:-1]}, "mlp", "UNAUTHENTICATED"),
            ({**header("all"), "authorization": "Bearer x"}, "mlp", "UNAUTHENTICATED"),
            (header("none"), "mlp", "PERMISSION_DENIED"),
            (header("one"), "other", "PERMISSION_DENIED"),
        ):
            with pytest.raises(InferenceServerException, match=code):
                infer(client, model, headers)
    client.close()


def test_rest_calls_of_a_learnt_form_are_asked_as_well(ready: dict[str, Any]) -> None:
    body = json.dumps({"inputs": [
        {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]},
    ]}).encode()  # fmt: skip

    def status(model: str, headers: dict[str, str]) -> int:
        return fetch(f"{ready['http']}/v2/models/{model}/infer", headers, "POST", body)[0]

    for _ in range(5):
        assert status("mlp", header("one")) == 200
        assert status("mlp", {"authorization": f"Bearer {KEYS['one'][0]}"}) == 200
        assert status("other", header("all")) == 200
        assert status("mlp", {}) == 401
        assert status("mlp", {"x-api-key": KEYS["all"][0] + "x"}) == 401
        assert status("mlp", header("none")) == 403
        assert status("other", header("one")) == 403


def test_a_stream_is_asked_for_each_of_its_requests(ready: dict[str, Any]) -> None:
    def request(model: str, number: int) -> bytes:
        message = pb.ModelInferRequest(model_name=model, id=str(number))
        message.inputs.add(name="features", datatype="FP32", shape=[1, 3])
        message.raw_input_contents.append(bytes(12))
        return message.SerializeToString()

    models = ["mlp", "other", "mlp", "other", "mlp"]
    with grpc.insecure_channel(ready["grpc"]) as channel:
        stream = channel.stream_stream(f"{INFERENCE}ModelStreamInfer")
        messages = [request(model, number) for number, model in enumerate(models)]
        replies = [
            pb.ModelStreamInferResponse.FromString(each)
            for each in stream(iter(messages), metadata=list(header("one").items()), timeout=9)
        ]
    assert [reply.infer_response.id for reply in replies] == list("01234")
    refused = ["lacks scope 'infer' on 'other'" in reply.error_message for reply in replies]
    assert refused == [model == "other" for model in models]


def test_a_decoupled_model_is_asked_for_as_well(ready: dict[str, Any]) -> None:
    message = pb.ModelInferRequest(model_name="twice")
    message.inputs.add(name="text", datatype="BYTES", shape=[1])
    message.raw_input_contents.append(b"\1\0\0\0a")

    def replies(who: str) -> list[str]:
        with grpc.insecure_channel(ready["grpc"]) as channel:
            stream = channel.stream_stream(f"{INFERENCE}ModelStreamInfer")
            data = [message.SerializeToString()]
            answers = list(stream(iter(data), metadata=list(header(who).items()), timeout=20))
        return [pb.ModelStreamInferResponse.FromString(each).error_message for each in answers]

    assert replies("all")[:2] == ["", ""]
    (error,) = replies("one")
    assert "lacks scope 'infer' on 'twice'" in error
    url, body = f"{ready['http']}/v2/models/twice/generate_stream", b'{"text": "a"}'
    assert fetch(url, header("one"), "POST", body)[0] == 403
    status, _, text = fetch(url, header("all"), "POST", body)
    assert (status, text.count(b"data: ")) == (200, 2)
    statuses = [fetch(url, header("bounded"), "POST", body)[0] for _ in range(3)]
    assert statuses == [200, 200, 429]


def test_a_limit_is_the_tenants(ready: dict[str, Any]) -> None:
    client = triton.InferenceServerClient(ready["grpc"])
    for _ in range(3):
        infer(client, headers=header("slow"))
    for _ in range(3):
        with pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED.*try again in"):
            infer(client, headers=header("slow"))
        infer(client, headers=header("one"))
    client.close()
    url = f"{ready['http']}/v2/models/mlp/infer"
    body = (
        b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1,2,3]}]}'
    )
    for _ in range(2):
        status, headers, answer = fetch(url, header("slow"), "POST", body)
        assert status == 429, answer
        assert int(headers["Retry-After"]) > 500
    message = pb.ModelInferRequest(model_name="mlp").SerializeToString()
    error = call(ready["grpc"], f"{INFERENCE}ModelInfer", header("slow"), message)
    assert error is not None
    assert int(dict(error.trailing_metadata()).get("retry-after", 1000)) > 500
    text = fetch(f"{ready['metrics']}/metrics", {})[2].decode()
    assert re.search(r'access_calls_total\{worker="3",tenant="slow"\} 3$', text, re.MULTILINE)
    assert re.search(
        r'access_refused_total\{worker="3",tenant="slow",reason="requests"\} [5-9]', text
    )


MALFORMED = [
    b"authorization: Bearer \xff\xfe", b"authorization:", b"authorization: \t ", b"x-api-key: \x80",
    b"authorization: Bearer " + b"a" * 20_000, b"x-api-key: " + b"hr_" * 5_000,
    b"x-api-key: hr_\x0b", b"authorization: Bearer a\r\nauthorization: Bearer b",
    b"authorization: Bearer a\r\n b",
]  # fmt: skip


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_header_is_its_requests_own_fault(ready: dict[str, Any], line: bytes) -> None:
    host, port = ready["http"].split(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as sock:
        sock.sendall(b"GET /v2/models/mlp HTTP/1.1\r\nhost: x\r\n" + line + b"\r\n\r\n")
        assert re.match(rb"HTTP/1.1 (401|400)", sock.recv(4096))
    client = triton.InferenceServerClient(ready["grpc"])
    infer(client, headers=header("one"))
    client.close()


@pytest.fixture
def serving(repository: Path, tmp_path: Path) -> Iterator[tuple[Running, str, Path]]:
    path = tmp_path / "access.toml"
    path.write_text(FILE)
    with serve(
        "--model-repository", str(repository), "--access", str(path), *FREE_PORTS,
        "--data-dir", str(tmp_path / "data"),
    ) as process:  # fmt: skip
        yield process, serve_ready(process)["http"], path


def test_a_reload_reads_the_file_again(serving: tuple[Running, str, Path]) -> None:
    process, address, path = serving
    url = f"{address}/v2/models/mlp"

    def status(who: str) -> int:
        return fetch(url, header(who))[0]

    assert (status("one"), status("all")) == (200, 200)
    path.write_text(FILE.replace('"infer"', '"infr"'))
    process.send(signal.SIGHUP)
    process.line("the reload ended: access.toml: is no access file")
    assert status("one") == 200
    path.write_text(FILE.replace(str(KEYS["one"][1]), str(new_key(secrets.token_bytes)[1])))
    process.send(signal.SIGHUP)
    process.line("reloaded")
    eventually(lambda: status("one") == 401, "the key that is gone is refused")
    assert status("all") == 200
    assert process.end() == 0
    assert not any(key in process.text for key, _ in KEYS.values())


def test_a_wrong_file_is_said_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text("[[principals]]")
    with serve("--access", str(path), *FREE_PORTS, "--data-dir", str(tmp_path / "data")) as process:
        assert process.wait() == 1
        assert "access.toml: is no access file" in process.text
