"""The gate before the doors: which calls of a tick go on, and what the others are told."""

from __future__ import annotations

from typing import Any

from headrace.errors import HeadraceError, UnauthenticatedError
from server.access.budgets import Limit
from server.access.doors import HeadGrants, grpc_admission, rest_admission
from server.access.principal import Grant, Principal, Rule, Scope
from server.wire.http1.head import Head as RequestHead
from server.wire.http2.headers import Head, Key, Shape, head_of
from tests.server.access.test_gate import KEY, TOKEN, gate

PSEUDO = [Key(b":method", b"POST"), Key(b":scheme", b"http"), Key(b":path", b"/x")]


class Connection:
    """Of either wire."""

    def __init__(self, identity: object = None) -> None:
        self.identity = identity
        self.owner = self


class Endings:
    """Remembers what calls ended by."""

    def __init__(self) -> None:
        self.ended: list[Any] = []

    def reply_all(self, calls: list[Any], *_: Any) -> None:
        self.ended += calls

    def fail(self, call: Any, error: HeadraceError) -> None:
        self.ended.append((call[1], error.code))

    def drop(self, call: Any) -> None:
        self.ended.append((call[1], "drop"))

    def answer(self, call: Any, _: Any) -> None:
        self.ended.append((call[1], "answer"))

    def is_open(self, _: Any) -> bool:
        return True


def shape(*names: bytes) -> Shape:
    return Shape([*PSEUDO, Key(b"te", b"trailers"), *map(Key, names)], None)


ONE = shape(b"traceparent", b"x-api-key")


def call(place: int, head: Any, identity: object = None) -> Any:
    return (Connection(identity), place, head, b"")


def keyed(value: str = KEY) -> Head:
    return head_of(ONE, [b"trace", value.encode()])


def test_calls_of_one_credential_go_on_together() -> None:
    found, _ = gate()
    endings = Endings()
    calls = [call(n, keyed()) for n in range(5)]
    admission = grpc_admission(found)
    assert admission.admit("m", 1, calls, endings, endings.fail) == [(calls, endings, "shop")]
    assert endings.ended == []
    assert found.calls == {"acme": 5}


def test_one_bad_credential_harms_no_other_call() -> None:
    found, _ = gate()
    endings = Endings()
    other = head_of(shape(b"authorization"), [f"Bearer {TOKEN}".encode()])
    calls = [
        call(0, keyed()),
        call(1, keyed("hr_")),
        call(2, head_of(shape(), [])),
        call(3, head_of(shape(b"x-api-key", b"authorization"), [KEY.encode(), b"Bearer x"])),
        call(4, head_of(shape(b"x-api-key", b"x-api-key"), [KEY.encode()] * 2)),
        call(5, other),
        call(6, keyed()),
        call(7, keyed("\xff\0")),
    ]
    groups = grpc_admission(found).admit("m", 1, calls, endings, endings.fail)
    assert [[each[1] for each in its] for its, _, _ in groups] == [[0, 6], [5]]
    assert endings.ended == [(place, "unauthenticated") for place in (1, 2, 3, 4, 7)]


def test_a_model_that_it_may_not_run() -> None:
    found, _ = gate()
    endings = Endings()
    calls = [call(n, keyed()) for n in range(2)]
    admission = grpc_admission(found)
    assert admission.admit("other", 1, calls, endings, endings.fail) == []
    assert endings.ended == [(0, "permission_denied"), (1, "permission_denied")]


def test_a_limit_lets_some_through_and_what_ends_makes_room() -> None:
    found, _ = gate(Limit(concurrent=3), Limit(rows_per_s=1e6))
    endings = Endings()
    admission = grpc_admission(found)
    calls = [call(n, keyed()) for n in range(5)]
    ((its, counted, _),) = admission.admit("m", 7, calls, endings, endings.fail)
    assert its == calls[:3]
    assert endings.ended == [(3, "resource_exhausted"), (4, "resource_exhausted")]
    assert admission.admit("m", 7, calls[:1], endings, endings.fail) == []
    assert counted.is_open(calls[0])
    counted.reply_all(calls[:1], b"", [b""])
    counted.fail(calls[1], HeadraceError("x"))
    counted.drop(calls[2])
    ((its, counted, _),) = admission.admit("m", 7, calls, endings, endings.fail)
    assert its == calls[:3]
    counted.answer(calls[0], None)
    assert len(admission.admit("m", 7, calls, endings, endings.fail)[0][0]) == 1
    assert found.refused["acme", "concurrent"] == 2 + 1 + 2 + 4


class Spelt:
    """A block that spells the credential; nobody may read more of it than once."""

    def __init__(self) -> None:
        self.reads = 0

    def values(self, block: bytes) -> list[bytes]:
        self.reads += 1
        return [b"trace", block]

    def literal(self, block: bytes, place: int) -> bytes | None:
        return b"spelt " + block if place == 1 else None


def test_a_literal_is_read_once() -> None:
    found, _ = gate()
    grants, spelling = HeadGrants(found), Spelt()
    first = grants.of(Head(ONE, -1, (spelling, KEY.encode())))
    assert all(grants.of(Head(ONE, -1, (spelling, KEY.encode()))) is first for _ in range(9))
    assert spelling.reads == 1
    assert isinstance(grants.of(Head(ONE, -1, (spelling, b"hr_"))), UnauthenticatedError)
    for number in range(9_000):
        found.known["x-api-key"][b"%d" % number] = found.grant("x-api-key", KEY)
        grants.of(Head(ONE, -1, (spelling, b"%d" % number)))
    assert len(grants._by_literal) <= 4096


def test_heads_of_http1() -> None:
    found, _ = gate()
    endings = Endings()
    heads = [
        RequestHead("POST", "/", {}, headers, 0, True, False)
        for headers in ({"x-api-key": KEY}, {}, {"authorization": f"Bearer {KEY}, Bearer {KEY}"})
    ]
    calls = [call(n, head) for n, head in enumerate(heads)]
    groups = rest_admission(found).admit("m", 1, calls, endings, endings.fail)
    assert [its for its, _, _ in groups] == [calls[:1]]
    assert endings.ended == [(1, "unauthenticated"), (2, "unauthenticated")]


OWNER = Grant(Principal("owner", "owner", (Rule(frozenset({Scope.INFER})),)))


def test_a_connections_certificate_counts_where_a_call_carries_no_credential() -> None:
    found, _ = gate()
    endings = Endings()
    plain, doubled = shape(), shape(b"x-api-key", b"x-api-key")
    calls = [
        call(0, head_of(plain, []), OWNER),
        call(1, keyed(), OWNER),
        call(2, keyed("hr_"), OWNER),  # a bad key is no lack of one
        call(3, head_of(doubled, [KEY.encode()] * 2), OWNER),
        call(4, head_of(plain, []), None),
        call(5, head_of(plain, []), OWNER),
    ]
    groups = grpc_admission(found).admit("m", 1, calls, endings, endings.fail)
    assert [([each[1] for each in its], who) for its, _, who in groups] == [
        ([0, 5], "owner"), ([1], "shop"),
    ]  # fmt: skip
    assert endings.ended == [(place, "unauthenticated") for place in (2, 3, 4)]


def test_a_connections_certificate_counts_on_http1() -> None:
    found, _ = gate()
    endings = Endings()
    heads = [
        RequestHead("POST", "/", {}, headers, 0, True, False)
        for headers in ({}, {"x-api-key": KEY}, {"x-api-key": "hr_"})
    ]
    calls = [call(n, head, OWNER) for n, head in enumerate(heads)]
    groups = rest_admission(found).admit("m", 1, calls, endings, endings.fail)
    assert [who for _, _, who in groups] == ["owner", "shop"]
    assert endings.ended == [(2, "unauthenticated")]


def test_shapes_do_not_pile_up() -> None:
    found, _ = gate()
    grants = HeadGrants(found)
    for number in range(3_000):
        head = head_of(shape(f"x-{number}".encode(), b"x-api-key"), [b"", KEY.encode()])
        grants.of(head)
        assert grants.of(head_of(shape(f"y-{number}".encode()), [b""])) is None
    assert len(grants._places) <= 1024
