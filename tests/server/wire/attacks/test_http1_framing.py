"""Requests whose borders two servers could see differently: refused, and their connection closed.

Each carries a second request behind it. Refused, nothing of it runs; against a server without the
defence (lenient parsing, or no checks of ours) a handler runs that must not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from tests.support.http_target import HttpTarget, http_under_attack

_SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
_POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
_GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Case:
    """`without` names the defence that refuses it; "" where llhttp has no leniency for it."""

    name: str
    data: bytes
    without: str
    status: int = 400


CASES = [
    Case("cl_te", _POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         "strict checks"),
    Case("te_cl", _POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
         "strict checks"),
    Case("te_chunked_identity", _POST + b"Transfer-Encoding: chunked, identity\r\n\r\n"
         b"0\r\n\r\n", ""),
    Case("te_identity_chunked", _POST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
         "checks", 501),
    Case("te_xchunked", _POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "", 501),
    Case("te_twice", _POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
         b"0\r\n\r\n", ""),
    Case("te_obs_fold", _POST + b"Transfer-Encoding: chunked\r\n\t\r\n\r\n0\r\n\r\n", ""),
    Case("te_vertical_tab", _POST + b"Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n", ""),
    Case("te_http_1_0", b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n"
         b"Connection: keep-alive\r\n\r\n0\r\n\r\n", "checks"),
    Case("cl_twice_differing", _POST + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n", ""),
    Case("cl_twice_equal", _POST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n", ""),
    Case("cl_plus", _POST + b"Content-Length: +5\r\n\r\nabcde", ""),
    Case("cl_hex", _POST + b"Content-Length: 0x5\r\n\r\nabcde", ""),
    Case("cl_list", _POST + b"Content-Length: 5,5\r\n\r\nabcde", ""),
    Case("cl_minus", _POST + b"Content-Length: -5\r\n\r\n", ""),
    Case("cl_empty", _POST + b"Content-Length:\r\n\r\n", ""),
    Case("cl_overflow", _POST + b"Content-Length: 18446744073709551617\r\n\r\n", ""),
    Case("space_before_colon", _GET + b"A : b\r\n\r\n", ""),
    Case("empty_name", _GET + b": b\r\n\r\n", ""),
    Case("obs_fold", _GET + b"A: b\r\n c\r\n\r\n", "strict"),
    Case("bare_lf_in_head", _GET + b"A: b\nC: d\r\n\r\n", "strict"),
    Case("bare_lf_after_line", b"GET / HTTP/1.1\nHost: a\r\n\r\n", "strict"),
    Case("bare_cr_in_head", _GET + b"A: b\rC: d\r\n\r\n", ""),
    Case("nul_in_value", _GET + b"A: b\x00c\r\n\r\n", ""),
    Case("control_in_value", _GET + b"A: b\x01c\r\n\r\n", "strict"),
    Case("delete_in_value", _GET + b"A: b\x7fc\r\n\r\n", "strict"),
    Case("control_in_name", _GET + b"A\x01: b\r\n\r\n", ""),
    Case("nul_in_target", b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", ""),
    Case("space_in_target", b"GET / x HTTP/1.1\r\nHost: a\r\n\r\n", ""),
    Case("fragment", b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", "checks"),
    Case("no_host", b"GET / HTTP/1.1\r\n\r\n", "checks"),
    Case("two_hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", ""),
    Case("host_is_no_host", b"GET / HTTP/1.1\r\nHost: a/b@c\r\n\r\n", "checks"),
    Case("absolute_form_contradicts", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "checks"),
    Case("http_0_9_versioned", b"GET / HTTP/0.9\r\n\r\n", "checks", 505),
    Case("http_2_version", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", "checks", 505),
    Case("http_1_2", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", "strict checks"),
    Case("http_2_preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
    Case("chunk_size_overflow", _CHUNKED + b"fffffffffffffffff\r\n", ""),
    Case("chunk_size_0x", _CHUNKED + b"0x0\r\n\r\n", ""),
    Case("chunk_size_minus", _CHUNKED + b"-1\r\n\r\n", ""),
    Case("chunk_size_space", _CHUNKED + b"0 \r\n\r\n", "strict"),
    Case("chunk_bare_lf", _CHUNKED + b"0\n\r\n", "strict"),
    Case("chunk_data_bare_lf", _CHUNKED + b"1\r\nx\n0\r\n\r\n", "strict"),
    Case("chunk_extension_bare_lf", _CHUNKED + b"0;a=\n\r\n", "strict"),
    Case("chunk_longer_than_it_says", _CHUNKED + b"1\r\nxy\r\n0\r\n\r\n", ""),
    Case("trailer_is_a_length", _CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n", "strict"),
]  # fmt: skip


def _params(cases: list[Case]) -> list[object]:
    return [
        pytest.param(case, marks=pytest.mark.wire("B2-20"), id=f"b2_20-{case.name}")
        for case in cases
    ]


@pytest.mark.parametrize("case", _params(CASES))
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "single_bytes"])
def test_b2_20_an_ambiguous_request_is_refused(
    http_target: HttpTarget,
    case: Case,
    cut: bool,
) -> None:
    http_target.start()
    with http_under_attack(http_target), http_target.connect() as attacker:
        data = case.data + _SMUGGLED
        for at in range(0, len(data), 1 if cut else len(data)):
            if not attacker.send(data[at : at + 1] if cut else data):
                break
        answers = attacker.all_answers()
        assert [one.status for one in answers] in ([case.status], [400]), answers
        assert "error" in json.loads(answers[0].body)
        assert answers[0].headers["connection"] == "close"
    now = http_target.counters()
    assert sum(now["abuse"].values()) == 1
    assert set(now["paths"]) == {"/echo"}  # the honest client's


@pytest.mark.parametrize("case", _params([case for case in CASES if case.without]))
def test_b2_20_without_the_defence_a_handler_runs(
    http_target: HttpTarget,
    case: Case,
) -> None:
    http_target.start(without=case.without.split())
    with http_target.connect() as attacker:
        attacker.send(case.data + _SMUGGLED)
        http_target.wait_until("begun")


@pytest.mark.wire("B2-20")
def test_b2_20_http_0_9_is_not_answered_as_such(http_target: HttpTarget) -> None:
    http_target.start(head_timeout_s=0.2)
    with http_target.connect() as attacker:
        attacker.send(b"GET /\r\n\r\n")
        answer = attacker.answer()
        assert answer is not None
        assert answer.status in {400, 408, 505}
        assert attacker.closed()


@pytest.mark.wire("B2-20")
def test_b2_20_an_upgrade_to_h2c_is_not_taken_up(http_target: HttpTarget) -> None:
    http_target.start()
    with http_target.connect() as attacker:
        attacker.send(_GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                      b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + _SMUGGLED)  # fmt: skip
        for _ in range(2):  # both are requests of HTTP/1.1, and there is no 101 before
            answer = attacker.answer()
            assert answer is not None
            assert answer.status == 200
    assert http_target.settled()["paths"] == ["/", "/smuggled"]
