"""The door against the general way: the same answers, the same counts, every call ended once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import (
    DeadlineExceededError,
    HeadraceError,
    InternalError,
    ResourceExhaustedError,
)
from server.execution import waiting
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads
from server.models.repository import ModelRepository
from server.protocol.infer_door import Call
from server.protocol.infer_template import Template
from tests.server.onnx_models import mlp_model, put
from tests.server.protocol.infer_worlds import KINDS, World, load, request, rows_of


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(1, 1) as executor:
        yield executor


@pytest.fixture
def world(tmp_path: Path, executor: RunThreads) -> World:
    return World(load(tmp_path, executor))


@pytest.fixture
async def held(executor: RunThreads) -> AsyncIterator[threading.Event]:
    """The only thread of the executor is busy until this is set."""
    gate = threading.Event()
    done = executor.submit(gate.wait, 10)
    yield gate
    gate.set()
    done.result()


def counts(statistics: Statistics) -> dict[str, object]:
    """Return all that does not depend on the clock."""
    return {
        "rows": statistics.inference_count,
        "runs": statistics.execution_count,
        "success": statistics.success.count,
        "fail": statistics.fail.count,
        "queue": statistics.queue.count,
        "input": statistics.compute_input.count,
        "infer": statistics.compute_infer.count,
        "output": statistics.compute_output.count,
        "batches": {size: part.compute_infer.count for size, part in statistics.batches.items()},
    }


def difference(before: dict[str, object], after: dict[str, object]) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, value in after.items():
        earlier = before[name]
        if isinstance(value, dict) and isinstance(earlier, dict):
            result[name] = {
                k: n - earlier.get(k, 0) for k, n in value.items() if n != earlier.get(k, 0)
            }
        elif isinstance(value, int) and isinstance(earlier, int):
            result[name] = value - earlier
    return result


def take(world: World, *calls: Call) -> list[Call]:
    given = list(calls)
    rest = world.door.take(given, time.monotonic_ns())
    given.clear()  # the wire uses its list again
    return rest


async def until_ended(world: World, *calls: Call) -> None:
    books = world.books
    async with asyncio.timeout(5):
        while not {call[1] for call in calls} <= {*books.replies, *books.errors, *books.dropped}:
            books.something_ended.clear()
            await books.something_ended.wait()


async def test_what_is_not_learnt_goes_the_general_way(world: World) -> None:
    call = world.call(rows_of(1))
    assert world.door.take([], 0) == []
    assert take(world, call) == [call]
    await world.learn(rows_of(1, seed=1))
    assert take(world, call) == []
    assert world.books.replies == {call[1]: await world.general(rows_of(1))}


async def test_a_tick_is_one_run_and_counts_as_the_general_way_does(world: World) -> None:
    messages = [rows_of(1, seed=seed) for seed in range(6)]
    await world.learn(messages[0])
    zero = counts(world.statistics("mlp"))
    general = await asyncio.gather(*(world.general(message) for message in messages))
    one = counts(world.statistics("mlp"))
    calls = [world.call(message) for message in messages]
    assert take(world, *calls) == []
    two = counts(world.statistics("mlp"))
    assert [world.books.replies[call[1]] for call in calls] == general
    assert world.books.sends == [6]
    assert difference(zero, one) == difference(one, two)
    assert difference(one, two)["batches"] == {6: 1}


async def test_times_are_counted_for_every_request(world: World) -> None:
    await world.learn(rows_of(1))
    statistics = world.statistics("mlp")
    before = statistics.success.total_ns, statistics.queue.total_ns
    now_ns = time.monotonic_ns()
    world.door.take([world.call(rows_of(1)) for _ in range(4)], now_ns - 1_000_000)
    assert statistics.success.total_ns - before[0] >= 4_000_000
    assert statistics.queue.total_ns - before[1] >= 4_000_000
    assert abs(statistics.last_inference_ms - time.time_ns() // 1_000_000) < 5000


async def test_batches_keep_to_their_limit_whatever_they_are_made_of(world: World) -> None:
    """Requests of 1, 3 and 5 rows, with and without an id: at most 8 rows a run, own rows back."""
    kinds = [(1, ""), (3, ""), (5, ""), (1, "a"), (3, "bc")]
    for rows, name in kinds:
        await world.learn(rows_of(rows, id=name))
    messages = [rows_of(rows, seed=seed, id=name) for seed in range(4) for rows, name in kinds]
    general = [await world.general(message) for message in messages]
    before = counts(world.statistics("mlp"))
    calls = [world.call(message) for message in messages]
    assert take(world, *calls) == []
    assert [world.books.replies[call[1]] for call in calls] == general
    seen = difference(before, counts(world.statistics("mlp")))
    assert seen["rows"] == 4 * 13
    assert seen["success"] == 20
    batches = seen["batches"]
    assert isinstance(batches, dict)
    assert max(batches) <= 8
    assert sum(size * count for size, count in batches.items()) == 4 * 13
    assert seen["runs"] == sum(batches.values()) <= 9


async def test_many_models_and_strangers_in_one_tick(world: World) -> None:
    add = {"INPUT0": ("INT32", np.arange(8, dtype=np.int32).reshape(2, 4)),
           "INPUT1": ("INT32", np.full((2, 4), 7, np.int32))}  # fmt: skip
    known = [
        rows_of(1),
        rows_of(1, model="twin", seed=3),
        rows_of(2, model_version="1"),
        request("add", add),
        request("add", add, wanted=["OUTPUT1"]),
        request("add", add, wanted=["OUTPUT1", "OUTPUT0"], id="17"),
        request("fixed", add),
    ]
    await world.learn(*known)
    assert len(world.templates) == len(known)
    strangers = [rows_of(1, model="nobody"), b"", b"\x0a", rows_of(3)]
    calls = [world.call(message) for message in (*known, *strangers) for _ in range(2)]
    rest = take(world, *calls)
    assert {call[1] for call in rest} == {call[1] for call in calls[len(known) * 2 :]}
    for index, message in enumerate(known):
        expected = await world.general(message)
        for call in calls[index * 2 : index * 2 + 2]:
            assert world.books.replies[call[1]] == expected


@pytest.mark.parametrize("datatype", list(KINDS))
async def test_every_datatype_is_answered_right(world: World, datatype: str) -> None:
    random = np.random.default_rng(5)
    dtypes = {"FP32": "<f4", "FP16": "<f2", "UINT8": "u1", "INT64": "<i8", "BOOL": "?"}
    messages = []
    for _ in range(4):
        if datatype == "BYTES":
            array = np.frombuffer(b"\1\0\0\0a" * 2, "V5").reshape(1, 2)
        else:
            array = random.integers(0, 2, size=(1, 2)).astype(dtypes[datatype])
        messages.append(request(f"same_{datatype}", {"TEXT": (datatype, array)}))
    await world.learn(messages[0])
    calls = [world.call(message) for message in messages]
    rest = take(world, *calls)
    assert rest == (calls if datatype in {"BOOL", "BYTES"} else [])
    for call, message in zip(calls, messages, strict=True):
        if call not in rest:
            assert world.books.replies[call[1]] == await world.general(message)


async def test_text_that_comes_out_goes_back_to_each_its_own(world: World) -> None:
    messages = [
        request("words", {"x": ("FP32", np.full((rows, 2), seed, np.float32))}, id=name)
        for rows in (1, 2)
        for name in ("", "abc")
        for seed in range(3)
    ]
    await world.learn(*messages)
    calls = [world.call(message) for message in messages]
    assert take(world, *calls) == []
    for call, message in zip(calls, messages, strict=True):
        assert world.books.replies[call[1]] == await world.general(message)


async def test_shapes_that_depend_on_the_values_are_told_as_they_are(world: World) -> None:
    messages = [
        request("nonzero", {"x": ("FP32", np.array(values, np.float32))})
        for values in ([1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 2])
    ]
    await world.learn(messages[0])
    calls = [world.call(message) for message in messages]
    assert take(world, *calls) == []
    for call, message in zip(calls, messages, strict=True):
        assert world.books.replies[call[1]] == await world.general(message)


async def test_an_output_of_no_elements_goes_back_to_each(world: World) -> None:
    message = request("nothing", {"x": ("FP32", np.ones((1, 2), np.float32))})
    await world.learn(message)
    calls = [world.call(message) for _ in range(3)]
    assert take(world, *calls) == []
    assert set(world.books.replies.values()) == {await world.general(message)}


@pytest.mark.parametrize(
    ("model", "name", "shape"),
    [("mlp", "features", (0, 3)), ("same_INT64", "TEXT", (2, 0)), ("gather", "index", (0,))],
)
async def test_a_tensor_of_no_elements_goes_the_general_way(
    world: World, model: str, name: str, shape: tuple[int, ...]
) -> None:
    kind = ("FP32", "<f4") if model == "mlp" else ("INT64", "<i8")
    message = request(model, {name: (kind[0], np.zeros(shape, kind[1]))})
    await world.learn(message)
    assert len(world.templates) == 0


async def test_a_model_that_mixes_rows_is_answered_one_by_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    messages = [
        request("mixing", {"x": ("FP32", np.full((2, 2), seed, np.float32))}) for seed in range(3)
    ]
    await world.learn(messages[0])
    for _ in range(2):
        calls = [world.call(message) for message in messages]
        assert take(world, *calls) == []
        for call, message in zip(calls, messages, strict=True):
            assert world.books.replies[call[1]] == await world.general(message)
    assert world.statistics("mixing").fail.count == 0


async def test_a_bad_row_costs_nobody_else_the_answer(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def message(index: int) -> bytes:
        return request("gather", {"index": ("INT64", np.array([index], np.int64))})

    await world.learn(message(0))
    before = counts(world.statistics("gather"))
    calls = [world.call(message(index)) for index in (1, 99, 3)]
    assert take(world, *calls) == []
    assert isinstance(world.books.errors[calls[1][1]], InternalError)
    for call, index in ((calls[0], 1), (calls[2], 3)):
        reply = pb.ModelInferResponse.FromString(world.books.replies[call[1]])
        assert np.frombuffer(reply.raw_output_contents[0], "<f4").tolist() == [index]
    seen = difference(before, counts(world.statistics("gather")))
    assert (seen["success"], seen["fail"], seen["runs"]) == (2, 1, 2)


async def test_a_swapped_version_is_never_served_from_what_was_learnt(
    world: World, tmp_path: Path, executor: RunThreads
) -> None:
    """Another version answers from the next tick on, and an unloaded one no more."""
    await world.learn(rows_of(1), rows_of(1, model_version="1"))
    root = tmp_path / "next"
    put(root, "mlp", mlp_model(seed=9), version=2, config="max_batch_size: 8")
    swapped = ModelRepository(root, executor)
    await asyncio.to_thread(lambda: asyncio.run(swapped.load_all()))
    first = world.call(rows_of(1))
    assert take(world, first) == []
    world.repository._models["mlp"] = swapped._models["mlp"]
    plain, named = world.call(rows_of(1)), world.call(rows_of(1, model_version="1"))
    assert take(world, plain) == [plain]
    assert take(world, plain, named) == [plain, named]
    assert len(world.templates) == 0
    await world.learn(rows_of(1))
    assert take(world, plain, named) == [named]
    reply = pb.ModelInferResponse.FromString(world.books.replies[plain[1]])
    assert reply.model_version == "2"
    assert world.books.replies[plain[1]] == await world.general(rows_of(1))
    assert world.books.replies[plain[1]] != world.books.replies[first[1]]
    del world.repository._models["mlp"]
    gone = world.call(rows_of(1))
    assert take(world, gone) == [gone]


async def test_a_model_under_a_plan_is_left_to_the_general_way(world: World) -> None:
    await world.learn(rows_of(1))
    world.released.planned = ["mlp"]
    call = world.call(rows_of(1))
    assert take(world, call) == [call]
    with pytest.raises(HeadraceError, match="plan's own way"):
        await world.general(rows_of(1), teach=True)
    assert len(world.templates) == 0
    world.released.planned = []
    await world.learn(rows_of(1))
    assert take(world, call) == []


async def test_a_deadline_that_passed_is_not_worked_for(world: World) -> None:
    await world.learn(rows_of(1))
    before = counts(world.statistics("mlp"))
    calls = [world.call(rows_of(1, seed=n), timeout) for n, timeout in enumerate((-1, 0, 10**12))]
    assert take(world, *calls) == []
    assert set(world.books.replies) == {calls[0][1], calls[2][1]}
    assert isinstance(world.books.errors[calls[1][1]], DeadlineExceededError)
    assert world.books.replies[calls[2][1]] == await world.general(rows_of(1, seed=2))
    lonely = world.call(rows_of(1), 0)
    take(world, lonely)
    assert isinstance(world.books.errors[lonely[1]], DeadlineExceededError)
    seen = difference(before, counts(world.statistics("mlp")))
    assert (seen["success"], seen["fail"]) == (3, 2)  # the general one is the third


@pytest.mark.wire("B3-24")
@pytest.mark.parametrize("model", ["mlp", "words", "nothing"])
async def test_b3_24_a_deadline_that_passes_during_the_run_ends_its_call_alone(
    world: World, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(seed: int) -> bytes:
        if model == "mlp":
            return rows_of(2, seed=seed)
        return request(model, {"x": ("FP32", np.full((2, 2), seed, np.float32))})

    await world.learn(message(0))
    runs_of_it = world.repository.get(model).batcher._runs
    run, hour_ns, short_ns = runs_of_it._run, 3_600 * 10**9, 50_000_000

    def slow(feeds: list[np.ndarray]) -> list[np.ndarray]:
        began_ns = time.monotonic_ns()
        outputs = run(feeds)
        while time.monotonic_ns() < began_ns + short_ns:
            pass
        return outputs

    timeouts = (-1, short_ns, hour_ns, short_ns)
    calls = [world.call(message(n), timeout) for n, timeout in enumerate(timeouts)]
    wanted = {calls[n][1]: await world.general(message(n)) for n in (0, 2)}
    before = counts(world.statistics(model))
    monkeypatch.setattr(runs_of_it, "_run", slow)
    assert take(world, *calls) == []
    assert world.books.replies == wanted
    assert world.books.errors.keys() == {calls[1][1], calls[3][1]}
    assert all(isinstance(e, DeadlineExceededError) for e in world.books.errors.values())
    seen = difference(before, counts(world.statistics(model)))
    assert (seen["success"], seen["fail"]) == (2, 2)
    lonely = world.call(message(1), short_ns)
    assert take(world, lonely) == []
    assert isinstance(world.books.errors[lonely[1]], DeadlineExceededError)


async def test_a_long_run_leaves_the_loop_and_later_ticks_wait_for_it(
    world: World, held: threading.Event
) -> None:
    await world.learn(rows_of(1), rows_of(2))
    model = world.repository.get("mlp")
    for rows in (1, 2, 4, 8):
        for _ in range(60):
            model.batcher.expect(rows, 1_000_000_000)
    early = asyncio.create_task(world.general(rows_of(1, seed=6)))
    await asyncio.sleep(0)  # its flush is due
    first = world.call(rows_of(1))
    assert take(world, first) == []
    assert not world.books.replies
    before = counts(model.statistics)
    later = [world.call(rows_of(rows, seed=rows)) for rows in (1, 2)]
    for call in later:
        assert take(world, call) == []
    ordinary = asyncio.create_task(world.general(rows_of(1, seed=5)))
    late = world.call(rows_of(1), 500_000_000)
    left = world.call(rows_of(1))
    take(world, late, left)
    world.books.closed.add(left[1])
    await asyncio.sleep(0)
    assert isinstance(world.books.errors[late[1]], ResourceExhaustedError)  # at once
    assert model.waiting == 4  # the flush that was due did not start a second run
    held.set()
    await until_ended(world, first, *later, late, left)
    answer = await ordinary
    assert len(await early) > 0
    assert world.books.dropped == {left[1]}
    seen = difference(before, counts(model.statistics))
    assert seen["batches"] == {2: 1, 4: 1}  # the first run was not counted yet
    assert (seen["success"], seen["fail"]) == (5, 1)
    assert model.waiting == 0
    model.batcher.expect(1, 1)
    assert answer == await world.general(rows_of(1, seed=5))
    assert world.books.replies[later[1][1]] == await world.general(rows_of(2, seed=2))


async def test_a_full_queue_says_so_and_who_left_makes_room(
    world: World, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "WAITING_MAX", 4)
    monkeypatch.setattr(waiting, "_SEARCH_AGAIN_NS", 0)
    await world.learn(rows_of(1))
    model = world.repository.get("mlp")
    for _ in range(60):
        model.batcher.expect(1, 1_000_000_000)
        model.batcher.expect(4, 1_000_000_000)
    first = world.call(rows_of(1))
    take(world, first)
    calls = [world.call(rows_of(1, seed=n)) for n in range(6)]
    take(world, *calls)
    assert set(world.books.errors) == {call[1] for call in calls[4:]}
    full = world.books.errors[calls[4][1]]
    assert isinstance(full, ResourceExhaustedError)
    assert "mlp" in full.message
    none = world.call(rows_of(1))
    take(world, none)
    assert none[1] in world.books.errors
    with pytest.raises(ResourceExhaustedError):
        await world.general(rows_of(1))
    world.books.closed |= {calls[0][1], calls[2][1]}
    room = world.call(rows_of(1, seed=9))
    take(world, room)
    assert world.books.dropped == {calls[0][1], calls[2][1]}
    assert model.waiting == 3
    held.set()
    await until_ended(world, first, *calls, room)
    assert {first[1], calls[1][1], calls[3][1], room[1]} == set(world.books.replies)
    assert model.statistics.fail.count == 4


async def test_a_call_that_left_within_its_tick_is_not_run_by_a_costly_model(
    world: World,
) -> None:
    await world.learn(rows_of(1))
    model = world.repository.get("mlp")
    for _ in range(60):
        for rows in (1, 2, 4):
            model.batcher.expect(rows, 500_000)
    before = counts(model.statistics)
    calls = [world.call(rows_of(1, seed=n)) for n in range(3)]
    world.books.closed.add(calls[1][1])
    assert take(world, *calls) == []
    assert world.books.dropped == {calls[1][1]}
    assert len(world.books.replies) == 2
    assert difference(before, counts(model.statistics))["batches"] == {2: 1}


async def test_a_tick_joins_what_coroutines_had_asked_for(world: World) -> None:
    await world.learn(rows_of(1))
    before = counts(world.statistics("mlp"))
    ordinary = asyncio.create_task(world.general(rows_of(2)))
    await asyncio.sleep(0)
    call = world.call(rows_of(1))
    take(world, call)
    assert call[1] in world.books.replies
    assert len(await ordinary) > 0
    assert difference(before, counts(world.statistics("mlp")))["batches"] == {3: 1}


async def test_an_answer_that_cannot_be_written_still_ends_its_calls(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("secret")

    await world.learn(rows_of(1))
    monkeypatch.setattr(Template, "replies", broken)
    calls = [world.call(rows_of(1)) for _ in range(2)]
    assert take(world, *calls) == []
    for call in calls:
        error = world.books.errors[call[1]]
        assert isinstance(error, InternalError)
        assert "secret" not in error.message


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_comes_every_call_ends_once_and_is_counted_once(
    world: World, seed: int
) -> None:
    """Ticks, coroutines, clients that leave and runs that go to the thread and come back."""
    random = np.random.default_rng(seed)
    kinds = [(rows, name) for rows in (1, 2, 3) for name in ("", "id")]
    for rows, name in kinds:
        await world.learn(rows_of(rows, id=name))
    model = world.repository.get("mlp")
    before = counts(model.statistics)
    calls: list[Call] = []
    messages: dict[int, bytes] = {}
    ordinary = []
    for tick in range(60):
        if random.random() < 0.2:  # it looks slow, or quick again
            run_ns = int(random.choice([1_000, 10_000_000_000]))
            for rows in (1, 2, 4, 8):
                model.batcher.expect(rows, run_ns)
        coming = []
        for _ in range(random.integers(0, 9)):
            rows, name = kinds[random.integers(len(kinds))]
            message = rows_of(rows, seed=int(random.integers(1000)), id=name)
            call = world.call(message, int(random.choice([-1, -1, 0, 10**12])))
            messages[call[1]] = message
            coming.append(call)
        calls += coming
        assert take(world, *coming) == []
        if random.random() < 0.3:
            ordinary.append(asyncio.create_task(world.general(rows_of(2, seed=tick))))
        if calls and random.random() < 0.3:
            left = calls[random.integers(len(calls))][1]
            if left not in world.books.replies:
                world.books.closed.add(left)
        if random.random() < 0.5:
            await asyncio.sleep(0)
    await until_ended(world, *calls)
    await asyncio.gather(*ordinary)
    seen = difference(before, counts(model.statistics))
    books = world.books
    assert seen["success"] == len(books.replies) + len(ordinary)
    assert seen["fail"] == len(books.errors)
    assert model.waiting == 0
    assert {type(error) for error in books.errors.values()} <= {DeadlineExceededError}
    for stream, reply in books.replies.items():
        assert reply == await world.general(messages[stream])
