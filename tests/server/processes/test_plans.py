"""The plan's way from control to the supervisor, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import AlreadyExistsError, HeadraceError, NotFoundError
from server.control.plan_feed import PlanFeed
from server.processes.plans import PlanFollower, plan_of_folder, read_plan
from server.wire.http1.server import HttpServer
from server.wire.routes import Request, Response, Routes, json_response
from tests.support.bundles import make_bundle

DIGEST = "sha256:" + "a" * 64


def plan(number: int, weight: float = 1.0) -> dict[str, Any]:
    arm = {"arm": "a", "version": DIGEST, "role": "live", "weight": weight}
    return {"plan": number, "models": {"delay": {"policy": {"kind": "single"}, "arms": [arm]}}}


class Publisher:
    """Control's plan feed alone, on a port of its own."""

    def __init__(self) -> None:
        self.current: dict[str, Any] = {"plan": 0, "models": {}}
        self.feed = PlanFeed(lambda: self.current)
        self._asked: asyncio.Queue[int] = asyncio.Queue()
        routes = Routes()
        routes.add("GET", "/v1/plan", self._plan)
        self.server = HttpServer(routes)

    async def start(self, port: int = 0) -> str:
        return f"http://127.0.0.1:{await self.server.start('127.0.0.1', port)}"

    async def publish(self, new: dict[str, Any]) -> None:
        self.current = new
        await self.feed.refresh()

    async def stop(self) -> None:
        self.feed.close()
        await self.server.drain(5)

    async def polled(self, after: int) -> None:
        """Wait until somebody polls with this number."""
        while await self._asked.get() != after:
            pass

    async def _plan(self, request: Request) -> Response:
        self._asked.put_nowait(int(request.query["after"]))
        try:
            found = await self.feed.wait(
                int(request.query["after"]), float(request.query["wait_s"])
            )
        except HeadraceError as error:
            return json_response({"error": error.message, "code": error.code}, error.status.http)
        return Response(204) if found is None else json_response(found)


class Follower:
    """A follower whose plans can be waited for."""

    def __init__(self, url: str, path: Path, first: dict[str, Any] | None = None) -> None:
        self.plans: queue.Queue[dict[str, Any]] = queue.Queue()
        self.on_disk: list[bytes] = []
        self.path = path
        self.thread = PlanFollower(url, path, first, self._take)
        self.thread.start()

    def _take(self, new: dict[str, Any]) -> None:
        self.on_disk.append(self.path.read_bytes())
        self.plans.put(new)

    async def next(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.plans.get, timeout=10)

    async def contacted(self) -> bool:
        return await asyncio.to_thread(self.thread.contacted.wait, 10)

    async def end(self) -> None:
        self.thread.stop()
        await asyncio.to_thread(self.thread.join, 10)
        assert not self.thread.is_alive()


async def test_each_newer_plan_is_on_disk_before_it_is_handed_on(tmp_path: Path) -> None:
    publisher = Publisher()
    await publisher.publish(plan(3))
    follower = Follower(await publisher.start(), tmp_path / "plan.json")
    assert (await follower.next())["plan"] == 3
    await publisher.publish(plan(4))
    assert (await follower.next())["plan"] == 4
    assert [json.loads(data)["plan"] for data in follower.on_disk] == [3, 4]
    assert read_plan(tmp_path / "plan.json") == plan(4)
    await publisher.polled(4)
    follower.thread.stop()
    await publisher.stop()
    await follower.end()


async def test_while_control_is_gone_the_last_plan_stays_and_later_the_next_one_comes(
    tmp_path: Path,
) -> None:
    publisher = Publisher()
    await publisher.publish(plan(3))
    url = await publisher.start()
    follower = Follower(url, tmp_path / "plan.json")
    await follower.next()
    await publisher.polled(3)
    await publisher.stop()
    again = Publisher()
    await again.publish(plan(5))
    await again.start(int(url.rpartition(":")[2]))
    assert (await follower.next())["plan"] == 5
    await again.polled(5)
    follower.thread.stop()
    await again.stop()
    await follower.end()


async def test_a_plan_that_breaks_the_rules_never_replaces_a_good_one(tmp_path: Path) -> None:
    publisher = Publisher()
    await publisher.publish(plan(4, weight=-1.0))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan(3)))
    follower = Follower(await publisher.start(), path, plan(3))
    assert await follower.contacted()
    assert read_plan(path) == plan(3)
    assert follower.plans.empty()
    follower.thread.stop()
    await publisher.stop()
    await follower.end()


async def test_a_registry_that_is_behind_the_kept_plan_changes_nothing(tmp_path: Path) -> None:
    publisher = Publisher()
    await publisher.publish(plan(2))
    follower = Follower(await publisher.start(), tmp_path / "plan.json", plan(9))
    assert await follower.contacted()
    assert follower.plans.empty()
    follower.thread.stop()
    await publisher.stop()
    await follower.end()


def test_a_poll_that_breaks_after_the_stop_is_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as control:
        follower = Follower(f"http://127.0.0.1:{control.getsockname()[1]}", tmp_path / "plan.json")
        connection, _ = control.accept()
        with connection:
            assert connection.recv(4096)
            follower.thread.stop()
    follower.thread.join(10)
    assert not follower.thread.is_alive()
    assert caplog.text == ""


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"plan": "x"}'])
def test_an_unreadable_kept_plan_is_passed_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    assert read_plan(path) is None
    path.write_bytes(content)
    assert read_plan(path) is None


def test_a_folder_of_bundles_is_a_fixed_plan(tmp_path: Path) -> None:
    from router import parse_plan

    first = make_bundle(tmp_path / "one", name="delay")
    second = make_bundle(tmp_path / "two", name="fraud")
    made = plan_of_folder(tmp_path)
    parsed = parse_plan(json.dumps(made).encode())
    arms = {
        name: [(a.version, a.role, a.weight) for a in m.arms] for name, m in parsed.models.items()
    }
    assert arms == {"delay": [(first, "live", 1.0)], "fraud": [(second, "live", 1.0)]}


def test_two_bundles_of_one_model_are_no_plan(tmp_path: Path) -> None:
    make_bundle(tmp_path / "one", seed=1)
    make_bundle(tmp_path / "two", seed=2)
    with pytest.raises(AlreadyExistsError, match="two bundles of model 'delay'"):
        plan_of_folder(tmp_path)


def test_a_folder_without_bundles(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no bundle"):
        plan_of_folder(tmp_path)
    with pytest.raises(NotFoundError, match="no folder"):
        plan_of_folder(tmp_path / "nowhere")
