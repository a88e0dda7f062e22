"""@grpc/grpc-js as a client: its packages by npm, one process of the driver for all cases."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.interop_messages import PROTO

_ROOT = Path(__file__).resolve().parent.parent.parent
_MANIFESTS = ("package.json", "package-lock.json")


def _command(name: str) -> str:
    """Return node or npm: this environment's own before the system's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def node_modules() -> Path:
    """Return the folder of the packages at the lock's versions, fetched on first use."""
    manifests = [PROTO.parent / name for name in _MANIFESTS]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in manifests)).hexdigest()[:8]
    version = json.loads(manifests[0].read_text())["dependencies"]["@grpc/grpc-js"]
    target = _ROOT / ".peers" / f"grpc-js-{version}-{digest}"
    if target.is_dir():
        return target / "node_modules"
    npm = _command("npm")
    target.parent.mkdir(exist_ok=True)
    # Made aside and then renamed, so that two test processes never see half of it.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        for path in manifests:
            shutil.copy(path, made)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(
            command, cwd=made, capture_output=True, text=True, timeout=110, check=False
        )
        assert done.returncode == 0, done.stderr
        try:
            made.rename(target)
        except OSError:
            assert target.is_dir()  # another process was faster
    return target / "node_modules"


class NodeClient:
    """The driver: one line in, one line out."""

    def __init__(self) -> None:
        driver = PROTO.parent / "interop_client.js"
        self._process = subprocess.Popen(
            [_command("node"), str(driver), str(node_modules()), str(PROTO)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, case: str, port: int) -> None:
        """Run a case against 127.0.0.1:`port`; raise AssertionError when it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"case": case, "port": port}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the driver ended; its stderr says why"
        reply = json.loads(line)
        assert reply == {"case": case}, reply.get("error")

    def close(self) -> None:
        self._process.communicate(timeout=10)
