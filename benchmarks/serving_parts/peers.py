"""MLServer and BentoML, as their users would run them on one core."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import harness
from benchmarks.common.processes import Process
from benchmarks.common.servers import HOST, Ports, Server, answers_http, free_port

MLSERVER, BENTOML = "MLServer", "BentoML"
MLSERVER_PEER = harness.Peer(
    "mlserver", ("mlserver==1.7.1", "numpy==1.26.4", "onnxruntime==1.32.0")
)
BENTOML_PEER = harness.Peer(
    "bentoml", ("bentoml==1.4.40", "numpy==2.4.6", "onnxruntime==1.32.0", "uvloop==0.23.0")
)
_HERE = Path(__file__).parent


def mlserver(onnx_files: Mapping[str, Path], python: Path, cpu: int, folder: Path) -> Server:
    """Return MLServer. Its files are laid out in `folder`.

    It runs the models in its own process (a worker process would share the core, and costs a copy),
    and does not batch: with its adaptive batching it answered fewer of these requests.
    """
    home = folder / "mlserver"
    for name, file in onnx_files.items():
        (home / name).mkdir(parents=True)
        settings = {
            "name": name,
            "implementation": "mlserver_runtime.Onnx",
            "parameters": {"uri": str(file), "version": "1"},
        }
        (home / name / "model-settings.json").write_text(json.dumps(settings))
    shutil.copy(_HERE / "mlserver_runtime.py", home)

    def launch() -> tuple[Process, Ports]:
        ports = Ports(free_port(), free_port())
        settings = {
            "host": HOST, "grpc_port": ports.grpc, "http_port": ports.http,
            "metrics_endpoint": None, "parallel_workers": 0, "debug": False,
        }  # fmt: skip
        (home / "settings.json").write_text(json.dumps(settings))
        command = [str(python), str(python.parent / "mlserver"), "start", str(home)]
        process = Process(command, [cpu], cwd=home, env={"PYTHONPATH": str(home)})
        process.wait_for(lambda: answers_http(ports.http, "/v2/health/ready") or None)
        return process, ports

    return Server(MLSERVER, launch)


def bentoml(onnx_files: Mapping[str, Path], python: Path, cpu: int, folder: Path) -> Server:
    """Return BentoML, with adaptive batching. It speaks REST alone."""
    environment = {
        "BENCHMARK_MODELS": json.dumps({name: str(file) for name, file in onnx_files.items()}),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": "",
    }

    def launch() -> tuple[Process, Ports]:
        port = free_port()
        command = [
            str(python), "-m", "bentoml", "serve", "bento_service:Models",
            "--working-dir", str(_HERE), "--host", HOST, "--port", str(port),
        ]  # fmt: skip
        process = Process(command, [cpu], env=environment)
        process.wait_for(lambda: answers_http(port, "/readyz") or None)
        time.sleep(1.0)  # its supervisor has work of its own just after the start
        return process, Ports(http=port)

    return Server(BENTOML, launch)
