"""Status codes and their maps, against grpc's own enumeration."""

import grpc
import pytest

from headrace import errors
from server.wire.grpc import status
from server.wire.grpc.status import StatusCode


@pytest.mark.wire("B3-04")
def test_b3_04_codes_are_grpcs_and_travel_as_decimals_without_leading_zeros():
    assert {code.name: code.value for code in StatusCode} == {
        code.name: code.value[0] for code in grpc.StatusCode
    }
    golden = b"0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16"
    assert list(status.WIRE) == golden.split()


@pytest.mark.wire("B3-26")
@pytest.mark.parametrize(
    ("error_code", "name"),
    [
        (0, "INTERNAL"),  # NO_ERROR
        (1, "INTERNAL"),  # PROTOCOL_ERROR
        (2, "INTERNAL"),  # INTERNAL_ERROR
        (3, "INTERNAL"),  # FLOW_CONTROL_ERROR
        (4, "INTERNAL"),  # SETTINGS_TIMEOUT
        (6, "INTERNAL"),  # FRAME_SIZE_ERROR
        (7, "UNAVAILABLE"),  # REFUSED_STREAM
        (8, "CANCELLED"),  # CANCEL
        (9, "INTERNAL"),  # COMPRESSION_ERROR
        (10, "INTERNAL"),  # CONNECT_ERROR
        (11, "RESOURCE_EXHAUSTED"),  # ENHANCE_YOUR_CALM
        (12, "PERMISSION_DENIED"),  # INADEQUATE_SECURITY
        (0xDEADBEEF, "INTERNAL"),
    ],
)
def test_b3_26_a_reset_stream_has_the_status_of_its_error_code(error_code, name):
    assert status.from_reset(error_code) is StatusCode[name]


@pytest.mark.wire("B3-27")
@pytest.mark.parametrize(
    ("http_status", "name"),
    [
        (200, "UNKNOWN"),
        (302, "UNKNOWN"),
        (400, "INTERNAL"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "UNIMPLEMENTED"),
        (405, "UNKNOWN"),
        (429, "UNAVAILABLE"),
        (431, "INTERNAL"),
        (500, "UNKNOWN"),
        (502, "UNAVAILABLE"),
        (503, "UNAVAILABLE"),
        (504, "UNAVAILABLE"),
    ],
)
def test_b3_27_a_response_without_grpc_status_has_the_status_of_its_http_status(http_status, name):
    assert status.from_http(http_status) is StatusCode[name]


@pytest.mark.wire("B3-04")
@pytest.mark.parametrize("code", sorted(errors.STATUS))
def test_b3_04_every_error_of_ours_has_its_code(code):
    kind = next(kind for kind in errors.HeadraceError.__subclasses__() if kind.code == code)
    found, message = status.of_error(kind("it broke", where="here"))
    assert found is StatusCode[code.upper()]
    assert message == "here: it broke"


@pytest.mark.wire("B3-05")
@pytest.mark.parametrize("character", ["a", "é", "☺", "😈"])
@pytest.mark.parametrize("lead", ["", "x"])
def test_b3_05_a_message_is_cut_between_characters(character, lead):
    whole = lead + character * 3000
    cut = status.of_error(errors.InternalError(whole))[1]
    assert whole.startswith(cut)
    assert 2048 - 3 <= len(cut.encode()) <= 2048


@pytest.mark.parametrize("size", [0, 512, 513, 2048])
def test_a_message_within_the_cap_is_left_alone(size):
    assert status.cut_message("a" * size) == "a" * size


def test_a_message_that_is_no_unicode_can_be_cut():
    assert status.cut_message("\ud800" * 3000) == "?" * 2048
