"""The supervisor with stub children, as processes and with real signals."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from server.processes.layout import ChildRecord, start_ticks
from tests.server.processes.running import Running, alive, eventually_dead

# argv: role, behaviour. Says on stderr what happens to it.
STUB = """
import json, signal, sys
role, behaviour = sys.argv[1:3]
def say(text):
    print(f"{role} {text}", file=sys.stderr, flush=True)
def end(*_):
    say("drained")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else end)
if behaviour == "broken":
    sys.exit(3)
if behaviour == "slow":
    say("begins")
    signal.pause()
print("not json", flush=True)
print(json.dumps({"event": "ready"}), flush=True)
if behaviour == "dies":
    sys.exit(4)
for line in sys.stdin:
    say("plan " + str(json.loads(line)["plan"]["plan"]))
say("stdin ended")
while True:
    signal.pause()
"""

# argv: folder, JSON of [[ [role, behaviour], … ], …]: groups of children. SIGHUP replaces a child
# by the [role, behaviour] in the folder's file `next`.
DRIVER = """
import asyncio, json, sys
from pathlib import Path
from headrace.errors import HeadraceError
from server import logs
from server.processes.child import ChildSpec
from server.processes.restarts import RestartPolicy
from server.processes.supervisor import StopRequested, Supervisor

folder, groups, stub = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
policy = RestartPolicy(base_s=0.02, stable_s=60.0, failures_max=3)

def spec(role, behaviour):
    command = [sys.executable, "-c", stub, role, behaviour]
    return ChildSpec(role, lambda plan: command, takes_plans=True, ready_timeout_s=10)

async def main():
    children = folder / "children.json"
    async with Supervisor(children, drain_s=0.5, policy=policy) as supervisor:
        supervisor.publish({"plan": 7})
        try:
            for group in groups:
                await supervisor.start([spec(*child) for child in group])
        except StopRequested:
            return
        supervisor.publish({"plan": 6})
        supervisor.publish({"plan": 8})
        print("up", flush=True)
        while await supervisor.wait():
            try:
                await supervisor.replace(spec(*json.loads((folder / "next").read_text())))
            except StopRequested:
                return
            except HeadraceError as error:
                print(f"kept: {error}", flush=True)
            else:
                print("replaced", flush=True)

logs.setup("supervisor")
try:
    asyncio.run(main())
except HeadraceError as error:
    print(f"headrace: {error}", file=sys.stderr)
    sys.exit(1)
"""


def supervise(folder: Path, *groups: list[tuple[str, str]]) -> Running:
    return Running.python(DRIVER, str(folder), json.dumps(groups), STUB)


def children(folder: Path) -> dict[str, int]:
    records = json.loads((folder / "children.json").read_bytes())
    return {record["role"]: record["pid"] for record in records}


def test_sigterm_drains_the_last_group_first_and_exits_0(tmp_path: Path) -> None:
    with supervise(
        tmp_path, [("store", "good")], [("worker-0", "good"), ("worker-1", "good")]
    ) as s:
        s.line("up", "stdout")
        pids = children(tmp_path).values()
        assert s.end(signal.SIGTERM) == 0
        drained = [line for line in s.seen if line.endswith("drained")]
        assert sorted(drained[:2]) == ["worker-0 drained", "worker-1 drained"]
        assert drained[2:] == ["store drained"]
        assert not any(alive(pid) for pid in pids)
        assert not (tmp_path / "children.json").exists()


def test_a_killed_worker_comes_back_with_the_newest_plan(tmp_path: Path) -> None:
    with supervise(tmp_path, [("worker-0", "good")]) as s:
        s.lines("worker-0 is ready", "worker-0 plan 7", "worker-0 plan 8")
        first = children(tmp_path)["worker-0"]
        signal_pid(first, signal.SIGKILL)
        s.lines(
            "worker-0 ended: signal SIGKILL; starting it again in 0.0 s",
            "worker-0 is ready",
            "worker-0 plan 8",
        )
        assert children(tmp_path)["worker-0"] != first
        assert s.end() == 0


def test_a_crash_loop_ends_everything_with_one_clear_line(tmp_path: Path) -> None:
    with supervise(tmp_path, [("store", "good")], [("worker-0", "dies")]) as s:
        assert s.wait() == 1
        assert "store drained" in s.seen
        last = s.seen[-1]
        assert last.startswith("headrace: worker-0 died 3 times in a row, giving up")
        assert "exit code 4" in last


def test_a_child_that_fails_at_first_start_is_not_tried_again(tmp_path: Path) -> None:
    with supervise(tmp_path, [("store", "good")], [("worker-0", "broken")]) as s:
        assert s.wait() == 1
        assert "store drained" in s.seen
        assert s.seen[-1] == "headrace: worker-0 ended before it was ready (got exit code 3)"


def test_a_stubborn_child_is_killed_after_the_drain(tmp_path: Path) -> None:
    with supervise(tmp_path, [("worker-0", "stubborn")]) as s:
        s.line("up", "stdout")
        pid = children(tmp_path)["worker-0"]
        assert s.end() == 0
        assert not alive(pid)
        assert any("worker-0 did not end within 0.5 s and was killed" in line for line in s.seen)


def test_when_the_supervisor_is_killed_the_children_go_on_and_the_next_one_replaces_them(
    tmp_path: Path,
) -> None:
    with supervise(tmp_path, [("worker-0", "good")]) as s:
        s.line("up", "stdout")
        orphan = children(tmp_path)["worker-0"]
        s.send(signal.SIGKILL)
        s.line("worker-0 stdin ended")
        assert alive(orphan)
        with Running.python(
            "import sys; from pathlib import Path\n"
            "from server.processes.layout import replace_orphans\n"
            "print([c.role for c in replace_orphans(Path(sys.argv[1]), 5.0)])",
            str(tmp_path / "children.json"),
        ) as replacing:
            replacing.line(r"\['worker-0'\]", "stdout")
        s.line("worker-0 drained")
        assert eventually_dead(orphan)
        assert not (tmp_path / "children.json").exists()


def replace(running: Running, folder: Path, role: str, behaviour: str) -> None:
    (folder / "next").write_text(json.dumps([role, behaviour]))
    running.send(signal.SIGHUP)


def test_a_new_child_is_ready_before_the_old_one_drains(tmp_path: Path) -> None:
    with supervise(tmp_path, [("worker-0", "good"), ("worker-1", "good")]) as s:
        s.line("up", "stdout")
        roles = ("worker-0", "worker-1")
        s.lines(*(f"{role} {what}" for role in roles for what in ("is ready", "plan 8")))
        first = children(tmp_path)
        replace(s, tmp_path, "worker-0", "good")
        s.lines("worker-0 is ready", "worker-0 plan 8", "worker-0 drained")
        s.line("replaced", "stdout")
        second = children(tmp_path)
        assert second["worker-0"] != first["worker-0"]
        assert second["worker-1"] == first["worker-1"]
        assert not alive(first["worker-0"])
        signal_pid(second["worker-0"], signal.SIGKILL)  # from here on the new one is kept running
        s.lines("worker-0 ended: signal SIGKILL", "worker-0 is ready")
        assert s.end() == 0


def test_when_the_new_child_fails_the_old_one_goes_on_and_is_still_kept_running(
    tmp_path: Path,
) -> None:
    with supervise(tmp_path, [("worker-0", "good")]) as s:
        s.line("up", "stdout")
        first = children(tmp_path)["worker-0"]
        replace(s, tmp_path, "worker-0", "broken")
        s.line("kept: worker-0 ended before it was ready .got exit code 3", "stdout")
        assert alive(first)
        signal_pid(first, signal.SIGKILL)
        s.lines("worker-0 ended: signal SIGKILL", "worker-0 is ready")
        replace(s, tmp_path, "worker-0", "good")
        s.line("replaced", "stdout")
        assert s.end() == 0


def test_a_signal_while_a_child_is_replaced_ends_both(tmp_path: Path) -> None:
    with supervise(tmp_path, [("worker-0", "good")]) as s:
        s.line("up", "stdout")
        replace(s, tmp_path, "worker-0", "slow")
        s.line("worker-0 begins")
        pids = json.loads((tmp_path / "children.json").read_bytes())
        assert len(pids) == 2
        assert s.end() == 0
        assert s.text.count("worker-0 drained") == 2
        assert not any(alive(record["pid"]) for record in pids)


# argv: a terminal's descriptor, "nohup" or "", then the program that gets the terminal.
IN_TERMINAL = """
import fcntl, os, signal, sys, termios
os.setsid()
fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
# Not as whoever runs the tests has it.
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[2] else signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[3:]])
"""


@pytest.mark.parametrize("nohup", ["", "nohup"])
def test_when_the_terminal_closes_it_ends_but_under_nohup(tmp_path: Path, nohup: str) -> None:
    ours, theirs = os.openpty()
    driver = (DRIVER, str(tmp_path), json.dumps([[("worker-0", "good")]]), STUB)
    with Running.python(IN_TERMINAL, str(theirs), nohup, *driver, keeps=(theirs,)) as s:
        os.close(theirs)
        s.line("up", "stdout")
        os.close(ours)
        if nohup:
            s.line("the terminal is gone")
            replace(s, tmp_path, "worker-0", "good")  # it lives, and knows a reload from a hang-up
            s.line("replaced", "stdout")
            assert s.end() == 0
        else:
            assert s.wait() == 0
            assert "worker-0 drained" in s.seen


@pytest.mark.parametrize("content", [b"", b"[{", b'[{"role": "x"}]'])
def test_a_torn_record_of_children_harms_nobody(tmp_path: Path, content: bytes) -> None:
    from server.processes.layout import replace_orphans

    path = tmp_path / "children.json"
    path.write_bytes(content)
    assert replace_orphans(path, 1.0) == []


def test_a_process_that_only_has_the_pid_of_an_orphan_is_left_alone(tmp_path: Path) -> None:
    from server.processes.layout import replace_orphans, write_children

    path = tmp_path / "children.json"
    with Running(sys.executable, "-c", "import signal; signal.pause()") as bystander:
        ticks = start_ticks(bystander.pid)
        assert ticks is not None
        write_children(path, [ChildRecord("worker-0", bystander.pid, ticks - 1)])
        assert replace_orphans(path, 1.0) == []
        assert alive(bystander.pid)


def signal_pid(pid: int, number: signal.Signals) -> None:
    os.kill(pid, number)
