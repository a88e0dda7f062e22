"""The servers of the benchmark: ours and its peers, each with one core and the same model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from benchmarks import harness
from benchmarks.common import model
from benchmarks.common.processes import Process, StartError
from server.processes.ports import HeldPort

OURS, GRPC_AIO, TRITON, FASTAPI = "headrace", "grpc.aio", "Triton", "FastAPI"
# numpy below 2: with NumPy 2 the Python backend of this Triton returns empty outputs.
PYTRITON = harness.Peer(
    "triton", ("nvidia-pytriton==0.5.14", "numpy==1.26.4", "onnxruntime==1.32.0")
)
UVICORN = harness.Peer(
    "fastapi",
    ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0",
     "numpy==2.4.6", "onnxruntime==1.32.0"),
)  # fmt: skip
HOST = "127.0.0.1"
CALL_TIMEOUT_S = 10.0
_HERE = Path(__file__).parent


class TritonModel(NamedTuple):
    """A model of Triton's repository; `config` is its config.pbtxt. An ensemble has no file."""

    name: str
    onnx_file: Path | None
    config: str


def triton_config(
    width: int,
    rows_max: int,
    source: str = model.INPUT,
    target: str = model.OUTPUT,
    target_width: int = 1,
) -> str:
    """Return the config.pbtxt of a model on the Python backend: from `source` to `target`."""
    return f"""
backend: "python"
max_batch_size: {rows_max}
input {{ name: "{source}" data_type: TYPE_FP32 dims: [ {width} ] }}
output {{ name: "{target}" data_type: TYPE_FP32 dims: [ {target_width} ] }}
dynamic_batching {{ }}
instance_group {{ count: 1 kind: KIND_CPU }}
"""


def our_config(config: str) -> str:
    """Return a config.pbtxt of Triton's as our repository has it; an ensemble's is the same."""
    return config.replace('backend: "python"', 'platform: "onnxruntime_onnx"')


@dataclass(frozen=True)
class Ports:
    """Where a server listens; 0 where it does not."""

    grpc: int = 0
    http: int = 0


class Server:
    """A server that can be started again. `reply_bytes` is the length of its gRPC reply's DATA."""

    def __init__(self, name: str, launch: Callable[[], tuple[Process, Ports]]) -> None:
        self.name = name
        self.reply_bytes = 0
        self._launch = launch
        self._process: Process | None = None
        self.ports = Ports()

    @property
    def process(self) -> Process:
        """The process that runs."""
        assert self._process is not None, f"{self.name} is not started"
        return self._process

    def start(self) -> None:
        """Start it."""
        self._process, self.ports = self._launch()

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def restart(self) -> None:
        """End it and start it again, on ports of its own."""
        self.stop()
        self.start()

    def check(self, wanted: model.Expected) -> None:
        """Make one real call. Raises StartError when the answer is not onnxruntime's."""
        try:
            with grpc.insecure_channel(f"{HOST}:{self.ports.grpc}") as channel:
                reply = channel.unary_unary(model.GRPC_PATH, None, None)(
                    model.grpc_message(wanted.row), timeout=CALL_TIMEOUT_S, wait_for_ready=True
                )
            model.check(model.grpc_answer(reply), wanted.answer, self.name)
        except (grpc.RpcError, ValueError) as error:
            raise StartError(f"{self.name} fails its first call: {error}") from error
        self.reply_bytes = 5 + len(reply)


def ours(
    onnx_file: Path | None,
    data_dir: Path,
    cpu: int,
    shared: HeldPort | None = None,
    worker: int = 0,
) -> Server:
    """Return a worker of ours; None: without a model. One of two `shared` its gRPC port."""
    config: dict[str, Any] = {
        "worker": worker,
        "host": HOST,
        "grpc_port": 0,
        "http_port": 0,
        "metrics_port": 0,
        "data_dir": str(data_dir),
    }
    if shared is not None:
        (data_dir / "run").mkdir(parents=True, exist_ok=True)
        config |= {"slot": worker, "slots": 2}
    if onnx_file is not None:
        config["model_repository"] = str(onnx_file.parents[2])

    def launch() -> tuple[Process, Ports]:
        command = [sys.executable, "-m", "server.worker", json.dumps(config)]
        process = Process(command, [cpu], shared=shared)
        ready = process.wait_for(lambda: ready_line(process.output()))
        return process, Ports(port_of(ready["grpc"]), port_of(ready["http"]))

    return Server(OURS, launch)


def ready_line(output: str) -> dict[str, Any] | None:
    for line in output.splitlines():
        if line.startswith("{"):
            with contextlib.suppress(json.JSONDecodeError):
                event: dict[str, Any] = json.loads(line)
                if event.get("event") == "ready":
                    return event
    return None


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def grpc_aio(onnx_files: Sequence[Path], cpu: int) -> Server:
    """Return the peer on grpc.aio; it runs in our environment, with our grpcio."""

    def launch() -> tuple[Process, Ports]:
        module = "benchmarks.common.aio_peer"
        process = Process([sys.executable, "-m", module, *map(str, onnx_files)], [cpu])
        return process, Ports(grpc=process.wait_for(lambda: _first_number(process.output())))

    return Server(GRPC_AIO, launch)


def fastapi(onnx_file: Path, python: Path, cpu: int) -> Server:
    """Return the REST peer."""

    def launch() -> tuple[Process, Ports]:
        process = Process([str(python), str(_HERE / "rest_peer.py"), str(onnx_file)], [cpu])
        return process, Ports(http=process.wait_for(lambda: _first_number(process.output())))

    return Server(FASTAPI, launch)


def _first_number(output: str) -> int | None:
    return next((int(line) for line in output.splitlines(keepends=True) if _is_port(line)), None)


def _is_port(line: str) -> bool:
    return line.endswith("\n") and line.strip().isdigit()


def triton(models: Sequence[TritonModel], python: Path, cpu: int, folder: Path) -> Server:
    """Return NVIDIA Triton with its Python backend. Its files are laid out in `folder`."""
    site = Path(next(python.parent.parent.glob("lib/python3*/site-packages")))
    home = site / "pytriton" / "tritonserver"
    repository, backends = folder / "triton" / "models", folder / "triton" / "backends"
    for each in models:
        version = repository / each.name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(each.config)
        if each.onnx_file is not None:
            shutil.copy(each.onnx_file, version)
            shutil.copy(_HERE / "triton_backend.py", version / "model.py")
    shutil.copytree(home / "backends", backends)
    # The backend looks for the stub of its own Python beside itself.
    number = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(
        home / "python_backend_stubs" / number / "triton_python_backend_stub", backends / "python"
    )
    libraries = [str(site / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]

    def launch() -> tuple[Process, Ports]:
        ports = Ports(free_port(), free_port())
        command = [
            str(home / "bin" / "tritonserver"), f"--model-repository={repository}",
            f"--backend-directory={backends}", "--allow-metrics=false",
            "--disable-auto-complete-config", f"--grpc-address={HOST}", f"--http-address={HOST}",
            f"--grpc-port={ports.grpc}", f"--http-port={ports.http}",
        ]  # fmt: skip
        # The stub drops PYTHONPATH, but looks for modules where it is started: in the peer's
        # environment.
        process = Process(
            command, [cpu], cwd=site, env={"LD_LIBRARY_PATH": os.pathsep.join(libraries)}
        )
        process.wait_for(lambda: answers_http(ports.http, "/v2/health/ready") or None)
        return process, ports

    return Server(TRITON, launch)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def answers_http(port: int, path: str) -> bool:
    """Return whether a server answers a GET with 200."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Start a server, and end it."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


def cpu_share(server: Server, load: Callable[[], Any]) -> tuple[Any, float]:
    """Run `load`; return what it returns and the share of a core that the server took."""
    start_s, cpu_start_s = time.monotonic(), server.process.cpu_s()
    result = load()
    return result, (server.process.cpu_s() - cpu_start_s) / (time.monotonic() - start_s)
