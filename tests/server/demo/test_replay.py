from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import FailedPreconditionError, UnavailableError
from server.demo import replay
from server.demo.replay import Cue, Outcomes, ReplayClient
from server.demo.replay_clock import ReplayClock
from tests.server.demo.fake_server import serving
from tests.server.demo.test_replay_clock import clock, events

MINUTES = 300


def outcomes(rows: int, lag: int = 5) -> Outcomes:
    """Every decision's outcome is known `lag` minutes after it."""
    return Outcomes("late", np.arange(rows) % 2.0, np.arange(rows) // 2 + lag)


def year() -> ReplayClock:
    at = [t for t in range(MINUTES) for _ in range(2)]
    return clock({"a": events([(t, t, 0.0) for t in range(-50, MINUTES + 3)])}, at)


async def test_a_replay_never_sees_ahead() -> None:
    async with serving() as (fake, address), ReplayClient(address) as client:
        ticking = year()
        warm: list[int] = []
        assert await client.warm(ticking, 0, "service", warm.append) == 50
        seen: list[tuple[int, int]] = []
        answers = await client.replay(
            ticking, outcomes(2 * MINUTES), lambda *at: seen.append(at), []
        )
    # The fake answers with the newest event that it was told of: at t that is the event of t.
    expected = np.repeat(np.arange(MINUTES), 2).astype(np.float32) / np.float32(1000)
    np.testing.assert_array_equal(answers.outputs, expected)
    assert [q.event_time for q in fake.questions] == list(range(MINUTES))
    assert len(fake.created) == 50 + MINUTES + 3
    assert answers.events == MINUTES + 3
    assert warm == [50]
    assert fake.waited == ["1-0"]
    assert len(answers.predict_ns) == MINUTES
    assert len(answers.push_ns) == MINUTES
    assert min(answers.predict_ns) > 0
    assert seen
    assert answers.arms[:3].tolist() == ["b", "a", "b"]


async def test_events_run_ahead_of_the_questions_only_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as (fake, address), ReplayClient(address) as client:
        await client.replay(year(), outcomes(2 * MINUTES), lambda *_: None)
        assert fake.asked_most <= replay.MINUTES_IN_FLIGHT_MAX
        assert fake.lead_most <= replay.MINUTES_IN_FLIGHT_MAX
        monkeypatch.setattr(replay, "LEAD_US_MAX", 0)
        fake.lead_most = fake.asked_most = 0
        fake.created, fake.pushed = [], []
        await client.replay(year(), outcomes(2 * MINUTES), lambda *_: None)
        assert (fake.asked_most, fake.lead_most) == (1, 0)


async def test_outcomes_are_told_once_with_their_prediction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay, "FEEDBACK_ROWS", 16)
    async with serving() as (fake, address), ReplayClient(address) as client:
        answers = await client.replay(year(), outcomes(2 * MINUTES), lambda *_: None)
    assert answers.truths == len(fake.truths) == 2 * MINUTES
    told = {t.prediction_id: t.value for t in fake.truths}
    assert told == {i.to_bytes(16, "big"): i % 2.0 for i in range(2 * MINUTES)}
    assert {t.name for t in fake.truths} == {"late"}
    assert fake.feedback_most <= replay.FEEDBACK_IN_FLIGHT_MAX


async def test_no_outcome_is_told_before_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "FEEDBACK_ROWS", 1)
    async with serving() as (fake, address), ReplayClient(address) as client:
        told_at: list[int] = []

        async def look() -> None:
            told_at.append(len(fake.truths) + fake.feedback_now)

        await client.replay(
            year(), outcomes(2 * MINUTES, lag=100), lambda *_: None, [Cue(100, look)]
        )
    assert told_at == [0]


async def test_cues_come_before_the_first_decision_at_their_time() -> None:
    async with serving() as (fake, address), ReplayClient(address) as client:
        asked: list[int] = []

        async def cue() -> None:
            asked.append(len(fake.questions))

        await client.replay(
            year(), outcomes(2 * MINUTES), lambda *_: None, [Cue(70, cue), Cue(30, cue)]
        )
    assert asked == [30, 70]


@pytest.mark.parametrize("method", ["push", "predict", "feedback"])
async def test_what_the_server_refuses_ends_the_replay(method: str) -> None:
    async with serving() as (fake, address), ReplayClient(address) as client:
        fake.refuse[method] = FailedPreconditionError("the wheel is dry")
        with pytest.raises(FailedPreconditionError, match="the wheel is dry"):
            await client.replay(year(), outcomes(2 * MINUTES), lambda *_: None)


async def test_a_server_that_is_gone_is_unavailable() -> None:
    async with serving() as (_, address):
        pass
    async with ReplayClient(address) as client:
        with pytest.raises(UnavailableError):
            await client.replay(year(), outcomes(2 * MINUTES), lambda *_: None)
