"""Versions and releases by the admin API."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.digest import digest_bytes
from headrace.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from server.control.client import ControlClient
from tests.server.control.conftest import LiveControl
from tests.server.processes.running import Running, eventually


def raw(control: LiveControl, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
    host, _, port = control.client.url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data) if data else None
    finally:
        connection.close()


def test_from_draft_to_release_and_back_with_who_and_why(
    control: LiveControl, tmp_path: Path
) -> None:
    client, model = control.client, "whole"
    first = control.approved(tmp_path / "1", model, seed=1)
    second = control.approved(tmp_path / "2", model, seed=2)
    assert [v["digest"] for v in client.versions(model)] == [second, first]
    client.release(model, [{"version": "v1"}], "grace", "go", expected_sequence=0)
    split = client.release(
        model,
        [{"version": "v1", "weight": 0.9}, {"version": "v2", "role": "canary", "weight": 0.1}],
        "grace",
        "a first look",
        explain=0.25,
    )
    assert client.plan()["models"][model]["log"]["explain"] == 0.25
    back = client.rollback(model, "grace", "the canary is worse")
    assert [r["sequence"] for r in client.releases(model)] == [1, 2, 3]
    assert (back["back_to"], back["why"], back["by"]) == (1, "the canary is worse", "grace")
    assert back["plan"] > split["plan"]
    plan = client.plan()
    assert plan is not None
    assert [arm["version"] for arm in plan["models"][model]["arms"]] == [first]
    shown = client.version(model, first[:20])
    assert shown["manifest"]["name"] == model
    trail = [(e["actor"], e["action"], e["why"]) for e in shown["events"]]
    assert trail == [
        ("ada", "register", "made it"),
        ("ada", "submit", "as it should be"),
        ("grace", "review", "as it should be"),
        ("grace", "approve", "as it should be"),
    ]
    entry = next(m for m in client.models() if m["name"] == model)
    assert (entry["versions"], entry["champion"]) == (2, first)


def test_nobody_approves_their_own_work(control: LiveControl, tmp_path: Path) -> None:
    digest = control.version(tmp_path / "1", "own")
    control.client.act("own", digest, "submit", "ada", "please")
    control.client.act("own", digest, "review", "grace", "on it")
    with pytest.raises(PermissionDeniedError, match="ada"):
        control.client.act("own", digest, "approve", "ada", "trust me")


def test_what_is_not_approved_is_not_released(control: LiveControl, tmp_path: Path) -> None:
    digest = control.version(tmp_path / "1", "draft")
    with pytest.raises(FailedPreconditionError):
        control.client.release("draft", [{"version": digest}], "grace", "go")


def test_a_release_after_somebody_elses_is_refused(control: LiveControl, tmp_path: Path) -> None:
    digest = control.approved(tmp_path / "1", "race")
    control.client.release("race", [{"version": digest}], "grace", "go", expected_sequence=0)
    with pytest.raises(FailedPreconditionError):
        control.client.release("race", [{"version": digest}], "hal", "me too", expected_sequence=0)


def test_a_blob_is_its_digest(control: LiveControl) -> None:
    client, data = control.client, b"some bytes"
    digest = digest_bytes(data)
    assert not client.has_blob(digest)
    with pytest.raises(NotFoundError):
        client.get_blob(digest)
    with pytest.raises(FailedPreconditionError):
        client.put_blob(digest, b"other bytes")
    assert not client.has_blob(digest)
    client.put_blob(digest, data)
    client.put_blob(digest, data)
    assert client.has_blob(digest)
    assert client.get_blob(digest) == data


def test_a_large_blob_is_not_held_in_memory(control: LiveControl) -> None:
    data = bytes(96 << 20)
    digest = digest_bytes(data)
    pid = control.process.pid
    _reset_peak(pid)
    before = _peak_bytes(pid)
    control.client.put_blob(digest, data)
    assert control.client.has_blob(digest)
    assert _peak_bytes(pid) - before < 32 << 20


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def test_an_upload_that_is_cut_off_leaves_nothing(own_control: LiveControl) -> None:
    host, _, port = own_control.client.url.removeprefix("http://").rpartition(":")
    data = bytes(3 << 20)
    drafts = own_control.folder / "artifacts" / "drafts"
    with socket.create_connection((host, int(port))) as client:
        head = f"PUT /v1/blobs/{digest_bytes(data)} HTTP/1.1\r\nHost: x\r\n"
        client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[:-1])
        eventually(lambda: any(draft.stat().st_size for draft in drafts.iterdir()), "a draft")
    eventually(lambda: not any(drafts.iterdir()), "no draft")
    assert not own_control.client.has_blob(digest_bytes(data))


def test_a_version_whose_files_were_not_uploaded(control: LiveControl) -> None:
    with pytest.raises(NotFoundError):
        control.client.register("nothing", digest_bytes(b"nothing"), "ada", "why not")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("GET", "/v1/models/none/versions/v1", b"", 404, "none"),
        ("GET", "/v1/nothing", b"", 404, "Not Found"),
        ("DELETE", "/v1/models", b"", 405, "Method Not Allowed"),
        ("POST", "/v1/models/m/releases", b"{", 400, "request body"),
        ("POST", "/v1/models/m/releases", b'{"entries": [], "by": "a", "why": "b"}', 400, "entry"),
        ("POST", "/v1/models/m/rollback", b'{"by": "a", "why": "b", "two": 1}', 400, "two"),
        ("POST", "/v1/models/m/versions", b'{"manifest": 1, "by": "a", "why": "b"}', 400, "manif"),
        ("POST", "/v1/models/m/versions/v1/submit", b'{"by": "", "why": ""}', 400, "by"),
        ("GET", "/v1/plan?after=-1", b"", 400, "after"),
        ("GET", "/v1/plan?wait_s=nan", b"", 400, "wait_s"),
        ("GET", "/v1/plan?after=999999", b"", 412, "ahead of this registry"),
        ("GET", "/v1/monitor/days", b"", 400, "model"),
        ("GET", "/v1/monitor/days?model=nope", b"", 404, "no model 'nope'"),
        ("GET", "/v1/incidents?model=nope", b"", 404, "no model 'nope'"),
        ("GET", "/v1/models/nope/releases", b"", 404, "no model 'nope'"),
        ("POST", "/v1/monitor/run", b'{"model": "m", "through": "2013-13-01"}', 400, "through"),
        ("POST", "/v1/monitor/run", b'{"model": "m", "through": "2013-10-01"}', 404, "'m'"),
        ("POST", "/v1/features/definitions", b"x = 1", 400, "by"),
        ("POST", "/v1/features/definitions?by=ada", b"x = \n", 400, "line 1"),
        ("POST", "/v1/runs?by=ada", b"[]", 400, "request body"),
    ],
)
def test_mistakes_are_named_and_change_nothing(
    control: LiveControl, method: str, path: str, body: bytes, status: int, text: str
) -> None:
    got, answer = raw(control, method, path, body)
    assert got == status, answer
    assert text in answer["error"]
    assert "/data" not in answer["error"]
    assert control.client.health()["status"] == "ok"


def test_a_long_poll_is_answered_when_the_plan_changes_and_not_before(
    control: LiveControl, tmp_path: Path
) -> None:
    digest = control.approved(tmp_path / "1", "polled")
    before = control.client.health()["plan"]
    answers: list[Any] = []
    poll = threading.Thread(target=lambda: answers.append(control.client.plan(before, wait_s=30)))
    poll.start()
    assert control.client.plan(before, wait_s=0.05) is None  # as long as nothing is released
    begun = time.monotonic()
    control.client.release("polled", [{"version": digest}], "grace", "go")
    poll.join(10)
    assert time.monotonic() - begun < 5
    assert answers[0]["plan"] == before + 1
    assert "polled" in answers[0]["models"]


def test_runs_are_kept(control: LiveControl) -> None:
    control.client.record_run({"run": "r-1", "auc": 0.76}, "ada")
    kept = control.client.runs()[0]
    assert (kept["run"], kept["by"], kept["body"]["auc"]) == ("r-1", "ada", 0.76)


def test_everything_acknowledged_survives_kill_9(own_control: LiveControl, tmp_path: Path) -> None:
    digest = own_control.approved(tmp_path / "1", "kept")
    own_control.client.release("kept", [{"version": digest}], "grace", "go")
    plan = own_control.client.plan()
    with own_control.process:
        own_control.process.end(signal.SIGKILL)
    with pytest.raises(UnavailableError, match="does not answer"):
        own_control.client.health()
    own_control.start()
    assert own_control.client.plan() == plan
    assert own_control.client.version("kept", "champion")["digest"] == digest


def test_sigterm_answers_who_waits_and_exits_0(own_control: LiveControl) -> None:
    answers: list[Any] = []

    def poll() -> None:
        try:
            answers.append(own_control.client.plan(0, wait_s=50))
        except HeadraceError as error:
            answers.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    # The poll is on its way once a later request has been answered on the same accept queue.
    own_control.client.health()
    begun = time.monotonic()
    assert own_control.process.end() == 0
    thread.join(10)
    assert time.monotonic() - begun < 10
    assert answers[0] is None or isinstance(answers[0], UnavailableError)


def test_one_control_a_folder(own_control: LiveControl) -> None:
    import sys

    config = {"host": "127.0.0.1", "port": 0, "data_dir": str(own_control.folder)}
    command = (sys.executable, "-P", "-m", "server.control", json.dumps(config))
    with Running(*command) as second:
        assert second.wait() == 1
    assert "a headrace control already runs" in second.text


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="http://HOST:PORT"):
        ControlClient(url)


def test_errors_keep_their_kind_on_the_way() -> None:
    from server.control.client import _error

    body = json.dumps({"error": "it is there", "code": "already_exists"}).encode()
    error = _error(409, body)
    assert isinstance(error, AlreadyExistsError)
    assert str(error) == "it is there"
    assert "502" in str(_error(502, b"<html>"))
