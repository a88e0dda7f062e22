"""A Predictor by itself: what it takes, what it refuses, and with which words."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from features import definitions_from_source
from features.snapshots.file import open_snapshot, write_snapshot
from features.snapshots.from_history import rows_of_history
from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
)
from server.embedded import Predictor
from tests.features.snapshots.test_taking import UNTIL_US, VIEWS, events
from tests.server.serving import write_plain_version, write_version
from tests.support.bundles import manifest
from tests.support.ride_history import history_of
from tests.support.rides import DEFINITIONS, HOUR_US
from trainer.bundle import Signature, TensorSpec, write_bundle

RIDE: dict[str, Any] = {"driver_id": [1, 2], "city": ["Oslo", "Bern"], "distance": [2.5, 7.0]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_version(root)
    write_plain_version(root)
    history = history_of(root / "history", events())
    write_snapshot(root / "features.snapshot", rows_of_history(history, VIEWS, UNTIL_US))
    return root


@pytest.fixture(scope="module")
def tips(root: Path) -> Iterator[Predictor]:
    with Predictor(root / "tips-1", root / "features.snapshot") as predictor:
        yield predictor


@pytest.fixture(scope="module")
def plain(root: Path) -> Iterator[Predictor]:
    with Predictor(str(root / "plain-3")) as predictor:
        yield predictor


def test_it_says_what_it_is(tips: Predictor, plain: Predictor) -> None:
    assert (tips.model, plain.model) == ("tips", "plain")
    assert tips.digest.startswith("sha256:")
    assert tips.service is not None
    assert tips.service.columns == DEFINITIONS.service("tips").columns
    assert tips.snapshot is not None
    assert tips.snapshot.taken_at_us == UNTIL_US
    assert (plain.service, plain.snapshot) == (None, None)


def test_the_answer_is_the_graphs_of_the_features_that_it_shows(
    tips: Predictor, root: Path
) -> None:
    answer = tips.predict(RIDE, event_time=UNTIL_US)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(root / "tips-1" / "model.onnx", options)
    assert answer.features is not None
    (expected,) = session.run(None, {"features": answer.features.matrix()})
    assert answer.outputs.tobytes() == expected.tobytes()
    assert answer.decisions == ["high" if p >= 0.5 else "low" for p in expected.ravel()]
    assert answer.explanations == []


def test_columns_may_come_as_lists_or_arrays(tips: Predictor) -> None:
    expected = tips.predict(RIDE, event_time=UNTIL_US).outputs.tobytes()
    others = [
        {"driver_id": (1, 2), "city": ("Oslo", "Bern"), "distance": (2.5, 7)},
        {"driver_id": np.array([1, 2], np.uint8), "city": np.array(["Oslo", "Bern"]),
         "distance": np.array([2.5, 7.0], np.float32)},
        {"driver_id": ["1", "2"], "city": np.array(["Oslo", "Bern"], object),
         "distance": [np.float64(2.5), np.int32(7)]},
    ]  # fmt: skip
    for inputs in others:
        assert tips.predict(inputs, event_time=UNTIL_US).outputs.tobytes() == expected
    whole = {**RIDE, "distance": [3, 4]}
    as_array = {**RIDE, "distance": np.array([3, 4])}
    assert (
        tips.predict(whole, event_time=UNTIL_US).outputs.tobytes()
        == tips.predict(as_array, event_time=UNTIL_US).outputs.tobytes()
    )


def test_as_many_rows_as_there_are_have_their_answers_in_order(
    plain: Predictor, tips: Predictor
) -> None:
    values = np.linspace(-5, 5, 10_000).astype(np.float32)
    together = plain.predict({"x": values}).outputs
    for row in (0, 4095, 4096, 8191, 9999):
        assert together[row] == plain.predict({"x": values[row : row + 1]}).outputs[0]
    many = {name: values * 2100 for name, values in RIDE.items()}
    few, all_of_them = (tips.predict(each, event_time=UNTIL_US) for each in (RIDE, many))
    assert all_of_them.outputs.tobytes() == few.outputs.tobytes() * 2100
    assert all_of_them.decisions == few.decisions * 2100
    assert few.features is not None
    assert all_of_them.features is not None
    assert all_of_them.features.words.tobytes() == few.features.words.tobytes() * 2100
    assert all_of_them.features.status.tobytes() == few.features.status.tobytes() * 2100


def test_a_time_may_be_microseconds_text_or_a_datetime(tips: Predictor) -> None:
    expected = tips.get_features(RIDE, event_time=UNTIL_US)
    moment = datetime.fromtimestamp(UNTIL_US / 1e6, UTC)
    for when in (moment, moment.isoformat()):
        found = tips.get_features(RIDE, event_time=when)
        assert found.words.tobytes() == expected.words.tobytes()
    now = tips.get_features(RIDE)
    assert now.column("driver_rides:count_7d").values.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("inputs", "when", "text"),
    [
        ({}, UNTIL_US, "no rows"),
        ({**RIDE, "city": ["Oslo"]}, UNTIL_US, "column 'city' has another length"),
        ({**RIDE, "driver_id": 7}, UNTIL_US, "column 'driver_id' is not a list"),
        ({**RIDE, "city": "Oslo"}, UNTIL_US, "column 'city' is not a list"),
        ({**RIDE, "distance": ["far", "near"]}, UNTIL_US, "column 'distance', row 0"),
        ({**RIDE, "distance": np.array([[2.5], [7.0]])}, UNTIL_US, "column 'distance', row 0"),
        ({**RIDE, "driver_id": np.array([2**63, 1], np.uint64)}, UNTIL_US, "'driver_id' holds"),
        ({"city": ["Oslo"], "distance": [1.0]}, UNTIL_US, "join key 'driver_id' is missing"),
        ({"city": ["Oslo"], "driver_id": [1]}, UNTIL_US, "'distance' is missing"),
        (RIDE, "noon", "event_time: not a time"),
        (RIDE, datetime(2013, 3, 15), r"event_time: not a time.*with a time zone"),  # noqa: DTZ001
        (RIDE, -1, "event_time is out of range"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_and_the_next_call_answered(
    tips: Predictor, inputs: dict[str, Any], when: Any, text: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        tips.predict(inputs, event_time=when)
    assert len(tips.predict(RIDE, event_time=UNTIL_US).outputs) == 2


def test_tensors_are_checked_as_the_server_checks_them(plain: Predictor) -> None:
    rows = np.array([[0.5], [-2.0]], np.float32)
    expected = plain.infer({"x": rows})["probability"]
    assert expected.shape == (2, 1)
    assert np.array_equal(plain.infer({"x": [[0.5], [-2.0]]})["probability"], expected)
    for tensors, text in [
        ({}, "missing required input"),
        ({"x": rows, "y": rows}, "unexpected inference input 'y'"),
        ({"x": rows.astype(np.float64)}, "data-type is 'FP64', but model 'plain' expects 'FP32'"),
        ({"x": rows[:, 0]}, "unexpected shape for input 'x'"),
        ({"x": [["a"], ["b"]]}, "'x' is no array"),
        ({"x": rows.astype(np.complex64)}, "of a type that no tensor has"),
    ]:
        with pytest.raises(InvalidArgumentError, match=text):
            plain.infer(tensors)


def test_it_works_where_an_event_loop_runs(plain: Predictor) -> None:
    async def ask() -> np.ndarray[Any, Any]:
        return plain.predict({"x": [0.5]}).outputs

    assert np.array_equal(asyncio.run(ask()), plain.predict({"x": [0.5]}).outputs)


def test_explanations_where_there_are_some(plain: Predictor) -> None:
    (explanation,) = plain.predict({"x": [0.5]}, explain=True).explanations
    score = plain.predict({"x": [0.5]}).outputs[0, 0]
    assert explanation.features == ["x"]
    assert explanation.values.sum() + explanation.base[0] == pytest.approx(score, abs=1e-6)


def test_features_need_a_snapshot_that_has_their_views(root: Path, tmp_path: Path) -> None:
    with Predictor(root / "tips-1") as predictor:
        with pytest.raises(FailedPreconditionError, match="need a snapshot"):
            predictor.predict(RIDE)
        predictor.use_snapshot(root / "features.snapshot")
        expected = predictor.predict(RIDE, event_time=UNTIL_US).outputs.tobytes()
        history = history_of(tmp_path / "history", events())
        few = rows_of_history(history, [VIEWS[0]], UNTIL_US)
        write_snapshot(tmp_path / "few.snapshot", few)
        with pytest.raises(FailedPreconditionError, match="has not view 'pair_rides'"):
            predictor.use_snapshot(tmp_path / "few.snapshot")
        assert predictor.predict(RIDE, event_time=UNTIL_US).outputs.tobytes() == expected
        later = rows_of_history(history, VIEWS, UNTIL_US - 4 * HOUR_US)
        write_snapshot(tmp_path / "earlier.snapshot", later)
        predictor.use_snapshot(tmp_path / "earlier.snapshot")
        found = predictor.get_features(RIDE, event_time=UNTIL_US)
        assert found.column("driver_rides:minutes_count_1h").values.tolist() == [0, 0]


def test_the_rows_of_a_call_are_of_one_snapshot(root: Path, tmp_path: Path) -> None:
    history = history_of(tmp_path / "history", events())
    write_snapshot(tmp_path / "empty.snapshot", rows_of_history(history, VIEWS, 0))
    snapshots = [
        open_snapshot(at) for at in (root / "features.snapshot", tmp_path / "empty.snapshot")
    ]
    many = {name: values * 4096 for name, values in RIDE.items()}
    ended = threading.Event()
    with Predictor(root / "tips-1", snapshots[0]) as predictor:

        def change() -> None:
            while not ended.is_set():
                for snapshot in snapshots:
                    predictor.use_snapshot(snapshot)

        changing = threading.Thread(target=change)
        changing.start()
        try:
            for _ in range(6):
                outputs = predictor.predict(many, event_time=UNTIL_US).outputs
                assert outputs.tobytes() == outputs[:2].tobytes() * 4096
        finally:
            ended.set()
            changing.join()


def test_a_service_of_the_request_alone_needs_no_snapshot(tmp_path: Path) -> None:
    source = b"""
import numpy as np
from features import Column, FeatureService, Field, Float64, RequestSource, on_demand_feature_view

asked = RequestSource("asked", [Field("a", Float64)])

@on_demand_feature_view(inputs=[asked], fields=[Field("twice", Float64)])
def computed(inputs):
    return {"twice": Column(inputs["a"].values * 2, inputs["a"].valid)}

plain = FeatureService("plain", 1, [computed])
"""
    service = definitions_from_source(source).service("plain")
    write_version(tmp_path, "asked", service=service, source=source)
    with Predictor(tmp_path / "asked-1") as predictor:
        found = predictor.get_features({"a": [1.5, None]})
        assert found.column("computed:twice").values.tolist()[0] == 3.0
        assert len(predictor.predict({"a": [1.5, None]}).outputs) == 2


def test_a_score_of_nan_has_no_decision_but_its_place(root: Path, tmp_path: Path) -> None:
    names = ("model.onnx", "golden.arrow", "card.md", "profile.arrow")
    signature = Signature(
        [TensorSpec("x", "FP32", [-1, 1])], [TensorSpec("probability", "FP32", [-1, 1])]
    )
    write_bundle(
        tmp_path / "decided",
        manifest("decided", signature=signature),
        {name: root / "plain-3" / name for name in names},
    )
    with Predictor(tmp_path / "decided") as predictor:
        assert np.isnan(predictor.predict({"x": [float("inf")]}).outputs).all()
        assert predictor.predict({"x": [float("inf")]}).decisions == [""]
        parts = predictor.predict({"x": [0.5] * 4096 + [float("inf")]}).decisions
        assert (len(parts), parts[-1]) == (4097, "")
        assert parts[0] in {"on time", "late"}


def test_a_bundle_is_checked_before_it_answers(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such bundle"):
        Predictor(tmp_path / "nothing")
    with pytest.raises(FailedPreconditionError, match="another bundle"):
        Predictor(root / "plain-3", digest="sha256:" + "0" * 64)
    changed = tmp_path / "changed"
    shutil.copytree(root / "plain-3", changed)
    model = bytearray((changed / "model.onnx").read_bytes())
    model[-1] ^= 1
    (changed / "model.onnx").write_bytes(bytes(model))
    with pytest.raises(FailedPreconditionError, match="other bytes than the manifest says"):
        Predictor(changed)
    write_version(tmp_path, "tips", seed=8, golden_shift=0.5)
    with pytest.raises(FailedPreconditionError, match="golden rows"):
        Predictor(tmp_path / "tips-8")


def test_a_closed_one_refuses(root: Path) -> None:
    predictor = Predictor(root / "plain-3")
    predictor.close()
    predictor.close()
    with pytest.raises(FailedPreconditionError, match="closed"):
        predictor.predict({"x": [0.5]})


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_one_that_is_forgotten_leaves_nothing_open(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = Predictor(root / "plain-3")
        predictor.predict({"x": [0.5]})
        before = open_files()
        del predictor
        gc.collect()
    assert open_files() < before


def test_a_child_is_told_to_make_its_own(plain: Predictor) -> None:
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons': threads run here
        pid = os.fork()
    if pid == 0:
        text = b"it answered"
        try:
            plain.predict({"x": [0.5]})
        except HeadraceError as error:
            text = error.message.encode()
        finally:
            os.write(write_end, text)
            os._exit(0)
    os.waitpid(pid, 0)
    assert b"before the fork" in os.read(read_end, 1000)
    os.close(read_end)
    os.close(write_end)


def test_what_has_no_features_says_so(plain: Predictor) -> None:
    with pytest.raises(FailedPreconditionError, match="no feature service"):
        plain.get_features({"x": [1.0]})
