"""The admin port of `headrace serve`, from outside."""

from __future__ import annotations

import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from server.access.keys import new_key
from server.pb import admin_pb2 as pb
from tests.server.admin.schema_check import check
from tests.server.onnx_models import mlp_model, put
from tests.server.processes.running import Running
from tests.server.test_serve import FREE_PORTS, serve
from tests.server.test_serve import ready as serve_ready

pytestmark = pytest.mark.slow
OWNER, USER = new_key(secrets.token_bytes), new_key(secrets.token_bytes)
FILE = f"""
[[principals]]
name = "owner"
keys = ["{OWNER[1]}"]
allow = [{{scopes = ["admin", "metadata", "control", "infer"]}}]

[[principals]]
name = "user"
keys = ["{USER[1]}"]
allow = [{{scopes = ["infer", "metadata"]}}]

[[limits]]
tenant = "user"
requests_per_s = 1000
"""

PIPELINE = """
platform: "ensemble"
input { name: "x" data_type: TYPE_FP32 dims: [3] }
output { name: "y" data_type: TYPE_FP32 dims: [1] }
ensemble_scheduling { step {
  model_name: "gone" model_version: -1
  input_map { key: "x" value: "x" } output_map { key: "y" value: "y" }
} }
"""


class Admin:
    """A server with an admin port, and calls of it."""

    def __init__(self, process: Running, ready: dict[str, str], key: str | None) -> None:
        self.process = process
        self.ready = ready
        self.key = key

    def call(
        self, method: str, path: str, body: Any = None, key: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        key = key or self.key
        sent = {"content-type": "application/json"} | ({"x-api-key": key} if key else {})
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        if method != "GET" and data is None:
            data = b""
        url = f"http://{self.ready['admin']}{path}"
        request = urllib.request.Request(url, data, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if path != "/" else text.decode()
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def grpc(self, method: str, request: Any, reply: Any, key: str | None = None) -> Any:
        key = key or self.key
        with grpc.insecure_channel(self.ready["admin_grpc"]) as channel:
            data = channel.unary_unary(f"/headrace.v1.Admin/{method}")(
                request.SerializeToString(), timeout=60, metadata=[("x-api-key", key or "")]
            )
        return reply.FromString(data)

    def worker(self, number: int) -> dict[str, Any]:
        workers = self.call("GET", "/admin/v1/workers")[1]["workers"]
        return [each for each in workers if each["worker"] == number][-1]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name in ("mlp", "other"):
        put(root, name, mlp_model())
    return root


def start(repository: Path, folder: Path, *arguments: str) -> Running:
    return serve(
        "--model-repository", str(repository), "--admin-port", "0", "--admin-grpc-port", "0",
        *FREE_PORTS, "--data-dir", str(folder / "data"), *arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def admin(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    folder = tmp_path_factory.mktemp("admin")
    (folder / "access.toml").write_text(FILE)
    with start(
        repository, folder, "--access", str(folder / "access.toml"), "--workers", "2",
        "--model-control-mode", "explicit", "--load-model", "mlp", "--admin-only",
    ) as process:  # fmt: skip
        yield Admin(process, serve_ready(process), OWNER[0])
        assert process.end() == 0


def test_only_the_scope_admin_opens_it(admin: Admin) -> None:
    for method, path in (("GET", "/admin/v1/workers"), ("POST", "/admin/v1/drain")):
        assert admin.call(method, path, key="hr_")[0] == 401
        status, answer = admin.call(method, path, key=USER[0])
        assert status == 403
        assert "lacks scope 'admin'" in answer["error"]
    status, answer = admin.call("POST", "/admin/v1/drain", content_type="text/plain")
    assert status == 400
    assert "sent as JSON" in answer["error"]


def test_models_are_loaded_and_unloaded_in_all_workers(admin: Admin) -> None:
    assert admin.call("POST", "/admin/v1/models/other/load") == (200, {})
    states = {
        each["name"]: each["state"] for each in admin.call("GET", "/admin/v1/models")[1]["models"]
    }
    assert states["other"] == "READY"
    assert admin.call("POST", "/admin/v1/models/other/unload") == (200, {})
    client = triton.InferenceServerClient(admin.ready["grpc"])
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="by the admin port alone"):
            change("other", headers={"x-api-key": OWNER[0]})
    client.close()
    url = f"http://{admin.ready['http']}/v2/repository/models/other/load"
    request = urllib.request.Request(url, b"{}", {"x-api-key": OWNER[0]})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=30)


def test_a_model_that_there_is_not_is_told_with_the_folder_that_was_looked_for(
    admin: Admin, repository: Path
) -> None:
    status, answer = admin.call("POST", "/admin/v1/models/none/load")
    assert (status, answer["code"]) == (404, "not_found")
    assert "model 'none' is not in the model repository" in answer["error"]
    assert f"expected the folder {repository}/none)" in answer["error"]
    assert "put the model there, or check its name" in answer["error"]
    with pytest.raises(grpc.RpcError) as caught:
        admin.grpc("LoadModel", pb.LoadModelRequest(model="none"), pb.LoadModelReply)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert f"{repository}/none" in caught.value.details()
    (repository / "pipeline" / "1").mkdir(parents=True)
    (repository / "pipeline" / "config.pbtxt").write_text(PIPELINE)
    status, answer = admin.call("POST", "/admin/v1/models/pipeline/load")
    assert (status, answer["code"]) == (404, "not_found")
    assert "model 'gone', which 'pipeline' runs, is not" in answer["error"]
    status, answer = admin.call("POST", "/admin/v1/models/%2E%2E%2Fx/load")
    assert (status, answer["code"]) == (400, "invalid_argument")


def test_limits_are_changed_everywhere_until_the_next_start(admin: Admin) -> None:
    before = [{"tenant": "user", "names": ["*"], "requests_per_s": 1000.0}]
    assert admin.call("GET", "/admin/v1/limits") == (200, before)
    newer = [{"tenant": "user", "names": ["mlp"], "requests_per_s": 0.001, "burst": 1.0}]
    assert admin.call("PUT", "/admin/v1/limits", newer) == (200, newer)
    for bad in ({}, [{"tenant": "user"}], [{"x": 1}]):
        assert admin.call("PUT", "/admin/v1/limits", bad)[0] == 400
    number = admin.worker(1)["pid"]
    assert admin.call("POST", "/admin/v1/workers/1/drain")[0] == 200
    assert admin.worker(1)["pid"] != number
    assert admin.call("GET", "/admin/v1/limits") == (200, newer)
    url = f"http://{admin.ready['http']}/v2/models/mlp/infer"
    body = (
        b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1,2,3]}]}'
    )

    def status() -> int:
        request = urllib.request.Request(url, body, {"x-api-key": USER[0]})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    found = [status() for _ in range(5)]
    assert found.count(200) <= 2  # one of each worker
    assert found[-1] == 429
    assert admin.call("PUT", "/admin/v1/limits", before) == (200, before)
    assert [status() for _ in range(4)] == [200] * 4  # all workers have them


def test_lines_of_the_log_are_changed(admin: Admin) -> None:
    assert (
        admin.call("PUT", "/admin/v1/logging", {"log_verbose_level": 2})[1]["log_verbose_level"]
        == 2
    )
    # Whichever worker is asked has it by then.
    client = triton.InferenceServerClient(admin.ready["grpc"])
    for _ in range(4):
        settings = client.get_log_settings(headers={"x-api-key": OWNER[0]}).settings
        assert settings["log_verbose_level"].uint32_param == 2
    client.close()
    for bad in ({"log_verbose_level": -1}, {"log_info": 1}, {"log_file": "x"}, []):
        assert admin.call("PUT", "/admin/v1/logging", bad)[0] == 400
    status, now = admin.call("PUT", "/admin/v1/logging", {"log_verbose_level": 0})
    assert (status, now["log_verbose_level"], now["log_info"]) == (200, 0, True)


def test_a_worker_is_looked_at(admin: Admin) -> None:
    status, found = admin.call("POST", "/admin/v1/workers/0/trace?seconds=0.3")
    assert status == 200
    assert found["looks"] > 5
    assert 0 <= found["busy"] <= 1
    assert "/" not in json.dumps(found["stacks"]), "no paths of the machine"
    for bad in ("0", "61", "nan", "x"):
        assert admin.call("POST", f"/admin/v1/workers/0/trace?seconds={bad}")[0] == 400
    assert admin.call("POST", "/admin/v1/workers/7/trace")[0] == 404


def test_the_same_by_grpc(admin: Admin) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        admin.grpc("Drain", pb.DrainRequest(), pb.DrainReply, USER[0])
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.RpcError) as caught:
        admin.grpc("TraceWorker", pb.TraceWorkerRequest(worker=7), pb.TraceWorkerReply)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    found = admin.grpc("ListWorkers", pb.ListWorkersRequest(), pb.ListWorkersReply).workers
    assert sorted(each.worker for each in found if each.ready) == [0, 1]
    traced = admin.grpc(
        "TraceWorker", pb.TraceWorkerRequest(worker=1, seconds=0.2), pb.TraceWorkerReply
    )
    assert traced.looks > 5
    admin.grpc("LoadModel", pb.LoadModelRequest(model="other"), pb.LoadModelReply)
    models = admin.grpc("ListModels", pb.ListModelsRequest(), pb.ListModelsReply).models
    assert {each.name: each.state for each in models}["other"] == "READY"
    admin.grpc("UnloadModel", pb.UnloadModelRequest(model="other"), pb.UnloadModelReply)
    limits = admin.grpc("GetLimits", pb.GetLimitsRequest(), pb.Limits)
    assert [each.tenant for each in limits.limits] == ["user"]
    assert admin.grpc("SetLimits", limits, pb.Limits) == limits
    logging = admin.grpc("SetLogging", pb.Logging(log_verbose_level=3), pb.Logging)
    assert (logging.log_verbose_level, logging.log_info) == (3, True)
    admin.grpc("SetLogging", pb.Logging(log_verbose_level=0), pb.Logging)


def test_it_says_what_it_has(admin: Admin) -> None:
    document = admin.call("GET", "/openapi.json")[1]
    assert document["openapi"] == "3.1.0"
    for method, path, query in (
        ("get", "/admin/v1/workers", ""), ("get", "/admin/v1/models", ""),
        ("get", "/admin/v1/limits", ""), ("get", "/admin/v1/logging", ""),
        ("post", "/admin/v1/workers/{worker}/trace", "?seconds=0.2"),
    ):  # fmt: skip
        status, answer = admin.call(method.upper(), path.replace("{worker}", "0") + query)
        content = document["paths"][path][method]["responses"][str(status)]["content"]
        check(answer, content["application/json"]["schema"], document["components"]["schemas"])
    assert "<h1>Headrace admin</h1>" in admin.call("GET", "/")[1]


def test_a_path_or_method_that_there_is_not_is_refused_as_all_else(admin: Admin) -> None:
    status, answer = admin.call("GET", "/admin/v1/nothing")
    assert (status, answer["code"]) == (404, "not_found")
    assert answer["error"].startswith("there is no path /admin/v1/nothing; /openapi.json lists")
    status, answer = admin.call("DELETE", "/admin/v1/limits")
    assert (status, answer["code"]) == (405, "unimplemented")
    assert "expected GET, PUT, got DELETE" in answer["error"]


def test_reload_and_drain(repository: Path, tmp_path: Path) -> None:
    with start(repository, tmp_path) as process:
        admin = Admin(process, serve_ready(process), None)
        assert admin.call("GET", "/admin/v1/limits")[0] == 404
        status, answer = admin.call("GET", "/admin/v1/workers", host="evil.example")
        assert status == 403
        assert "header Host" in answer["error"]
        pid = admin.worker(0)["pid"]
        assert admin.call("POST", "/admin/v1/reload") == (202, {})
        process.line(" reloaded")
        assert admin.worker(0)["pid"] != pid
        os.kill(admin.worker(0)["pid"], 0)
        assert admin.call("POST", "/admin/v1/drain") == (202, {})
        assert process.wait() == 0


def test_a_worker_whose_loop_hangs_is_drained(repository: Path, tmp_path: Path) -> None:
    with start(repository, tmp_path, "--drain-s", "0.5") as process:
        admin = Admin(process, serve_ready(process), None)
        stopped = admin.worker(0)["pid"]
        os.kill(stopped, 19)
        assert admin.call("POST", "/admin/v1/workers/0/drain")[0] == 200
        assert admin.worker(0)["pid"] != stopped
        assert admin.call("GET", "/admin/v1/models")[0] == 200


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--admin-port", "0", "--admin-host", "0.0.0.0"), "would be open to everybody"),
        (("--admin-only",), "leaves nobody to load models"),
    ],
)
def test_what_can_never_be_meant(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    with serve(*arguments, *FREE_PORTS, "--data-dir", str(tmp_path / "data")) as process:
        assert process.wait() == 1
        assert text in process.text
