"""Compiled services: order, what is needed from where, and how a batch is put together."""

from __future__ import annotations

import numpy as np
import pytest

from features import (
    Aggregation,
    Bool,
    Column,
    CompiledService,
    Entity,
    EventSource,
    FeatureService,
    FeatureStatus,
    FeatureView,
    Field,
    Float32,
    Int64,
    RequestSource,
    StreamFeatureView,
    String,
    Table,
    Timestamp,
    Uuid,
    Window,
    on_demand_feature_view,
)
from features.row import RowCodec
from features.types import row_count
from headrace.errors import FailedPreconditionError, InvalidArgumentError

PLANE = Entity("plane", ["tailnum"])
PAIR = Entity("pair", ["tailnum", "origin"])
SOURCE = EventSource(
    "legs",
    [
        Field("tailnum", String),
        Field("origin", String),
        Field("delay", Int64),
        Field("maker", String),
        Field("built", Timestamp),
        Field("load", Float32),
    ],
)
HOUR = Window("1h", hop="1min")
RECENT = StreamFeatureView("recent", PAIR, SOURCE, [Aggregation("delay", ["count", "max"], [HOUR])])
FACTS = FeatureView("facts", PLANE, SOURCE, ["maker", "delay", "built", "load"])
ASKED = RequestSource("asked", [Field("scheduled", Timestamp), Field("zone", String)])


@on_demand_feature_view(
    inputs=[ASKED, FACTS["maker", "built"], RECENT["delay_max_1h"]],
    fields=[Field("seconds", Int64), Field("is_boeing", Bool), Field("late", Bool)],
)
def made(inputs: Table) -> Table:
    built, maker, worst = (inputs[n] for n in ("facts:built", "facts:maker", "recent:delay_max_1h"))
    return {
        "seconds": Column((inputs["scheduled"].values - built.values) // 10**6, built.valid),
        "is_boeing": Column(np.array([m == "BOEING" for m in maker.values]), maker.valid),
        "late": Column(worst.values > 15, worst.valid),
    }


SERVICE = CompiledService(
    FeatureService("s", 3, [made["is_boeing", "seconds"], FACTS["load"], RECENT["delay_count_1h"]])
)
REQUEST: Table = {
    "scheduled": Column(np.array([9_000_000, 9_000_000])),
    "zone": Column(np.array(["a", "b"], dtype=object)),
}


def test_columns_stand_in_the_order_of_the_declaration() -> None:
    assert SERVICE.columns == [
        "made:is_boeing", "made:seconds", "facts:load", "recent:delay_count_1h",
    ]  # fmt: skip
    assert [d.value for d in SERVICE.dtypes] == ["bool", "int64", "float32", "int64"]
    assert (SERVICE.name, SERVICE.version) == ("s", 3)
    assert SERVICE.hash == SERVICE.definition.hash


def test_only_what_is_needed_is_taken_from_the_stored_views() -> None:
    assert [view.view.name for view in SERVICE.views] == ["facts", "recent"]
    facts, recent = SERVICE.views
    assert facts.targets.tolist() == [4, -1, 5, 2]  # delay is not needed
    assert facts.variables == ["maker"]
    assert recent.targets.tolist() == [3, 6]
    assert SERVICE.assembly_columns == 7
    assert SERVICE.entities == [PLANE, PAIR]
    assert {n: d.value for n, d in SERVICE.request_fields.items()} == {
        "scheduled": "timestamp",
        "zone": "string",
    }


def fill(makers: list[str | None], status: list[int]):  # type: ignore[no-untyped-def]
    assembly = SERVICE.start(2)
    codec = RowCodec.of_view(FACTS)
    blank = np.array([m or "" for m in makers], dtype=object)
    table: Table = {
        "maker": Column(blank, np.array([m is not None for m in makers])),
        "delay": Column(np.array([1, 1])),
        "built": Column(np.array([4_000_000, 5_000_000])),
        "load": Column(np.array([0.1, 0.5])),
    }
    zeros = np.zeros(2, dtype=np.int64)
    rows = codec.pack(table, zeros, zeros, zeros)
    present = [r if s == FeatureStatus.PRESENT else None for r, s in zip(rows, status, strict=True)]
    assembly.put_rows(SERVICE.views[0], codec.unpack(present), np.array(status, dtype=np.uint8))
    return assembly


def cells(batch):  # type: ignore[no-untyped-def]
    return {n: (batch.status[:, i].tolist(), batch.words[:, i].tolist())
            for i, n in enumerate(batch.service.columns)}  # fmt: skip


def test_a_batch_is_put_together_from_its_parts() -> None:
    assembly = fill(["BOEING", None], [0, 0])
    recent = SERVICE.views[1]
    assembly.mark(recent, FeatureStatus.UNAVAILABLE)
    batch = assembly.finish(SERVICE.check_request(REQUEST))
    tenth = int(np.float64(np.float32(0.1)).view(np.int64))
    assert cells(batch) == {
        "made:is_boeing": ([0, 1], [1, 0]),
        "made:seconds": ([0, 0], [5, 4]),
        "facts:load": ([0, 0], [tenth, int(np.float64(0.5).view(np.int64))]),
        "recent:delay_count_1h": ([4, 4], [0, 0]),
    }


def test_a_row_that_is_not_there_gives_its_status_and_nulls_what_is_made_of_it() -> None:
    batch = fill(["BOEING", "AIRBUS"], [3, 2]).finish(SERVICE.check_request(REQUEST))
    assert cells(batch) == {
        "made:is_boeing": ([1, 1], [0, 0]),
        "made:seconds": ([1, 1], [0, 0]),
        "facts:load": ([3, 2], [0, 0]),
        "recent:delay_count_1h": ([2, 2], [0, 0]),
    }


def test_a_function_that_forgets_the_masks_sees_blanks() -> None:
    seen: list[list[object]] = []

    @on_demand_feature_view(
        inputs=[ASKED, FACTS["maker", "built"]], fields=[Field("anything", Int64)]
    )
    def careless(inputs: Table) -> Table:
        seen.extend(column.values.tolist() for column in inputs.values())
        return {"anything": Column(np.zeros(2, dtype=np.int64))}

    service = CompiledService(FeatureService("s", 1, [careless]))
    assembly = service.start(2)
    codec = RowCodec.of_view(FACTS)
    stale: Table = {
        "maker": Column(np.array(["BOEING", "AIRBUS"], dtype=object), np.array([True, False])),
        "delay": Column(np.array([1, 2])),
        "built": Column(np.array([7, 8]), np.array([True, False])),
        "load": Column(np.array([0.1, 0.5])),
    }
    rows = codec.unpack(codec.pack(stale, *(np.zeros(2, dtype=np.int64) for _ in range(3))))
    rows.fields["maker"] = stale["maker"]  # as history hands it over
    assembly.put_rows(service.views[0], rows, np.zeros(2, dtype=np.uint8))
    nulls = np.array([False, True])
    request = {name: Column(column.values, nulls) for name, column in REQUEST.items()}
    assembly.finish(service.check_request(request))
    assert seen == [[0, 9_000_000], [None, "b"], ["BOEING", None], [7, 0]]


def test_marking_some_rows_leaves_the_others() -> None:
    assembly = fill(["BOEING", "BOEING"], [0, 0])
    assembly.mark(SERVICE.views[0], FeatureStatus.NOT_FOUND, np.array([True, False]))
    batch = assembly.finish(SERVICE.check_request(REQUEST))
    assert cells(batch)["facts:load"][0] == [2, 0]
    assert cells(batch)["made:seconds"][0] == [1, 0]
    assert cells(batch)["made:is_boeing"][0] == [1, 0], "texts are marked too"
    assembly.mark(SERVICE.views[0], FeatureStatus.UNAVAILABLE)
    batch = assembly.finish(SERVICE.check_request(REQUEST))
    assert cells(batch)["facts:load"][0] == [4, 4]
    assert cells(batch)["made:is_boeing"][0] == [1, 1]


def test_a_request_is_checked_and_coerced() -> None:
    given = REQUEST | {"scheduled": Column(np.array([1, 2], dtype=np.uint8))}
    given["other"] = Column(np.array([0.5, 0.5]))
    checked = SERVICE.check_request(given)
    assert list(checked) == ["scheduled", "zone"]
    assert checked["scheduled"].values.dtype == np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scheduled": None},
            "service 's': request field 'scheduled' is missing.*got columns zone",
        ),
        ({"scheduled": None, "zone": None}, "request field 'scheduled' is missing.*no columns"),
        ({"scheduled": Column(np.array([0.5, 1.0]))}, "'scheduled' has a wrong type.*float64"),
        ({"zone": Column(np.array([1, 2]))}, "'zone' has a wrong type.*expected string, got int64"),
        (
            {"zone": Column(np.array(["a"], dtype=object))},
            "'zone' has another length.*got 1",
        ),
    ],
)
def test_a_bad_request_is_named(change: dict[str, Column | None], message: str) -> None:
    request = {n: c for n, c in (REQUEST | change).items() if c is not None}  # type: ignore[operator]
    with pytest.raises(InvalidArgumentError, match=message):
        SERVICE.check_request(request)


def test_a_request_field_has_one_type() -> None:
    @on_demand_feature_view(
        inputs=[RequestSource("again", [Field("zone", Int64)])], fields=[Field("z", Int64)]
    )
    def other(inputs: Table) -> Table:
        return {"z": inputs["zone"]}

    with pytest.raises(InvalidArgumentError, match=r"'zone' has two types.*string and int64"):
        CompiledService(FeatureService("s", 1, [made, other]))


def test_an_empty_table_has_no_rows() -> None:
    assert row_count({}, "here") == 0


def test_entities_that_share_a_key_agree_on_its_type() -> None:
    source = EventSource("visits", [Field("user", Uuid), Field("n", Int64)])
    names = EventSource("names", [Field("user", String), Field("m", Int64)])
    typed = Entity("typed", ["user"], key_types={"user": Uuid})
    plain = FeatureView("plain", Entity("plain", ["user"]), names, ["m"])
    view = FeatureView("typed_view", typed, source, ["n"])
    assert CompiledService(FeatureService("s", 1, [view])).input_types == {"user": Uuid}
    with pytest.raises(
        InvalidArgumentError, match=r"join key 'user' has two types.*int64 and uuid"
    ):
        CompiledService(FeatureService("s", 1, [plain, view]))


def test_a_model_takes_numbers_only() -> None:
    service = CompiledService(FeatureService("s", 1, [FACTS["delay", "maker"]]))
    with pytest.raises(FailedPreconditionError, match=r"'facts:maker' cannot be a model's input"):
        service.check_is_numeric()
    CompiledService(FeatureService("s", 1, [FACTS["delay"]])).check_is_numeric()
