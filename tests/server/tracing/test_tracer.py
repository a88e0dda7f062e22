"""Who is traced: callers that record, a share of the others, and nobody whose caller does not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from server.tracing.context import parse
from server.tracing.rules import Rule
from server.tracing.spans import Traced
from server.tracing.tracer import Tracer

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass(eq=False)
class Head:
    traceparent: bytes = b""
    tracestate: str = ""


def caller(flags: str) -> Head:
    return Head(f"00-{TRACE}-{SPAN}-{flags}".encode())


def tracer(rule: Rule, **models: Rule) -> Tracer:
    kept: list[Traced] = []
    made = Tracer(kept.append, lambda: 0.5, lambda size: b"n" * size)
    made.follow(rule, models)
    return made


ALL, NONE, OFF = Rule(on=True, rate=1), Rule(on=True, rate=0), Rule()


@pytest.mark.parametrize(
    ("rule", "taken"),
    [(ALL, [1, 0, 3, 4]), (NONE, [1]), (OFF, [])],
)
def test_a_caller_decides_for_its_trace_and_the_rate_for_the_others(
    rule: Rule, taken: list[int]
) -> None:
    heads = [Head(), caller("01"), caller("00"), Head(b"nonsense"), Head(b"x" * 53 + b"01")]
    assert sorted(tracer(rule).pick("m", heads)) == sorted(taken)
    one_by_one = [
        place
        for place, head in enumerate(heads)
        if tracer(rule).begin("m", parse(head.traceparent) if head.traceparent else None)
    ]
    assert one_by_one == sorted(taken)


def test_one_head_again_and_again_is_asked_once() -> None:
    head = Head()
    assert tracer(ALL).pick("m", [head] * 3) == [0, 1, 2]
    assert tracer(NONE).pick("m", [head] * 3) == []
    quiet = caller("00")
    assert tracer(ALL).pick("m", [quiet] * 3) == []


def test_a_models_rule_goes_before_the_one_for_all() -> None:
    made = tracer(OFF, loud=ALL)
    assert made.on
    assert made.pick("loud", [Head()]) == [0]
    assert made.pick("other", [Head()]) == []
    assert (made.left("loud"), made.left("other")) == (-1, None)
    assert not tracer(OFF, quiet=OFF).on


def test_a_span_lies_under_its_callers_or_begins_a_trace() -> None:
    made = tracer(ALL)
    parent = parse(caller("01").traceparent, "a=1")
    below = made.ids(parent)
    assert below.trace_id.hex() == TRACE
    assert below.parent_id is not None
    assert (below.parent_id.hex(), below.span_id, below.state) == (SPAN, b"n" * 8, "a=1")
    assert made.ids(None) == (b"n" * 16, b"n" * 8, None, "")


def test_so_many_traces_may_begin_and_no_more() -> None:
    made = tracer(Rule(on=True, rate=1, count=2))
    assert [made.begin("m", None) is not None for _ in range(4)] == [True, True, False, False]
    assert made.left("m") == 0
    assert made.begin("m", parse(caller("01").traceparent)) is not None
