"""The contract of a wire: gRPC and JSON give the same answers, and refuse the same with the same.

Each case is asked over both; what is refused must leave the server answering.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from features import Column
from features.online.payload import EventBatch
from tests.contracts.wires import Answer, Inputs, RefusedError, Truth, Wire, both
from tests.server.processes.running import eventually
from tests.server.serving import plan, start_worker
from tests.server.test_predict import T_US, World
from tests.support.rides import DEFINITIONS, asked, rides

pytestmark = pytest.mark.slow

ONE = asked((1, "Oslo", 2.0))
GOOD: dict[str, tuple[str, Inputs, dict[str, Any]]] = {
    "one row": ("tips", ONE, {}),
    "many rows": ("tips", asked((1, "Oslo", 2.0), (2, "Bern", 5.5)), {"request_ids": ["a", "b"]}),
    "entity never seen": ("tips", asked((404, "Rome", 1.0)), {}),
    "entity null": ("tips", asked((None, "Rome", 1.0)), {}),
    "NaN": ("tips", asked((1, "Oslo", math.nan)), {}),
    "infinities": (
        "tips",
        asked((1, "Oslo", math.inf), (1, "Oslo", -math.inf)),
        {"request_ids": ["a", "b"]},
    ),
    "id as text": ("tips", ONE | {"driver_id": Column(np.array(["1"], object))}, {}),
    "whole number": ("tips", ONE | {"distance": Column(np.array([2]))}, {}),
    "column more": ("tips", ONE | {"colour": Column(np.array([1]))}, {}),
    "without a service": ("plain", {"x": Column(np.array([0.5, math.nan]))},
                          {"request_ids": ["a", "b"]}),
}  # fmt: skip


def without(name: str) -> Inputs:
    return {key: column for key, column in ONE.items() if key != name}


def changed(name: str, *values: Any) -> Inputs:
    kind = object if isinstance(values[0], str) else None
    return ONE | {name: Column(np.array(values, kind))}


def ride(source: str = "rides", columns: Inputs | None = None, later_us: int = 0) -> EventBatch:
    whole = rides((T_US, 7, "Oslo", 1, 1.0))
    return EventBatch(
        source, whole.columns if columns is None else columns, whole.event_times_us + later_us
    )


BAD: dict[str, tuple[str, Inputs, dict[str, Any], str, str]] = {
    "unknown model": ("nope", ONE, {}, "not_found", "model 'nope'"),
    "unknown version": ("tips", ONE, {"version": "v9"}, "not_found", "no version v9"),
    "no rows": ("tips", {}, {"request_ids": []}, "invalid_argument", "no rows"),
    "wrong dtype": ("tips", changed("distance", "far"), {}, "invalid_argument", "'distance'"),
    "wrong dtype of an id": ("tips", changed("driver_id", 1.5), {}, "invalid_argument",
                             "'driver_id'"),
    "id too long": ("tips", changed("driver_id", "1" * 5000), {}, "invalid_argument",
                    "entity 'driver'"),
    "wrong shape": ("tips", changed("distance", 1.0, 2.0), {}, "invalid_argument", "'distance'"),
    "missing input": ("tips", without("distance"), {}, "invalid_argument",
                      "'distance' is missing"),
    "missing entity": ("tips", without("city"), {}, "invalid_argument", "'city' is missing"),
    "request ids": ("tips", ONE, {"request_ids": ["a", "b"]}, "invalid_argument", "request_ids"),
    "no offset": ("tips", ONE, {"min_offset": "soon"}, "invalid_argument", "'soon'"),
    "event time too late": ("tips", ONE, {"event_time": 1 << 62}, "invalid_argument",
                            "event_time is out of range"),
    "event time too early": ("tips", ONE, {"event_time": -1}, "invalid_argument",
                             "event_time is out of range"),
    "missing tensor": ("plain", ONE, {}, "invalid_argument", "'x' is missing"),
    "null tensor": ("plain", {"x": Column(np.array([1.0]), np.array([False]))}, {},
                    "invalid_argument", "'x' has a null"),
    "wrong dtype of a tensor": ("plain", {"x": Column(np.array(["a"], object))}, {},
                                "invalid_argument", "'x' has a wrong type"),
}  # fmt: skip
ID = bytes.fromhex("013d6debc27b700080050001deadbeef")
TRUTH: Truth = (ID, "tip", 1.0, T_US)
CALLS: dict[str, tuple[Callable[[Wire], object], str, str]] = {
    "unknown service": (lambda wire: wire.features("nope", ONE), "not_found", "'nope'"),
    "features of no row": (lambda wire: wire.features("tips", {}), "invalid_argument", "'tips'"),
    "features of a wrong id": (
        lambda wire: wire.features("tips", changed("driver_id", 1.5)),
        "invalid_argument", "'driver_id'"),
    "features too late": (lambda wire: wire.features("tips", ONE, event_time=1 << 62),
                          "invalid_argument", "event_time"),
    "push of nothing": (lambda wire: wire.push([]), "invalid_argument", "push"),
    "push to an unknown source": (
        lambda wire: wire.push([ride(source="ridez")]),
        "invalid_argument", "ridez"),
    "push without a field": (
        lambda wire: wire.push([ride(columns={})]),
        "invalid_argument", "'driver_id' is missing"),
    "push at no time": (
        lambda wire: wire.push([ride(later_us=1 << 62)]),
        "invalid_argument", "event_time"),
    "push of the future": (
        lambda wire: wire.push([ride(later_us=100 * 365 * 86_400_000_000)]),
        "invalid_argument", "event_time of row 0 is ahead of the server's clock"),
    "no truth": (lambda wire: wire.feedback([]), "invalid_argument", "number of truths"),
    "truth without a name": (lambda wire: wire.feedback([(ID, "", 1.0, T_US)]),
                             "invalid_argument", "name"),
    "truth NaN": (lambda wire: wire.feedback([(ID, "tip", math.nan, T_US)]), "invalid_argument",
                  "value of 'tip'"),
    "truth at no time": (lambda wire: wire.feedback([(ID, "tip", 1.0, (1 << 63) - 1)]),
                         "invalid_argument", "times"),
}  # fmt: skip


def ask(wire: Wire, model: str = "tips", inputs: Inputs = ONE, **fields: Any) -> Answer:
    return wire.predict(model, inputs, **({"event_time": T_US, "request_ids": ["r"]} | fields))


def refusals(world: World, call: Callable[[Wire], object]) -> dict[str, RefusedError]:
    """What each wire says to the call."""
    found = {}
    for name, wire in both(world).items():
        with pytest.raises(RefusedError) as caught:
            call(wire)
        found[name] = caught.value
    return found


def check(found: dict[str, RefusedError], code: str, text: str) -> None:
    for name, refused in found.items():
        assert refused.code == code, name
        assert text in refused.text, name
        assert "Traceback" not in refused.text


@pytest.mark.parametrize("case", GOOD)
def test_both_give_the_same_answer(world: World, case: str) -> None:
    model, inputs, fields = GOOD[case]
    found = {
        name: ask(wire, model, inputs, return_features=True, **fields)
        for name, wire in both(world).items()
    }
    assert found["grpc"] == found["rest"]
    assert all(not math.isnan(value) for value in found["grpc"].outputs)


@pytest.mark.parametrize("case", BAD)
def test_both_refuse_the_same_with_the_same_and_go_on(world: World, case: str) -> None:
    model, inputs, fields, code, text = BAD[case]
    check(refusals(world, lambda wire: ask(wire, model, inputs, **fields)), code, text)
    for wire in both(world).values():
        assert len(ask(wire).outputs) == 1


@pytest.mark.parametrize("case", CALLS)
def test_every_other_call_is_refused_the_same(world: World, case: str) -> None:
    call, code, text = CALLS[case]
    found = refusals(world, call)
    check(found, code, text)
    assert found["grpc"].text == found["rest"].text


def test_features_events_and_truth_are_the_same_on_both(world: World) -> None:
    wires = both(world)
    inputs = asked((1, "Oslo", 2.0), (404, "Rome", 1.0))
    values, status = wires["grpc"].features("tips", inputs, event_time=T_US)
    assert wires["rest"].features("tips", inputs, event_time=T_US) == (values, status)
    assert list(values) == DEFINITIONS.service("tips").columns
    for wire in wires.values():
        assert wire.push([ride(), ride()]) == 2
        assert wire.feedback([TRUTH, TRUTH]) == 2


def test_what_was_refused_cost_no_row_of_the_log(world: World) -> None:
    before = world.log("tips", 0).num_rows
    refusals(world, lambda wire: ask(wire, event_time=1 << 62))
    for wire in both(world).values():
        ask(wire)
    assert world.log("tips", before + 2).num_rows >= before + 2
    assert world.collector.process.poll() is None


def test_no_number_becomes_infinity_on_its_way(world: World) -> None:
    request = '{"model": "plain", "inputs": {"x": [%s]}}'
    for number, status in (("1e999", 400), ("Infinity", 200), ("-Infinity", 200), ("NaN", 200)):
        assert world.post("/v1/predict", (request % number).encode())[0] == status, number


def test_an_event_time_needs_the_replay_scope(world: World, tmp_path: Path) -> None:
    config = {
        "registry": f"file://{world.bundles}",
        "plan": plan(1, plain=[(world.versions[2], "live", 1.0)]),
    }
    plain = {"x": Column(np.array([0.5]))}
    with start_worker(tmp_path, **config) as worker:
        ready = worker.event("ready")
        with grpc.insecure_channel(ready["grpc"]) as channel:
            other = replace(world, channel=channel, grpc=ready["grpc"], http=ready["http"])
            found = refusals(other, lambda wire: ask(wire, "plain", plain))
            check(found, "permission_denied", "event_time needs the replay scope")
            for wire in both(other).values():
                assert len(wire.predict("plain", plain).outputs) == 1


def test_without_the_store_both_say_so_and_serve_what_needs_none(world: World) -> None:
    plain = {"x": Column(np.array([0.5]))}
    world.valkey.kill()
    try:
        for call in (
            ask,
            lambda wire: wire.features("tips", ONE),
            lambda wire: wire.push([ride()]),
        ):
            check(refusals(world, call), "unavailable", "store")
        for wire in both(world).values():
            assert len(ask(wire, "plain", plain).outputs) == 1
    finally:
        world.valkey.start()
    for wire in both(world).values():
        assert len(patient(wire).outputs) == 1


def patient(wire: Wire) -> Answer:
    """Ask until the store is back: the worker connects again by itself."""
    answers: list[Answer] = []

    def is_back() -> bool:
        try:
            answers.append(ask(wire))
        except RefusedError as error:
            assert error.code == "unavailable"  # noqa: PT017 - anything else is a failure
            return False
        return True

    eventually(is_back, "the store is back")
    return answers[0]
