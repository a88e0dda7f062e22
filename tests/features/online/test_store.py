"""The store's client: replies never cross, losses are short, errors name the store."""

from __future__ import annotations

import asyncio
import gc
import random
import time

import pytest

from features.online.resp import PENDING_CALLS_MAX
from features.online.store import OnlineStore, Script
from headrace.errors import (
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.features.online.fake_store import fake_store
from tests.support.valkey import LiveValkey, free_port, running_valkey


async def test_get_many_keeps_the_order_and_shows_what_is_missing(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    await store.execute("SET", "a", b"\x00\xff")
    await store.execute("SET", "b", b"")
    assert await store.get_many([b"b", b"none", b"a", b"b"]) == [b"", None, b"\x00\xff", b""]
    await store.close()


async def test_cancelled_calls_never_cross_their_replies(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    rng = random.Random(3)
    for number in range(200):
        await store.execute("SET", f"k{number}", f"v{number}" * 50)

    async def one(number: int) -> bool:
        keys = [b"k%d" % (number % 200), b"k%d" % ((number + 7) % 200)]
        expected = [b"v%d" % (number % 200) * 50, b"v%d" % ((number + 7) % 200) * 50]
        reply = await store.get_many(keys)
        assert reply == expected
        return True

    tasks = []
    for burst in range(100):
        started = [asyncio.create_task(one(burst * 10 + number)) for number in range(10)]
        tasks += started
        await asyncio.sleep(0)  # they have sent their calls, and wait
        for task in rng.sample(started, 3):
            task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    cancelled = sum(isinstance(answer, asyncio.CancelledError) for answer in answers)
    assert cancelled == 300
    assert answers.count(True) == 700
    await store.execute("PING")
    assert store.pending_calls == 0
    await store.close()


async def test_a_store_that_answers_nothing_costs_one_timeout_not_one_each(
    own_valkey: LiveValkey,
) -> None:
    store = OnlineStore(own_valkey.url, call_timeout_s=0.1)
    await store.execute("SET", "k", "v")
    own_valkey.pause()
    started_s = time.monotonic()
    calls = [asyncio.create_task(store.get_many([b"k"])) for _ in range(200)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - started_s < 1.0
    assert all(isinstance(answer, UnavailableError) for answer in answers)
    assert "online store: no reply in time" in str(answers[0])
    assert store.pending_calls == 0
    own_valkey.resume()
    assert await eventually(store) == [b"v"]
    await store.close()


async def test_what_waits_for_the_store_is_bounded(own_valkey: LiveValkey) -> None:
    store = OnlineStore(own_valkey.url)
    await store.execute("PING")
    own_valkey.pause()
    calls = [asyncio.create_task(store.execute("PING")) for _ in range(PENDING_CALLS_MAX + 100)]
    await asyncio.sleep(0)
    refused = [call for call in calls if call.done()]
    assert len(refused) == 100
    for call in refused:
        with pytest.raises(ResourceExhaustedError, match="too many calls wait for the store"):
            call.result()
    own_valkey.resume()
    await asyncio.gather(*(call for call in calls if call not in refused))
    assert store.pending_calls == 0
    await store.close()


async def eventually(store: OnlineStore) -> list[bytes | None]:
    """Ask as a client would until the store is back."""
    async with asyncio.timeout(5):
        while True:
            try:
                return await store.get_many([b"k"])
            except UnavailableError:
                await asyncio.sleep(0.01)


async def test_a_killed_store_is_an_error_at_once_and_comes_back_by_itself(
    own_valkey: LiveValkey,
) -> None:
    store = OnlineStore(own_valkey.url)
    await store.execute("SET", "k", "v")
    own_valkey.kill()
    for _ in range(3):
        started_s = time.monotonic()
        with pytest.raises(UnavailableError, match="online store") as caught:
            await store.get_many([b"k"])
        assert time.monotonic() - started_s < 0.5
        assert str(own_valkey.port) not in str(caught.value)
    assert not store.connected
    own_valkey.start()
    assert await eventually(store) == [b"v"]
    await store.close()


async def test_while_it_backs_off_no_connection_is_tried() -> None:
    store = OnlineStore(f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(UnavailableError):
        await store.execute("PING")
    started_s = time.monotonic()
    for _ in range(20):
        with pytest.raises(UnavailableError):
            await store.execute("PING")
    assert time.monotonic() - started_s < 0.02
    await store.close()


async def test_callers_share_one_attempt_to_connect(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    before = int(
        valkey.command("INFO", "stats").split(b"total_connections_received:")[1].split()[0]
    )
    await asyncio.gather(*(store.execute("PING") for _ in range(50)))
    after = int(valkey.command("INFO", "stats").split(b"total_connections_received:")[1].split()[0])
    assert after - before == 2  # ours, and the one that asks
    await store.close()


async def test_an_attempt_to_connect_that_fails_after_its_caller_left_is_no_noise() -> None:
    noise: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    async with fake_store(b"-ERR no such user\r\n") as url:
        store = OnlineStore(url.replace("//", "//:secret@"))
        caller = asyncio.create_task(store.execute("PING"))
        await asyncio.sleep(0)
        caller.cancel()
        attempt = store._connecting
        assert attempt is not None
        await asyncio.wait([attempt], timeout=5)
        del attempt
        gc.collect()
        await store.close()
    assert noise == []


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*2\r\n$1\r\na\r\n?", b"+OK\r\n+OK\r\n"]
)
async def test_garbage_closes_the_connection(answer: bytes) -> None:
    async with fake_store(answer) as url:
        store = OnlineStore(url, call_timeout_s=0.5)
        try:
            await store.execute("PING")
        except UnavailableError:
            pass
        else:
            assert answer.startswith(b"+OK")  # its own reply was whole; the second one was too much
        assert not store.connected
        await store.close()


WHOLE = b"*2\r\n$3\r\nabc\r\n$-1\r\n"


@pytest.mark.parametrize("cut", range(len(WHOLE)))
async def test_a_reply_cut_anywhere_is_no_reply(cut: int) -> None:
    async with fake_store(WHOLE[:cut], then_close=True) as url:
        store = OnlineStore(url)
        with pytest.raises(UnavailableError, match="connection was lost"):
            await store.get_many([b"a", b"b"])
        await store.close()


@pytest.mark.parametrize(
    ("reply", "error", "stays"),
    [
        (b"-LOADING Valkey is loading\r\n", UnavailableError, False),
        (b"-READONLY You can't write\r\n", UnavailableError, False),
        (b"-NOAUTH Authentication required.\r\n", UnavailableError, False),
        (b"-OOM command not allowed\r\n", ResourceExhaustedError, True),
        (b"-WRONGTYPE Operation\r\n", FailedPreconditionError, True),
        (b"-ERR unknown command /secret/path\r\n", InternalError, True),
    ],
)
async def test_refusals_become_our_errors(
    reply: bytes, error: type[Exception], stays: bool
) -> None:
    async with fake_store(reply) as url:
        store = OnlineStore(url)
        with pytest.raises(error, match="online store") as caught:
            await store.execute("MGET", "a")
        assert "secret" not in str(caught.value)
        assert store.connected is stays
        await store.close()


async def test_a_password_is_sent_and_a_wrong_one_is_told_without_it() -> None:
    with running_valkey("--requirepass", "open sesame") as server:
        good = OnlineStore(f"redis://:open%20sesame@127.0.0.1:{server.port}/2")
        await good.execute("SET", "k", "v")
        assert await good.get_many([b"k"]) == [b"v"]
        await good.close()
        bad = OnlineStore(f"redis://:guess@127.0.0.1:{server.port}")
        with pytest.raises(UnavailableError, match="refused our AUTH") as caught:
            await bad.execute("PING")
        assert "guess" not in str(caught.value)
        await bad.close()


async def test_a_unix_socket_works(tmp_path: object) -> None:
    with running_valkey("--unixsocket", f"{tmp_path}/valkey.sock") as _:
        store = OnlineStore(f"unix://{tmp_path}/valkey.sock")
        await store.execute("SET", "k", "v")
        assert await store.get_many([b"k"]) == [b"v"]
        await store.close()


async def test_a_script_is_sent_again_when_the_store_forgot_it(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    script = Script("return {KEYS[1], ARGV[1]}")
    assert await store.run(script, [b"k"], ["a"]) == [b"k", b"a"]
    valkey.command("SCRIPT", "FLUSH")
    assert await store.run(script, [b"k"], ["b"]) == [b"k", b"b"]
    with pytest.raises(InternalError, match="refused EVAL"):
        await store.run(Script("return redis.call('NONSENSE')"), [b"k"], [])
    await store.close()


async def test_a_closed_store_says_so(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    await store.execute("PING")
    await store.close()
    with pytest.raises(UnavailableError, match="closed"):
        await store.execute("PING")
