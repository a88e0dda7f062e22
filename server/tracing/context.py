"""W3C trace context: what a caller says of the trace that its request is a part of.

As the recommendation has it (https://www.w3.org/TR/trace-context/, level 1): what is malformed is
passed over, as if nothing had come; a later version is read as far as version 00 says it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 1
_FLAGS_AT = 53  # of the two digits, in a value of any version
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16
_STATE_CHARACTERS_MAX = 512
_STATE_MEMBERS_MAX = 32


class TraceContext(NamedTuple):
    """The caller's span: ids of 16 and 8 bytes, whether it is recorded, and its `tracestate`."""

    trace_id: bytes
    span_id: bytes
    sampled: bool
    state: str = ""


def parse(traceparent: bytes, tracestate: str = "") -> TraceContext | None:
    """Return what a `traceparent` says; None where it is malformed."""
    found = _FORM.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more) or trace_id == _NO_TRACE:
        return None
    if span_id == _NO_SPAN:
        return None
    return TraceContext(
        bytes.fromhex(trace_id.decode()),
        bytes.fromhex(span_id.decode()),
        bool(int(flags, 16) & _SAMPLED),
        _checked_state(tracestate),
    )


def may_be_sampled(traceparent: bytes) -> bool:
    """Return False where the caller does not record: what most say, and the cheapest question."""
    return traceparent[_FLAGS_AT : _FLAGS_AT + 2] != b"00"


def _checked_state(text: str) -> str:
    """Return a `tracestate` that may go on; one that is too long or malformed goes no further."""
    if len(text) > _STATE_CHARACTERS_MAX or not (text.isascii() and text.isprintable()):
        return ""
    members = [member for each in text.split(",") if (member := each.strip())]
    if len(members) > _STATE_MEMBERS_MAX or any("=" not in member for member in members):
        return ""
    return ",".join(members)
