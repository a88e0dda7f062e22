"""Trace context: OpenTelemetry's own propagator is the oracle, where it is installed."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.tracing.context import TraceContext, may_be_sampled, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
HEX = "0123456789abcdef"
VALUES = st.one_of(
    st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[a-z0-9-]{0,4})?").map(
        lambda text: text.strip("\n")
    ),
    st.builds(
        lambda version, trace, span, flags, more: f"{version}-{trace}-{span}-{flags}{more}",
        st.sampled_from(["00", "01", "fe", "ff", "0", "000"]),
        st.sampled_from([TRACE, "0" * 32, TRACE.upper(), TRACE[1:]]),
        st.sampled_from([SPAN, "0" * 16, SPAN[1:], SPAN.upper()]),
        st.sampled_from(["00", "01", "02", "ff", "0g", "1"]),
        st.sampled_from(["", "-", "-x", "x", "\n", " "]),
    ),
)


def test_the_callers_span_and_whether_it_is_recorded() -> None:
    context = parse(GOOD.encode(), "a=1,b=2")
    assert context == TraceContext(bytes.fromhex(TRACE), bytes.fromhex(SPAN), True, "a=1,b=2")
    quiet = parse(f"00-{TRACE}-{SPAN}-00".encode())
    assert quiet is not None
    assert not quiet.sampled


@pytest.mark.parametrize(
    "value",
    [
        b"", b"00", GOOD.encode()[:-1], GOOD.encode() + b"0", GOOD.encode() + b"-more",
        b"ff" + GOOD.encode()[2:], GOOD.upper().encode(), b"\xff" * 55,
        f"00-{'0' * 32}-{SPAN}-01".encode(), f"00-{TRACE}-{'0' * 16}-01".encode(),
    ],
)  # fmt: skip
def test_what_is_malformed_is_as_if_nothing_had_come(value: bytes) -> None:
    assert parse(value) is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert parse(f"cc-{TRACE}-{SPAN}-01-what-the-future-holds".encode()) is not None
    assert parse(f"cc-{TRACE}-{SPAN}-01.what".encode()) is None


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("a=1", "a=1"),
        ("a=1 ,, b=2", "a=1,b=2"),
        ("no member", ""),
        ("a=1\nb=2", ""),
        ("a=ü", ""),
        ("a=" + "x" * 511, ""),
        (",".join(f"k{n}=1" for n in range(33)), ""),
    ],
)
def test_a_state_that_is_malformed_goes_no_further(state: str, kept: str) -> None:
    context = parse(GOOD.encode(), state)
    assert context is not None
    assert context.state == kept


@given(VALUES)
@example(GOOD)
def test_no_caller_that_records_is_taken_for_one_that_does_not(value: str) -> None:
    context = parse(value.encode())
    if context is not None and context.sampled:
        assert may_be_sampled(value.encode())


@given(VALUES)
@example(GOOD)
def test_it_reads_what_opentelemetry_reads(value: str) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    tracecontext = pytest.importorskip("opentelemetry.trace.propagation.tracecontext")
    # Its header parser strips what an HTTP server strips before.
    if value != value.strip():
        return
    carrier = {"traceparent": value}
    found = tracecontext.TraceContextTextMapPropagator().extract(carrier)
    expected = trace.get_current_span(found).get_span_context()
    context = parse(value.encode())
    assert (context is not None) == expected.is_valid
    if context is not None:
        assert int.from_bytes(context.trace_id) == expected.trace_id
        assert int.from_bytes(context.span_id) == expected.span_id
        assert context.sampled == expected.trace_flags.sampled
