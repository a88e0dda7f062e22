"""Files of skops answer as scikit-learn does, or do not load; and none of them is a program.

What scikit-learn 1.9 said to the files in `golden/` lies there; where skops is installed, every
kind is saved and asked.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import FailedPreconditionError, HeadraceError
from server.backends.sklearn.backend import read_sklearn
from server.backends.sklearn.skops_file import SkopsFile
from server.execution.session import Session
from tests.server.backends.forests.test_forests import explained
from tests.server.backends.serving import Served
from tests.server.backends.sklearn.estimators import CASES, fitted, rows

GOLDEN = Path(__file__).parent / "golden"
ANSWERS = json.loads((GOLDEN / "answers.json").read_text())


def put(root: Path, name: str, data: bytes, filename: str = "model.skops") -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / filename).write_bytes(data)


def saved(name: str) -> bytes:
    return (GOLDEN / f"{name}.skops").read_bytes()


def answers(data: bytes, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    (found,) = Session(read_sklearn(data).graph("in", "out"), Path()).run([matrix])
    assert found.dtype == np.float32
    return np.asarray(found)


@pytest.mark.parametrize("name", ANSWERS)
def test_what_scikit_learn_said(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, saved(name))
    matrix = np.array(ANSWERS[name]["rows"], np.float32)
    expected = np.array(ANSWERS[name]["answers"])
    with Served(tmp_path) as served:
        assert not served.reason(name)
        found = served.infer(name, features=matrix)
        one = served.infer(name, features=matrix[:1])
        config = served.repository.get(name).config
    ((output, answer),) = found.items()
    assert output == {
        "class": "probability", "three": "probabilities", "number": "value", "numbers": "value",
        "counts": "value",
    }[CASES[name].target]  # fmt: skip
    assert (config.backend, config.default_model_filename) == ("sklearn", "model.skops")
    np.testing.assert_allclose(answer, expected, rtol=2e-6, atol=1e-6)
    assert one[output].tobytes() == answer[:1].tobytes()


@pytest.mark.parametrize("name", CASES)
def test_every_kind_that_is_served(name: str) -> None:
    skops = pytest.importorskip("skops.io", reason="skops is not in the lock")
    model = fitted(name)
    matrix = rows(500, 3, missing=CASES[name].missing)
    if hasattr(model, "predict_proba"):
        expected = model.predict_proba(matrix.astype(np.float64))
        expected = expected[:, 1:] if expected.shape[1] == 2 else expected
    else:
        expected = model.predict(matrix.astype(np.float64)).reshape(len(matrix), -1)
    found = answers(skops.dumps(model), matrix)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "scores"), [("forest_three", 3), ("histogram", 1)])
def test_trees_are_explained_exactly(tmp_path: Path, name: str, scores: int) -> None:
    put(tmp_path, name, saved(name))
    matrix = np.array(ANSWERS[name]["rows"], np.float32)
    with Served(tmp_path) as served:
        method, values, base = explained(served, name, matrix)
    assert method == "tree_shap"
    assert values.shape == (len(matrix), 4, scores)
    expected = np.array(ANSWERS[name]["answers"])
    if name == "histogram":
        expected = np.log(expected / (1 - expected))
    np.testing.assert_allclose(values.sum(axis=1) + base, expected, atol=1e-5)


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("boom").absolute(),))


def repacked(data: bytes, change: Callable[[dict[str, bytes]], None], **more: Any) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        entries = {info.filename: opened.read(info) for info in opened.infolist()}
    change(entries)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", **more) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    return written.getvalue()


def test_nothing_in_a_file_is_ever_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    boom = pickle.dumps(Boom())
    evil = io.BytesIO()
    np.save(evil, np.array([Boom()], object), allow_pickle=True)

    def every_array(entries: dict[str, bytes]) -> None:
        for name in entries:
            if name.endswith(".npy"):
                entries[name] = evil.getvalue()

    def types(entries: dict[str, bytes]) -> None:
        schema = entries["schema.json"].replace(b"sklearn.linear_model", b"tests.server.backends")
        entries["schema.json"] = schema

    for name, filename in (("pkl", "model.pkl"), ("joblib", "model.joblib"), ("s", "model.skops")):
        put(tmp_path / "models", name, boom, filename)
    put(tmp_path / "models", "arrays", repacked(saved("logistic"), every_array))
    put(tmp_path / "models", "types", repacked(saved("logistic"), types))
    with Served(tmp_path / "models") as served:
        for name in ("pkl", "joblib", "s"):
            assert "a pickled model is not opened" in served.reason(name), served.reason(name)
            assert "convert it by skl2onnx" in served.reason(name)
        assert "cannot be read so" in served.reason("arrays")
        assert "an estimator of this type cannot be served" in served.reason("types")
    assert not (tmp_path / "boom").exists()


def schema_with(old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        assert old in entries["schema.json"]
        entries["schema.json"] = entries["schema.json"].replace(old, new)

    return change


def test_what_is_not_served_says_why() -> None:
    cases = [
        (
            repacked(saved("logistic"), schema_with(b'"LogisticRegression"', b'"SVC"')),
            "got sklearn",
        ),
        (saved("no_predictor"), "StandardScaler"),
        (
            repacked(saved("pipeline"), schema_with(b'"SimpleImputer"', b'"KNNImputer"')),
            "a step of this type",
        ),
        (
            repacked(saved("boosting"), schema_with(b'"\\"log_loss\\""', b'"\\"other\\""')),
            "a loss of this kind",
        ),
        (
            repacked(saved("boosting"), schema_with(b'"DummyClassifier"', b'"SVC"')),
            "began with a model",
        ),
        (
            repacked(saved("histogram_counts"), schema_with(b"poisson", b"unknown")),
            "a loss of this kind",
        ),
    ]
    for data, reason in cases:
        with pytest.raises(HeadraceError, match=reason):
            read_sklearn(data).graph("in", "out")
    three = repacked(saved("logistic_three"), schema_with(b'"\\"lbfgs\\""', b'"\\"liblinear\\""'))
    with pytest.raises(HeadraceError, match="one-versus-rest"):
        read_sklearn(three)


def npy(header: str, data: bytes = b"") -> bytes:
    padded = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 4)}"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", b"12345678"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"12345678"),
        npy("{'descr': '<U1', 'fortran_order': False, 'shape': (4,)}", b"1234" * 4),
        npy("__import__('os').abort()"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (4,)}", b"\xff" * 32),
    ],
)
def test_arrays_that_are_none_are_refused(content: bytes) -> None:
    def change(entries: dict[str, bytes]) -> None:
        for name in entries:
            if name.endswith(".npy"):
                entries[name] = content

    with pytest.raises(FailedPreconditionError, match="cannot be read so"):
        read_sklearn(repacked(saved("logistic"), change))


def test_a_file_that_unpacks_to_more_than_memory_is_refused() -> None:
    def bomb(entries: dict[str, bytes]) -> None:
        entries["more"] = b" " * (1 << 28)

    def many_nodes(entries: dict[str, bytes]) -> None:
        entries["schema.json"] = b"[" + b"[]," * (1 << 25) + b"[]]"

    for change in (bomb, many_nodes):
        data = repacked(saved("logistic"), change, compression=zipfile.ZIP_DEFLATED)
        assert len(data) < 1 << 20
        with pytest.raises(FailedPreconditionError, match="too large"):
            read_sklearn(data)
    lzma = repacked(saved("logistic"), lambda _: None, compression=zipfile.ZIP_LZMA)
    for other in (data[: len(data) // 2], lzma):
        with pytest.raises(FailedPreconditionError, match="cannot be read so"):
            read_sklearn(other)


def test_what_many_ask_for_counts_each_time() -> None:
    def large(entries: dict[str, bytes]) -> None:
        (name,) = (name for name, data in entries.items() if data == coefficients)
        entries[name] = npy_of(np.zeros((1, 1 << 24)))

    coefficients = npy_of(SkopsFile(saved("ridge")).root.get("coef_"))
    root = SkopsFile(repacked(saved("ridge"), large, compression=zipfile.ZIP_DEFLATED)).root
    for _ in range(4):  # 128 MiB each
        assert root.get("coef_").shape == (1, 1 << 24)
    with pytest.raises(FailedPreconditionError, match="too large"):
        root.get("coef_")


def npy_of(array: np.ndarray[Any, Any]) -> bytes:
    written = io.BytesIO()
    np.save(written, array)
    return written.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_a_file_says_it_is_a_model_or_refused(data: st.DataObject) -> None:
    def change(entries: dict[str, bytes]) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            name = data.draw(st.sampled_from(sorted(entries)))
            content = bytearray(entries[name])
            at = data.draw(st.integers(0, max(len(content) - 1, 0)))
            content[at : at + data.draw(st.integers(0, 3))] = data.draw(
                st.binary(max_size=2) | st.sampled_from([b"9", b"-1", b"null", b"[]", b"NaN"])
            )
            entries[name] = bytes(content)

    name = data.draw(st.sampled_from(["logistic", "pipeline", "forest", "boosting", "histogram"]))
    try:
        graph = read_sklearn(repacked(saved(name), change)).graph("in", "out")
    except HeadraceError:
        return
    assert graph
