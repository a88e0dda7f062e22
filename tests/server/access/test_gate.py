"""The gate: who is let in by what, what is remembered, what is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import HeadraceError, PermissionDeniedError, UnauthenticatedError
from server.access.budgets import Limit, LimitReached
from server.access.file import AccessFile
from server.access.gate import Gate
from server.access.keys import new_key
from server.access.principal import Principal, Rule, Scope
from server.access.tokens import Tokens, VerifyingKey
from tests.server.access.crafted import AUDIENCE, ISSUER, NOW_S, claims, hs256, token

KEY, STORED = new_key(lambda count: bytes(range(count)))
SECRET = b"s" * 32
SHOP = Principal("shop", "acme", (Rule(frozenset({Scope.INFER}), ("m",)),))
TOKEN = token(claims(), hs256(SECRET), alg="HS256")


class Time:
    """Seconds of the wall clock and nanoseconds of the other, moved by hand."""

    def __init__(self) -> None:
        self.s = NOW_S

    def wall_s(self) -> float:
        return self.s

    def monotonic_ns(self) -> int:
        return int(self.s * 1e9)


def gate(*limits: Limit) -> tuple[Gate, Time]:
    time = Time()
    tokens = Tokens({None: VerifyingKey("HS256", SECRET)}, ISSUER, AUDIENCE)
    access = AccessFile({STORED.key_id: (STORED, SHOP)}, tokens, list(limits))
    return Gate(access, now_s=time.wall_s, now_ns=time.monotonic_ns), time


def refused(call: Callable[[], object], error: type[HeadraceError], text: str) -> HeadraceError:
    with pytest.raises(error, match=text) as caught:
        call()
    assert KEY not in caught.value.message
    assert TOKEN not in caught.value.message
    return caught.value


def test_a_key_or_a_token_is_let_in() -> None:
    found, _ = gate()
    for fields in (
        [("x-api-key", KEY)],
        [("authorization", f"Bearer {KEY}")],
        [("authorization", f"bearer  {KEY}"), ("other", b"\0")],
    ):
        assert found.grant_of_fields(fields).principal is SHOP
    grant = found.grant_of_headers({"authorization": f"Bearer {TOKEN}", "host": "a"})
    assert grant.principal.name == "robot"
    assert found.grant("authorization", f"Bearer {TOKEN}") is grant
    assert found.grant("authorization", f"Bearer {TOKEN}".encode()).principal == grant.principal


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([], "no credential"),
        ([("x-api-key", KEY), ("x-api-key", KEY)], "several credentials"),
        ([("x-api-key", KEY), ("authorization", f"Bearer {KEY}")], "several credentials"),
        ([("authorization", KEY)], "malformed"),
        ([("authorization", f"Basic {KEY}")], "malformed"),
        ([("authorization", f"Bearer {KEY}, Bearer {KEY}")], "malformed"),
        ([("authorization", "Bearer ")], "malformed"),
        ([("authorization", f"Bearer {KEY}\n")], "malformed"),
        ([("x-api-key", KEY[:-1] + "A")], "not known"),
        ([("x-api-key", "hr_ffffffff" + KEY[11:])], "not known"),
        ([("x-api-key", f"Bearer {KEY}")], "not known"),
        ([("x-api-key", str(STORED))], "not known"),
        ([("x-api-key", STORED.digest)], "not known"),
        ([("x-api-key", "")], "not known"),
        ([("x-api-key", "é" * 5)], "not known"),
        ([("x-api-key", "a" * 9000)], "too long"),
        ([("authorization", f"Bearer {TOKEN}x")], "signed by another key|malformed"),
    ],
)
def test_all_else_is_nobody(fields: list[tuple[str, str | bytes]], text: str) -> None:
    found, _ = gate()
    refused(lambda: found.grant_of_fields(fields), UnauthenticatedError, text)
    assert found.refused == {("", "unauthenticated"): 1}


def test_what_was_let_in_once_does_not_open_by_another_spelling() -> None:
    found, _ = gate()
    found.grant("x-api-key", KEY)
    refused(lambda: found.grant("authorization", KEY), UnauthenticatedError, "malformed")


@given(
    st.binary(max_size=100) | st.text(max_size=100), st.sampled_from(["authorization", "x-api-key"])
)
def test_any_value_is_refused_as_nobodys(value: bytes | str, header: str) -> None:
    with pytest.raises(UnauthenticatedError):
        gate()[0].grant(header, value)


def test_a_token_is_forgotten_when_its_time_is_over() -> None:
    found, time = gate()
    header = f"Bearer {TOKEN}"
    grant = found.grant("authorization", header)
    time.s += 629
    found.check(grant, Scope.INFER, "m")
    assert found.grant("authorization", header) is grant
    time.s += 1
    refused(lambda: found.check(grant, Scope.INFER, "m"), UnauthenticatedError, "expired")
    refused(lambda: found.grant("authorization", header), UnauthenticatedError, "expired")
    assert found.known["authorization"] == {}


def test_tokens_without_keys_of_theirs_are_not_taken() -> None:
    found = Gate(AccessFile({STORED.key_id: (STORED, SHOP)}, None, []))
    header = f"Bearer {TOKEN}"
    refused(lambda: found.grant("authorization", header), UnauthenticatedError, "not taken")


def test_credentials_do_not_pile_up() -> None:
    found, _ = gate()
    for number in range(5_000):
        text = token(claims(sub=f"s{number}"), hs256(SECRET), alg="HS256")
        grant = found.grant("authorization", f"Bearer {text}")
        found.take(grant, "m", 1)
    assert len(found.known["authorization"]) <= 4096
    # Tenants are labels of metrics: a few by name, the others together.
    assert len(found.calls) == 65
    assert found.calls["(others)"] == 5_000 - 64


def test_what_is_refused_is_counted_by_tenant_and_reason() -> None:
    found, _ = gate(Limit("acme", ("m",), requests_per_s=1.0, burst=2.0))
    shop = found.grant("x-api-key", KEY)
    refused(lambda: found.check(shop, Scope.INFER, "other"), PermissionDeniedError, "'other'")
    taken, budgets, error = found.take(shop, "m", 5)
    assert taken == 2
    assert len(budgets) == 1
    assert isinstance(error, LimitReached)

    def one_more() -> None:
        with found.at_work(shop, "m"):
            raise AssertionError("there was no room")

    assert refused(one_more, LimitReached, "requests a second").retry_after_s == pytest.approx(1.0)
    with found.at_work(shop, "other") as free:
        assert free == ()
    assert found.refused == {("acme", "permission_denied"): 1, ("acme", "requests"): 4}
    assert found.calls == {"acme": 3}
