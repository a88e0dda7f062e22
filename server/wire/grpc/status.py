"""gRPC's status codes, and what becomes one: our errors, a peer's RST_STREAM, a bare HTTP status.

The last two maps are for clients and the router: a server must not use them backwards.
"""

from __future__ import annotations

from enum import IntEnum

from headrace.errors import HeadraceError

# Of a message, in bytes of UTF-8. Percent-encoding makes at most three of each: 6 KiB, which
# stays below the 8 KiB of headers that grpc's clients take without complaint.
MESSAGE_BYTES_MAX = 2048


class StatusCode(IntEnum):
    """The seventeen codes, as numbered on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# By code: the value of the `grpc-status` field, decimal and without leading zeros.
WIRE: tuple[bytes, ...] = tuple(b"%d" % code for code in StatusCode)

# HTTP/2 error codes (RFC 9113 §7) that mean more than "the peer is broken".
_RESETS = {
    0x7: StatusCode.UNAVAILABLE,  # REFUSED_STREAM: never begun, so safe to try again
    0x8: StatusCode.CANCELLED,  # CANCEL
    0xB: StatusCode.RESOURCE_EXHAUSTED,  # ENHANCE_YOUR_CALM
    0xC: StatusCode.PERMISSION_DENIED,  # INADEQUATE_SECURITY
}
_HTTP = {
    400: StatusCode.INTERNAL,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.UNIMPLEMENTED,
    429: StatusCode.UNAVAILABLE,
    431: StatusCode.INTERNAL,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.UNAVAILABLE,
}


def from_reset(error_code: int) -> StatusCode:
    """Return the status of a call whose stream the server reset with this HTTP/2 error code."""
    return _RESETS.get(error_code, StatusCode.INTERNAL)


def from_http(http_status: int) -> StatusCode:
    """Return the status of a response without `grpc-status`: something else than gRPC answered."""
    return _HTTP.get(http_status, StatusCode.UNKNOWN)


def cut_message(text: str) -> str:
    """Return `text`, cut between characters so that its UTF-8 has at most MESSAGE_BYTES_MAX."""
    if len(text) * 4 <= MESSAGE_BYTES_MAX:
        return text
    return text.encode("utf-8", "replace")[:MESSAGE_BYTES_MAX].decode("utf-8", "ignore")


def of_error(error: HeadraceError) -> tuple[StatusCode, str]:
    """Return the code and the message, cut to its cap, that a client is told of `error`."""
    return StatusCode(error.status.grpc), cut_message(error.message)
