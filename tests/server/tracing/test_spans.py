"""What the spans of a request say, and how those of one batch are linked."""

from __future__ import annotations

from itertools import count

from server.tracing.spans import LINKS_MAX, Ids, Reading, Run, Span, Traced, spans_of

SINCE_1970_NS = 1_000_000


def ids(number: int, parent: bytes | None = None) -> Ids:
    return Ids(bytes([number]) * 16, bytes([number]) * 8, parent, "a=1")


def made(*requests: Traced) -> list[Span]:
    numbers = count(1)
    return spans_of(requests, SINCE_1970_NS, lambda size: next(numbers).to_bytes(size, "big"))


def test_a_request_and_what_it_waited_for() -> None:
    run = Run("m", "3", 30, 40, 70, 8)
    request = Traced(
        ids(1, b"p" * 8), "Predict", "m", "3", "order-7", 10, 90, 0, "",
        [run], [Reading("rides", 15, 25)],
    )  # fmt: skip
    server, *steps = made(request)
    assert server == Span(
        ids(1, b"p" * 8), "Predict", True, SINCE_1970_NS + 10, SINCE_1970_NS + 90,
        {"triton.model_name": "m", "triton.model_version": "3", "triton.request_id": "order-7",
         "rpc.grpc.status_code": 0},
    )  # fmt: skip
    assert [(s.name, s.started_ns - SINCE_1970_NS, s.ended_ns - SINCE_1970_NS) for s in steps] == [
        ("features", 15, 25),
        ("queue", 30, 40),
        ("model", 40, 70),
    ]
    for step in steps:
        assert not step.is_server
        assert step.ids.trace_id == request.ids.trace_id
        assert step.ids.parent_id == request.ids.span_id
        assert step.ids.state == "a=1"
        assert step.links == () or step.links == []
    assert len({step.ids.span_id for step in steps}) == 3
    assert steps[0].attributes == {"headrace.service": "rides"}
    assert steps[2].attributes["headrace.batch_rows"] == 8


def test_a_failure_says_why_and_what_has_no_id_says_none() -> None:
    request = Traced(ids(1), "ModelInfer", "m", "", "", 10, 90, 13, "the model failed")
    (server,) = made(request)
    assert server.error == "the model failed"
    assert server.attributes == {"triton.model_name": "m", "rpc.grpc.status_code": 13}


def test_runs_of_one_batch_are_linked_and_others_are_not() -> None:
    def request(number: int, started_ns: int, model: str = "m") -> Traced:
        run = Run(model, "1", 0, started_ns, started_ns + 5, 3)
        return Traced(ids(number), "ModelInfer", model, "1", "", 0, 50, 0, "", [run])

    spans = made(request(1, 10), request(2, 10), request(3, 11), request(4, 10, "other"))
    links = {s.ids.trace_id[0]: list(s.links) for s in spans if s.name == "model"}
    assert links == {1: [ids(2)], 2: [ids(1)], 3: [], 4: []}
    many = made(*(request(number, 10) for number in range(1, 60)))
    for span in many:
        if span.name == "model":
            assert len(span.links) == LINKS_MAX
            assert span.ids.trace_id not in {link.trace_id for link in span.links}
