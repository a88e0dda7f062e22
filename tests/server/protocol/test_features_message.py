"""Plain GetFeatures requests: what is read of one is what protobuf says that it holds."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from features.entity_key import entity_key
from server.pb import headrace_pb2 as pb
from server.protocol.features_message import NO_TIME, NOT_PLAIN, RequestForm, Requests, service_of

KEYS = ["driver_id", "city"]
FORM = RequestForm("tips", KEYS)

integers = st.integers(-(2**63), 2**63 - 1)
plain_texts = st.text(st.characters(max_codepoint=127), max_size=200)


def framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


@st.composite
def requests(draw: st.DrawFn) -> pb.GetFeaturesRequest:
    """Plain ones, and some that are almost so."""
    request = pb.GetFeaturesRequest(service=draw(st.sampled_from(["tips", "tip", "tipsy", ""])))
    names = draw(st.sampled_from([KEYS, KEYS[::-1], KEYS[:1], [*KEYS, "city"], [*KEYS, "more"]]))
    rows = draw(st.integers(0, 5))
    for name in names:
        count = draw(st.sampled_from([rows] * 8 + [rows + 1]))
        column = request.inputs.add(name=name)
        if draw(st.booleans()):
            column.int64s.v.extend(draw(st.lists(integers, min_size=count, max_size=count)))
        else:
            texts = draw(st.sampled_from([plain_texts] * 8 + [st.text(max_size=9)]))
            column.strings.v.extend(draw(st.lists(texts, min_size=count, max_size=count)))
        if draw(st.sampled_from([False] * 9 + [True])):
            column.nulls.append(0)
    if draw(st.booleans()):
        request.event_time = draw(st.one_of(st.just(0), integers))
    request.packed = draw(st.booleans())
    request.min_offset = draw(st.sampled_from(["", "", "", "1-1"]))
    return request


def is_plain(request: pb.GetFeaturesRequest) -> bool:
    """Say it in Python."""
    lists = [(c.int64s if c.WhichOneof("values") == "int64s" else c.strings).v
             for c in request.inputs]  # fmt: skip
    texts = [value for each in lists for value in each if isinstance(value, str)]
    return (
        request.service == "tips"
        and sorted(column.name for column in request.inputs) == sorted(KEYS)
        and len(set(map(len, lists))) == 1
        and bool(lists[0])
        and all(map(str.isascii, texts))
        and not any(column.nulls for column in request.inputs)
        and not request.min_offset
        and request.event_time >= 0
    )


def parts_of(read: Requests, first: int, rows: int) -> list[tuple[bytes, ...]]:
    text = read.parts.text.tobytes()
    return [
        tuple(text[b:e] for b, e in zip(read.parts.begins[:, row], read.parts.ends[:, row],
                                        strict=True))
        for row in range(first, first + rows)
    ]  # fmt: skip


def check(read: Requests, place: int, first: int, request: pb.GetFeaturesRequest) -> int:
    """Hold what was read of one request against what protobuf says; return its rows."""
    rows = int(read.rows[place])
    columns = {column.name: column for column in request.inputs}
    values = [list(getattr(columns[name], columns[name].WhichOneof("values")).v) for name in KEYS]
    wanted = [tuple(entity_key([value]) for value in row) for row in zip(*values, strict=True)]
    assert parts_of(read, first, rows) == wanted
    timed = request.HasField("event_time")
    assert read.event_times_us[place] == (request.event_time if timed else NO_TIME)
    assert read.packed[place] == request.packed
    return rows


@given(st.lists(requests(), min_size=1, max_size=5))
def test_plain_requests_of_a_tick_are_read_and_no_others(
    asked: list[pb.GetFeaturesRequest],
) -> None:
    read = FORM.read([framed(request.SerializeToString()) for request in asked])
    first = 0
    for place, request in enumerate(asked):
        assert (read.rows[place] != NOT_PLAIN) == is_plain(request)
        if is_plain(request):
            first += check(read, place, first, request)
    assert read.parts.begins.shape == (2, first)


@st.composite
def plain_requests(draw: st.DrawFn) -> pb.GetFeaturesRequest:
    rows = draw(st.integers(1, 4))
    request = pb.GetFeaturesRequest(service="tips", packed=draw(st.booleans()))
    for name in KEYS:
        column = request.inputs.add(name=name)
        if draw(st.booleans()):
            column.int64s.v.extend(draw(st.lists(integers, min_size=rows, max_size=rows)))
        else:
            column.strings.v.extend(draw(st.lists(plain_texts, min_size=rows, max_size=rows)))
    if draw(st.booleans()):
        request.event_time = draw(st.integers(0, 2**63 - 1))
    return request


@given(plain_requests(), st.data())
def test_whatever_is_changed_is_read_as_protobuf_reads_it_or_not_at_all(
    request: pb.GetFeaturesRequest, data: st.DataObject
) -> None:
    message = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(message) - 1))
        message[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not message:
            return
    read = FORM.read([framed(bytes(message))])
    if read.rows[0] != NOT_PLAIN:
        check(read, 0, 0, pb.GetFeaturesRequest.FromString(bytes(message)))


@given(st.binary(max_size=60))
@example(b"")
@example(b"\x01" + bytes(4))
@example(framed(b"\x0a\x04tips\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"))
@example(framed(b"\x0a\x04tips\x12\x80"))
def test_garbage_is_not_plain(body: bytes) -> None:
    assert FORM.read([body, body]).rows.tolist() == [NOT_PLAIN, NOT_PLAIN]
    service_of(body)


def test_a_prefix_that_does_not_fit_is_not_plain() -> None:
    column = pb.Column(name="driver_id", int64s=pb.Int64Values(v=[1]))
    city = pb.Column(name="city", int64s=pb.Int64Values(v=[2]))
    message = pb.GetFeaturesRequest(service="tips", inputs=[column, city]).SerializeToString()
    good = framed(message)
    bodies = [good, b"\x01" + good[1:], good + b"\x00", good[:-1], good]
    read = FORM.read(bodies)
    assert read.rows.tolist() == [1, NOT_PLAIN, NOT_PLAIN, NOT_PLAIN, 1]
    assert np.array_equal(read.parts.begins[:, 1] - read.parts.begins[:, 0], [12, 12])
    assert service_of(good) == b"tips"
