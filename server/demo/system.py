"""The running system: `headrace up` as a process of its own, started and ended by its pid."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import IO

from headrace.errors import UnavailableError

_READY_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 40.0
_VERSION_TIMEOUT_S = 60.0
_POLL_S = 0.02
# What people expect to find; taken only where nobody else has them.
WELL_KNOWN_PORTS = {"grpc": 8001, "http": 8000, "metrics": 8002, "control": 8080}


@dataclass
class System:
    """A running `headrace up`. The addresses are host:port, control's is a URL."""

    process: subprocess.Popen[bytes]
    grpc: str
    http: str
    metrics: str
    control: str
    log: Path

    @property
    def addresses(self) -> dict[str, str]:
        """What to show people."""
        return {
            "gRPC (Open Inference Protocol, headrace.v1)": self.grpc,
            "REST (Open Inference Protocol)": f"http://{self.http}/v2",
            "Prometheus metrics": f"http://{self.metrics}/metrics",
            "Control (registry, releases, incidents)": self.control,
            "Stop it with": f"kill {self.process.pid}",
        }

    def stop(self) -> None:
        """Drain and end it; by force when it does not go within 40 s."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def await_version(self, model: str, version: str) -> None:
        """Wait until the worker serves this version of a model: its release is in force then.

        Raises UnavailableError when the system dies, or after a minute.
        """
        from tritonclient import grpc as triton

        deadline = monotonic() + _VERSION_TIMEOUT_S
        client = triton.InferenceServerClient(self.grpc)
        try:
            while not client.is_model_ready(model, version, client_timeout=5.0):
                if monotonic() > deadline:
                    raise UnavailableError(
                        f"version {version} of {model!r} is not served after "
                        f"{_VERSION_TIMEOUT_S:.0f} s",
                        mend=f"read {self.log}",
                    )
                sleep(_POLL_S)
        except triton.InferenceServerException as error:
            raise UnavailableError(
                "the worker does not answer", got=str(error), mend=f"read {self.log}"
            ) from None
        finally:
            client.close()


def start_system(data_dir: Path, *, well_known_ports: bool) -> System:
    """Start the system on `data_dir` and wait until it is ready; its log goes to system.log.

    With `well_known_ports` it takes 8000 to 8002 and 8080 where all four are free, else any.
    Raises UnavailableError with the last lines of the log when it does not come up.
    """
    ports = dict.fromkeys(WELL_KNOWN_PORTS, 0)
    if well_known_ports and all(_is_free(port) for port in WELL_KNOWN_PORTS.values()):
        ports = WELL_KNOWN_PORTS
    command = [sys.executable, "-m", "server.cli.main", "up", "--data-dir", str(data_dir)]
    command += ["--workers", "1", "--replay-scope"]
    for name, port in ports.items():
        command += [f"--{name}-port", str(port)]
    log = data_dir / "system.log"
    with log.open("ab") as file:
        # A session of its own: Ctrl-C reaches the demo, which then ends the system in order.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, stdin=subprocess.DEVNULL,
            start_new_session=True, env=_environment(),
        )  # fmt: skip
    assert process.stdout is not None
    try:
        # Nothing follows the ready line, so that nobody needs to go on reading.
        with process.stdout as stdout:
            ready = _ready_line(stdout, log)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        process.wait(_STOP_TIMEOUT_S)
        raise
    return System(process, ready["grpc"], ready["http"], ready["metrics"], ready["control"], log)


def _environment() -> dict[str, str]:
    # The demo's own settings must hold, whatever HEADRACE_… the user's shell exports.
    return {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}


def _ready_line(stdout: IO[bytes], log: Path) -> dict[str, str]:
    deadline = monotonic() + _READY_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while monotonic() < deadline:
            if not selector.select(timeout=0.5):
                continue
            line = stdout.readline()
            if not line:
                break
            if line.startswith(b"{"):
                found: dict[str, str] = json.loads(line)
                return found
    tail = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise UnavailableError(
        "headrace up did not become ready", got=" | ".join(tail) or "no words", mend=f"read {log}"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
