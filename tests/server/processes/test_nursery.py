"""Workers that are forked: they are children like any other. Real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.processes.running import Running, alive, eventually, eventually_dead

# What the nursery forks: says on stderr what it sees, then does what it is told.
STUB = """
import json, os, random, secrets, signal, sys
import numpy as np
import numpy.random

def end(*_):
    say("drained")
    sys.exit(0)

def say(text):
    print(f"{sys.argv[1]} {text}", file=sys.stderr, flush=True)

def main():
    role, behaviour = sys.argv[1:3]
    signal.signal(signal.SIGTERM, end)
    if behaviour == "broken":
        return 3
    if behaviour == "raises":
        raise ValueError("of the stub")
    say("is " + json.dumps({
        "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0),
        "arguments": [len(each) for each in sys.argv[1:]],
        "secret": os.environ.get("SECRET"),
        "telemetry": os.environ.get("ORT_DISABLE_TELEMETRY"),
        "numbers": [random.getrandbits(64), int(np.random.randint(2**62)), secrets.randbits(64)],
        "name": open("/proc/self/comm").read().strip(),
        "descriptors": sorted(int(each) for each in os.listdir("/proc/self/fd")),
    }))
    print("not json", flush=True)
    print(json.dumps({"event": "ready"}), flush=True)
    if behaviour == "dies":
        return 4
    for line in sys.stdin:
        say("plan " + str(json.loads(line)["plan"]["plan"]))
    say("stdin ended")
    while True:
        signal.pause()
"""

# argv: folder, JSON of [[role, behaviour], …]; the stub is found by PYTHONPATH.
DRIVER = """
import asyncio, json, os, sys
from pathlib import Path
from headrace.errors import HeadraceError
from server import logs
from server.processes.child import ChildSpec
from server.processes.nursery import Nursery
from server.processes.restarts import RestartPolicy
from server.processes.supervisor import Supervisor

folder, workers, module = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
policy = RestartPolicy(base_s=0.02, stable_s=60.0, failures_max=3)

async def main():
    nursery = Nursery()
    def spec(role, behaviour):
        return ChildSpec(role, lambda plan: [role, behaviour, '"' * 119_000], takes_plans=True,
                         environment={"SECRET": f"of {role}"}, fork=nursery.fork)
    children = folder / "children.json"
    async with Supervisor(children, drain_s=5, policy=policy) as supervisor:
        supervisor.publish({"plan": 7})
        await supervisor.start([nursery.spec("nursery", module, windows=False)])
        await supervisor.start([spec(*worker) for worker in workers])
        print("up", flush=True)
        await supervisor.wait()

logs.setup("supervisor")
try:
    asyncio.run(main())
except HeadraceError as error:
    print(f"headrace: {error}", file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "forked_stub.py").write_text(STUB)
    (folder / "forked_thread.py").write_text(
        "import threading, signal\n"
        "threading.Thread(target=signal.pause, daemon=True).start()\n"
        "def main(): return 0\n"
    )
    (folder / "forked_lacking.py").write_text("import nosuch_package\n")
    return folder


def supervise(
    folder: Path, stubs: Path, *workers: tuple[str, str], module: str = "forked_stub"
) -> Running:
    return Running(
        sys.executable, "-c", DRIVER, str(folder), json.dumps(workers), module,
        environment={"PYTHONPATH": str(stubs), "SECRET": ""},
    )  # fmt: skip


def children(folder: Path) -> dict[str, int]:
    records = json.loads((folder / "children.json").read_bytes())
    return {record["role"]: record["pid"] for record in records}


def seen_by(running: Running, role: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(running.line(f"^{role} is {{").string.partition(" is ")[2])
    return found


def test_a_forked_worker_is_a_child_like_any_other(tmp_path: Path, stubs: Path) -> None:
    with supervise(tmp_path, stubs, ("worker-0", "good")) as s:
        what = seen_by(s, "worker-0")
        s.line("worker-0 plan 7")
        assert what["pid"] == what["session"] == children(tmp_path)["worker-0"]
        assert what["parent"] == s.pid
        assert what["arguments"] == [8, 4, 119_000]  # a plan may be that long
        assert what["secret"] == "of worker-0"
        assert what["telemetry"] == "1"
        assert what["name"] == "worker-0"
        # stdin, stdout, stderr, and the listing itself: nothing of the nursery's.
        assert len(what["descriptors"]) == 4
        s.line("up", "stdout")
        assert s.end() == 0
        assert "worker-0 drained" in s.seen
        assert not alive(what["pid"])


def test_its_environment_is_for_nobody_else_to_read(tmp_path: Path, stubs: Path) -> None:
    with supervise(tmp_path, stubs, ("worker-0", "good")) as s:
        s.line("up", "stdout")
        for pid in children(tmp_path).values():
            for file in ("cmdline", "environ"):
                assert b"of worker-0" not in Path(f"/proc/{pid}/{file}").read_bytes()


def test_no_two_draw_the_same_numbers(tmp_path: Path, stubs: Path) -> None:
    with supervise(tmp_path, stubs, ("worker-0", "good"), ("worker-1", "good")) as s:
        s.line("up", "stdout")
        assert s.end() == 0
        drawn = [
            json.loads(line.partition(" is ")[2])["numbers"] for line in s.seen if " is {" in line
        ]
        assert len(drawn) == 2
        assert not set(drawn[0]) & set(drawn[1])


def test_a_killed_one_comes_back(tmp_path: Path, stubs: Path) -> None:
    with supervise(tmp_path, stubs, ("worker-0", "good")) as s:
        s.line("up", "stdout")
        first = children(tmp_path)["worker-0"]
        os.kill(first, signal.SIGKILL)
        s.line("worker-0 ended: signal SIGKILL; starting it again in 0.0 s")
        s.line("worker-0 is ready")
        assert children(tmp_path)["worker-0"] != first
        assert s.end() == 0


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ("broken", "headrace: worker-0 ended before it was ready (got exit code 3)"),
        ("raises", "headrace: worker-0 ended before it was ready (got exit code 1)"),
        ("dies", "headrace: worker-0 died 3 times in a row, giving up (worker-0 ended: exit code"),
    ],
)
def test_one_that_ends_by_itself_says_how(
    tmp_path: Path, stubs: Path, behaviour: str, text: str
) -> None:
    with supervise(tmp_path, stubs, ("worker-0", behaviour)) as s:
        assert s.wait() == 1
        assert s.seen[-1].startswith(text)
        assert ("ValueError: of the stub" in s.text) == (behaviour == "raises")


def test_when_the_nursery_is_killed_the_workers_go_on_and_a_new_one_makes_the_next(
    tmp_path: Path, stubs: Path
) -> None:
    with supervise(tmp_path, stubs, ("worker-0", "good"), ("worker-1", "good")) as s:
        s.line("up", "stdout")
        before = children(tmp_path)
        os.kill(before["nursery"], signal.SIGKILL)
        os.kill(before["worker-0"], signal.SIGKILL)
        s.lines("nursery ended: signal SIGKILL", "worker-0 ended: signal SIGKILL")
        s.lines("nursery is ready", "worker-0 is ready")
        after = children(tmp_path)
        assert after["worker-1"] == before["worker-1"]
        assert alive(after["worker-1"])
        assert after["worker-0"] != before["worker-0"]
        assert s.end() == 0
        assert s.text.count("drained") == 2


def test_when_the_supervisor_is_killed_the_workers_go_on_and_the_nursery_ends(
    tmp_path: Path, stubs: Path
) -> None:
    with supervise(tmp_path, stubs, ("worker-0", "good")) as s:
        s.line("up", "stdout")
        pids = children(tmp_path)
        s.send(signal.SIGKILL)
        s.line("worker-0 stdin ended")
        assert eventually_dead(pids["nursery"])
        assert alive(pids["worker-0"])
        with Running.python(
            "import sys; from pathlib import Path\n"
            "from server.processes.layout import replace_orphans\n"
            "print([c.role for c in replace_orphans(Path(sys.argv[1]), 5.0)])",
            str(tmp_path / "children.json"),
        ) as replacing:
            replacing.line(r"\['worker-0'\]", "stdout")
        s.line("worker-0 drained")
        assert eventually_dead(pids["worker-0"])


def test_a_nursery_with_a_thread_is_refused_and_says_which(tmp_path: Path, stubs: Path) -> None:
    with supervise(tmp_path, stubs, module="forked_thread") as s:
        assert s.wait() == 1
        assert "2 threads run in the nursery" in s.text
        assert "--no-nursery" in s.text
        assert s.seen[-1] == "headrace: nursery ended before it was ready (got exit code 1)"


def test_a_package_that_is_missing_is_said_and_no_nursery_is_no_mend(
    tmp_path: Path, stubs: Path
) -> None:
    with supervise(tmp_path, stubs, module="forked_lacking") as s:
        assert s.wait() == 1
        assert "a worker needs nosuch_package; `headrace doctor` says" in s.text
        assert "--no-nursery" not in s.text
        assert s.seen[-1] == "headrace: nursery ended before it was ready (got exit code 1)"


class Bare:
    """A nursery without a supervisor: the other end of its socket is ours."""

    def __init__(self, module: str, stubs: Path, **config: Any) -> None:
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.settimeout(60)
        threads = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "server.nursery",
                 json.dumps({"module": module, **config})],
                stdin=theirs, stdout=subprocess.PIPE,
                env=os.environ | threads | {"PYTHONPATH": str(stubs)},
            )  # fmt: skip

    def fork(self, *arguments: str) -> tuple[int, int, int]:
        """Return the worker's pid, and our ends of its stdin and stdout."""
        (stdin, our_stdin), (our_stdout, stdout) = os.pipe(), os.pipe()
        request = {"id": 1, "role": "worker-0", "arguments": arguments, "environment": {}}
        socket.send_fds(self.link, [json.dumps(request).encode()], [stdin, stdout])
        os.close(stdin)
        os.close(stdout)
        return json.loads(self.link.recv(4096))["pid"], our_stdin, our_stdout

    def close(self) -> int:
        self.link.close()
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def bare(stubs: Path) -> Iterator[Bare]:
    nursery = Bare("forked_stub", stubs)
    yield nursery
    nursery.close()


def test_a_worker_that_nobody_has_heard_of_ends(bare: Bare) -> None:
    """The supervisor may be killed after the fork, and before it wrote down the pid."""
    pid, stdin, stdout = bare.fork("worker-0", "good")
    assert alive(pid)
    os.close(stdin)
    assert os.read(stdout, 100) == b""
    os.close(stdout)
    assert eventually_dead(pid)


def test_the_nursery_ends_with_its_socket(bare: Bare) -> None:
    assert bare.close() == 0


KERNELS = """
import json, sys
import numpy as np

def main():
    from features import definitions_from_source, StreamFeatureView
    from features.windows import compiled
    from features.windows.engine import WindowEngine
    before = len(compiled.query_many.signatures)
    with open(sys.argv[1], "rb") as file:
        service = definitions_from_source(file.read()).service("tips")
    for entry in service.views:
        if isinstance(entry.view, StreamFeatureView):
            engine = WindowEngine(entry.view)
            engine.query([None, b""], np.zeros(2, dtype=np.int64))
    print(json.dumps([before, len(compiled.query_many.signatures)]), flush=True)
    return 0
"""


@pytest.mark.slow
def test_no_kernel_is_compiled_in_a_worker(tmp_path: Path) -> None:
    from tests.support.rides import SOURCE

    (tmp_path / "forked_kernels.py").write_text(KERNELS)
    (tmp_path / "definitions.txt").write_bytes(SOURCE)
    nursery = Bare("forked_kernels", tmp_path, windows=True)
    pid, stdin, stdout = nursery.fork(str(tmp_path / "definitions.txt"))
    os.write(stdin, b"\n")
    with os.fdopen(stdout) as output:
        before, after = json.loads(output.readline())
    os.close(stdin)
    assert before == after == 1
    assert eventually_dead(pid)
    assert nursery.close() == 0


@pytest.mark.slow
def test_a_worker_imports_nothing_any_more(tmp_path: Path) -> None:
    """What it would import, each would import anew: the nursery must know it all."""
    (tmp_path / "forked_worker.py").write_text(
        "import atexit, json, os, sys\n"
        "import server.worker as worker\n"
        "from server.worker import run\n"
        "real_exit = os._exit\n"
        "def main():\n"
        "    before = set(sys.modules)\n"
        "    def report(code):\n"
        "        new = sorted(set(sys.modules) - before)\n"
        "        print(json.dumps({'event': 'modules', 'new': new}), flush=True)\n"
        "        real_exit(code)\n"
        "    os._exit = report\n"
        "    return worker.main()\n"
    )
    nursery = Bare("forked_worker", tmp_path)
    config = {
        "worker": 0, "host": "127.0.0.1", "grpc_port": 0, "http_port": 0, "metrics_port": 0,
        "data_dir": str(tmp_path), "drain_s": 1.0, "slots": 2,
    }  # fmt: skip
    (tmp_path / "run").mkdir()
    pid, stdin, stdout = nursery.fork(json.dumps(config))
    os.write(stdin, b"\n")
    with os.fdopen(stdout) as output:
        assert json.loads(output.readline())["event"] == "ready"
        os.kill(pid, signal.SIGTERM)
        found = json.loads(output.readline())
    os.close(stdin)
    assert found == {"event": "modules", "new": []}
    eventually(lambda: not alive(pid), "it ended")
    assert nursery.close() == 0
