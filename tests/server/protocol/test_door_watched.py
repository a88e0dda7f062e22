"""Calls that are looked at go through the door as all others do, in lots of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.execution.threads import RunThreads
from server.models.repository import ModelRepository
from server.protocol.infer_door import InferDoor
from server.tracing.rules import Rule
from server.tracing.spans import Traced
from server.tracing.tracer import Tracer
from server.watch import Watch
from tests.server.protocol.infer_worlds import Head, World, load, rows_of

SPAN = "00f067aa0ba902b7"


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[ModelRepository]:
    with RunThreads(1, 1) as executor:
        yield load(tmp_path, executor)


class Watched:
    """A door that is watched by a tracer, or by the log too."""

    def __init__(self, repository: ModelRepository, rule: Rule, *, log: bool = False) -> None:
        self.traced: list[Traced] = []
        self.world = World(repository)
        tracer = Tracer(self.traced.append, lambda: 0.5)
        tracer.follow(rule, {})
        self.world.door = InferDoor(
            self.world.templates, self.world.books, Watch(log=log, tracer=tracer)
        )

    async def learn(self) -> None:
        await self.world.learn(message("order-0"))

    def take(self, *calls: tuple[str, str], timeout_ns: int = -1) -> list[int]:
        """Take a tick of (request id, flags of its caller's trace); return the streams."""
        made = []
        for request_id, flags in calls:
            call = self.world.call(message(request_id))
            head = Head(timeout_ns)
            if flags:
                head.traceparent = f"00-{request_id[-1] * 32}-{SPAN}-{flags}".encode()
            made.append((call[0], call[1], head, call[3]))
        assert self.world.door.take(made, time.monotonic_ns()) == []
        return [call[1] for call in made]


def message(request_id: str) -> bytes:
    return rows_of(1, id=request_id)


CALLS = [("order-1", "01"), ("order-2", "00"), ("order-3", ""), ("order-4", "01")]


async def test_those_that_are_traced_run_with_all_others(repository: ModelRepository) -> None:
    watched = Watched(repository, Rule(on=True, rate=0))
    await watched.learn()
    before = watched.world.statistics("mlp").execution_count
    streams = watched.take(*CALLS)
    assert watched.world.statistics("mlp").execution_count == before + 1
    assert set(watched.world.books.replies) == set(streams)
    assert sorted(watched.world.books.sends) == [1, 1, 2]
    assert [(t.request_id, t.ids.trace_id.hex(), t.code) for t in watched.traced] == [
        ("order-1", "1" * 32, 0),
        ("order-4", "4" * 32, 0),
    ]
    for traced in watched.traced:
        (run,) = traced.runs
        assert (run.model, run.version, run.batch_rows) == ("mlp", "1", 4)
        assert traced.started_ns <= run.queued_ns <= run.started_ns <= run.ended_ns
        assert run.ended_ns <= traced.ended_ns
    assert watched.traced[0].runs[0].started_ns == watched.traced[1].runs[0].started_ns


async def test_where_all_are_traced_none_is_left_over(repository: ModelRepository) -> None:
    watched = Watched(repository, Rule(on=True, rate=1))
    await watched.learn()
    streams = watched.take(("order-1", ""), ("order-2", ""))
    assert set(watched.world.books.replies) == set(streams)
    assert [t.ids.parent_id for t in watched.traced] == [None, None]
    assert len({t.ids.trace_id for t in watched.traced}) == 2


async def test_a_call_that_is_not_answered_says_why(repository: ModelRepository) -> None:
    watched = Watched(repository, Rule(on=True, rate=0))
    await watched.learn()
    watched.take(("order-1", "01"), ("order-2", "00"), timeout_ns=0)
    (traced,) = watched.traced
    assert (traced.code, traced.runs) == (4, [])
    assert "deadline" in traced.error
    assert len(watched.world.books.errors) == 2


async def test_what_is_off_or_of_another_looks_at_nobody(repository: ModelRepository) -> None:
    watched = Watched(repository, Rule())
    await watched.learn()
    watched.take(*CALLS)
    assert watched.world.books.sends == [4]
    assert watched.traced == []


async def test_with_the_log_every_call_has_its_line(
    repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "headrace.requests")
    watched = Watched(repository, Rule(on=True, rate=0), log=True)
    await watched.learn()
    watched.take(*CALLS)
    lines = [record.__dict__["request"] for record in caplog.records]
    assert [(line["request_id"], line.get("trace_id")) for line in lines] == [
        ("order-1", "1" * 32), ("order-2", "2" * 32), ("order-3", None), ("order-4", "4" * 32),
    ]  # fmt: skip
    assert {line["status"] for line in lines} == {"OK"}
    assert [t.request_id for t in watched.traced] == ["order-1", "order-4"]
