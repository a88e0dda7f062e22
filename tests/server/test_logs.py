"""Lines of the log: what they say, and what no client can make of them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import logs


def record(message: str, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    line = logging.LogRecord("headrace", level, "file", 1, "%s", (message,), None)
    if fields:
        line.__dict__.update(logs.about(**fields))
    return line


@given(st.text(), st.dictionaries(st.sampled_from(["request_id", "model"]), st.text()))
def test_a_json_line_is_one_object_of_one_line(message: str, fields: dict[str, str]) -> None:
    text = logs.JsonLines("worker-1").format(record(message, **fields))
    assert len(text.splitlines()) == 1 or not text.isascii()
    assert "\n" not in text
    line = json.loads(text)
    at = datetime.fromisoformat(line.pop("time"))
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert line.pop("level") == "INFO"
    assert line.pop("role") == "worker-1"
    assert line.pop("message") == message
    assert line == {name: value for name, value in fields.items() if value}


@given(st.text(), st.text(min_size=1))
def test_no_text_of_a_client_makes_a_line_of_its_own(message: str, request_id: str) -> None:
    text = logs.TextLines("worker-1").format(record(message, request_id=request_id))
    assert len(text.splitlines()) == 1
    assert text.isprintable() or not text.isascii()
    assert " worker-1 INFO " in text


def test_times_have_microseconds_and_faults_their_traceback() -> None:
    try:
        raise ValueError("the cause")
    except ValueError as error:
        line = record("it failed", logging.ERROR)
        line.exc_info = (ValueError, error, error.__traceback__)
    line.created = 1_790_000_000.123456
    said = json.loads(logs.JsonLines("collector").format(line))
    assert said["time"] == "2026-09-21T14:13:20.123456Z"
    assert said["exception"].endswith("ValueError: the cause")
    text = logs.TextLines("collector").format(line)
    assert text.splitlines()[0].endswith("collector ERROR it failed")
    assert text.splitlines()[-1] == "ValueError: the cause"


@pytest.mark.parametrize(
    ("switches", "written"),
    [
        (logs.Switches(), [20, 30, 40]),
        (logs.Switches(info=False), [30, 40]),
        (logs.Switches(warning=False), [20, 40]),
        (logs.Switches(error=False), [20, 30]),
        (logs.Switches(verbose=1), [10, 20, 30, 40]),
    ],
)
def test_lines_are_switched_by_level(switches: logs.Switches, written: list[int]) -> None:
    levels = [10, 20, 30, 40]
    assert [level for level in levels if switches.allow(record("x", level))] == written
