"""TLS on the ports of a worker and of `headrace serve`, by the clients that users have."""

from __future__ import annotations

import json
import re
import shutil
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from server.cli.checks import check_tls
from server.config import Settings
from server.grpc_port import TRANSPORTS
from tests.server.onnx_models import mlp_model, put
from tests.server.processes.running import Running, eventually
from tests.server.serving import start_worker
from tests.support.tls import Certificates

pytestmark = pytest.mark.slow
ROWS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    put(root, "mlp", mlp_model())
    return root


@pytest.fixture(scope="module", params=TRANSPORTS)
def ready(
    request: pytest.FixtureRequest,
    certificates: Certificates,
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """A worker that wants certificates of its clients; its ready line and its transport."""
    folder = tmp_path_factory.mktemp("worker")
    settings = certificates.settings(mutual=True)
    with start_worker(
        folder, model_repository=str(repository), transport=request.param, **settings
    ) as worker:
        yield {**worker.event("ready"), "transport": request.param}
        assert worker.end() == 0


def grpc_infer(address: str, certificates: Certificates, client: str | None) -> Any:
    options: dict[str, Any] = {}
    if client is not None:
        options["private_key"] = str(certificates.key(client))
        options["certificate_chain"] = str(certificates.cert(client))
    triton = grpc_client.InferenceServerClient(
        address, ssl=True, root_certificates=str(certificates.cert("ca")), **options
    )
    try:
        tensor = grpc_client.InferInput("features", list(ROWS.shape), "FP32")
        tensor.set_data_from_numpy(ROWS)
        return triton.infer("mlp", [tensor], client_timeout=PATIENCE_S).as_numpy("probability")
    finally:
        triton.close()


def test_tritonclient_asks_over_tls(ready: dict[str, Any], certificates: Certificates) -> None:
    assert grpc_infer(ready["grpc"], certificates, "client").shape == (2, 1)


@pytest.mark.parametrize("client", [None, "stranger"])
def test_tritonclient_needs_the_right_certificate(
    ready: dict[str, Any], certificates: Certificates, client: str | None
) -> None:
    with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
        grpc_infer(ready["grpc"], certificates, client)


def test_tritonclient_asks_rest_over_tls(ready: dict[str, Any], certificates: Certificates) -> None:
    options = {
        "ca_certs": str(certificates.cert("ca")),
        "certfile": str(certificates.cert("client")),
        "keyfile": str(certificates.key("client")),
    }
    with http_client.InferenceServerClient(ready["http"], ssl=True, ssl_options=options) as triton:
        tensor = http_client.InferInput("features", list(ROWS.shape), "FP32")
        tensor.set_data_from_numpy(ROWS, binary_data=True)
        answer = triton.infer("mlp", [tensor]).as_numpy("probability")
    assert np.array_equal(answer, grpc_infer(ready["grpc"], certificates, "client"))


def curl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "-sS", *map(str, arguments)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_curl_asks_rest_over_tls(
    ready: dict[str, Any], certificates: Certificates, version: str
) -> None:
    mine = ["--cert", certificates.cert("client"), "--key", certificates.key("client")]
    address = [f"https://{ready['http']}/v2/models/mlp", "-w", "\n%{http_code} %{http_version}"]
    done = curl(version, "--cacert", certificates.cert("ca"), *mine, *address)
    assert done.stdout.endswith("\n200 1.1"), done
    assert json.loads(done.stdout.rpartition("\n")[0])["name"] == "mlp"


def test_curl_is_refused_without_a_certificate_and_without_tls(
    ready: dict[str, Any], certificates: Certificates
) -> None:
    path = f"{ready['http']}/v2/health/ready"
    assert curl("--cacert", certificates.cert("ca"), f"https://{path}").returncode != 0
    assert curl(f"http://{path}").returncode != 0


def test_metrics_are_plain_and_count_what_was_refused(
    ready: dict[str, Any], certificates: Certificates
) -> None:
    with pytest.raises(InferenceServerException):
        grpc_infer(ready["grpc"], certificates, None)

    def refused() -> bool:
        with urllib.request.urlopen(f"http://{ready['metrics']}/metrics") as answer:
            text = answer.read().decode()
        found = re.search(r'headrace_http2_abuse_total\{.*reason="tls_failed".*\} (\d+)', text)
        return found is not None and float(found[1]) > 0

    if ready["transport"] == "headrace":
        eventually(refused, "a failed handshake is counted")
    else:  # grpc's own transport counts nothing for us
        assert not refused()


# The command.


def serve(folder: Path, *arguments: str | Path) -> Running:
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0", "--data-dir", folder)
    command = [sys.executable, "-P", "-m", "server.cli.main", "serve", *ports, *arguments]
    return Running(*map(str, command))


def flags(certificates: Certificates, *, mutual: bool = False) -> list[str]:
    settings = certificates.settings(mutual=mutual)
    return [
        part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)
    ]


def test_serve_takes_a_new_certificate_at_its_reload(
    certificates: Certificates, repository: Path, tmp_path: Path
) -> None:
    shutil.copy(certificates.cert("server"), tmp_path / "cert.pem")
    shutil.copy(certificates.key("server"), tmp_path / "key.pem")
    files = ["--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem"]
    more = ["--model-repository", repository, "--host", "0.0.0.0"]
    with serve(tmp_path / "data", *more, *files) as process:
        line = json.loads(process.line("ready", "stdout").string)
        # Others' ports are for everybody, the plain one is not.
        assert line["metrics"].startswith("127.0.0.1:")
        addresses = [("127.0.0.1", int(line[name].rpartition(":")[2])) for name in ("grpc", "http")]
        grpc, http = addresses

        def shown(address: tuple[str, int]) -> str:
            return ssl.get_server_certificate(address).strip()

        before = certificates.cert("server").read_text().strip()
        assert shown(http) == before
        assert grpc_infer(f"localhost:{grpc[1]}", certificates, None).shape == (2, 1)
        after = certificates.cert("server-rsa").read_text().strip()
        shutil.copy(certificates.cert("server-rsa"), tmp_path / "cert.pem")
        shutil.copy(certificates.key("server-rsa"), tmp_path / "key.pem")
        process.send(signal.SIGHUP)
        process.line("reloaded")
        eventually(lambda: [shown(each) for each in addresses] == [after] * 2, "the new one")
        # A mistake ends the reload, not the server.
        (tmp_path / "key.pem").write_text("")
        process.send(signal.SIGHUP)
        process.line("tls_key: .*an empty file")
        assert grpc_infer(f"localhost:{grpc[1]}", certificates, None).shape == (2, 1)
        assert process.end() == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--tls-key": None}, "tls_cert is set and tls_key is not"),
        ({"--tls-key": "client.key"}, r"tls_key: the key .* is not that of the certificate"),
        ({"--tls-cert": "none.pem"}, "tls_cert: no file"),
        ({"--tls-client-ca": "server.key"}, "tls_client_ca: .*got a private key"),
    ],
)
def test_serve_says_what_is_wrong_before_anything_starts(
    certificates: Certificates, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    given = flags(certificates)
    chosen = dict(zip(given[::2], given[1::2], strict=True))
    chosen |= {k: str(certificates.folder / v) if v else "" for k, v in changes.items()}
    arguments = [part for pair in chosen.items() if pair[1] for part in pair]
    with serve(tmp_path / "data", *arguments) as process:
        assert process.wait() == 1
        assert re.search(message, process.text)
        assert len(process.seen) == 1
    assert not (tmp_path / "data").exists()


def test_doctor_looks_at_the_files(certificates: Certificates, tmp_path: Path) -> None:
    assert list(check_tls(Settings())) == []
    (good,) = check_tls(Settings(**certificates.settings(mutual=True)))  # type: ignore[arg-type]
    assert good.level == "ok"
    (half,) = check_tls(Settings(tls_key="k"))
    assert (half.level, "--tls-cert" in half.mend) == ("blocker", True)
    key = tmp_path / "key.pem"
    shutil.copy(certificates.key("server"), key)
    key.chmod(0o644)
    (open_key,) = check_tls(Settings(tls_cert=str(certificates.cert("server")), tls_key=str(key)))
    assert open_key.level == "warning"
    assert "chmod" in open_key.mend
