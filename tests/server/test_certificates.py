"""Principals by the certificates that clients show, on both wires and on the admin ports."""

from __future__ import annotations

import json
import secrets
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import InvalidArgumentError
from server.access.keys import new_key
from server.grpc_port import TRANSPORTS
from server.pb import admin_pb2
from server.wire.grpcio import GrpcServer
from tests.server.onnx_models import mlp_model, put
from tests.server.processes.running import eventually
from tests.server.serving import Process, start_worker
from tests.server.test_serve import FREE_PORTS, serve
from tests.server.test_serve import ready as serve_ready
from tests.support.tls import Certificates

pytestmark = pytest.mark.slow
PATIENCE_S = 20.0
KEY, STORED = new_key(secrets.token_bytes)
NAMED = "uri:spiffe://shop/batch"
FILE = f"""
[[principals]]
name = "batch"
certificates = ["{NAMED}"]
allow = [{{scopes = ["infer", "metadata"], names = ["mlp"]}}, {{scopes = ["admin"]}}]

[[principals]]
name = "shop"
keys = ["{STORED}"]
allow = [{{scopes = ["infer"], names = ["other"]}}]
"""
UNKNOWN, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name in ("mlp", "other"):
        put(root, name, mlp_model())
    return root


@pytest.fixture(scope="module", params=TRANSPORTS)
def ready(
    request: pytest.FixtureRequest,
    certificates: Certificates,
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dict[str, Any], Process]]:
    folder = tmp_path_factory.mktemp("worker")
    (folder / "access.toml").write_text(FILE)
    with start_worker(
        folder, model_repository=str(repository), transport=request.param, log_requests=True,
        access=str(folder / "access.toml"), **certificates.settings(mutual=True),
    ) as worker:  # fmt: skip
        yield worker.event("ready"), worker
        assert worker.end() == 0


def channel_of(address: str, certificates: Certificates, client: str) -> grpc.Channel:
    at = f"localhost:{address.rpartition(':')[2]}"
    return grpc.secure_channel(at, certificates.credentials(client))


def infer(channel: grpc.Channel, model: str, *metadata: tuple[str, str]) -> grpc.StatusCode | None:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="features", datatype="FP32", shape=[1, 3])
    message.raw_input_contents.append(bytes(12))
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    try:
        call(message.SerializeToString(), metadata=metadata, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return None


def fetch(
    address: str, path: str, certificates: Certificates, client: str, **headers: str
) -> tuple[int, Any]:
    context = ssl.create_default_context(cafile=str(certificates.cert("ca")))
    context.load_cert_chain(certificates.cert(client), certificates.key(client))
    url = f"https://localhost:{address.rpartition(':')[2]}{path}"
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    body = None
    if path.endswith("/infer"):
        tensor = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
        body = json.dumps({"inputs": [tensor]}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, sent), context=context, timeout=PATIENCE_S
        ) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_certificate_is_a_principal_with_its_scopes(
    ready: tuple[dict[str, Any], Process], certificates: Certificates
) -> None:
    line, worker = ready
    with channel_of(line["grpc"], certificates, "named") as channel:
        for _ in range(3):  # the first teaches the door what the others are
            assert infer(channel, "mlp") is None
            assert infer(channel, "other") is DENIED
            assert infer(channel, "other", ("x-api-key", KEY)) is None
            assert infer(channel, "mlp", ("x-api-key", KEY)) is DENIED
            assert infer(channel, "mlp", ("x-api-key", "hr_")) is UNKNOWN
    with channel_of(line["grpc"], certificates, "client") as channel:
        for _ in range(3):
            assert infer(channel, "mlp") is UNKNOWN
            assert infer(channel, "other", ("x-api-key", KEY)) is None
    eventually(
        lambda: all(
            any(f"principal={who}" in text for text in worker.errors) for who in ("batch", "shop")
        ),
        "a request's line says who asked",
    )


def test_a_certificate_is_a_principal_over_rest(
    ready: tuple[dict[str, Any], Process], certificates: Certificates
) -> None:
    address = ready[0]["http"]
    for _ in range(3):
        for path in ("/v2/models/mlp", "/v2/models/mlp/infer"):
            assert fetch(address, path, certificates, "named")[0] == 200
            assert fetch(address, path, certificates, "client")[0] == 401
            assert fetch(address, path, certificates, "named", x_api_key="hr_")[0] == 401
            assert fetch(address, path, certificates, "named", x_api_key=KEY)[0] == 403
        status, answer = fetch(address, "/v2/models/other", certificates, "named")
        assert status == 403
        assert "'batch' lacks scope 'metadata' on 'other'" in answer["error"]


def test_the_admin_ports_and_what_a_reload_takes_away(
    certificates: Certificates, repository: Path, tmp_path: Path
) -> None:
    path = tmp_path / "access.toml"
    path.write_text(FILE)
    settings = certificates.settings(mutual=True) | {"tls_client_ca": str(tmp_path / "ca.pem")}
    (tmp_path / "ca.pem").write_bytes(certificates.cert("clients-ca").read_bytes())
    flags = [part for name, value in settings.items()
             for part in (f"--{name.replace('_', '-')}", value)]  # fmt: skip
    with serve(
        "--model-repository", str(repository), "--access", str(path), *flags, *FREE_PORTS,
        "--admin-port", "0", "--admin-grpc-port", "0", "--data-dir", str(tmp_path / "data"),
    ) as process:  # fmt: skip
        line = serve_ready(process)
        assert fetch(line["admin"], "/admin/v1/workers", certificates, "named")[0] == 200
        assert fetch(line["admin"], "/admin/v1/workers", certificates, "client")[0] == 401
        with channel_of(line["admin_grpc"], certificates, "named") as channel:
            call = channel.unary_unary(
                "/headrace.v1.Admin/SetLogging",
                admin_pb2.Logging.SerializeToString, admin_pb2.Logging.FromString,
            )  # fmt: skip
            request = admin_pb2.Logging(log_verbose_level=1)
            assert call(request, timeout=PATIENCE_S).log_verbose_level == 1
            process.line(r"admin: set_logging.*principal=batch")
            path.write_text(FILE.replace(NAMED, "cn:somebody"))
            process.send(signal.SIGHUP)
            process.line("reloaded")
            # The connection is still the one of before.
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=PATIENCE_S)
            assert caught.value.code() is UNKNOWN
        path.write_text("[[principals]]")  # a mistake ends the reload, not the server
        process.send(signal.SIGHUP)
        process.line("the reload ended")
        assert fetch(line["admin"], "/admin/v1/workers", certificates, "named")[0] == 401
        path.write_text(FILE)
        (tmp_path / "ca.pem").write_bytes(certificates.revoking("named").read_bytes())
        process.send(signal.SIGHUP)
        process.line("reloaded")
        assert fetch(line["http"], "/v2/models/mlp", certificates, "client")[0] == 401
        for name in ("http", "admin"):
            with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
                fetch(line[name], "/v2/models/mlp", certificates, "named")
        assert process.end() == 0


def test_named_certificates_that_nobody_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "access.toml"
    path.write_text(FILE)
    with serve("--access", str(path), *FREE_PORTS, "--data-dir", str(tmp_path / "data")) as process:
        assert process.wait() == 1
        assert "give --tls-client-ca" in process.text


async def test_the_reference_transport_does_not_pass_over_a_list(
    certificates: Certificates,
) -> None:
    files = replace(certificates.files(), client_ca=certificates.revoking("client"))
    with pytest.raises(InvalidArgumentError, match="no list of revoked certificates"):
        await GrpcServer({}).start("127.0.0.1", 0, files)
