"""The fake store and the real one: the same calls, the same replies and the same keys."""

from __future__ import annotations

import random
from typing import Any

import hiredis
import pytest

from features.online.keys import (
    BACKLOG_BYTES,
    CATALOG,
    CHECKPOINT,
    DEAD_LETTERS,
    EVENTS,
    FILLS,
    LOG_START,
)
from features.online.scripts import ARCHIVED, FILL, PUSH, TAKE_OVER, WRITE
from features.online.store import OnlineStore
from tests.sim.store import FakeStore, Stream, id_of, id_text
from tests.support.valkey import LiveValkey

Word = str | bytes | int
Call = tuple[Any, list[bytes], list[Word]]
ROWS = [b"hr:{a}:v:1", b"hr:{b}:v:1", b"hr:{a}:w:2"]


def as_bytes(word: Word) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


def random_call(
    rng: random.Random, checkpoint: bytes | None, newest: bytes, fills: dict[bytes, bytes]
) -> Call:
    kind = rng.choice(["push"] * 4 + ["take over", "write", "write", "archived", "fill", "fill"])
    if kind == "push":
        payload = rng.randbytes(rng.randrange(40))
        limit = rng.choice([1 << 20, 1 << 20, 300])
        return PUSH, [EVENTS, BACKLOG_BYTES], [limit, len(payload) + 128, payload]
    if kind == "take over":
        view = f"hash{rng.randrange(3)}"
        catalog: list[Word] = [view, rng.randrange(9), rng.choice("01"), "other", 1, "0"]
        may_set_up = rng.choice(["1", "0"])
        fixed: list[Word] = [rng.randrange(12), "abc1", may_set_up, rng.randrange(99)]
        fixed += [rng.choice(["abc1", "other", ""]), rng.choice("01")]
        return TAKE_OVER, [CHECKPOINT, CATALOG, LOG_START, FILLS], [*fixed, *catalog]
    if kind == "archived":
        prefix = rng.choice([b"abc1:", b"abc1:3:", b"", b"b"])
        fixed = [prefix, rng.choice([newest, b"5-0"]), rng.randrange(300), "9-1:7"]
        return ARCHIVED, [CHECKPOINT, EVENTS, BACKLOG_BYTES, LOG_START], fixed
    if kind == "fill":
        view = rng.choice([*fills, b"hash1"])
        mark = fills.get(view, b"1:0:waits:0:0")
        words: list[Word] = [checkpoint or b"none", view, mark if rng.random() < 0.8 else b"x"]
        words += [rng.choice([b"", b"1:2:runs:3:%d" % rng.randrange(9)]), 5]
        return FILL, [CHECKPOINT, FILLS, CATALOG, *add_rows(rng, words)], words
    dead = rng.choice([0, 0, 1, 2])
    # A new checkpoint that may be compared with, at the newest entry or at none.
    after = rng.choice([newest, b"5-0"])
    new = b"abc1:%d:%s:%d" % (rng.randrange(12), after, rng.randrange(99))
    before = checkpoint if checkpoint and rng.random() < 0.8 else b"abc1:0:0-0:0"
    start = rng.choice([b"", b"%d-0:%d" % (rng.randrange(9), rng.randrange(99))])
    arguments: list[Word] = [before, new, after, start]
    arguments += [rng.randrange(300), "hr:progress", 3, dead]
    for _ in range(dead):
        arguments += [rng.choice([b"1-0", newest]), f"reason {rng.random()}", rng.randbytes(9)]
    rows = add_rows(rng, arguments)
    return WRITE, [CHECKPOINT, EVENTS, BACKLOG_BYTES, DEAD_LETTERS, LOG_START, *rows], arguments


def add_rows(rng: random.Random, arguments: list[Word]) -> list[bytes]:
    """Add changes of rows to a script's arguments; return the rows' keys."""
    rows = rng.sample(ROWS, rng.randrange(4))
    left = len(rows)
    while left:
        number = rng.randrange(1, left + 1)
        left -= number
        # Set, appended to, or replaced at its start.
        step = rng.choice([0, 15, 50, -rng.randrange(1, 12)])
        ttl_ms = 0 if step < 0 else rng.choice([0, 0, 86_400_000])
        arguments += [number, ttl_ms, step, *(rng.randbytes(20) for _ in range(number))]
    return rows


async def entries(store: OnlineStore, key: bytes) -> list[Any]:
    reply: list[Any] = await store.execute("XRANGE", key, "-", "+")
    return reply


async def real_content(store: OnlineStore) -> dict[str, Any]:
    catalog = await store.execute("HGETALL", CATALOG)
    fills = await store.execute("HGETALL", FILLS)
    strings = [CHECKPOINT, BACKLOG_BYTES, LOG_START, *ROWS]
    ttls = [await store.execute("PTTL", key) for key in ROWS]
    return {
        "strings": await store.get_many(strings),
        "kept for ever": [ttl == -1 for ttl in ttls],
        "expire within a day": [0 < ttl <= 86_400_000 for ttl in ttls],
        "catalog": dict(zip(catalog[::2], catalog[1::2], strict=True)),
        "fills": dict(zip(fills[::2], fills[1::2], strict=True)),
        "events": await entries(store, EVENTS),
        "dead": await entries(store, DEAD_LETTERS),
        "waiting": await store.execute("XREAD", "COUNT", 2, "STREAMS", EVENTS, "5-0"),
    }


def fake_content(fake: FakeStore) -> dict[str, Any]:
    def stream(key: bytes) -> list[Any]:
        found = fake.streams.get(key, Stream()).entries
        return [[id_text(entry), fields] for entry, fields in found]

    def call(*command: bytes) -> Any:
        return fake.execute(list(command))

    return {
        "strings": call(b"MGET", CHECKPOINT, BACKLOG_BYTES, LOG_START, *ROWS),
        "kept for ever": [key in fake.strings and key not in fake.ttl_ms for key in ROWS],
        "expire within a day": [key in fake.ttl_ms for key in ROWS],
        "catalog": fake.hashes.get(CATALOG, {}),
        "fills": fake.hashes.get(FILLS, {}),
        "events": stream(EVENTS),
        "dead": stream(DEAD_LETTERS),
        "waiting": fake.read_after(EVENTS, (5, 0), 2),
    }


@pytest.mark.parametrize("seed", range(4))
async def test_the_scripts_do_in_the_fake_what_they_do_in_the_store(
    valkey: LiveValkey, seed: int
) -> None:
    rng = random.Random(seed)
    store = OnlineStore(valkey.url)
    clock = [0]
    fake = FakeStore(lambda: clock[0])
    seen = set()
    for _ in range(250):
        newest = (await entries(store, EVENTS) or [[b"7-0"]])[-1][0]
        script, keys, arguments = random_call(
            rng, fake.strings.get(CHECKPOINT), newest, fake.hashes.get(FILLS, {})
        )
        real = await store.run(script, keys, arguments)
        # New entries carry the real store's clock: lend it to the fake.
        stream = await entries(store, EVENTS if script is PUSH else DEAD_LETTERS)
        clock[0] = id_of(stream[-1][0])[0] if stream else 0
        source = script.source.encode()
        words = [str(len(keys)).encode(), *keys, *map(as_bytes, arguments)]
        assert fake.execute([b"EVAL", source, *words]) == real
        seen.add((script.sha, type(real)))
        assert fake_content(fake) == await real_content(store)
    # Each script took each of its ways.
    ways = {(PUSH.sha, bytes), (PUSH.sha, int), (TAKE_OVER.sha, bytes), (WRITE.sha, list)}
    assert seen >= ways | {(WRITE.sha, bytes), (ARCHIVED.sha, int), (ARCHIVED.sha, bytes)} | {
        (FILL.sha, list),
        (FILL.sha, int),
    }
    await store.close()


async def test_what_the_stores_refuse_is_the_same(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    connection = await store._connect_shared()
    call = ("EVALSHA", WRITE.sha, 0)
    valkey.command("SCRIPT", "FLUSH")
    unknown = await connection.call(call, 1.0)
    assert isinstance(unknown, hiredis.ReplyError)
    fake = FakeStore(lambda: 0)
    word = str(unknown).partition(" ")[0]
    assert str(fake.execute([as_bytes(w) for w in call])).startswith(word)

    # Out of memory a script is refused before its first write, so that none is done in part.
    checkpoint = b"abc1:1:0-0:0"
    await store.execute("SET", CHECKPOINT, checkpoint)
    fake.strings[CHECKPOINT] = checkpoint
    push: Call = (PUSH, [EVENTS, BACKLOG_BYTES], [9999, 130, b"x"])
    start: list[Word] = [2, "abc1", "1", 0, "", "0", "hash", 1, "0"]
    take_over: Call = (TAKE_OVER, [CHECKPOINT, CATALOG, LOG_START, FILLS], start)
    keys = [CHECKPOINT, EVENTS, BACKLOG_BYTES, DEAD_LETTERS, LOG_START, ROWS[0]]
    letter: list[Word] = ["1-0", "reason", b"payload"]
    arguments: list[Word] = [checkpoint, b"abc1:1:1-0:1", "1-0", "", 0, "hr:progress", 3, 1]
    write: Call = (WRITE, keys, [*arguments, *letter, 1, 0, 0, b"row"])
    before = await real_content(store)
    valkey.command("CONFIG", "SET", "maxmemory", "1")
    fake.out_of_memory = True
    try:
        for script, names, words in (push, take_over, write):
            tail = (len(names), *names, *words)
            real = await connection.call(("EVAL", script.source, *tail), 1.0)
            assert isinstance(real, hiredis.ReplyError)
            refusal = fake.execute([as_bytes(w) for w in ("EVAL", script.source, *tail)])
            assert str(refusal).partition(" ")[0] == str(real).partition(" ")[0] == "OOM"
    finally:
        valkey.command("CONFIG", "SET", "maxmemory", "0")
    assert await real_content(store) == before == fake_content(fake)
    await store.close()
